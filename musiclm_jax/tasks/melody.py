"""Training of the melody embedder by triplets (MusicLM, arXiv 2301.11325, appendix C)."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Key
from musiclm_jax.models import melody
from musiclm_jax.tasks.mulan import recall_at_1
from musiclm_jax.training.losses import semi_hard_triplet_loss
from musiclm_jax.training.optim import OptimizerConfig, make_optimizer
from musiclm_jax.training.task import Batch, Metrics, TrainState, gradient_step


@dataclasses.dataclass(frozen=True)
class MelodyTask:
    """Batch: "wave" and "other_wave" float32 [B, N], the same seconds of a melody in two renderings, each one window of the model; "melody" int32 [B],
    equal where two rows may hold the same melody, such as two windows of one clip: they are no negatives of each other.

    All 2B windows are anchors. The positive of each is its other rendering; its negatives are both renderings of the other melodies, so that
    an embedding which tells instruments rather than tunes fares badly.

    Metrics: loss (the margin, where all embeddings are alike); recall, the share of anchors whose nearest of the other 2B - 1 windows is one of
    the same melody, and recall_chance; and the mean cosines of pairs and of negatives.
    """

    name: str = "melody"
    model: melody.MelodyConfig = melody.MelodyConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    # Of squared distances, which lie in [0, 4] between unit vectors. The paper gives none; this is FaceNet's.
    margin: float = 0.2

    def __post_init__(self):
        if not self.margin > 0:
            raise ValueError(f"margin={self.margin}: must be positive, or equal embeddings cost nothing")

    def init_state(self, rng: Key) -> TrainState:
        params = melody.init(self.model, rng)
        return TrainState(jnp.zeros((), jnp.int32), params, make_optimizer(self.optimizer).init(params), {})

    def train_step(self, state: TrainState, batch: Batch, rng: Key) -> tuple[TrainState, Metrics]:
        return gradient_step(state, lambda params: self._loss(params, batch, rng), self.optimizer)

    def eval_step(self, state: TrainState, batch: Batch, rng: Key) -> Metrics:
        del rng  # Nothing is drawn.
        return self._loss(state.params, batch, None)[1]

    def variables(self, state: TrainState) -> dict[str, Any]:
        """{"params"}; the step "melody" adds "quantizer" when training is done."""
        return {"params": nn.unbox(state.params)}

    def _loss(self, params: Any, batch: Batch, dropout_rng: Key | None) -> tuple[jax.Array, Metrics]:
        rngs = None if dropout_rng is None else {"dropout": dropout_rng}
        waves = jnp.concatenate([batch["wave"], batch["other_wave"]])
        anchors = melody.MelodyEmbedder(self.model).apply({"params": params}, waves, train=rngs is not None, rngs=rngs)
        # Candidates are the anchors with the renderings swapped: the positives are on the diagonal.
        size = len(batch["wave"])
        candidates = jnp.roll(anchors, size, axis=0)
        cosines = jnp.einsum("bd,cd->bc", anchors, candidates, precision=jax.lax.Precision.HIGHEST)
        same = jnp.tile(batch["melody"][:, None] == batch["melody"], (2, 2))
        # Of unit vectors: |a - b|^2 = 2 - 2 a.b
        loss = semi_hard_triplet_loss(2 - 2 * cosines, same, margin=self.margin)

        itself = jnp.roll(jnp.eye(2 * size, dtype=bool), size, axis=1)
        others, negatives = same & ~itself, ~same
        return loss, {
            "loss": loss,
            "recall": recall_at_1(jnp.where(itself, -jnp.inf, cosines), others),
            "recall_chance": jnp.sum(others) / (2 * size * (2 * size - 1)),
            "pair_cosine": jnp.mean(jnp.diagonal(cosines)),
            "negative_cosine": jnp.sum(cosines * negatives) / jnp.maximum(jnp.sum(negatives), 1),
        }
