"""What a step of training takes, from shapes alone: nothing is allocated and nothing compiled, so that any size can be weighed on any machine."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Var, jaxprs_in_params

from musiclm_jax.data.clips import crop_samples
from musiclm_jax.errors import UserError
from musiclm_jax.parts.steps import RERANKERS, STEPS, TRAINED, FitConfig
from musiclm_jax.tokens import STAGES
from musiclm_jax.training import sharding

# What XLA does not write out: it reads the operand in the shape that is asked for.
_VIEWS = ("broadcast_in_dim", "reshape", "squeeze")


@dataclasses.dataclass(frozen=True)
class DryRun:
    """Counts are of all devices together, unless they say per device."""

    name: str
    # Sizes of the axes.
    mesh: Mapping[str, int]
    # Numbers with a gradient; those with all that a step updates without one, such as codebooks and their statistics; those of the bundle.
    trained: int
    total: int
    exported: int
    batch_size: int
    # Of audio in a batch; an example of the melody embedder is a pair.
    seconds: float
    # Of a stage's batch: those that it learns to predict, and those with what they depend on. None: not a stage.
    target_tokens: int | None
    tokens: int | None
    # By what is held there: parameters, optimizer, statistics (through the whole run), gradients and activations (while a step runs). Of the
    # activations, see `count_activations`, a device has its part of the batch: what `tensor` splits of them besides is not taken off.
    bytes_per_device: Mapping[str, int]
    # See `count_flops`.
    flops: int

    def __str__(self) -> str:
        devices = math.prod(self.mesh.values())
        tokens = "" if self.tokens is None else f", {self.target_tokens:,} tokens to predict, {self.tokens:,} in all"
        held = [f"{name} {_bytes(size)}" for name, size in self.bytes_per_device.items() if size]
        counts = f"{_millions(self.trained)} trained, {_millions(self.total)} with codebooks and statistics, {_millions(self.exported)} in the bundle"
        return "\n".join(
            [
                f"{self.name}: one step of training, from shapes alone",
                f"  mesh        {', '.join(f'{axis}={size}' for axis, size in self.mesh.items())}: devices {devices}",
                f"  parameters  {counts}",
                f"  batch       {self.batch_size} x {self.seconds / self.batch_size:g} s = {self.seconds:,g} s of audio{tokens}",
                f"  per device  {', '.join(held)}: {_bytes(sum(self.bytes_per_device.values()))}",
                "              activations are those of the step as it is written, split as the batch is; not counted: what XLA saves and what it adds",
                "              remat, bfloat16, a smaller batch or a larger data or fsdp make them less",
                f"  work        {self.flops:.3g} FLOP, {self.flops / devices:.3g} per device: matrix products and convolutions, forward and backward",
            ]
        )


def dry_run(name: str, config: FitConfig) -> DryRun:
    """One step of the training of `name`, over the mesh of its `TrainConfig`.

    Raises:
        UserError: the step trains nothing, or its batch does not split over the mesh.
    """
    if name not in TRAINED:
        what = "trains nothing, so that there is nothing to count" if name in STEPS else "does not exist"
        raise UserError(f"step {name!r} {what}: choose one of {', '.join(TRAINED)}")
    task, training, batch = config.task(name), config.training(name), abstract_batch(config, name)
    mesh = sharding.abstract_mesh(training.loop.mesh)
    sharding.check_batch(batch, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed = jax.eval_shape(task.init_state, key)
    state, shardings = sharding.unbox(boxed), sharding.state_shardings(boxed, mesh)
    parameters = _bytes_per_device(state.params, shardings.params)
    rows = max(training.batch_size, 2)  # Without its axis of size 1 a batch of one is another program.
    steps = {count: jax.make_jaxpr(task.train_step)(state, _with_rows(batch, count), key).jaxpr for count in {training.batch_size, rows, 2 * rows}}
    activations = count_activations(steps[rows], steps[2 * rows]) * training.batch_size // rows
    target_tokens = tokens = None
    if name in STAGES:
        layout = config.model.layout(name)
        target_tokens = _size(jax.eval_shape(layout.target_codes, batch))
        tokens = target_tokens + _size(jax.eval_shape(layout.prefix_ids, batch))
    return DryRun(
        name=name,
        mesh=mesh.shape,
        trained=_size(state.params),
        total=_size((state.params, state.stats)),
        exported=_size(jax.eval_shape(task.variables, state)),
        batch_size=training.batch_size,
        seconds=training.batch_size * training.crop_sec * (2 if name == "melody" else 1),
        target_tokens=target_tokens,
        tokens=tokens,
        bytes_per_device={
            "parameters": parameters,
            "optimizer": _bytes_per_device(state.opt_state, shardings.opt_state),
            "statistics": _bytes_per_device(state.stats, shardings.stats),
            "gradients": parameters,  # As wide, and split alike.
            "activations": activations // math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES),
        },
        flops=count_flops(steps[training.batch_size]),
    )


def abstract_batch(config: FitConfig, name: str) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch, as the sources in `data/` make them."""
    training, model = config.training(name), config.model
    shape = lambda *dims, dtype=jnp.int32: jax.ShapeDtypeStruct((training.batch_size, *dims), dtype)  # noqa: E731
    if name in STAGES:
        steps = model.audio.semantic_tokens(training.crop_sec)
        acoustic = shape(steps * model.audio.frames_per_semantic, model.tokens.acoustic_levels)
        streams = {"mulan": shape(model.tokens.mulan_levels), "semantic": shape(steps), "acoustic": acoustic}
        return {segment.stream: streams[segment.stream] for segment in model.layout(name).segments}
    batch = {"wave": shape(crop_samples(training.crop_sec, model.audio.sample_rate_hz), dtype=jnp.float32)}
    if name in ("mulan", *RERANKERS):
        length = model.mulan.text.max_tokens
        batch |= {"text_ids": shape(length), "text_mask": shape(length, dtype=bool)}
    if name == "semantic_reranker":
        mel, tokens = model.mulan.mel, model.audio.semantic_tokens(training.crop_sec)
        batch["mels"] = shape(tokens * (model.audio.semantic_samples // mel.hop_samples), mel.num_mels, dtype=jnp.float32)
        del batch["wave"]
    if name == "melody":
        batch |= {"other_wave": batch["wave"], "melody": shape()}
    return batch


def count_flops(jaxpr: Jaxpr) -> int:
    """Floating-point operations of a traced program's matrix products and convolutions, two per multiplication.

    Of a training step that is forward, backward and what `remat` computes again; about 6 x parameters x tokens for a Transformer, and its
    attention on top. The body of a scan counts as often as it runs (XLA's own `cost_analysis` counts it once: a stage of 24 layers as if it
    had one). Of a conditional the branch counts that is taken where its predicate holds, as ours do in all but a run's first steps. All else,
    such as norms, softmax, FFTs and the optimizer, is a few percent and left out, and so is what XLA saves by sharing equal products.
    """
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, out_features = eqn.invars[1].aval, eqn.params["dimension_numbers"].rhs_spec[0]
            # A dilated input, as the gradient of a strided convolution has, is mostly zeros, which cost nothing.
            per_output = kernel.size // kernel.shape[out_features] / math.prod(eqn.params["lhs_dilation"])
            total += round(2 * eqn.outvars[0].aval.size * per_output)
        else:
            inner = [count_flops(each) for each in jaxprs_in_params(eqn.params)]
            total += inner[-1] if eqn.primitive.name == "cond" else eqn.params.get("length", 1) * sum(inner)
    return total


def count_activations(jaxpr: Jaxpr, larger: Jaxpr) -> int:
    """Bytes of a traced program's activations, where they are most: its values that are larger in `larger`, the same program of a larger batch.

    That tells them from gradients and from what an optimizer computes. A value is held from the operation that makes it to the last one that
    reads it, in the order in which the program is written; arguments are not counted, nor are views. What the backward pass keeps of the forward
    pass is part of it, over all steps of a scan, and so is what `remat` computes again, one layer at a time. XLA fuses operations and so holds
    less; it copies and keeps workspaces, and so holds more. At the size "test" this is 0.6 (codec) to 1.9 times (stages) what its CPU compiler plans.
    """
    viewed: dict[Var, Var] = {}
    size: dict[Var, int] = {}
    last_use: dict[Var, int] = {}
    for index, (eqn, twin) in enumerate(zip(jaxpr.eqns, larger.eqns, strict=True)):
        read = [viewed.get(each, each) for each in eqn.invars if isinstance(each, Var)]
        last_use |= dict.fromkeys(read, index)
        if eqn.primitive.name in _VIEWS:
            viewed |= {out: each for out, each in zip(eqn.outvars, read, strict=False)}  # Of a constant: nothing.
        else:
            pairs = zip(eqn.outvars, twin.outvars, strict=True)
            size |= {out: out.aval.size * out.aval.dtype.itemsize for out, grown in pairs if grown.aval.size > out.aval.size}
    last_use |= {viewed.get(each, each): len(jaxpr.eqns) for each in jaxpr.outvars if isinstance(each, Var)}
    freed: Counter[int] = Counter()
    for each, index in last_use.items():
        freed[index] += size.get(each, 0)
    held = most = 0
    for index, (eqn, twin) in enumerate(zip(jaxpr.eqns, larger.eqns, strict=True)):
        made = sum(size.get(out, 0) for out in eqn.outvars if out in last_use)
        bodies = zip(jaxprs_in_params(eqn.params), jaxprs_in_params(twin.params), strict=True)
        inside = max((count_activations(*pair) for pair in bodies), default=0)
        # The stacks of a scan's results are there from its start; the body of a call, or of a branch, makes the results themselves.
        most = max(most, held + (made + inside if eqn.primitive.name == "scan" else max(made, inside)))
        held += made - freed[index]
    return most


def _with_rows(batch: dict[str, jax.ShapeDtypeStruct], rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct((rows, *value.shape[1:]), value.dtype) for name, value in batch.items()}


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _bytes_per_device(tree: Any, shardings: Any) -> int:
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, where in leaves)


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e5 else f"{count:,}"


def _bytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
