"""The Fréchet distance of two sets of embeddings (Fréchet audio distance, arXiv 1812.08466), its limit for many clips, and its interval. NumPy, in float64.

A set is kept as rows [1, x], one per embedding x. The triangle of their QR decomposition holds all that the distance needs: their number, their mean, and a
factor of their covariance. No covariance is formed, and no root of a matrix is taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from musiclm_jax.arrays import Float
from musiclm_jax.evaluation import bootstrap

# Resamples of the interval: each of them needs a decomposition.
_NUM_RESAMPLES = 100
# Sizes of the subsets from which the limit is extrapolated, and draws of each size.
_NUM_SIZES, _NUM_DRAWS = 12, 4
_LEAST_CLIPS = 10


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """The Gaussian that is fitted to a set of embeddings."""

    # [D]
    mean: np.ndarray
    # [r, D]: a factor F of the unbiased covariance F^T F.
    factor: np.ndarray
    num_rows: int


@dataclasses.dataclass(frozen=True)
class Limit:
    """The distance extrapolated to infinitely many clips, and how well a line fits: the share of the variance that it explains."""

    value: float
    r2: float


def compress(embeddings: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "_ E"]:
    """The rows [1, x] of one clip, or the triangle of their QR decomposition if that has fewer rows. E = D + 1."""
    rows = np.concatenate([np.ones((len(embeddings), 1)), embeddings.astype(np.float64)], axis=1)
    return rows if len(rows) <= rows.shape[1] else np.linalg.qr(rows, mode="r")


def fit(clips: Sequence[Float[np.ndarray, "_ E"]], counts: Float[np.ndarray, "n"] | None = None) -> Gaussian:
    """Fits a Gaussian to all embeddings of some clips.

    Args:
        clips: the results of `compress`.
        counts: the number of times that each clip counts. None: once.

    Raises:
        ValueError: the clips have no embedding.
    """
    if counts is not None:
        clips = [clip * np.sqrt(count) for clip, count in zip(clips, counts, strict=True) if count]
    if not sum(map(len, clips)):
        raise ValueError("expected at least one embedding")
    triangle = np.linalg.qr(np.concatenate(clips), mode="r")
    num_rows = triangle[0, 0] ** 2
    # A single embedding has no covariance.
    factor = triangle[1:, 1:] / np.sqrt(num_rows - 1) if num_rows > 1.5 else np.zeros((0, triangle.shape[1] - 1))
    return Gaussian(triangle[0, 1:] / triangle[0, 0], factor, round(num_rows))


def distance(a: Gaussian, b: Gaussian) -> float:
    """The squared Fréchet distance |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), in squared units of the embedding.

    The covariances S of few rows are poor estimates: compare only distances over the same number of clips, and report the embedding and the reference set
    with each.
    """
    # With S_a = F_a^T F_a and S_b = F_b^T F_b, the trace of the root of S_a S_b is the sum of the singular values of F_a F_b^T. Unlike a matrix root, it
    # is real and accurate for covariances of any rank, because no root of a rounding error around 0 is taken.
    cross = np.linalg.svd(a.factor @ b.factor.T, compute_uv=False).sum()
    value = np.sum((a.mean - b.mean) ** 2) + np.sum(a.factor**2) + np.sum(b.factor**2) - 2 * cross
    return max(0.0, float(value))


def frechet_distance(a: Float[np.ndarray, "n D"], b: Float[np.ndarray, "m D"]) -> float:
    """The `distance` of two sets of embeddings. Raises ValueError if one has fewer than 2 rows."""
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} embeddings: expected 2 or more in each set, for a covariance")
    return distance(fit([compress(a)]), fit([compress(b)]))


def extrapolate(reference: Gaussian, clips: Sequence[Float[np.ndarray, "_ E"]], *, rng: np.random.Generator) -> Limit | None:
    """The distance for infinitely many clips (arXiv 1911.07023, section 4): the distance of n clips is too large by about a constant over n.

    A line in 1 / n is fitted to the distances of random subsets of a fifth of the clips to all of them. Clips are drawn without repetition: with repetition,
    as in fadtk, the line leads to the distance of all the clips, not beyond it. The reference is not extrapolated.

    Returns:
        None with fewer than 10 clips, or if the smallest subset has no more embeddings than dimensions: the distance is not linear in 1 / n there.
    """
    embeddings_per_clip = fit(clips).num_rows / len(clips)
    least = max(len(clips) / 5, (len(reference.mean) + 1) / embeddings_per_clip)
    if len(clips) < _LEAST_CLIPS or least > len(clips) / 2:
        return None
    sizes = np.repeat(np.linspace(np.ceil(least), len(clips), _NUM_SIZES).astype(int), _NUM_DRAWS)
    values = [distance(reference, fit([clips[i] for i in rng.permutation(len(clips))[:size]])) for size in sizes]
    slope, value = np.polyfit(1 / sizes, values, 1)
    residual = np.sum((values - value - slope / sizes) ** 2)
    return Limit(float(value), float(1 - residual / np.sum((values - np.mean(values)) ** 2)))


def distance_interval(reference: Gaussian, clips: Sequence[Float[np.ndarray, "_ E"]], *, rng: np.random.Generator) -> list[float] | None:
    """The 95 % interval of the distance for other clips like these against the same reference. None: there are fewer than 2 clips.

    A resample has fewer different clips, so that its distance is too large. The resamples are shifted to have the distance of all clips in their middle.
    """
    if len(clips) < 2:
        return None
    resampled = np.array([distance(reference, fit(clips, counts)) for counts in bootstrap.draw_counts(len(clips), rng=rng, num_resamples=_NUM_RESAMPLES)])
    return bootstrap.interval(resampled - np.median(resampled) + distance(reference, fit(clips)))
