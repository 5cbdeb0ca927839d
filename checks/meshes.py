"""Compiles and runs the training step of every part over meshes of 8 virtual devices, and compares it with one device.

    python checks/meshes.py [--task NAME]... [--mesh DATA,FSDP,TENSOR]... [--steps 20]

Of each program it checks:

- memory: XLA's temporaries are at most 1.2 times a device's share of those of one device, plus the gathered weights and their gradients;
- traffic: weights are gathered where `fsdp` splits them, no activation is reduced over devices unless `tensor` splits a product, and none is gathered,
  apart from the embeddings and statistics that a loss compares over the whole batch;
- XLA did not resort to full rematerialization of an array on every device (it says so on stderr);
- the losses of 20 steps equal those of one device to 1e-4, relatively, in float32. They depend on what must be global: the moving averages of a codec's
  codebooks, and the negatives of MuLan and of the melody embedder.

Prints a row per program, and exits with 1 if one fails. `tests/training/test_compiled.py` runs some tasks on two meshes; docs/speed.md says which have passed.
"""

from __future__ import annotations

import os

_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {_QUICK}"}

import argparse  # noqa: E402
import collections  # noqa: E402
import contextlib  # noqa: E402
import dataclasses  # noqa: E402
import re  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

from musiclm_jax.cli.gin_config import load_config  # noqa: E402
from musiclm_jax.models.ast import ASTConfig  # noqa: E402
from musiclm_jax.training import sharding  # noqa: E402
from musiclm_jax.training.compiled import compile_step  # noqa: E402
from musiclm_jax.training.task import Batch, Task, TrainState  # noqa: E402

MESHES = ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2))
# 7 examples on each of 8 devices. No dimension of a weight is a multiple of 7, so an array with such a dimension is an activation.
BATCH_SIZE, PRIME = 56, 7

_STAGE = ["StageConfig.dim=32", "StageConfig.num_heads=8", "StageConfig.mlp_dim=64", "StageConfig.num_layers=2"]
_TEXT = ["TextTowerConfig.vocab_size=64", "TextTowerConfig.dim=32", "TextTowerConfig.num_heads=8", "TextTowerConfig.mlp_dim=64"]
_RESNET = ["ResNetConfig.stem_width=8", "ResNetConfig.stem_kernel=(3,3)", "ResNetConfig.widths=(16,)", "ResNetConfig.norm_group_size=8"]
_MULAN = [*_TEXT, *_RESNET, "MuLanConfig.embedding_dim=16"]
# Part, size and bindings of each task: as small as possible, with dimensions that 8 devices divide.
TASKS: dict[str, tuple[str, str, list[str]]] = {
    "semantic": ("semantic", "test", [*_STAGE, "semantic/StageSpec.window_sec=0.8", "semantic/StageSpec.hop_sec=0.4"]),
    "coarse": ("coarse", "test", [*_STAGE, "coarse/StageSpec.window_sec=0.4", "coarse/StageSpec.hop_sec=0.2"]),
    "fine": ("fine", "test", [*_STAGE, "fine/StageSpec.window_sec=0.2", "fine/StageSpec.hop_sec=0.2"]),
    "w2v_bert": (
        "w2v_bert",
        "test",
        ["W2vBertConfig.conv_channels=(8,8)", "W2vBertConfig.dim=32", "W2vBertConfig.num_heads=8", "W2vBertConfig.mlp_dim=64"]
        + ["W2vBertConfig.num_codes=16", "W2vBertConfig.code_dim=8", "W2vBertPart.crop_sec=0.32", "W2vBertRecipe.num_distractors=5"],
    ),
    "mulan": ("mulan", "test", [*_MULAN, "MuLanPart.crop_sec=0.2"]),
    "mulan_ast": ("mulan", "test", [*_MULAN, "MuLanPart.crop_sec=0.32"]),
    "mulan_pitch_rhythm": (
        "mulan",
        "demo",
        [*_TEXT, "MuLanConfig.embedding_dim=16", "MuLanPart.crop_sec=0.8", "PitchRhythmConfig.widths=(8,16)", "PitchRhythmConfig.time_strides=(2,)"]
        + ["PitchRhythmConfig.num_lags=8", "PitchRhythmConfig.rhythm_width=8", "PitchRhythmConfig.chord_width=8", "PitchRhythmConfig.key_width=8"]
        # At the rate of the size, rounding errors grow tenfold in two steps, also over data=8 alone.
        + ["PitchRhythmConfig.band_width=8", "TextTowerConfig.max_tokens=8", "mulan/OptimizerConfig.learning_rate=1e-4"],
    ),
    "reranker": ("reranker", "test", [*_MULAN, "RerankerPart.crop_sec=0.2"]),
    "semantic_reranker": ("semantic_reranker", "test", [*_MULAN, "SemanticRerankerPart.crop_sec=0.2"]),
    "melody": (
        "melody",
        "test",
        ["MelodyConfig.dim=32", "MelodyConfig.num_heads=8", "MelodyConfig.mlp_dim=64", "MelodyConfig.embedding_dim=16", "MelodyPart.crop_sec=0.2"]
        + ["MelodyConfig.window_sec=0.2", "MelodyConfig.hop_sec=0.2"],
    ),
    "soundstream": (
        "codec",
        "test",
        ["SoundStreamConfig.channels=8", "SoundStreamConfig.decoder_channels=8", "SoundStreamConfig.dim=8", "SoundStreamConfig.kernel_size=3"]
        + ["SoundStreamRecipe.loss_windows=(128,)", "SoundStreamRecipe.loss_mels=(8,)", "CodecPart.crop_sec=0.04"]
        + ["DiscriminatorConfig.wave_scales=1", "DiscriminatorConfig.wave_channels=8", "DiscriminatorConfig.wave_max_channels=16"]
        + ["DiscriminatorConfig.stft_channels=4", "DiscriminatorConfig.stft_window_samples=128", "DiscriminatorConfig.stft_hop_samples=128"],
    ),
    "spectral_codec": (
        "codec",
        "demo",
        ["SpectralCodecConfig.encoder_width=32", "SpectralCodecConfig.decoder_width=32", "SpectralCodecConfig.decoder_dilations=(1,)"]
        + ["SpectralCodecConfig.encoder_dilations=(1,)", "SpectralCodecConfig.dim=8", "SpectralCodecConfig.num_levels=4", "SpectralCodecConfig.num_codes=16"]
        + ["SpectralCodecRecipe.quantizer_start_step=0", "CODEC_LAST_PART=10"]
        + ["SpectralCodecConfig.window_samples=960", "CodecPart.crop_sec=0.08"],
    ),
}


@dataclasses.dataclass(frozen=True)
class Report:
    """What one program was found to do. `collectives`: bytes by operation and by what it moves."""

    mesh: tuple[int, int, int]
    temporaries: int
    weights: int
    collectives: dict[str, int]
    rematerialized: bool
    losses: list[float]


def make_task(name: str) -> tuple[Task, dict[str, jax.ShapeDtypeStruct]]:
    part_name, size, bindings = TASKS[name]
    config = load_config(size, bindings=bindings)
    part = dataclasses.replace(config.part(part_name), batch_size=BATCH_SIZE)
    task = part.task(config)
    if name == "mulan_ast":
        tower = ASTConfig(max_frames=32, patch_size=8, patch_stride=8, dim=32, num_layers=1, num_heads=8, mlp_dim=64)
        task = dataclasses.replace(task, model=dataclasses.replace(task.model, audio=tower))
    return task, part.batch_shapes(config)


def examine(task: Task, start: TrainState, batches: Sequence[Batch], sizes: tuple[int, int, int]) -> Report:
    """Compiles the step over a mesh of the first devices, and takes a step per batch, from the state `start`."""
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = jax.make_mesh(sizes, sharding.MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices)
    key, losses = jax.random.key(0), []
    # A copy, because the program overwrites its state.
    state = jax.device_put(jax.tree.map(np.array, start), sharding.state_shardings(jax.eval_shape(task.init_state, key), mesh))
    with warnings_of_xla() as warnings:
        program = compile_step(task, batches[0], mesh)
    for number, batch in enumerate(batches):
        state, metrics = program(state, sharding.put_batch(batch, mesh), jax.random.fold_in(key, number))
        losses.append(float(metrics["loss"]))
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(start.params))
    return Report(sizes, program.memory_analysis().temp_size_in_bytes, weights, count_collectives(program.as_text()), "rematerialization" in warnings(), losses)


def make_batch(shapes: dict[str, jax.ShapeDtypeStruct], seed: int) -> dict[str, np.ndarray]:
    """A random batch: noisy tones of different pitch, masks that hide nothing, and ids below the number of codes of every stream."""
    rng = np.random.default_rng(seed)
    limits = {"text_ids": 60, "melody": BATCH_SIZE}

    def draw(name: str, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        if shape.dtype == bool:
            return np.ones(shape.shape, bool)
        if np.issubdtype(shape.dtype, np.integer):
            return rng.integers(limits.get(name, 3), size=shape.shape, dtype=shape.dtype)
        tone = np.sin(rng.uniform(0.02, 2, size=(BATCH_SIZE, 1)) * np.arange(shape.size // BATCH_SIZE))
        return (0.3 * tone.reshape(shape.shape) + rng.normal(scale=0.02, size=shape.shape)).astype(shape.dtype)

    return {name: draw(name, shape) for name, shape in shapes.items()}


def count_collectives(text: str) -> dict[str, int]:
    """Bytes of the results of a program's collectives, {"all-gather of weights": ...}. The body of a loop counts once."""
    count: collections.Counter[str] = collections.Counter()
    for made, operation in re.findall(r" = (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", text):
        for kind, dims in re.findall(r"(pred|[a-z]+\d+)\[([\d,]*)\]", made):
            sizes = [int(size) for size in dims.split(",") if size]
            what = "activations" if any(size % PRIME == 0 for size in sizes) else "weights"
            count[f"{operation} of {what}"] += int(np.prod(sizes)) * max(1, int(re.sub(r"\D", "", kind) or 8) // 8)
    return dict(count)


@contextlib.contextmanager
def warnings_of_xla() -> Iterator[Callable[[], str]]:
    """Catches what XLA writes to stderr. Yields a function that returns it, for use after the context."""
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: text
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            text = file.read().decode(errors="replace")


def faults(one: Report, many: Report) -> list[str]:
    """What is wrong with the program on a mesh, given that on one device."""
    data, fsdp, tensor = many.mesh
    found, moved = [], collections.Counter(many.collectives)
    allowed = 1.2 * one.temporaries / (data * fsdp) + 2 * many.weights
    if many.temporaries > allowed:
        found.append(f"temporaries of {many.temporaries} bytes, more than {allowed:.0f}")
    if fsdp > 1 and moved["all-gather of weights"] < many.weights / 8:
        found.append(f"{moved['all-gather of weights']} bytes of weights gathered")
    small = one.temporaries / (data * fsdp) / 50
    for operation in ("all-reduce", "all-gather", "reduce-scatter"):
        if tensor == 1 and moved[f"{operation} of activations"] > small:
            found.append(f"{operation} of {moved[f'{operation} of activations']} bytes of activations")
    if many.rematerialized:
        found.append("involuntary full rematerialization")
    difference = max(abs(a / b - 1) for a, b in zip(many.losses, one.losses, strict=True))
    if not difference <= 1e-4:
        found.append(f"losses differ by {difference:.1e}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", action="append", choices=TASKS, help="default: all")
    parser.add_argument("--mesh", action="append", type=lambda text: tuple(int(size) for size in text.split(",")), help="DATA,FSDP,TENSOR; default: four")
    parser.add_argument("--steps", type=int, default=20)
    options, bad = parser.parse_args(), 0
    for name in options.task or TASKS:
        task, shapes = make_task(name)
        start = jax.jit(lambda key, task=task: sharding.unbox(task.init_state(key)))(jax.random.key(0))
        batches = [make_batch(shapes, step) for step in range(options.steps)]
        one = examine(task, start, batches, (1, 1, 1))
        for mesh in options.mesh or MESHES:
            many = examine(task, start, batches, mesh)
            found, difference = faults(one, many), max(abs(a / b - 1) for a, b in zip(many.losses, one.losses, strict=True))
            bad += bool(found)
            moved = ", ".join(f"{what} {size / 2**10:.0f} KiB" for what, size in sorted(many.collectives.items()) if size >= 2**9)
            share = many.temporaries / one.temporaries
            print(f"{name} {mesh}: temporaries {share:.3f} of one device's, losses {difference:.0e}, {moved}: {'; '.join(found) or 'right'}", flush=True)
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
