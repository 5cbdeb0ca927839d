"""What the training tasks of both codecs share: the settings of the quantizer, quantizer dropout, and metrics of the codes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Int, Key
from musiclm_jax.checks import NOT_NEGATIVE, SHARE, STEPS, check_numbers
from musiclm_jax.nn.quantize import RVQConfig, perplexity
from musiclm_jax.training.task import Metrics, Recipe, check_whole_batch


@dataclasses.dataclass(frozen=True)
class CodecRecipe(Recipe):
    # How the codebooks are updated: moving averages, restarts of unused codes.
    quantizer: RVQConfig = RVQConfig()
    # Before this step the decoder gets unquantized latents, while the codebooks already follow them. A decoder that starts with the codes of an untrained
    # encoder learns to ignore them.
    quantizer_start_step: int = 0
    # Share of the examples that use a random number of levels, uniform on 1 .. Q; the others use all of them.
    quantizer_dropout: float = 0.5
    # Weight of the mean squared distance between latents and their codes.
    commitment_weight: float = 0.25

    def __post_init__(self):
        super().__post_init__()
        check_whole_batch(self, "codebooks follow the moving averages of whole batches, and discriminators learn between the passes of a step")
        check_numbers(self, quantizer_start_step=STEPS, quantizer_dropout=SHARE, commitment_weight=NOT_NEGATIVE)


def draw_levels(rng: Key, batch: int, *, num_levels: int, dropout: float, others: Int[Array, ""] | int | None = None) -> Int[Array, "B"]:
    """Draws how many levels each example uses, int32 (quantizer dropout; SoundStream, arXiv 2107.03312, section III-C).

    A share `dropout` of the examples draws uniformly from 1 .. Q = num_levels. The rest use `others`; None: Q.
    """
    rng_levels, rng_partial = jax.random.split(rng)
    levels = jax.random.randint(rng_levels, (batch,), 1, num_levels + 1)
    return jnp.where(jax.random.bernoulli(rng_partial, dropout, (batch,)), levels, num_levels if others is None else others)


def level_perplexities(codes: Int[Array, "B T Q"], num_codes: int) -> Metrics:
    """The perplexity of each level's codes in a batch, from 1 to C: {"perplexity_1": ..., "perplexity_Q": ...}."""
    counts = jnp.sum(jax.nn.one_hot(codes, num_codes), axis=(0, 1))
    return {f"perplexity_{level}": value for level, value in enumerate(perplexity(counts), start=1)}
