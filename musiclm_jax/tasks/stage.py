"""Training of one stage: teacher-forced cross-entropy of the target's codes (MusicLM, arXiv 2301.11325, section 3.2).

There is no loss on the prefix: the first token that AudioLM predicts in training is the first target (arXiv 2209.03143, section III-B).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Bool, Float, Int, Key
from musiclm_jax.checks import NOT_NEGATIVE, SHARE, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.models import stage
from musiclm_jax.models.stage import Stage, StageConfig
from musiclm_jax.tokens import ABSENT, StageLayout
from musiclm_jax.training.accumulation import mean_over
from musiclm_jax.training.task import Batch, Metrics, Recipe, Task, TrainState, fresh_state, gradient_step


@dataclasses.dataclass(frozen=True)
class StageRecipe(Recipe):
    # Weight of log(sum(exp(logits)))^2, which keeps the logits from drifting. The default is T5X's. 0: off.
    z_loss: float = 1e-4
    # Share of training sequences in which past target steps are masked. The masking rate of each such sequence is uniform in [0, 1). A stage that always
    # sees the true past mostly copies it, and in a short training hardly learns to use its conditions. 0: off, as in the paper.
    past_dropout: float = 0.0
    # Of a stage that reads optional streams, such as a melody: share of training sequences in which all of one is absent, each stream drawn by itself, so
    # that one model generates with it and without. The papers do not say how they do that.
    optional_dropout: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self, z_loss=NOT_NEGATIVE, past_dropout=SHARE, optional_dropout=SHARE)


@dataclasses.dataclass(frozen=True)
class StageTask(Task):
    """Trains one stage.

    Batch: the token streams that the layout names, int32, such as "mulan" [B, Qm], "semantic" [B, T25], "acoustic" [B, T50, Q], "melody" [B, W, Q],
    "timing" [B, 2].
    """

    # Name of the stage, such as "semantic".
    name: str
    model: StageConfig
    layout: StageLayout
    recipe: StageRecipe = StageRecipe()
    # Share of training sequences whose conditions are masked, for classifier-free guidance. 0: off.
    prefix_dropout: float = 0.0

    def __post_init__(self):
        if not 0 <= self.prefix_dropout < 1:
            raise UserError(f"prefix_dropout={self.prefix_dropout}: choose a share in [0, 1)")

    @property
    def optional_streams(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(segment.stream for segment in self.layout.prefix if segment.optional))

    def init_state(self, rng: Key) -> TrainState:
        return fresh_state(stage.init(self.model, self.layout, rng), self.recipe)

    def check_batch(self, batch: Batch) -> None:
        self.layout.check(batch)

    def train_step(self, state: TrainState, batch: Batch, rng: Key) -> tuple[TrainState, Metrics]:
        return gradient_step(state, mean_over(self.loss, batch, rng, self.recipe.accumulate), self.recipe)

    def eval_step(self, state: TrainState, batch: Batch, rng: Key) -> Metrics:
        del rng  # Evaluation is deterministic.
        return mean_over(self.loss, batch, None, self.recipe.accumulate)(state.params)[1]

    def variables(self, state: TrainState) -> dict[str, Any]:
        return {"params": nn.meta.unbox(state.params)}

    def loss(self, params: Any, batch: Batch, rng: Key | None) -> tuple[jax.Array, Metrics]:
        """The mean loss of a batch, and its metrics. rng: for dropout and masking. None: evaluation, without either."""
        for stream in self.optional_streams if rng is not None and self.recipe.optional_dropout else ():
            rng, drop_rng = jax.random.split(rng)
            batch = _dropped(batch, stream, drop_rng, self.recipe.optional_dropout)
        prefix_ids, codes = jnp.asarray(self.layout.prefix_ids(batch)), jnp.asarray(self.layout.target_codes(batch))
        hidden_steps, rngs = None, {}
        if rng is not None:
            prefix_rng, past_rng, rngs["dropout"] = jax.random.split(rng, 3)
            if self.prefix_dropout:
                drop = jax.random.bernoulli(prefix_rng, self.prefix_dropout, (codes.shape[0], 1))
                prefix_ids = jnp.where(drop, self.layout.mask_id, prefix_ids)
            if self.recipe.past_dropout:
                hidden_steps = _hidden_steps(past_rng, codes.shape[:2], self.recipe.past_dropout)
        logits = Stage(self.model, self.layout).apply({"params": params}, prefix_ids, codes, hidden_steps=hidden_steps, train=rng is not None, rngs=rngs)
        return _cross_entropy(logits, codes, z_loss=self.recipe.z_loss)


def _dropped(batch: Batch, stream: str, rng: Key, share: float) -> Batch:
    """The batch with a stream absent in a random `share` of its sequences."""
    codes = batch[stream]
    drop = jax.random.bernoulli(rng, share, (len(codes), *(1,) * (codes.ndim - 1)))
    return {**batch, stream: jnp.where(drop, ABSENT, codes)}


def _hidden_steps(rng: Key, shape: tuple[int, int], share: float) -> Bool[Array, "B T"]:
    """Draws which time steps are masked: none in most sequences, and in a `share` of them a random part."""
    which_rng, rate_rng, step_rng = jax.random.split(rng, 3)
    rate = jax.random.uniform(rate_rng, (shape[0], 1)) * jax.random.bernoulli(which_rng, share, (shape[0], 1))
    return jax.random.bernoulli(step_rng, jnp.broadcast_to(rate, shape))


def _cross_entropy(logits: Float[Array, "B T Q C"], codes: Int[Array, "B T Q"], *, z_loss: float) -> tuple[jax.Array, Metrics]:
    """The mean cross-entropy, in nats per token, plus z-loss. Metrics: loss (without z-loss), accuracy, tokens, and the loss of each level if several."""
    log_z = jax.nn.logsumexp(logits, axis=-1)
    nats = log_z - jnp.take_along_axis(logits, codes[..., None], axis=-1)[..., 0]
    loss = nats.mean()
    metrics = {
        "loss": loss,
        "accuracy": (jnp.argmax(logits, axis=-1) == codes).astype(jnp.float32).mean(),
        "tokens": jnp.asarray(codes.size, jnp.float32),
    }
    if codes.shape[2] > 1:
        metrics |= {f"loss_level_{level}": value for level, value in enumerate(nats.mean(axis=(0, 1)))}
    return loss + z_loss * jnp.square(log_z).mean(), metrics
