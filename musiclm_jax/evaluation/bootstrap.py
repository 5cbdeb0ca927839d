"""The bootstrap of all evaluations: 95 % intervals of figures over clips, for other clips of the same kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from musiclm_jax.arrays import Bool, Float

NUM_RESAMPLES = 2000
# The numbers of times that each clip is drawn, one resample per row -> {figure: its value for each resample}.
Statistic = Callable[[Float[np.ndarray, "R n"]], dict[str, Float[np.ndarray, "R"]]]


def draw_counts(num_clips: int, *, rng: np.random.Generator, num_resamples: int = NUM_RESAMPLES) -> Float[np.ndarray, "R n"]:
    """Draws resamples of n clips with repetition, as the number of times that each clip is drawn."""
    return rng.multinomial(num_clips, np.full(num_clips, 1 / num_clips), size=num_resamples).astype(np.float64)


def estimate(statistic: Statistic, num_clips: int, *, rng: np.random.Generator) -> dict[str, Any]:
    """The figures of a statistic, with their 95 % intervals under "NAME_95". None: a figure that is not finite, and the interval of one clip or none."""
    values, resampled = statistic(np.ones((1, num_clips))), statistic(draw_counts(num_clips, rng=rng))
    result: dict[str, Any] = {}
    for name, (value,) in values.items():
        known = bool(np.isfinite(value))
        result[name] = float(value) if known else None
        result[f"{name}_95"] = interval(resampled[name]) if known and num_clips > 1 else None
    return result


def interval(values: Float[np.ndarray, "R"]) -> list[float] | None:
    """The 2.5th and the 97.5th percentile of the finite values. None: there are none."""
    finite = values[np.isfinite(values)]
    return [float(x) for x in np.percentile(finite, [2.5, 97.5])] if len(finite) else None


def means(values: Float[np.ndarray, "n"] | Bool[np.ndarray, "n"], counts: Float[np.ndarray, "R n"]) -> Float[np.ndarray, "R"]:
    """The mean over the clips of each resample."""
    return counts @ values / counts.sum(axis=1)


def pair_means(
    values: Float[np.ndarray, "n n"] | Bool[np.ndarray, "n n"], counts: Float[np.ndarray, "R n"]
) -> tuple[Float[np.ndarray, "R"], Float[np.ndarray, "R"]]:
    """The means over the pairs (i, i) and over the pairs of different clips, for each resample: what belongs together, and chance.

    A clip that is drawn twice is not paired with itself. The second mean is NaN where a resample has one clip only.
    """
    own, total = means(np.diag(values), counts), counts.sum(axis=1)
    pairs = np.einsum("ri,ri->r", counts @ values, counts) - np.square(counts) @ np.diag(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return own, pairs / (np.square(total) - np.square(counts).sum(axis=1))


def estimate_pairs(values: Float[np.ndarray, "n n"], *, rng: np.random.Generator) -> dict[str, Any]:
    """`estimate` of the two `pair_means`, as "pairs" and "shuffled"."""
    return estimate(lambda counts: dict(zip(("pairs", "shuffled"), pair_means(values, counts))), len(values), rng=rng)
