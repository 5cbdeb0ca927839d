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
from musiclm_jax.checks import NOT_NEGATIVE, SIZE, STEPS, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.training.optim import OptimizerConfig, learning_rate, make_optimizer

Batch = dict[str, np.ndarray | jax.Array]
Metrics = dict[str, jax.Array]


# Before this many good steps no gradient norm is a spike; their running mean then has a memory of about as many steps.
_SPIKE_MEMORY = 50


@flax.struct.dataclass
class Guard:
    """What `keep_good` remembers of the steps before, scalars: the running mean of their gradient norms, float32, without those of skipped steps; the
    number of steps that were not skipped, and of skipped steps in a row, int32.
    """

    mean_norm: Any
    good_steps: Any
    skipped_in_a_row: Any

    @classmethod
    def fresh(cls) -> Guard:
        return cls(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


@flax.struct.dataclass
class TrainState:
    """The state of a training: all that a step reads and writes, and all that a checkpoint stores.

    step: int32 scalar, steps taken. params: trainable parameters. opt_state: the optimizer's state. stats: what is updated without a gradient, such as
    codebooks; an empty dict if there is nothing. guard: see `Guard`.
    """

    # Any, not jax.Array: JAX also builds the class from shapes, shardings and None (eval_shape, tree.map), which the type checker would reject.
    step: Any
    params: Any
    opt_state: Any
    stats: Any
    guard: Any = flax.struct.field(default_factory=Guard.fresh)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained, apart from its data. Each task adds the settings of its losses."""

    # Length of the whole run in steps; a cosine schedule ends there. It may be raised later, to continue the training.
    num_steps: int = 1000
    optimizer: OptimizerConfig = OptimizerConfig()
    # Micro-batches into which each device splits its share of a batch, and which it computes one after the other: less memory, the same gradient. Each draws
    # its own dropout. Codecs and w2v-BERT accept 1 alone.
    accumulate: int = 1
    # A step is skipped if its gradient norm is above spike_factor times the running mean of the last 50 or so. Before step 50 there are no spikes. 0: only
    # steps are skipped whose loss or gradient is not finite.
    spike_factor: float | int = 0.0
    # After so many skipped steps in a row the training goes back to the weights of the last checkpoint before them, and continues with the next batches.
    # 0: never.
    rollback_after: int = 10

    def __post_init__(self):
        check_numbers(self, num_steps=(1, STEPS[1]), accumulate=SIZE, spike_factor=NOT_NEGATIVE, rollback_after=STEPS)
        if 0 < self.spike_factor <= 1:
            raise UserError(f"spike_factor={self.spike_factor}: choose a factor above 1, or 0 for none")


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
    """Takes one optimizer step on `loss`, unless it must be skipped (`keep_good`).

    loss: params -> (scalar, metrics); with `has_stats`, params -> (scalar, (metrics, new stats)). Adds grad_norm, learning_rate and skipped to the metrics.
    """
    (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    metrics, stats = aux if has_stats else (aux, state.stats)
    updates, opt_state = make_optimizer(recipe.optimizer, recipe.num_steps).update(grads, state.opt_state, state.params)
    norm = optax.tree.norm(grads)
    new = state.replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state, stats=stats)
    new, skipped = keep_good(state, new, recipe, value, grad_norm=norm)
    return new, metrics | {"grad_norm": norm, "learning_rate": learning_rate(recipe.optimizer, state.step, recipe.num_steps), "skipped": skipped}


def keep_good(before: TrainState, after: TrainState, recipe: Recipe, *numbers: jax.Array, grad_norm: jax.Array) -> tuple[TrainState, jax.Array]:
    """Skips a step whose loss or gradient is not finite, or whose gradient norm is a spike. Once `rollback_after` steps in a row were skipped, all further
    ones are, since the loop is about to go back (`training/faults.py`).

    The decision depends on the state and replicated scalars alone, so that all processes decide alike and a resumed run as the first.

    numbers: further scalars that must be finite, such as losses.

    Returns: (state, skipped). The state is `after` or, for a skipped step, `before`; its step is one more than `before.step` in both cases. skipped is a
    float32 scalar, 1 for a skipped step, else 0.
    """
    guard = before.guard
    good = jnp.all(jnp.isfinite(jnp.stack([*numbers, grad_norm])))
    if recipe.spike_factor:
        good &= (guard.good_steps < _SPIKE_MEMORY) | (grad_norm <= recipe.spike_factor * guard.mean_norm)
    if recipe.rollback_after:
        good &= guard.skipped_in_a_row < recipe.rollback_after
    count = guard.good_steps + 1
    mean = guard.mean_norm + (grad_norm - guard.mean_norm) / jnp.minimum(count, _SPIKE_MEMORY)
    after = after.replace(guard=Guard(mean, count, jnp.zeros_like(guard.skipped_in_a_row)))
    skipped = before.replace(guard=guard.replace(skipped_in_a_row=guard.skipped_in_a_row + 1))
    kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, skipped)
    return kept.replace(step=before.step + 1), 1.0 - good.astype(jnp.float32)
