"""The interface between the training loop and the tasks (`Task`), and the training step that most tasks share (`gradient_step`)."""

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
from musiclm_jax.checks import SIZE, STEPS, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.training.optim import OptimizerConfig, learning_rate, make_optimizer

Batch = dict[str, np.ndarray | jax.Array]
Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """The state of a training: all that a step reads and writes, and all that a checkpoint stores.

    step: int32 scalar, steps taken. params: trainable parameters. opt_state: the optimizer's state. stats: what is updated without a gradient, such as
    codebooks; an empty dict if there is nothing.
    """

    # Any, not jax.Array: JAX also builds the class from shapes, shardings and None (eval_shape, tree.map), which the type checker would reject.
    step: Any
    params: Any
    opt_state: Any
    stats: Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained, apart from its data. Each task adds the settings of its losses."""

    # Length of the whole run in steps; a cosine schedule ends there. It may be raised later, to continue the training.
    num_steps: int = 1000
    optimizer: OptimizerConfig = OptimizerConfig()
    # Micro-batches into which each device splits its share of a batch, and which it computes one after the other: less memory, the same gradient. Each draws
    # its own dropout. Codecs and w2v-BERT accept 1 alone.
    accumulate: int = 1

    def __post_init__(self):
        check_numbers(self, num_steps=(1, STEPS[1]), accumulate=SIZE)


class Task(abc.ABC):
    """The training of one model: the codec, w2v-BERT, MuLan, a stage or the melody embedder. A task is a frozen dataclass of the model's config and recipe.

    `init_state` (boxed parameters, step 0), `train_step` and `eval_step` are pure and can be jitted. Metrics are float32 scalars; those named "loss" and
    "skipped" (1 for a skipped step) are read by the log, as is "tokens" (target tokens per step).

    A task splits its batch into `recipe.accumulate` micro-batches by a function of `training.accumulation`, or refuses with `check_whole_batch`.
    """

    # Name in the log and in errors.
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
        """The trained weights, as the nested dict of arrays that the bundle stores."""

    def check_batch(self, batch: Batch) -> None:  # noqa: B027  (most tasks have nothing to check)
        """Raises UserError where the task cannot train on such a batch. The loop calls it on the host with the first batch, before any step."""


def check_whole_batch(recipe: Recipe, why: str) -> None:
    """Raises UserError where a recipe splits batches. why: the reason that its task cannot."""
    if recipe.accumulate != 1:
        raise UserError(f"accumulate={recipe.accumulate}: {why}; choose accumulate=1, and a smaller batch_size or a larger data or fsdp axis")


def fresh_state(params: Any, recipe: Recipe, *, stats: dict[str, Any] | None = None) -> TrainState:
    """The state before the first step, for a task with one optimizer."""
    return TrainState(jnp.zeros((), jnp.int32), params, make_optimizer(recipe.optimizer, recipe.num_steps).init(params), stats or {})


def gradient_step(state: TrainState, loss: Callable[[Any], tuple[jax.Array, Any]], recipe: Recipe, *, has_stats: bool = False) -> tuple[TrainState, Metrics]:
    """Takes one optimizer step on `loss`, unless its loss or gradient is not finite (`keep_finite`).

    loss: params -> (scalar, metrics); with `has_stats`, params -> (scalar, (metrics, new stats)). Adds grad_norm, learning_rate and skipped to the metrics.
    """
    (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    metrics, stats = aux if has_stats else (aux, state.stats)
    updates, opt_state = make_optimizer(recipe.optimizer, recipe.num_steps).update(grads, state.opt_state, state.params)
    norm = optax.tree.norm(grads)
    new = TrainState(state.step, optax.apply_updates(state.params, updates), opt_state, stats)
    new, skipped = keep_finite(state, new, value, norm)
    return new, metrics | {"grad_norm": norm, "learning_rate": learning_rate(recipe.optimizer, state.step, recipe.num_steps), "skipped": skipped}


def keep_finite(before: TrainState, after: TrainState, *numbers: jax.Array) -> tuple[TrainState, jax.Array]:
    """Skips a step whose loss or gradient is not finite.

    numbers: scalars that must be finite, such as losses and gradient norms.

    Returns: (state, skipped). The state is `after` or, for a skipped step, `before`; its step is one more than `before.step` in both cases. skipped is a
    float32 scalar, 1 for a skipped step, else 0.
    """
    finite = jnp.all(jnp.isfinite(jnp.stack(numbers)))
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
    return kept.replace(step=before.step + 1), 1.0 - finite.astype(jnp.float32)
