"""The speed of our SoundStream compared with EnCodec: `taskset -c 1 python benchmarks/codec.py [SECONDS] [REPEATS] [TRAIN_BATCH]`.

Both have random weights (the time does not depend on them), 24 kHz, 6 kbps, float32 and one thread. Ours has the size `base`. EnCodec is that of
transformers with `EncodecConfig()`, in eager PyTorch; its weight norm is folded into the kernels for encoding and decoding.

encode  wave -> codes, with the quantizer: 1 x SECONDS.
decode  codes -> wave: 1 x SECONDS.
train   forward and backward pass of wave -> encoder -> quantizer, straight-through -> decoder -> mean |difference|: TRAIN_BATCH x 1 s, without optimizer
        and codebook statistics. The last row is the whole adversarial step of `SoundStreamTask`, for which EnCodec's code has no counterpart.

FLOPs of both are counted by the same rule, two per multiplication, of convolutions, LSTMs and distances to codes. Zeros between the samples of a transposed
convolution are not counted, nor are activations, biases and copies. A backward pass counts as two forward passes.
Times are CPU seconds of the process, so that other processes on the core do not count. The two codecs alternate; the ratio is the median over these turns.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Set before JAX is imported, which reads it.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from musiclm_jax.models.soundstream import SoundStream, SoundStreamConfig
from musiclm_jax.nn.quantize import rvq_decode, rvq_encode
from musiclm_jax.tasks.soundstream import SoundStreamTask
from musiclm_jax.training.cost import count_flops

SAMPLE_RATE_HZ, BANDWIDTH_KBPS = 24_000, 6.0
# (a function to time, its floating-point operations).
Run = tuple[Callable[[], object], float]


def ours(wave: np.ndarray, crops: np.ndarray) -> dict[str, Run]:
    """Encoding and decoding of wave [1, N] with our SoundStream, and its training on crops [B, n]."""
    config = SoundStreamConfig()
    model = SoundStream(config)
    params = random_weights(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, config.frame_samples))))["params"]
    books = 0.1 * jax.random.normal(jax.random.key(1), (config.num_levels, config.num_codes, config.dim))

    def encode(params, wave):
        return rvq_encode(books, model.apply({"params": params}, wave, method="encode"))

    def decode(params, codes):
        return model.apply({"params": params}, rvq_decode(books, codes), method="decode")

    def loss(params, wave):
        latents = model.apply({"params": params}, wave, method="encode")
        quantized = rvq_decode(books, rvq_encode(books, jax.lax.stop_gradient(latents)))
        fake = model.apply({"params": params}, latents + jax.lax.stop_gradient(quantized - latents), method="decode")
        return jnp.mean(jnp.abs(fake - wave))

    def run(function, *args) -> Run:
        jitted = jax.jit(function)
        return lambda: jax.block_until_ready(jitted(*args)), count_flops(jax.make_jaxpr(function)(*args).jaxpr)

    wave, crops = jnp.asarray(wave), jnp.asarray(crops)
    codes = jax.jit(encode)(params, wave)
    return {"encode": run(encode, params, wave), "decode": run(decode, params, codes), "train": run(jax.grad(loss), params, crops)}


def our_whole_step(crops: np.ndarray) -> Run:
    """A training step of generator and discriminators, with all losses, codebooks and optimizers."""
    task = SoundStreamTask(SoundStreamConfig(), sample_rate_hz=SAMPLE_RATE_HZ)
    shapes = nn.meta.unbox(jax.eval_shape(task.init_state, jax.random.key(0)))
    # A state of ones is one after the first step, which runs k-means.
    state = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes).replace(params=random_weights(shapes.params))
    args = state, {"wave": jnp.asarray(crops)}, jax.random.key(1)
    step = jax.jit(task.train_step)
    return lambda: jax.block_until_ready(step(*args)), count_flops(jax.make_jaxpr(task.train_step)(*args).jaxpr)


def random_weights(shapes: Any) -> Any:
    """Random kernels [..., D, F] and biases [F], scaled to outputs of about 1. The models' own initializers take too long to compile."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * max(1, np.prod(x.shape[:-1])) ** -0.5, x.dtype), nn.meta.unbox(shapes))


def encodec(wave: np.ndarray, crops: np.ndarray) -> dict[str, Run]:
    """Encoding and decoding of wave [1, N] with EnCodec, and its training on crops [B, n]."""
    torch.manual_seed(0)
    trained, frozen = (transformers.EncodecModel(transformers.EncodecConfig()) for _ in range(2))
    for model in (trained, frozen):
        for level in model.quantizer.layers:
            level.codebook.embed.normal_(std=0.1)
    for module in frozen.modules():
        if torch.nn.utils.parametrize.is_parametrized(module, "weight"):
            torch.nn.utils.parametrize.remove_parametrizations(module, "weight")
    wave, crops = (torch.from_numpy(each)[:, None] for each in (wave, crops))

    @torch.inference_mode()
    def encode():
        return frozen.encode(wave, bandwidth=BANDWIDTH_KBPS).audio_codes

    codes = encode()

    @torch.inference_mode()
    def decode():
        return frozen.decode(codes, [None])

    def train():
        latents = trained.encoder(crops)
        with torch.no_grad():
            quantized = trained.quantizer.decode(trained.quantizer.encode(latents, BANDWIDTH_KBPS))
        fake = trained.decoder(latents + (quantized - latents).detach())
        trained.zero_grad()
        (fake - crops).abs().mean().backward()

    forward, distances = layer_flops(trained, train), distance_flops(trained, crops.shape[0] * crops.shape[-1])
    return {
        "encode": (encode, layer_flops(frozen, encode) + distance_flops(frozen, wave.shape[-1])),
        "decode": (decode, layer_flops(frozen, decode)),
        "train": (train, 3 * forward + distances),
    }


def layer_flops(model: torch.nn.Module, call: Callable[[], object]) -> float:
    """The FLOPs of the convolutions and LSTMs of `model` in the forward pass that `call` runs."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        x = inputs[0]
        if isinstance(module, torch.nn.LSTM):  # [T, B, D]
            total += 2 * x.shape[0] * x.shape[1] * sum(weight.numel() for name, weight in module.named_parameters() if "weight" in name)
        elif isinstance(module, torch.nn.ConvTranspose1d):
            total += 2 * x.shape[0] * x.shape[2] * module.weight.numel()
        else:
            total += 2 * output.shape[0] * output.shape[2] * module.weight.numel()

    counted = [module for module in model.modules() if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d | torch.nn.LSTM)]
    hooks = [module.register_forward_hook(count) for module in counted]
    call()
    for hook in hooks:
        hook.remove()
    return total


def distance_flops(model: transformers.EncodecModel, samples: int) -> float:
    """The FLOPs of the products of every frame with every code, for `samples` samples."""
    config, frames = model.config, samples / model.config.hop_length
    return 2 * frames * model.quantizer.get_num_quantizers_for_bandwidth(BANDWIDTH_KBPS) * config.codebook_size * config.codebook_dim


def cpu_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def columns(length: float, spent: float, flops: float) -> str:
    """Columns for `length` seconds of audio in `spent` seconds: times faster than real time, GFLOP per second of audio, GFLOP/s."""
    return f"{length / spent:.2f}x | {flops / length / 1e9:.2f} | {flops / spent / 1e9:.0f}"


def main(seconds: float = 10.0, repeats: int = 11, train_batch: int = 4) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    noise = lambda *shape: (0.1 * rng.normal(size=shape)).astype(np.float32)  # noqa: E731
    wave, crops = noise(1, round(seconds * SAMPLE_RATE_HZ)), noise(train_batch, SAMPLE_RATE_HZ)
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "unknown")
    cores = os.cpu_count() if not hasattr(os, "sched_getaffinity") else len(os.sched_getaffinity(0))
    print(f"CPU {cpu}, {cores} core(s) used, PyTorch with {torch.get_num_threads()} thread(s), XLA with --xla_cpu_multi_thread_eigen=false")
    print(f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, medians of {repeats} turns")
    us, them = ours(wave, crops), encodec(wave, crops)
    print("| | audio | ours: real time | GFLOP per second of audio | GFLOP/s | EnCodec: real time | GFLOP per second of audio | GFLOP/s "
          "| ratio of real time | ratio of GFLOP/s |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, audio in {"encode": (1, seconds), "decode": (1, seconds), "train": (train_batch, 1.0)}.items():
        (call, flops), (their_call, their_flops) = us[name], them[name]
        call(), their_call()  # The first calls compile and fill the caches.
        turns = [(cpu_seconds(call), cpu_seconds(their_call)) for _ in range(repeats)]
        time_ours, time_theirs = (statistics.median(times) for times in zip(*turns, strict=True))
        faster, length = statistics.median(theirs / one for one, theirs in turns), audio[0] * audio[1]
        both = f"{columns(length, time_ours, flops)} | {columns(length, time_theirs, their_flops)}"
        print(f"| {name} | {audio[0]} x {audio[1]:g} s | {both} | {faster:.2f} | {faster * flops / their_flops:.2f} |", flush=True)
    call, flops = our_whole_step(crops)
    call()
    spent = statistics.median(cpu_seconds(call) for _ in range(max(1, repeats // 2)))
    print(f"| our adversarial step | {train_batch} x 1 s | {columns(train_batch, spent, flops)} | | | | | |")


if __name__ == "__main__":
    main(*(kind(value) for kind, value in zip((float, int, int), sys.argv[1:])))
