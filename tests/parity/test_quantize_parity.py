"""Residual vector quantization at the paper's size against a loop in float64, k-means against scikit-learn's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.nn.clustering import _lloyd, assign, kmeans
from musiclm_jax.nn.quantize import rvq_decode, rvq_encode

cluster = pytest.importorskip("sklearn.cluster")

pytestmark = pytest.mark.parity


def test_rvq_is_a_greedy_loop():
    # MusicLM's codec: 12 levels of 1,024 codes; 256 is the width of its latents.
    rng, levels = np.random.default_rng(0), 12
    codebooks = (rng.standard_normal((levels, 1024, 256)) * 0.7 ** np.arange(levels)[:, None, None]).astype(np.float32)
    x = rng.standard_normal((2, 23, 256)).astype(np.float32)
    residual, expected, margins = x.astype(np.float64), [], []
    for book in codebooks.astype(np.float64):
        distance = np.sum((residual[..., None, :] - book) ** 2, axis=-1)
        expected.append(np.argmin(distance, axis=-1))
        nearest = np.sort(distance, axis=-1)
        margins.append((nearest[..., 1] - nearest[..., 0]) / nearest[..., 0])
        residual = residual - book[expected[-1]]
    assert np.min(margins) > 1e-6  # No ties that float32 could break otherwise.
    codes = rvq_encode(jnp.asarray(codebooks), jnp.asarray(x))
    np.testing.assert_array_equal(codes, np.stack(expected, axis=-1))
    np.testing.assert_allclose(rvq_decode(jnp.asarray(codebooks), codes), x - residual, atol=1e-4, rtol=0)


def points(n=701, dim=5, num=13):
    rng = np.random.default_rng(0)
    return (3 * rng.standard_normal((num, dim))[rng.integers(num, size=n)] + rng.standard_normal((n, dim)) + 2.0).astype(np.float32)


def scikit_learns(x, start, num_iters):
    model = cluster.KMeans(len(start), init=start.astype(np.float64), n_init=1, max_iter=num_iters, tol=0.0, algorithm="lloyd")
    return model.fit(x.astype(np.float64))


@pytest.mark.parametrize("num_iters", [1, 4, 200])
def test_kmeans_is_scikit_learns_from_the_same_start(num_iters):
    x, rng = points(), jax.random.key(3)
    start = np.asarray(kmeans(rng, jnp.asarray(x), num_clusters=11, num_iters=0))
    ours, theirs = kmeans(rng, jnp.asarray(x), num_clusters=11, num_iters=num_iters), scikit_learns(x, start, num_iters)
    np.testing.assert_allclose(ours, theirs.cluster_centers_, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(assign(jnp.asarray(x), ours), theirs.predict(x.astype(np.float64)))


def test_an_empty_cluster_ends_where_scikit_learns_does():
    # The first steps differ on purpose: scikit-learn takes the point that the empty cluster gets out of its old mean at once, ours
    # one step later. Three blobs and a far point that is nobody's: both give it to the centroid that starts out empty.
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.standard_normal((20, 2)) + centre for centre in ([0, 0], [30, 0], [0, 30])] + [[[70, 60]]]).astype(np.float32)
    start = np.array([[1, 1], [29, 1], [1, 29], [-500, -500]], np.float32)
    ours = jnp.asarray(start)
    for _ in range(10):
        ours = _lloyd(jnp.asarray(x), jnp.ones(len(x), bool), ours, tiny=jnp.float32(1e-6))
    np.testing.assert_allclose(ours, scikit_learns(x, start, 100).cluster_centers_, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(ours[3], [70, 60])
