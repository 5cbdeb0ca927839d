"""k-means in JAX, for semantic tokens and residual codebooks. Results are deterministic for a given key; all distances are float32."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Bool, Float, Int, Key

_CHUNK = 1 << 14  # Rows whose distances to all centroids are in memory at once: 64 MB for 1,024 centroids.
_HIGHEST = jax.lax.Precision.HIGHEST  # TPUs and GPUs would otherwise round the products to bfloat16 or TF32.


@functools.partial(jax.jit, static_argnames=("num_clusters", "num_iters"))
def kmeans(rng: Key, x: Float[Array, "n D"], *, num_clusters: int, num_iters: int = 20, valid: Bool[Array, "n"] | None = None) -> Float[Array, "C D"]:
    """k-means centroids of `x`, float32: Lloyd's algorithm, initialized by greedy k-means++.

    A cluster without points moves to one of the points that are farthest from their centroids, as in scikit-learn. With fewer distinct points than
    clusters, every point gets a centroid, and the other centroids are copies of points, shifted by 0.1% of the data's standard deviation.

    Args:
        rng: used for the initialization only.
        x: n points. Rows that are not valid may contain NaN.
        num_clusters: number of centroids, C.
        num_iters: number of Lloyd steps, all of which are run. 0 returns the initialization.
        valid: the rows to use. None: all.

    Raises:
        ValueError: `num_clusters` is below 1, or there are no points.
    """
    if num_clusters < 1 or x.shape[0] < 1:
        raise ValueError(f"kmeans needs at least one cluster and one point, got num_clusters={num_clusters} and x of shape {x.shape}")
    valid = jnp.ones(x.shape[0], bool) if valid is None else valid
    x = jnp.where(valid[:, None], x.astype(jnp.float32), 0)
    # |x|^2 - 2 x.c + |c|^2 loses precision far from the origin, so the mean is subtracted first.
    total = jnp.maximum(jnp.sum(valid), 1)
    mean = jnp.sum(x, axis=0) / total
    x = jnp.where(valid[:, None], x - mean, 0)
    spread = jnp.sqrt(jnp.sum(jnp.square(x)) / (total * x.shape[1]))
    centroids = _plus_plus(rng, x, valid, num_clusters=num_clusters, jitter=1e-3 * spread)
    tiny = 1e-6 * x.shape[1] * jnp.square(spread)  # Squared distances below this are rounding errors.
    centroids = jax.lax.fori_loop(0, num_iters, lambda _, c: _lloyd(x, valid, c, tiny=tiny), centroids)
    return centroids + mean


@jax.jit
def assign(x: Float[Array, "*B D"], centroids: Float[Array, "C D"]) -> Int[Array, "*B"]:
    """Index of the nearest centroid of each vector, int32. Ties go to the lower index."""
    centroids = centroids.astype(jnp.float32)
    mean = jnp.mean(centroids, axis=0)
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32) - mean
    ids = _by_chunks(lambda chunk: _nearest(chunk, centroids - mean)[0], rows)
    return ids.reshape(x.shape[:-1])


def _nearest(x: Float[Array, "n D"], centroids: Float[Array, "C D"]) -> tuple[Int[Array, "n"], Float[Array, "n"]]:
    """Index of, and squared distance to, the nearest centroid."""
    # |x|^2 does not change the argmin; it is added afterwards.
    partial = jnp.sum(jnp.square(centroids), axis=1) - 2 * jnp.matmul(x, centroids.T, precision=_HIGHEST)
    ids = jnp.argmin(partial, axis=1).astype(jnp.int32)
    return ids, jnp.maximum(jnp.min(partial, axis=1) + jnp.sum(jnp.square(x), axis=1), 0)


def _by_chunks(fn, rows: jax.Array):
    """Applies `fn` to blocks of rows, one after the other, so that a million rows fit into memory.

    A block has every k-th row, so that rows which are split over devices stay split in each block.
    """
    n = rows.shape[0]
    if n <= _CHUNK:
        return fn(rows)
    chunks = -(-n // _CHUNK)
    rows = jnp.pad(rows, ((0, chunks * _CHUNK - n), (0, 0))).reshape(_CHUNK, chunks, -1)
    return jax.tree.map(lambda y: y.swapaxes(0, 1).reshape(-1, *y.shape[2:])[:n], jax.lax.map(fn, rows.swapaxes(0, 1)))


def _lloyd(x: jax.Array, valid: jax.Array, centroids: jax.Array, *, tiny: jax.Array) -> jax.Array:
    """One Lloyd step: assigns points, averages them, and moves the empty clusters. Returns the new centroids, [C, D]."""
    n, num_clusters = x.shape[0], centroids.shape[0]
    ids, distance = _by_chunks(lambda chunk: _nearest(chunk, centroids), x)
    ids = jnp.where(valid, ids, num_clusters)  # segment_sum drops ids beyond the last cluster.
    sums = jax.ops.segment_sum(x, ids, num_segments=num_clusters)
    counts = jax.ops.segment_sum(jnp.ones(n), ids, num_segments=num_clusters)
    means = jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], centroids)
    # The r-th empty cluster moves to the r-th farthest point, unless that point coincides with a centroid.
    far, rows = jax.lax.top_k(jnp.where(valid, distance, 0), min(n, num_clusters))
    empty = counts == 0
    rank = jnp.minimum(jnp.cumsum(empty) - 1, far.shape[0] - 1)
    return jnp.where((empty & (far[rank] > tiny))[:, None], x[rows[rank]], means)


def _plus_plus(rng: Key, x: jax.Array, valid: jax.Array, *, num_clusters: int, jitter: jax.Array) -> jax.Array:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007, section 5) on a random subset of the points: each centroid is the best of a few draws."""
    n, dim = x.shape
    trials = 2 + int(math.log(num_clusters))
    rng_subset, rng_first, rng_draws = jax.random.split(rng, 3)
    scores = jnp.where(valid, jax.random.uniform(rng_subset, (n,)), -1)
    _, subset = jax.lax.top_k(scores, min(n, 16 * num_clusters + 1024))
    x, valid = x[subset], valid[subset]

    def draw(rng, weight, num):
        return jax.random.categorical(rng, jnp.log(weight), shape=(num,))

    def to_point(point):  # From differences, so that the distance of a point to itself is exactly 0.
        return jnp.sum(jnp.square(x - point), axis=1)

    first = x[draw(rng_first, valid.astype(jnp.float32), 1)[0]]

    def add(k, carry):
        centroids, distance = carry
        rng_pick, rng_noise = jax.random.split(jax.random.fold_in(rng_draws, k))
        exhausted = jnp.sum(distance) == 0  # Every point is a centroid: draw any point, and shift it by noise.
        candidates = draw(rng_pick, jnp.where(exhausted, valid.astype(jnp.float32), distance), trials)
        nearer = jnp.minimum(distance, jax.lax.map(lambda i: to_point(x[i]), candidates))
        best = jnp.argmin(jnp.sum(nearer, axis=1))
        noise = jnp.where(exhausted, jitter, 0) * jax.random.normal(rng_noise, (dim,))
        return centroids.at[k].set(x[candidates[best]] + noise), nearer[best]

    start = jnp.zeros((num_clusters, dim)).at[0].set(first)
    return jax.lax.fori_loop(1, num_clusters, add, (start, jnp.where(valid, to_point(first), 0)))[0]
