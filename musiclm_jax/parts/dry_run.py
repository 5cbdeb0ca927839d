"""Memory and arithmetic of a training step, from shapes alone: nothing is allocated, so that any machine can tell them for any size and mesh."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from musiclm_jax.errors import UserError
from musiclm_jax.parts.fit import FitConfig
from musiclm_jax.parts.trained import TrainedPart
from musiclm_jax.training import sharding
from musiclm_jax.training.compiled import temporaries
from musiclm_jax.training.cost import count_activations, count_flops

_COMPILED = "activations are what XLA plans for temporaries, less gradients, on CPU devices, which compute some of bfloat16 in float32"
_ESTIMATED = "activations are those of the step as it is written, split as the batch is; not counted: what XLA saves and what it adds"


@dataclasses.dataclass(frozen=True)
class DryRun:
    """Counts are totals over all devices unless they say per device."""

    name: str
    # {axis: size}.
    mesh: Mapping[str, int]
    # Parameters with a gradient; with codebooks and statistics, too; of the bundle.
    trained: int
    total: int
    exported: int
    batch_size: int
    # Seconds of audio in a batch. An example of the melody embedder is a pair.
    seconds: float
    # (predicted tokens, all tokens) in a batch of a stage. None: not a stage.
    tokens: tuple[int, int] | None
    # Memory of a device: parameters, optimizer and statistics (always), gradients and activations (during a step). Activations are what XLA plans for
    # temporaries, less the gradients; gathered weights are among them.
    bytes_per_device: Mapping[str, int]
    # Whether the step was compiled. If not, activations are those of `count_activations`, split over the batch axes only.
    compiled: bool
    # See `count_flops`.
    flops: int

    def __str__(self) -> str:
        devices = math.prod(self.mesh.values())
        tokens = "" if self.tokens is None else f", {self.tokens[0]:,} tokens to predict, {self.tokens[1]:,} in all"
        memory = [f"{name} {_bytes(size)}" for name, size in self.bytes_per_device.items() if size]
        counts = f"{_millions(self.trained)} trained, {_millions(self.total)} with codebooks and statistics, {_millions(self.exported)} in the bundle"
        return "\n".join(
            [
                f"{self.name}: one step of training, {'compiled' if self.compiled else 'from shapes alone'}",
                f"  mesh        {', '.join(f'{axis}={size}' for axis, size in self.mesh.items())}: devices {devices}",
                f"  parameters  {counts}",
                f"  batch       {self.batch_size} x {self.seconds / self.batch_size:g} s = {self.seconds:,g} s of audio{tokens}",
                f"  per device  {', '.join(memory)}: {_bytes(sum(self.bytes_per_device.values()))}",
                f"              {_COMPILED if self.compiled else _ESTIMATED}",
                "              bfloat16, remat, accumulate, a smaller batch or a larger data or fsdp axis reduce them",
                f"  work        {self.flops:.3g} FLOP, {self.flops / devices:.3g} per device: matrix products and convolutions, forward and backward",
            ]
        )


def dry_run(name: str, config: FitConfig, *, compiled: bool = False) -> DryRun:
    """One step of the training of a part, over the mesh of its `TrainConfig`.

    compiled: whether another process compiles the step, for the activations that XLA plans (`compiled.temporaries`); else they are estimated from shapes.

    Raises:
        UserError: there is no such part, it is not a training, its batch does not split over the mesh, or its step cannot be compiled.
    """
    trained = {part.name: part for part in config.parts if isinstance(part, TrainedPart)}
    if name not in trained:
        what = "is not a training" if name in config.steps else "does not exist"
        raise UserError(f"step {name!r} {what}: choose one of {', '.join(trained)}")
    part = trained[name]
    task, batch = part.task(config), part.batch_shapes(config)
    mesh = sharding.abstract_mesh(part.loop.mesh)
    micro_batches = task.recipe.accumulate
    part.check_batch(config, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed = jax.eval_shape(task.init_state, key)
    state, shardings = sharding.unbox(boxed), sharding.state_shardings(boxed, mesh)
    parameters = _bytes_per_device(state.params, shardings.params)
    # Of a micro-batch, and their sum, with the shapes and shardings of the parameters.
    gradients = parameters * (1 if micro_batches == 1 else 2)
    trace = lambda rows: jax.make_jaxpr(task.train_step)(state, _with_rows(batch, rows), key).jaxpr  # noqa: E731
    step = trace(part.batch_size)
    if compiled:
        activations = max(0, temporaries(task, batch, sharding.MeshConfig(**mesh.shape)) - gradients)
    else:
        rows = max(part.batch_size, 2 * micro_batches)  # Without its axis of size 1 a batch of one is another program.
        count = count_activations(trace(rows), trace(2 * rows)) * part.batch_size // rows
        activations = count // math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)
    tokens = part.tokens_per_example(config)
    return DryRun(
        name=name,
        mesh=mesh.shape,
        trained=_size(state.params),
        total=_size((state.params, state.stats)),
        exported=_size(jax.eval_shape(task.variables, state)),
        batch_size=part.batch_size,
        seconds=part.batch_size * part.example_sec(config),
        tokens=tokens and (part.batch_size * tokens[0], part.batch_size * tokens[1]),
        bytes_per_device={
            "parameters": parameters,
            "optimizer": _bytes_per_device(state.opt_state, shardings.opt_state),
            "statistics": _bytes_per_device(state.stats, shardings.stats),
            "gradients": gradients,
            "activations": activations,
        },
        compiled=compiled,
        flops=count_flops(step),
    )


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
