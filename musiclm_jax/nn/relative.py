"""T5's buckets of relative positions (arXiv 1910.10683, section 2.1)."""

from __future__ import annotations

import numpy as np

from musiclm_jax.arrays import Int


def relative_buckets(distance: Int[np.ndarray, "..."], *, num_buckets: int, max_distance: int, bidirectional: bool) -> Int[np.ndarray, "..."]:
    """The bucket of each distance key - query, int32 in [0, num_buckets).

    Args:
        distance: whole numbers of positions, of any shape.
        num_buckets: half of the buckets (of each direction) have one distance each, the others grow logarithmically up to `max_distance`.
        max_distance: all distances from this one on share the last bucket.
        bidirectional: half of the buckets are for keys after the query. If False, such keys share bucket 0 with the query's own position.
    """
    if bidirectional:
        num_buckets //= 2
    offset = np.where(distance > 0, num_buckets, 0) if bidirectional else 0
    size = np.abs(distance) if bidirectional else np.maximum(-distance, 0)
    exact = num_buckets // 2
    # float32, as in T5: in float64 a distance on the edge of a bucket can fall on its other side.
    growth = np.log(np.maximum(size, 1).astype(np.float32) / exact) / np.float32(np.log(max_distance / exact))
    coarse = np.minimum(exact + (growth * (num_buckets - exact)).astype(np.int32), num_buckets - 1)
    return (offset + np.where(size < exact, size, coarse)).astype(np.int32)
