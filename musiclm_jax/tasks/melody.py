"""Training of the melody embedder with a triplet loss (MusicLM, arXiv 2301.11325, section 6 and appendix C)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Float, Key
from musiclm_jax.checks import POSITIVE, check_numbers
from musiclm_jax.models import melody
from musiclm_jax.tasks.mulan import recall_at_1
from musiclm_jax.training.accumulation import embed_in_parts
from musiclm_jax.training.losses import semi_hard_triplet_loss
from musiclm_jax.training.task import Batch, Metrics, Recipe, Task, TrainState, fresh_state, gradient_step


@dataclasses.dataclass(frozen=True)
class MelodyRecipe(Recipe):
    # Margin of the triplet loss, in squared distances, which are at most 4 between unit vectors. MusicLM states none; this is FaceNet's.
    margin: float = 0.2

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self, margin=POSITIVE)  # With a margin of 0, equal embeddings have loss 0.


@dataclasses.dataclass(frozen=True)
class MelodyTask(Task):
    """Trains the melody embedder on pairs of renderings of the same melody.

    Batch: "wave" and "other_wave" float32 [B, N], the same seconds of a melody in two renderings, each one window of the model; "melody" int32 [B], equal
    where two rows may have the same melody, such as two windows of one clip. Such rows are not negatives of each other.

    All 2B windows are anchors. The positive of an anchor is its other rendering; its negatives are both renderings of the other melodies, so that an
    embedding of the instrument instead of the melody has a high loss.

    Metrics: loss (equal to the margin where all embeddings are equal); recall, the share of anchors whose nearest of the other 2B - 1 windows has the same
    melody, and recall_chance; pair_cosine and negative_cosine, mean cosines of pairs and of negatives.
    """

    name: ClassVar[str] = "melody"
    model: melody.MelodyConfig
    recipe: MelodyRecipe = MelodyRecipe()

    def init_state(self, rng: Key) -> TrainState:
        return fresh_state(melody.init(self.model, rng), self.recipe)

    def train_step(self, state: TrainState, batch: Batch, rng: Key) -> tuple[TrainState, Metrics]:
        return gradient_step(state, lambda params: self._loss(params, batch, rng), self.recipe)

    def eval_step(self, state: TrainState, batch: Batch, rng: Key) -> Metrics:
        del rng  # Evaluation is deterministic.
        return self._loss(state.params, batch, None)[1]

    def variables(self, state: TrainState) -> dict[str, Any]:
        """{"params"}. `melody.fit_quantizer` fits the "quantizer" after training."""
        return {"params": nn.unbox(state.params)}

    def _embed(self, params: Any, batch: Batch, dropout_rng: Key | None) -> Float[Array, "B 2 D"]:
        """Embeddings of both renderings. dropout_rng: None in evaluation."""
        rngs = None if dropout_rng is None else {"dropout": dropout_rng}
        waves = jnp.concatenate([batch["wave"], batch["other_wave"]])
        anchors = melody.MelodyEmbedder(self.model).apply({"params": params}, waves, train=rngs is not None, rngs=rngs)
        return jnp.swapaxes(anchors.reshape(2, len(batch["wave"]), -1), 0, 1)

    def _loss(self, params: Any, batch: Batch, dropout_rng: Key | None) -> tuple[jax.Array, Metrics]:
        """The loss of the whole batch, also where it is embedded in micro-batches."""
        pairs = embed_in_parts(self._embed, params, batch, dropout_rng, self.recipe.accumulate)
        anchors = jnp.concatenate([pairs[:, 0], pairs[:, 1]])
        # Candidates are the anchors with the renderings swapped: the positives are on the diagonal.
        size = len(batch["wave"])
        candidates = jnp.roll(anchors, size, axis=0)
        cosines = jnp.einsum("bd,cd->bc", anchors, candidates, precision=jax.lax.Precision.HIGHEST)
        same = jnp.tile(batch["melody"][:, None] == batch["melody"], (2, 2))
        # |a - b|^2 = 2 - 2 a.b for unit vectors.
        loss = semi_hard_triplet_loss(2 - 2 * cosines, same, margin=self.recipe.margin)

        itself = jnp.roll(jnp.eye(2 * size, dtype=bool), size, axis=1)
        others, negatives = same & ~itself, ~same
        return loss, {
            "loss": loss,
            "recall": recall_at_1(jnp.where(itself, -jnp.inf, cosines), others),
            "recall_chance": jnp.sum(others) / (2 * size * (2 * size - 1)),
            "pair_cosine": jnp.mean(jnp.diagonal(cosines)),
            "negative_cosine": jnp.sum(cosines * negatives) / jnp.maximum(jnp.sum(negatives), 1),
        }
