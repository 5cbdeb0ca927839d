"""Transport distances between sets of tokens, MusicLM's approximate memorization. NumPy, in float64."""

from __future__ import annotations

import numpy as np

from musiclm_jax.arrays import Float, Int
from musiclm_jax.data.prefetch import map_ahead

# Pairs of histograms that are compared at once, which bounds memory.
_BLOCK = 16
# Iterations between two looks at whether the plan still changes, and the change, in units of epsilon, below which it counts as found.
_LOOK_EVERY, _CONVERGED = 5, 1e-5


def sinkhorn_distance(
    cost: Float[np.ndarray, "*p n m"],
    a: Float[np.ndarray, "*p n"] | None = None,
    b: Float[np.ndarray, "*p m"] | None = None,
    *,
    epsilon: float,
    iterations: int = 200,
) -> Float[np.ndarray, "*p"]:
    """The transport cost between the masses `a` and `b` by entropy-regularized optimal transport (Cuturi 2013, arXiv 1306.0895), for each of some pairs.

    The iterations are in the log domain, so that a small epsilon causes neither underflow nor overflow. After convergence the result is between the exact
    distance and epsilon * log(min(n, m)) above it. A smaller epsilon needs more iterations, a few times max(cost) / epsilon.

    Args:
        cost: cost of transport from each bin of `a` to each bin of `b`.
        a, b: masses of the bins, which are normalized to a sum of 1. Empty bins are ignored. None: equal masses.
        epsilon: weight of the entropy, in the units of the cost.
        iterations: the largest number of iterations, each of which scales both rows and columns. They end when no potential changes any more.

    Raises:
        ValueError: a mass is negative, all masses of a pair are 0, or `epsilon` or `iterations` is not positive.
    """
    *pairs, n, m = cost.shape
    a, b = (np.ones((*pairs, size)) if mass is None else np.asarray(mass, np.float64) for mass, size in ((a, n), (b, m)))
    sums = [mass.sum(axis=-1, keepdims=True) for mass in (a, b)]
    if not (a.min() >= 0 and b.min() >= 0 and min(each.min() for each in sums) > 0):
        raise ValueError(f"masses with sums {sums[0].min()} and {sums[1].min()}, minima {a.min()} and {b.min()}: expected none negative and some positive")
    if not (epsilon > 0 and iterations >= 1):
        raise ValueError(f"epsilon={epsilon}, iterations={iterations}: both must be positive")
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log(a / sums[0])[..., :, None], np.log(b / sums[1])[..., None, :]  # -inf for empty bins.
    used = np.isfinite(log_a) & np.isfinite(log_b)
    scaled = np.where(used, cost, 0.0) / epsilon
    f, g = np.zeros_like(log_a), np.zeros_like(log_b)
    for i in range(iterations):
        # After the first line, the rows of the plan exp(f + g - scaled) a b sum to a; after the second, its columns sum to b.
        before, f = f, -_logsumexp(g - scaled + log_b, axis=-1)
        g = -_logsumexp(f - scaled + log_a, axis=-2)
        if i % _LOOK_EVERY == 0 and np.abs(f - before).max() < _CONVERGED:
            break
    plan = np.exp(f + g - scaled + log_a + log_b)
    return np.asarray(epsilon * np.sum(plan * scaled, axis=(-2, -1)))


def _logsumexp(x: Float[np.ndarray, "*p n m"], *, axis: int) -> np.ndarray:
    """Of rows or columns that are not all -inf, with the axis kept. SciPy's is several times slower."""
    top = x.max(axis=axis, keepdims=True)
    return top + np.log(np.exp(x - top).sum(axis=axis, keepdims=True))


def centroid_distances(centroids: Float[np.ndarray, "V D"]) -> Float[np.ndarray, "V V"]:
    """Euclidean distances between k-means centroids."""
    centroids = centroids.astype(np.float64)
    squares = np.square(centroids).sum(axis=1)
    table = np.sqrt(np.maximum(squares[:, None] + squares - 2 * centroids @ centroids.T, 0.0))
    np.fill_diagonal(table, 0.0)
    return table


def matching_costs(
    ids: Int[np.ndarray, "P T"], others: Int[np.ndarray, "P S"], distances: Float[np.ndarray, "V V"], *, epsilon: float, iterations: int = 200
) -> Float[np.ndarray, "P"]:
    """The distance between the token histograms of pairs of clips, MusicLM's measure of approximate memorization (arXiv 2301.11325, appendix B).

    It is the `sinkhorn_distance` over the bins in use, with the distances between the k-means centroids as costs, in their units. A threshold does not
    transfer from one tokenizer to another: choose it on pairs of unrelated clips. The paper chooses one with less than 0.01 % false positives, and does not
    state epsilon and the number of iterations.

    Args:
        ids, others: semantic tokens of the two clips of each pair.
        distances: `centroid_distances`.
        epsilon, iterations: see `sinkhorn_distance`.
    """

    def block(start: int) -> np.ndarray:
        (bins, masses), (other_bins, other_masses) = (_histograms(rows[start : start + _BLOCK]) for rows in (ids, others))
        return sinkhorn_distance(distances[bins[:, :, None], other_bins[:, None]], masses, other_masses, epsilon=epsilon, iterations=iterations)

    return np.concatenate([costs for _, costs in map_ahead(block, range(0, len(ids), _BLOCK))])


def _histograms(ids: Int[np.ndarray, "P T"]) -> tuple[Int[np.ndarray, "P n"], Float[np.ndarray, "P n"]]:
    """The tokens that each row uses, and how often. Rows that use fewer than others have empty bins at their end."""
    found = [np.unique(row, return_counts=True) for row in ids]
    bins, masses = np.zeros((2, len(ids), max(len(used) for used, _ in found)))
    for row, (used, counts) in enumerate(found):
        bins[row, : len(used)], masses[row, : len(used)] = used, counts
    return bins.astype(np.int64), masses
