"""Residual vector quantization with codebooks learned by exponential moving averages (SoundStream, arXiv 2107.03312, section III-C).

Level q quantizes what the levels before it left over; the sum of the chosen codes approximates the input. Distances and statistics
are float32. All statistics are sums over the whole batch, so that under jit with a batch sharded over devices they are global sums.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Bool, Float, Int, Key
from musiclm_jax.checks import COUNT, POSITIVE, SHARE, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.nn.clustering import kmeans


@dataclasses.dataclass(frozen=True)
class RVQConfig:
    """How codebooks learn. Their sizes are those of the `RVQState`."""

    # Of the running sums and counts of the frames assigned to a code.
    ema_decay: float = 0.99
    # A code is dead, and restarts at a random frame of the batch, when its running count is below this part of the mean count of
    # its level. The paper's threshold is a count of 2 in a batch where the mean is about 9: it must scale with the batch. 0: never.
    dead_code_ratio: float = 0.2
    # Laplace smoothing of the counts.
    epsilon: float = 1e-5
    # k-means iterations on the first batch.
    kmeans_iters: int = 10

    def __post_init__(self):
        check_numbers(self, ema_decay=SHARE, dead_code_ratio=SHARE, epsilon=POSITIVE, kmeans_iters=COUNT)
        if 1 in (self.ema_decay, self.dead_code_ratio):
            raise UserError(f"ema_decay={self.ema_decay} and dead_code_ratio={self.dead_code_ratio} must both lie in [0, 1)")


@flax.struct.dataclass
class RVQState:
    """Codebooks and their running statistics.

    Fields, float32: codebooks [Q, C, D]; ema_sum [Q, C, D], ema_count [Q, C]: running sum and number of the frames of a code;
    initialized: bool scalar, False until the first batch has been seen.
    """

    # Any: JAX rebuilds the class around shapes and shardings (eval_shape, tree.map), which the type checker would refuse.
    codebooks: Any
    ema_sum: Any
    ema_count: Any
    initialized: Any

    @classmethod
    def empty(cls, *, num_levels: int, num_codes: int, dim: int) -> RVQState:
        vectors = jnp.zeros((num_levels, num_codes, dim), jnp.float32)
        return cls(vectors, vectors, jnp.zeros((num_levels, num_codes), jnp.float32), jnp.zeros((), jnp.bool_))


def nearest(x: Float[Array, "*B D"], codebook: Float[Array, "C D"]) -> Int[Array, "*B"]:
    """Index of the nearest code in Euclidean distance; of equals, the first."""
    products = jnp.einsum("...d,cd->...c", x, codebook, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    distances = jnp.sum(jnp.square(codebook), axis=-1) - 2 * products
    # argmin in two steps: XLA on CPU runs two plain minima twice as fast, products included. Where all is NaN it is 0, as argmin's.
    further = distances > jnp.min(distances, axis=-1, keepdims=True)
    return jnp.min(jnp.where(further, len(codebook), jnp.arange(len(codebook), dtype=jnp.int32)), axis=-1)


def rvq_encode(codebooks: Float[Array, "Q C D"], x: Float[Array, "*B D"]) -> Int[Array, "*B Q"]:
    """Codes of x, greedily, level by level."""

    def level(residual, codebook):
        codes = nearest(residual, codebook)
        return residual - codebook[codes], codes

    _, codes = jax.lax.scan(level, x.astype(jnp.float32), codebooks)
    return jnp.moveaxis(codes, 0, -1)


def rvq_decode(codebooks: Float[Array, "Q C D"], codes: Int[Array, "*B q"]) -> Float[Array, "*B D"]:
    """The sum of the chosen codes. With q < Q levels: a coarser approximation."""
    levels = codes.shape[-1]
    if levels > codebooks.shape[0]:
        raise ValueError(f"codes of {levels} levels, but there are {codebooks.shape[0]} codebooks")
    return jnp.sum(codebooks[jnp.arange(levels), codes], axis=-2)


def rvq_fit(rng: Key, x: Float[Array, "n D"], *, num_levels: int, num_codes: int, num_iters: int = 20) -> Float[Array, "{num_levels} {num_codes} D"]:
    """Codebooks by residual k-means: level q is fitted to what the fitted levels before it leave over."""

    def level(residual, rng):
        codebook = kmeans(rng, residual, num_clusters=num_codes, num_iters=num_iters)
        return residual - codebook[nearest(residual, codebook)], codebook

    _, codebooks = jax.lax.scan(level, x.astype(jnp.float32), jax.random.split(rng, num_levels))
    return codebooks


def perplexity(counts: Float[Array, "*Q C"]) -> Float[Array, "*Q"]:
    """exp(entropy) of the codes' frequencies: C when all are used equally, 1 when one is, or none. counts: or probabilities.

    The gradient is finite everywhere; by a code that is not used it takes only what the others lose.
    """
    total = jnp.sum(counts, axis=-1, keepdims=True)
    frequencies = counts / jnp.where(total > 0, total, 1)
    # Not xlogy, whose gradient at 0 is infinite.
    return jnp.exp(-jnp.sum(frequencies * jnp.log(jnp.where(frequencies > 0, frequencies, 1)), axis=-1))


def quantize_train(
    x: Float[Array, "B T D"], state: RVQState, config: RVQConfig, *, num_levels: Int[Array, "B"], rng: Key
) -> tuple[Float[Array, "B T D"], Int[Array, "B T Q"], Float[Array, ""], RVQState, dict[str, jax.Array]]:
    """Quantizes a training batch and updates the codebooks; the first batch initializes them.

    num_levels: example b uses its first num_levels[b] levels (quantizer dropout); the others neither add to its output nor see it
    in their statistics; their codes are filled in nevertheless.
    Returns: y, the quantized x, with the gradient passed straight through; codes; commitment loss, the mean squared distance to the
    codes over frames, widths and levels; the new state; metrics {"perplexity_<level>", "codebook_use_<level>"} of this batch.
    """
    rng_init, rng_dead = jax.random.split(rng)
    count = state.codebooks.shape[0]
    frames = x.astype(jnp.float32).reshape(-1, x.shape[-1])
    state = jax.lax.cond(state.initialized, lambda: state, lambda: _initialize(rng_init, jax.lax.stop_gradient(frames), state, config.kmeans_iters))

    def level(carry, inputs):
        residual, quantized = carry
        used, rng, book = inputs
        codes = nearest(jax.lax.stop_gradient(residual), book.codebook)
        chosen = book.codebook[codes]
        distance = jnp.mean(jnp.square(residual - chosen), axis=-1)
        commitment = jnp.sum(jnp.where(used, distance, 0)) / jnp.maximum(jnp.sum(used), 1)
        book, usage = _update(book, jax.lax.stop_gradient(residual), codes, used, config, rng)
        # The gradient of what is left over is that of x at every level, so the commitment of each reaches the encoder.
        return (residual - chosen, quantized + jnp.where(used[:, None], chosen, 0)), (codes, commitment, book, usage)

    used = jnp.repeat(jnp.arange(count)[:, None] < num_levels, x.shape[1], axis=1)  # [Q, B * T]
    books = _Book(state.codebooks, state.ema_sum, state.ema_count)
    (_, quantized), (codes, commitment, books, usage) = jax.lax.scan(level, (frames, jnp.zeros_like(frames)), (used, jax.random.split(rng_dead, count), books))
    y = frames + jax.lax.stop_gradient(quantized - frames)
    metrics = {f"perplexity_{q + 1}": value for q, value in enumerate(perplexity(usage))}
    metrics |= {f"codebook_use_{q + 1}": value for q, value in enumerate(jnp.mean(usage > 0, axis=-1))}
    codes = jnp.moveaxis(codes, 0, -1).reshape(*x.shape[:2], count)
    return y.reshape(x.shape).astype(x.dtype), codes, jnp.mean(commitment), RVQState(*books, jnp.ones((), jnp.bool_)), metrics


class _Book(NamedTuple):
    """One level of an `RVQState`, or all of them with a leading axis Q."""

    codebook: jax.Array  # [C, D]
    ema_sum: jax.Array  # [C, D]
    ema_count: jax.Array  # [C]


def _initialize(rng: Key, frames: Float[Array, "n D"], state: RVQState, num_iters: int) -> RVQState:
    """Residual k-means on the first batch; the statistics are those of its assignment."""
    levels, codes, _ = state.codebooks.shape
    books = rvq_fit(rng, frames, num_levels=levels, num_codes=codes, num_iters=num_iters)
    counts = jax.vmap(lambda ids: jnp.sum(jax.nn.one_hot(ids, codes), axis=0), in_axes=-1)(rvq_encode(books, frames))
    # A code without frames gets a token count, or its vector would be lost in 0 / 0; if it stays unused it dies.
    counts = jnp.maximum(counts, 1e-2)
    return RVQState(books, books * counts[..., None], counts, jnp.ones((), jnp.bool_))


def _update(
    book: _Book, x: Float[Array, "n D"], codes: Int[Array, "n"], used: Bool[Array, "n"], config: RVQConfig, rng: Key
) -> tuple[_Book, Float[Array, "C"]]:
    """One EMA step of one level on the frames in `used`. Returns it with the counts of this batch."""
    num_codes = book.codebook.shape[0]
    one_hot = jax.nn.one_hot(jnp.where(used, codes, -1), num_codes)  # An id of -1 is a row of zeros.
    usage = jnp.sum(one_hot, axis=0)
    total = jnp.sum(usage)
    sums = jnp.einsum("nc,nd->cd", one_hot, x, precision=jax.lax.Precision.HIGHEST)
    ema_count = config.ema_decay * book.ema_count + (1 - config.ema_decay) * usage
    ema_sum = config.ema_decay * book.ema_sum + (1 - config.ema_decay) * sums
    mass = jnp.sum(ema_count)
    smooth = (ema_count + config.epsilon) / (mass + num_codes * config.epsilon) * mass
    codebook = ema_sum / smooth[:, None]

    # Dead codes restart at frames drawn from the used ones. Sum and count restart with them, or the next step would undo it.
    threshold = config.dead_code_ratio * mass / num_codes
    dead = ema_count < threshold
    draws = jax.random.randint(rng, (num_codes,), 0, jnp.maximum(total, 1).astype(jnp.int32))
    fresh = x[jnp.searchsorted(jnp.cumsum(used.astype(jnp.int32)), draws, side="right")]
    restarted = _Book(
        jnp.where(dead[:, None], fresh, codebook),
        jnp.where(dead[:, None], fresh * threshold, ema_sum),
        jnp.where(dead, threshold, ema_count),
    )
    # A level that no example used learns nothing.
    return jax.tree.map(lambda new, old: jnp.where(total > 0, new, old), restarted, book), usage
