"""What the training loop needs to know of the thing it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from musiclm_jax.arrays import Key
from musiclm_jax.training.optim import OptimizerConfig, learning_rate, make_optimizer

Batch = dict[str, np.ndarray | jax.Array]
Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """Everything that a step reads and writes, hence everything that a checkpoint holds.

    Fields: step: int32 scalar, steps already taken. params: trainable parameters. opt_state: the optimizer's.
    stats: what is updated without a gradient (codebooks, running means); an empty dict where there is none.
    """

    # Any, not jax.Array: JAX rebuilds the class around shapes, shardings and None (eval_shape, tree.map), which the type checker would refuse.
    step: Any
    params: Any
    opt_state: Any
    stats: Any


@runtime_checkable
class Task(Protocol):
    """One trained thing: codec, w2v-BERT, MuLan, a stage, the melody embedder. All methods are pure and jit-able; metrics are float32 scalars."""

    # Also the name of its folder and of its command: soundstream, w2v_bert, mulan, semantic, coarse, fine, melody.
    name: str

    def init_state(self, rng: Key) -> TrainState: ...

    def train_step(self, state: TrainState, batch: Batch, rng: Key) -> tuple[TrainState, Metrics]: ...

    def eval_step(self, state: TrainState, batch: Batch, rng: Key) -> Metrics: ...

    def variables(self, state: TrainState) -> dict[str, Any]:
        """The trained weights as the nested dict of arrays that goes into the bundle's safetensors file."""
        ...


def gradient_step(
    state: TrainState, loss: Callable[[Any], tuple[jax.Array, Any]], optimizer: OptimizerConfig, *, has_stats: bool = False
) -> tuple[TrainState, Metrics]:
    """One step down the gradient of loss: params -> (scalar, metrics); with `has_stats`, params -> (scalar, (metrics, new stats)).

    Where the loss or its gradient is not finite everything but the step number stays as it was. Adds to the metrics: grad_norm, learning_rate,
    and skipped, which is 1 for such a step and else 0.
    """
    (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    metrics, stats = aux if has_stats else (aux, state.stats)
    updates, opt_state = make_optimizer(optimizer).update(grads, state.opt_state, state.params)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    new = TrainState(state.step, optax.apply_updates(state.params, updates), opt_state, stats)
    new = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
    metrics = metrics | {"grad_norm": norm, "learning_rate": learning_rate(optimizer, state.step), "skipped": 1.0 - finite.astype(jnp.float32)}
    return new.replace(step=state.step + 1), metrics
