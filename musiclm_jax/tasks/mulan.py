"""Contrastive training of MuLan (arXiv 2208.12415, section 3)."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Bool, Float, Int, Key
from musiclm_jax.checks import NOT_NEGATIVE, check_numbers
from musiclm_jax.models import mulan
from musiclm_jax.nn.layers import fan_in_init, partitioned
from musiclm_jax.training.accumulation import embed_in_parts
from musiclm_jax.training.task import Batch, Metrics, Recipe, Task, TrainState, fresh_state, gradient_step


def contrastive_loss(
    cosines: Float[Array, "B B"], same: Bool[Array, "B B"], *, temperature: Float[Array, ""], bias: Float[Array, ""], form: str
) -> Float[Array, ""]:
    """Mean contrastive loss, float32, of the B pairs on the diagonal of `cosines` (audio by text). With s = cosines / temperature, by `form`:

    decoupled   -s_ii + log sum over j of [exp s_ij + exp s_ji], where j are i's negatives alone (MuLan, section 3)
    infonce     mean of -s_ii + log sum over j of exp s_ij and the same over columns, where j are i and its negatives (arXiv 1807.03748)
    sigmoid     -log sigmoid(s_ii + bias) - sum over i's negatives j of log sigmoid(-s_ij - bias) (arXiv 2303.15343)

    same: True where two rows have the same text; such pairs are not negatives. It must be True on the diagonal.

    Raises:
        ValueError: another form.
    """
    logits = cosines.astype(jnp.float32) / temperature + bias
    positive = jnp.diagonal(logits)
    if form == "sigmoid":
        negative = jnp.sum(jnp.where(same, 0.0, jax.nn.softplus(logits)), axis=1)
        return jnp.mean(jax.nn.softplus(-positive) + negative)
    negatives = jnp.where(same, -jnp.inf, logits)
    if form == "decoupled":
        # Both directions in one denominator, by logsumexp: exp overflows at small temperatures.
        both = jnp.concatenate([negatives, negatives.T], axis=1)
        # A row whose text is that of the whole batch has no negatives. Its loss is 0; the formula gives -inf.
        alone = jnp.all(same, axis=1)
        return jnp.mean(jnp.where(alone, 0.0, jax.nn.logsumexp(jnp.where(alone[:, None], 0.0, both), axis=1) - positive))
    if form == "infonce":
        candidates = jnp.where(jnp.eye(len(logits), dtype=bool), logits, negatives)
        return jnp.mean(jax.nn.logsumexp(candidates, axis=1) + jax.nn.logsumexp(candidates, axis=0) - 2 * positive) / 2
    raise ValueError(f"form={form!r}: choose 'decoupled', 'infonce' or 'sigmoid'")


def same_text(ids: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Bool[Array, "B B"]:
    """True where two rows have the same tokens; two clips of a batch may have equal captions."""
    ids = jnp.where(mask, ids, -1)
    return jnp.all(ids[:, None] == ids[None], axis=-1)


def recall_at_1(cosines: Float[Array, "B B"], same: Bool[Array, "B B"]) -> Float[Array, ""]:
    """Share of rows, float32, whose highest cosine is in a matching column, one where `same` is True."""
    best = jnp.argmax(cosines, axis=1)
    return jnp.mean(jnp.take_along_axis(same, best[:, None], axis=1).astype(jnp.float32))


def word_loss(logits: Float[Array, "B V"], ids: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, ""]:
    """Cross-entropy, in nats, of predicting for each token of a text which row of the batch the text is; summed over tokens, mean over texts.

    logits: for each row and each token of the vocabulary; the softmax is over rows. For a token that occurs in every text the optimum is equal logits and
    log B nats, so that nothing is learned from it.
    """
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits, axis=0), ids, axis=1)
    return jnp.mean(jnp.sum(nats * mask, axis=1))


@dataclasses.dataclass(frozen=True)
class MuLanRecipe(Recipe):
    # Weight of a second loss, `word_loss`, on a linear layer that both embeddings share. The contrastive loss between two untrained towers is slow to find
    # an attribute that few captions name and few features show, such as the mode, since neither tower learns it before the other does. Words are a target
    # from the start, and the shared layer makes both towers encode them alike. 0: off, as in the paper.
    word_weight: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self, word_weight=NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class MuLanTask(Task):
    """Trains MuLan, or a reranker, on pairs of audio and text.

    Batch: "wave" float32 [B, N] or instead "mels" float32 [B, T, M]; "text_ids" int32 [B, T], "text_mask" bool [B, T]. Row i of each is one pair.

    Metrics: loss; loss_chance, the loss where all cosines are 0 (log B for "infonce", log 2(B - 1) for "decoupled"); audio_to_text and text_to_audio,
    recall@1 within the batch, and recall_chance (1 / B if all texts differ); temperature; pair_cosine and negative_cosine, mean cosines of pairs and of
    negatives; with word_weight also word_loss.
    """

    model: mulan.MuLanConfig
    recipe: MuLanRecipe = MuLanRecipe()
    # "mulan", or the name of a reranker, which is a MuLan that is trained further.
    name: str = "mulan"

    def init_state(self, rng: Key) -> TrainState:
        params = {"mulan": mulan.init(self.model, rng)}
        if self.recipe.word_weight:
            shape = (self.model.embedding_dim, self.model.text.vocab_size)
            params["words"] = partitioned(fan_in_init, (None, "vocab"))(jax.random.fold_in(rng, 1), shape)
        return fresh_state(params, self.recipe)

    def train_step(self, state: TrainState, batch: Batch, rng: Key) -> tuple[TrainState, Metrics]:
        return gradient_step(state, lambda params: self._loss(params, batch, rng), self.recipe)

    def eval_step(self, state: TrainState, batch: Batch, rng: Key) -> Metrics:
        del rng  # Evaluation is deterministic.
        return self._loss(state.params, batch, None)[1]

    def variables(self, state: TrainState) -> dict[str, Any]:
        """{"params"}. `mulan.fit_quantizer` fits the "quantizer" after training."""
        return {"params": nn.unbox(state.params["mulan"])}

    def _embed(self, params: Any, batch: Batch, rng: Key | None) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
        """Embeddings of audio and text. rng: for dropout and augmentation. None: evaluation, without either."""
        rngs = None if rng is None else dict(zip(("dropout", "augment"), jax.random.split(rng), strict=True))
        audio = batch["mels"] if "mels" in batch else batch["wave"]
        return mulan.MuLan(self.model).apply({"params": params["mulan"]}, audio, batch["text_ids"], batch["text_mask"], train=rngs is not None, rngs=rngs)[:2]

    def _loss(self, params: Any, batch: Batch, rng: Key | None) -> tuple[jax.Array, Metrics]:
        """The loss of the whole batch, whose texts are negatives of each other, also where it is embedded in micro-batches."""
        ids, mask = batch["text_ids"], batch["text_mask"]
        audio, text = embed_in_parts(self._embed, params, batch, rng, self.recipe.accumulate)
        temperature, bias = mulan.MuLan(self.model).apply({"params": params["mulan"]}, method="temperature_and_bias")
        cosines = jnp.einsum("bd,cd->bc", audio, text, precision=jax.lax.Precision.HIGHEST)
        same = same_text(ids, mask)

        def loss_of(cosines):
            return contrastive_loss(cosines, same, temperature=temperature, bias=bias, form=self.model.loss)

        contrast = loss_of(cosines)
        words = self._word_loss(params, audio, text, ids, mask) if self.recipe.word_weight else 0.0
        negatives = jnp.logical_not(same)
        return contrast + self.recipe.word_weight * words, {
            "loss": contrast,
            "loss_chance": loss_of(jnp.zeros_like(cosines)),
            "audio_to_text": recall_at_1(cosines, same),
            "text_to_audio": recall_at_1(cosines.T, same),
            "recall_chance": jnp.mean(same.astype(jnp.float32)),
            "temperature": temperature,
            "pair_cosine": jnp.mean(jnp.diagonal(cosines)),
            "negative_cosine": jnp.sum(cosines * negatives) / jnp.maximum(jnp.sum(negatives), 1),
        } | ({"word_loss": words} if self.recipe.word_weight else {})

    def _word_loss(self, params: Any, audio: Float[Array, "B D"], text: Float[Array, "B D"], ids: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> jax.Array:
        kernel = audio.shape[-1] ** 0.5 * nn.unbox(params["words"])
        return (word_loss(audio @ kernel, ids, mask) + word_loss(text @ kernel, ids, mask)) / 2
