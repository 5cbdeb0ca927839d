"""Transport distances between sets of tokens, MusicLM's approximate memorization. NumPy, in float64."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from musiclm_jax.arrays import Float, Int


def sinkhorn_distance(
    cost: Float[np.ndarray, "n m"],
    a: Float[np.ndarray, "n"] | None = None,
    b: Float[np.ndarray, "m"] | None = None,
    *,
    epsilon: float,
    iterations: int = 200,
) -> float:
    """The transport cost between the masses `a` and `b` by entropy-regularized optimal transport (Cuturi 2013, arXiv 1306.0895).

    The iterations are in the log domain, so that a small epsilon causes neither underflow nor overflow. After convergence the result is between the exact
    distance and epsilon * log(min(n, m)) above it. A smaller epsilon needs more iterations, a few times max(cost) / epsilon.

    Args:
        cost: cost of transport from each bin of `a` to each bin of `b`.
        a, b: masses of the bins, which are normalized to a sum of 1. Empty bins are ignored. None: equal masses.
        epsilon: weight of the entropy, in the units of the cost.
        iterations: number of iterations, each of which scales both rows and columns.

    Raises:
        ValueError: a mass is negative, all masses are 0, or `epsilon` or `iterations` is not positive.
    """
    a, b = (np.ones(size) if mass is None else np.asarray(mass, np.float64) for mass, size in zip((a, b), cost.shape, strict=True))
    if not (a.min() >= 0 and b.min() >= 0 and a.sum() > 0 and b.sum() > 0):
        raise ValueError(f"masses with sums {a.sum()} and {b.sum()}, minima {a.min()} and {b.min()}: expected none negative and some positive")
    if not (epsilon > 0 and iterations >= 1):
        raise ValueError(f"epsilon={epsilon}, iterations={iterations}: both must be positive")
    cost = cost[np.ix_(a > 0, b > 0)].astype(np.float64)
    log_a, log_b = np.log(a[a > 0] / a.sum()), np.log(b[b > 0] / b.sum())
    g = np.zeros(len(log_b))
    for _ in range(iterations):
        # After the first line, the rows of the plan exp((f + g - cost) / epsilon) a b sum to a; after the second, its columns sum to b.
        f = -epsilon * logsumexp((g - cost) / epsilon + log_b, axis=1)
        g = -epsilon * logsumexp((f[:, None] - cost) / epsilon + log_a[:, None], axis=0)
    plan = np.exp((f[:, None] + g - cost) / epsilon + log_a[:, None] + log_b)
    return float(np.sum(plan * cost))


def matching_cost(
    ids: Int[np.ndarray, "T"], other: Int[np.ndarray, "S"], centroids: Float[np.ndarray, "V D"], *, epsilon: float, iterations: int = 200
) -> float:
    """The distance between the token histograms of two clips, MusicLM's measure of approximate memorization (arXiv 2301.11325).

    It is the `sinkhorn_distance` with the Euclidean distances between the k-means centroids as costs, in their units. A threshold does not transfer from
    one tokenizer to another: choose it on pairs of unrelated clips. The paper chooses one with less than 0.01% false positives, and does not state epsilon
    and the number of iterations.

    Args:
        ids, other: semantic tokens of the two clips.
        centroids: the k-means centroids.
        epsilon, iterations: see `sinkhorn_distance`.
    """
    bins, others = np.unique(ids, return_counts=True), np.unique(other, return_counts=True)
    difference = centroids[bins[0]][:, None].astype(np.float64) - centroids[others[0]]
    cost = np.sqrt(np.sum(np.square(difference), axis=-1))
    return sinkhorn_distance(cost, bins[1].astype(np.float64), others[1].astype(np.float64), epsilon=epsilon, iterations=iterations)
