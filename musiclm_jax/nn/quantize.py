"""Residual vector quantization with codebooks learned by exponential moving averages (SoundStream, arXiv 2107.03312, section III-C).

Level q quantizes the residual of the levels before it; the sum of the chosen codes approximates the input. Distances and statistics are float32.
All statistics are sums over the whole batch, so that under jit with a batch sharded over devices they are global sums.
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
    """How the codebooks are learned. Their sizes are those of the `RVQState`."""

    # Decay of the moving averages of the sum and the count of the frames assigned to a code. The paper's: 0.99.
    ema_decay: float = 0.99
    # A code is dead, and is replaced by a random frame of the batch, when its moving average of counts is below this share of the mean of its level.
    # The paper's threshold is a count of 2, about 0.2 of the mean in a batch of 64 x 3 s; a share fits all batch sizes. 0: codes are never replaced.
    dead_code_ratio: float = 0.2
    # Constant of the Laplace smoothing of the counts.
    epsilon: float = 1e-5
    # k-means iterations on the first batch, which initialize the codebooks.
    kmeans_iters: int = 10

    def __post_init__(self):
        check_numbers(self, ema_decay=SHARE, dead_code_ratio=SHARE, epsilon=POSITIVE, kmeans_iters=COUNT)
        if 1 in (self.ema_decay, self.dead_code_ratio):
            raise UserError(f"ema_decay={self.ema_decay}, dead_code_ratio={self.dead_code_ratio}: choose both at least 0 and below 1")


@flax.struct.dataclass
class RVQState:
    """Codebooks and their moving averages.

    Attributes:
        codebooks: [Q, C, D] float32.
        ema_sum, ema_count: [Q, C, D] and [Q, C] float32, moving averages of the sum and the count of the frames assigned to each code.
        initialized: bool scalar, False before the first batch.
    """

    # Annotated as Any, because JAX also builds this class from shapes and shardings (eval_shape, tree.map), which a type checker would reject.
    codebooks: Any
    ema_sum: Any
    ema_count: Any
    initialized: Any

    @classmethod
    def empty(cls, *, num_levels: int, num_codes: int, dim: int) -> RVQState:
        """A state of zeros, which the first call of `quantize_train` initializes."""
        vectors = jnp.zeros((num_levels, num_codes, dim), jnp.float32)
        return cls(vectors, vectors, jnp.zeros((num_levels, num_codes), jnp.float32), jnp.zeros((), jnp.bool_))


def nearest(x: Float[Array, "*B D"], codebook: Float[Array, "C D"]) -> Int[Array, "*B"]:
    """Index of the nearest code in Euclidean distance, int32. Ties go to the lower index."""
    products = jnp.einsum("...d,cd->...c", x, codebook, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    distances = jnp.sum(jnp.square(codebook), axis=-1) - 2 * products
    # argmin as two minima, which XLA on CPU runs twice as fast, products included. Where all distances are NaN the result is 0, as with argmin.
    further = distances > jnp.min(distances, axis=-1, keepdims=True)
    return jnp.min(jnp.where(further, len(codebook), jnp.arange(len(codebook), dtype=jnp.int32)), axis=-1)


def rvq_encode(codebooks: Float[Array, "Q C D"], x: Float[Array, "*B D"]) -> Int[Array, "*B Q"]:
    """Quantizes x greedily, level by level. Returns the codes, int32 in [0, C)."""

    def level(residual, codebook):
        codes = nearest(residual, codebook)
        return residual - codebook[codes], codes

    _, codes = jax.lax.scan(level, x.astype(jnp.float32), codebooks)
    return jnp.moveaxis(codes, 0, -1)


def rvq_decode(codebooks: Float[Array, "Q C D"], codes: Int[Array, "*B q"]) -> Float[Array, "*B D"]:
    """The vectors that codes stand for, float32: the sum of the chosen code vectors. With q < Q levels the result is a coarser approximation.

    Raises:
        ValueError: the codes have more levels than there are codebooks.
    """
    levels = codes.shape[-1]
    if levels > codebooks.shape[0]:
        raise ValueError(f"codes have {levels} levels, expected at most {codebooks.shape[0]}, the number of codebooks")
    return jnp.sum(codebooks[jnp.arange(levels), codes], axis=-2)


def rvq_fit(rng: Key, x: Float[Array, "n D"], *, num_levels: int, num_codes: int, num_iters: int = 20) -> Float[Array, "{num_levels} {num_codes} D"]:
    """Fits codebooks by residual k-means: the codebook of level q is fitted to the residual of the levels before it. Returns [Q, C, D] float32."""

    def level(residual, rng):
        codebook = kmeans(rng, residual, num_clusters=num_codes, num_iters=num_iters)
        return residual - codebook[nearest(residual, codebook)], codebook

    _, codebooks = jax.lax.scan(level, x.astype(jnp.float32), jax.random.split(rng, num_levels))
    return codebooks


def perplexity(counts: Float[Array, "*Q C"]) -> Float[Array, "*Q"]:
    """exp(entropy) of the codes' frequencies: C if all codes are used equally, 1 if one code or none is used. `counts` may be probabilities.

    The gradient is finite everywhere. With respect to the count of an unused code it has only the term of the other codes' frequencies.
    """
    total = jnp.sum(counts, axis=-1, keepdims=True)
    frequencies = counts / jnp.where(total > 0, total, 1)
    # xlogy has an infinite gradient at 0.
    return jnp.exp(-jnp.sum(frequencies * jnp.log(jnp.where(frequencies > 0, frequencies, 1)), axis=-1))


def quantize_train(
    x: Float[Array, "B T D"], state: RVQState, config: RVQConfig, *, num_levels: Int[Array, "B"], rng: Key
) -> tuple[Float[Array, "B T D"], Int[Array, "B T Q"], Float[Array, ""], RVQState, dict[str, jax.Array]]:
    """Quantizes a training batch and updates the codebooks (section III-C, algorithm 1). The first batch initializes them by k-means.

    Args:
        num_levels: example b uses its first num_levels[b] levels (quantizer dropout). The other levels do not add to its output, and it does not
            enter their statistics; their codes are returned nevertheless.
        rng: for the k-means and for the replacement of dead codes.

    Returns:
        (y, codes, commitment, state, metrics): y, the quantized x with a straight-through gradient, in the dtype of x; codes, int32; the commitment
        loss, the mean squared distance to the codes over frames, components and levels; the new state; and the metrics of this batch,
        {"perplexity_<level>", "codebook_use_<level>"}, where codebook use is the share of the codes that occur and levels count from 1.
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
        # The residual of every level has the gradient of x, so the commitment loss of every level reaches the encoder.
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
    """One level of an `RVQState`, or all levels with a leading axis Q."""

    codebook: jax.Array  # [C, D]
    ema_sum: jax.Array  # [C, D]
    ema_count: jax.Array  # [C]


def _initialize(rng: Key, frames: Float[Array, "n D"], state: RVQState, num_iters: int) -> RVQState:
    """Initializes the codebooks by residual k-means on the frames of the first batch, and the moving averages by their assignment."""
    levels, codes, _ = state.codebooks.shape
    books = rvq_fit(rng, frames, num_levels=levels, num_codes=codes, num_iters=num_iters)
    counts = jax.vmap(lambda ids: jnp.sum(jax.nn.one_hot(ids, codes), axis=0), in_axes=-1)(rvq_encode(books, frames))
    # A code without frames gets a small count, so that its vector is not lost in 0 / 0. If it stays unused it becomes dead.
    counts = jnp.maximum(counts, 1e-2)
    return RVQState(books, books * counts[..., None], counts, jnp.ones((), jnp.bool_))


def _update(
    book: _Book, x: Float[Array, "n D"], codes: Int[Array, "n"], used: Bool[Array, "n"], config: RVQConfig, rng: Key
) -> tuple[_Book, Float[Array, "C"]]:
    """One step of the moving averages of one level, with the frames in `used`. Returns the new level and the counts of this batch."""
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

    # Dead codes are replaced by random frames among the used ones. Their sum and count are replaced as well, or the next step would undo this.
    threshold = config.dead_code_ratio * mass / num_codes
    dead = ema_count < threshold
    draws = jax.random.randint(rng, (num_codes,), 0, jnp.maximum(total, 1).astype(jnp.int32))
    fresh = x[jnp.searchsorted(jnp.cumsum(used.astype(jnp.int32)), draws, side="right")]
    restarted = _Book(
        jnp.where(dead[:, None], fresh, codebook),
        jnp.where(dead[:, None], fresh * threshold, ema_sum),
        jnp.where(dead, threshold, ema_count),
    )
    # A level that no example used does not change.
    return jax.tree.map(lambda new, old: jnp.where(total > 0, new, old), restarted, book), usage
