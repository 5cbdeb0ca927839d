"""Training of w2v-BERT (arXiv 2108.06209, section 3.3): a contrastive and a masked-prediction loss on the codes of a quantizer, trained end to end."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from musiclm_jax.arrays import Array, Bool, Float, Int, Key
from musiclm_jax.checks import NOT_NEGATIVE, POSITIVE, SHARE, SIZE, check_numbers
from musiclm_jax.models.w2v_bert import W2vBert, W2vBertConfig, W2vBertOutput, sample_mask
from musiclm_jax.nn.layers import l2_normalize
from musiclm_jax.nn.quantize import perplexity
from musiclm_jax.training.optim import OptimizerConfig
from musiclm_jax.training.task import Batch, Metrics, Recipe, Task, TrainState, check_whole_batch, fresh_state, gradient_step


@dataclasses.dataclass(frozen=True)
class W2vBertRecipe(Recipe):
    num_steps: int = 400_000
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, warmup_steps=25_000)
    # Probability of each frame to start a masked span, and length of a span in frames of 40 ms. With the defaults about half of all frames are masked.
    mask_start_rate: float = 0.065
    mask_span: int = 10
    # Distractors of each masked frame, drawn from the other masked frames of the same clip.
    num_distractors: int = 100
    # Temperature of the contrastive loss, by which cosines are divided.
    contrastive_temperature: float = 0.1
    # Weight of the diversity loss. The contrastive and the masked-prediction loss have weight 1.
    diversity_weight: float = 0.1
    # First and last Gumbel temperature of the quantizer (wav2vec 2.0, arXiv 2006.11477, section 4.2).
    gumbel_temperature: tuple[float, float] = (2.0, 0.5)
    # Factor of the Gumbel temperature per step.
    gumbel_decay: float = 0.999995

    def __post_init__(self):
        super().__post_init__()
        check_whole_batch(self, "w2v-BERT's quantizer standardizes its input over the batch, and the diversity loss is of the mean over the batch")
        check_numbers(self, mask_start_rate=SHARE, mask_span=SIZE, num_distractors=SIZE, contrastive_temperature=POSITIVE, diversity_weight=NOT_NEGATIVE)
        check_numbers(self, gumbel_temperature=POSITIVE, gumbel_decay=SHARE)


@dataclasses.dataclass(frozen=True)
class W2vBertTask(Task):
    """Trains w2v-BERT.

    Batch: "wave" float32 [B, N] in [-1, 1]. Each step draws its mask, noise, codes and distractors from the key of the step.
    """

    name: ClassVar[str] = "w2v_bert"
    model: W2vBertConfig
    recipe: W2vBertRecipe = W2vBertRecipe()

    def init_state(self, rng: Key) -> TrainState:
        """The state before the first step. Parameters are boxed with their logical axis names."""
        wave = jnp.zeros((1, self.model.token_samples), jnp.float32)
        init = lambda rng: W2vBert(self.model).init(rng, wave, mask=jnp.zeros((1, 1), bool), rng=rng, temperature=1.0, train=False)  # noqa: E731
        return fresh_state(init(rng)["params"], self.recipe)

    def train_step(self, state: TrainState, batch: Batch, rng: Key) -> tuple[TrainState, Metrics]:
        return gradient_step(state, lambda params: self._loss(params, batch, rng, step=state.step, train=True), self.recipe)

    def eval_step(self, state: TrainState, batch: Batch, rng: Key) -> Metrics:
        """The losses and accuracies without dropout, with the most probable codes instead of sampled ones."""
        return self._loss(state.params, batch, rng, step=state.step, train=False)[1]

    def variables(self, state: TrainState) -> dict[str, Any]:
        """{"params"}. `fit_kmeans` fits the clusters of the semantic tokens after training."""
        return {"params": nn.unbox(state.params)}

    def gumbel_temperature_at(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        start, end = self.recipe.gumbel_temperature
        return jnp.maximum(start * self.recipe.gumbel_decay ** jnp.asarray(step, jnp.float32), end)

    def _loss(self, params: Any, batch: Batch, rng: Key, *, step: jax.Array, train: bool) -> tuple[jax.Array, Metrics]:
        wave = jnp.asarray(batch["wave"])
        rng_mask, rng_model, rng_distractors = jax.random.split(rng, 3)
        shape = (wave.shape[0], -(-wave.shape[1] // self.model.token_samples))
        mask = sample_mask(rng_mask, shape, start_rate=self.recipe.mask_start_rate, span=self.recipe.mask_span)
        out = W2vBert(self.model).apply({"params": params}, wave, mask=mask, rng=rng_model, temperature=self.gumbel_temperature_at(step), train=train)
        contrastive, contrastive_accuracy = contrastive_loss(
            out, mask, rng=rng_distractors, num_distractors=self.recipe.num_distractors, temperature=self.recipe.contrastive_temperature
        )
        masked, masked_accuracy = masked_prediction_loss(out, mask)
        diversity = diversity_loss(out.code_probs)
        loss = contrastive + self.recipe.diversity_weight * diversity + masked
        used = jnp.mean(jax.nn.one_hot(out.code_ids, self.model.num_codes), axis=(0, 1))
        metrics = {
            "loss": loss,
            "contrastive_loss": contrastive,
            "contrastive_accuracy": contrastive_accuracy,
            "masked_loss": masked,
            "masked_accuracy": masked_accuracy,
            # The accuracy of always predicting the most frequent code, with which masked_accuracy is to be compared.
            "unigram_accuracy": jnp.max(used),
            "diversity_loss": diversity,
            "code_perplexity": perplexity(used),
            "masked_fraction": jnp.mean(mask),
        }
        return loss, metrics


def contrastive_loss(
    out: W2vBertOutput, mask: Bool[Array, "B T"], *, rng: Key, num_distractors: int, temperature: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The InfoNCE loss at the masked frames (wav2vec 2.0, arXiv 2006.11477, equation 3), and its accuracy.

    A distractor may have the same code as the target, and then cannot be distinguished from it. The loss includes such distractors: without them, as in
    some implementations, a codebook that uses a single code has no distractors and loss 0; with them its loss is log(num_distractors + 1). The accuracy
    excludes them; a frame without other distractors counts as wrong.
    """
    picks = sample_distractors(rng, mask, num=num_distractors)  # [B, T, num]
    similarity = jnp.einsum("bte,bse->bts", l2_normalize(out.context), l2_normalize(out.targets)) / temperature
    positive = jnp.einsum("btt->bt", similarity)[..., None]
    negative = jnp.take_along_axis(similarity, picks, axis=2)
    counted = mask & (jnp.sum(mask, axis=1, keepdims=True) > 1)  # A single masked frame has no distractors.
    loss = -jax.nn.log_softmax(jnp.concatenate([positive, negative], axis=2), axis=2)[..., 0]
    other = jax.vmap(lambda ids, picks: ids[picks] != ids[:, None])(out.sampled_ids, picks)
    wins = jnp.any(other, axis=2) & jnp.all(~other | (positive > negative), axis=2)
    return masked_mean(loss, counted), masked_mean(wins, counted)


def sample_distractors(rng: Key, mask: Bool[Array, "B T"], *, num: int) -> Int[Array, "B T K"]:
    """Draws the indices, int32, of K = `num` other masked frames of the same clip for each masked frame, uniformly and with replacement.

    The indices for frames that are not masked are arbitrary.
    """
    total = jnp.sum(mask, axis=1)[:, None, None]
    masked_first = jnp.argsort(~mask, axis=1, stable=True)
    rank = (jnp.cumsum(mask, axis=1) - 1)[..., None]
    draw = jnp.floor(jax.random.uniform(rng, (*mask.shape, num)) * (total - 1)).astype(jnp.int32)
    draw = jnp.clip(draw + (draw >= rank), 0, mask.shape[1] - 1)  # Skip the frame itself.
    return jax.vmap(lambda frames, at: frames[at])(masked_first, draw).astype(jnp.int32)


def masked_prediction_loss(out: W2vBertOutput, mask: Bool[Array, "B T"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The cross-entropy of the quantizer's code ids at the masked frames, and its accuracy."""
    loss = optax.softmax_cross_entropy_with_integer_labels(out.logits, out.code_ids)
    return masked_mean(loss, mask), masked_mean(jnp.argmax(out.logits, axis=-1) == out.code_ids, mask)


def diversity_loss(code_probs: Float[Array, "B T V"]) -> Float[Array, ""]:
    """The share of the codebook that the batch does not use, in [0, 1]: 1 - perplexity / V of the mean softmax (wav2vec 2.0, equation 4)."""
    mean = jnp.mean(code_probs, axis=(0, 1))
    return 1 - perplexity(mean) / mean.shape[0]


def masked_mean(x: Array, mask: Bool[Array, "B T"]) -> Float[Array, ""]:
    """The mean over the masked frames; 0 if there are none."""
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
