"""What the training loop needs to know of the thing it trains."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from musiclm_jax.arrays import Key
from musiclm_jax.checks import STEPS, check_numbers
from musiclm_jax.training.optim import OptimizerConfig, learning_rate, make_optimizer

Batch = dict[str, np.ndarray | jax.Array]
Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """Everything that a step reads and writes, hence everything that a checkpoint stores.

    Fields: step: int32 scalar, steps already taken. params: trainable parameters. opt_state: the optimizer's.
    stats: what is updated without a gradient (codebooks, running means); an empty dict where there is none.
    """

    # Any, not jax.Array: JAX rebuilds the class around shapes, shardings and None (eval_shape, tree.map), which the type checker would refuse.
    step: Any
    params: Any
    opt_state: Any
    stats: Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained, data aside. Each task extends it by its losses."""

    # Length of the whole run in steps, where a cosine schedule ends. It may be raised later, to train on.
    num_steps: int = 1000
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self):
        check_numbers(self, num_steps=(1, STEPS[1]))


class Task(abc.ABC):
    """One trained thing: codec, w2v-BERT, MuLan, a stage, the melody embedder. A task is a frozen dataclass of the model's config and its recipe.

    `init_state`, `train_step` and `eval_step` are pure and jit-able; metrics are float32 scalars.
    """

    # For the log and in errors.
    name: str
    recipe: Recipe

    @property
    def num_steps(self) -> int:
        """Length of the whole run."""
        return self.recipe.num_steps

    @abc.abstractmethod
    def init_state(self, rng: Key) -> TrainState: ...

    @abc.abstractmethod
    def train_step(self, state: TrainState, batch: Batch, rng: Key) -> tuple[TrainState, Metrics]: ...

    @abc.abstractmethod
    def eval_step(self, state: TrainState, batch: Batch, rng: Key) -> Metrics: ...

    @abc.abstractmethod
    def variables(self, state: TrainState) -> dict[str, Any]:
        """The trained weights as the nested dict of arrays that goes into the bundle's safetensors file."""

    def check_batch(self, batch: Batch) -> None:  # noqa: B027  (most tasks have nothing to check)
        """Raises `UserError` where the task cannot learn from such a batch. The loop calls it with the first one, on the host, before any step."""


def fresh_state(params: Any, recipe: Recipe, *, stats: dict[str, Any] | None = None) -> TrainState:
    """The state before the first step of a task that has one optimizer."""
    return TrainState(jnp.zeros((), jnp.int32), params, make_optimizer(recipe.optimizer, recipe.num_steps).init(params), stats or {})


def gradient_step(state: TrainState, loss: Callable[[Any], tuple[jax.Array, Any]], recipe: Recipe, *, has_stats: bool = False) -> tuple[TrainState, Metrics]:
    """One step down the gradient of loss: params -> (scalar, metrics); with `has_stats`, params -> (scalar, (metrics, new stats)).

    Guarded by `keep_finite`. Adds to the metrics: grad_norm, learning_rate and skipped.
    """
    (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    metrics, stats = aux if has_stats else (aux, state.stats)
    updates, opt_state = make_optimizer(recipe.optimizer, recipe.num_steps).update(grads, state.opt_state, state.params)
    norm = optax.tree.norm(grads)
    new = TrainState(state.step, optax.apply_updates(state.params, updates), opt_state, stats)
    new, skipped = keep_finite(state, new, value, norm)
    return new, metrics | {"grad_norm": norm, "learning_rate": learning_rate(recipe.optimizer, state.step, recipe.num_steps), "skipped": skipped}


def keep_finite(before: TrainState, after: TrainState, *numbers: jax.Array) -> tuple[TrainState, jax.Array]:
    """The state one step after `before`: `after`, unless one of the scalars `numbers` (losses, norms of gradients) is not finite. Then the step is
    skipped: all but its number stays as it was. Also returns 1 for a skipped step, else 0.
    """
    finite = jnp.all(jnp.isfinite(jnp.stack(numbers)))
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
    return kept.replace(step=before.step + 1), 1.0 - finite.astype(jnp.float32)
