"""T5's buckets, from their definition, one distance at a time; tests/parity has T5 itself."""

import math

import numpy as np
import pytest

from musiclm_jax.nn.relative import relative_buckets


def t5_bucket(size, num_buckets, max_distance):
    """Raffel et al.'s bucket of a distance into one direction."""
    exact = num_buckets // 2
    if size < exact:
        return size
    steps = math.floor(math.log(size / exact) / math.log(max_distance / exact) * (num_buckets - exact) + 1e-9)
    return min(num_buckets - 1, exact + steps)


@pytest.mark.parametrize("num_buckets,max_distance", [(32, 128), (8, 11), (16, 300)])
def test_causal_buckets(num_buckets, max_distance):
    distances = np.arange(-2 * max_distance, 7)
    buckets = relative_buckets(distances, num_buckets=num_buckets, max_distance=max_distance, bidirectional=False)
    assert buckets.tolist() == [t5_bucket(max(-d, 0), num_buckets, max_distance) for d in distances]
    assert (buckets[: max_distance + 1] == num_buckets - 1).all() and (np.diff(buckets) <= 0).all() and (buckets[-7:] == 0).all()


@pytest.mark.parametrize("num_buckets,max_distance", [(32, 128), (8, 11), (16, 300)])
def test_bidirectional_buckets_are_causal_ones_of_half_as_many_on_each_side(num_buckets, max_distance):
    distances = np.arange(-2 * max_distance, 2 * max_distance + 1).reshape(-1, 1)
    buckets = relative_buckets(distances, num_buckets=num_buckets, max_distance=max_distance, bidirectional=True)
    half = num_buckets // 2
    assert buckets.ravel().tolist() == [t5_bucket(abs(d), half, max_distance) + half * (d > 0) for d in distances.ravel()]
    assert buckets.shape == distances.shape and buckets.min() == 0 and buckets.max() == num_buckets - 1
