"""Distances between sets: of embeddings (Fréchet audio distance), of tokens (MusicLM's memorization measure). NumPy, in float64."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from musiclm_jax.arrays import Float, Int


def frechet_distance(a: Float[np.ndarray, "n D"], b: Float[np.ndarray, "m D"]) -> float:
    """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)): Gaussians fitted to two sets of embeddings, and their squared distance.

    Of the embeddings of generated and of real music this is the Fréchet audio distance (arXiv 1812.08466), in squared units of the
    embedding. Whether 2 or 10,000 rows, it is exact for their covariances S, but a covariance of few rows is a poor estimate: compare
    only distances over the same number of rows, and name embedding and reference set with each.

    Raises:
        ValueError: fewer than 2 rows.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} embeddings: a covariance needs 2 or more of each")
    (mean_a, factor_a), (mean_b, factor_b) = _gaussian(a), _gaussian(b)
    # Of S_a = F_a^T F_a and S_b alike, the trace of the root of S_a S_b is the sum of the singular values of F_a F_b^T. Unlike a
    # matrix root it is real and exact for covariances of any rank: no root is taken of rounding errors around 0.
    cross = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    distance = np.sum((mean_a - mean_b) ** 2) + np.sum(factor_a**2) + np.sum(factor_b**2) - 2 * cross
    return max(0.0, float(distance))


def _gaussian(x: Float[np.ndarray, "n D"]) -> tuple[Float[np.ndarray, "D"], Float[np.ndarray, "r D"]]:
    """The mean of the rows and a factor F of their unbiased covariance F^T F, r = min(n, D)."""
    mean = x.mean(axis=0, dtype=np.float64)
    return mean, np.linalg.qr(x - mean, mode="r") / np.sqrt(len(x) - 1)


def sinkhorn_distance(
    cost: Float[np.ndarray, "n m"],
    a: Float[np.ndarray, "n"] | None = None,
    b: Float[np.ndarray, "m"] | None = None,
    *,
    epsilon: float,
    iterations: int = 200,
) -> float:
    """The cost of moving mass `a` to where `b` is, by entropy-regularized optimal transport (Cuturi 2013, arXiv 1306.0895).

    Iterates in the log domain, so that a small epsilon neither under- nor overflows. Once converged the result lies between the exact
    distance and epsilon * log(min(n, m)) above it, the price of a blurred plan; a smaller epsilon needs more iterations, roughly
    max(cost) / epsilon times a few.

    Args:
        cost: From each bin of `a` to each bin of `b`.
        a, b: Mass of the bins, in any unit; empty bins are left out. None: all the same.
        epsilon: Weight of the entropy, in the units of the cost.
        iterations: Of both scalings.

    Raises:
        ValueError: negative or no mass, or an epsilon that is not positive.
    """
    a, b = (np.ones(size) if mass is None else np.asarray(mass, np.float64) for mass, size in zip((a, b), cost.shape, strict=True))
    if not (a.min() >= 0 and b.min() >= 0 and a.sum() > 0 and b.sum() > 0):
        raise ValueError(f"masses of sums {a.sum()} and {b.sum()}, minima {a.min()} and {b.min()}: expected none negative and some positive")
    if not (epsilon > 0 and iterations >= 1):
        raise ValueError(f"epsilon={epsilon}, iterations={iterations}: both must be positive")
    cost = cost[np.ix_(a > 0, b > 0)].astype(np.float64)
    log_a, log_b = np.log(a[a > 0] / a.sum()), np.log(b[b > 0] / b.sum())
    g = np.zeros(len(log_b))
    for _ in range(iterations):
        # With these potentials the plan exp((f + g - cost) / epsilon) a b has first the sums a over its rows, then b over its columns.
        f = -epsilon * logsumexp((g - cost) / epsilon + log_b, axis=1)
        g = -epsilon * logsumexp((f[:, None] - cost) / epsilon + log_a[:, None], axis=0)
    plan = np.exp((f[:, None] + g - cost) / epsilon + log_a[:, None] + log_b)
    return float(np.sum(plan * cost))


def matching_cost(
    ids: Int[np.ndarray, "T"], other: Int[np.ndarray, "S"], centroids: Float[np.ndarray, "V D"], *, epsilon: float, iterations: int = 200
) -> float:
    """How far apart two clips' semantic tokens are as sets, order aside: approximate memorization in MusicLM (arXiv 2301.11325).

    `sinkhorn_distance` between the two histograms, where moving a token costs the distance between the k-means centroids; in their
    units. A threshold does not transfer from one tokenizer to another: take it from pairs that do not belong together. The paper's
    gives less than 0.01 % false positives; its epsilon and iterations are not stated.
    """
    bins, others = np.unique(ids, return_counts=True), np.unique(other, return_counts=True)
    difference = centroids[bins[0]][:, None].astype(np.float64) - centroids[others[0]]
    cost = np.sqrt(np.sum(np.square(difference), axis=-1))
    return sinkhorn_distance(cost, bins[1].astype(np.float64), others[1].astype(np.float64), epsilon=epsilon, iterations=iterations)
