"""k-means against a brute-force Lloyd in float64 and against scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.nn import clustering
from musiclm_jax.nn.clustering import assign, kmeans


def blobs(seed=0, n=611, dim=5, num=7, offset=0.0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(num, dim))[rng.integers(num, size=n)] * 4 + rng.normal(size=(n, dim)) + offset).astype(np.float32)


def lloyd(x, centroids, num_iters):
    x, centroids = x.astype(np.float64), centroids.astype(np.float64)
    for _ in range(num_iters):
        ids = np.argmin(((x[:, None] - centroids) ** 2).sum(-1), axis=1)
        centroids = np.stack([x[ids == c].mean(0) if (ids == c).any() else centroids[c] for c in range(len(centroids))])
    return centroids


def inertia(x, centroids):
    return ((np.asarray(x, np.float64)[:, None] - np.asarray(centroids, np.float64)) ** 2).sum(-1).min(1).sum()


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_equals_brute_force_lloyd_from_the_same_start(offset):
    x = blobs(offset=offset)
    rng = jax.random.key(3)
    start = np.asarray(kmeans(rng, x, num_clusters=7, num_iters=0))
    np.testing.assert_allclose(kmeans(rng, x, num_clusters=7, num_iters=4), lloyd(x, start, 4), rtol=1e-5, atol=1e-4)


def test_inertia_is_close_to_scikit_learn():
    sklearn = pytest.importorskip("sklearn.cluster")
    x = blobs(num=29)
    ours = inertia(x, kmeans(jax.random.key(0), x, num_clusters=23, num_iters=30))
    assert ours <= 1.05 * sklearn.KMeans(23, n_init=10, random_state=0).fit(x).inertia_


def test_chunks_do_not_matter(monkeypatch):
    x = blobs()
    whole = kmeans(jax.random.key(1), x, num_clusters=5)
    whole_ids = assign(jnp.asarray(x), whole)
    monkeypatch.setattr(clustering, "_CHUNK", 64)
    jax.clear_caches()
    np.testing.assert_allclose(kmeans(jax.random.key(1), x, num_clusters=5), whole, rtol=1e-5)
    np.testing.assert_array_equal(assign(jnp.asarray(x), whole), whole_ids)
    jax.clear_caches()


def test_assign_is_the_nearest_centroid_for_any_leading_shape():
    x = blobs(n=66).reshape(2, 3, 11, 5)
    centroids = blobs(seed=1, n=13)
    ids = assign(jnp.asarray(x), jnp.asarray(centroids))
    assert ids.shape == (2, 3, 11) and ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, ((x[..., None, :] - centroids) ** 2).sum(-1).argmin(-1))


def test_fewer_points_than_clusters():
    x = blobs(n=3)
    centroids = np.asarray(kmeans(jax.random.key(0), x, num_clusters=11))
    assert np.isfinite(centroids).all() and len(np.unique(centroids, axis=0)) == 11
    assert inertia(x, centroids) < 1e-6
    assert inertia(centroids, x) < 11 * 5 * (1e-2 * x.std()) ** 2


def test_invalid_rows_have_no_say():
    x = blobs(n=97)
    valid = np.arange(97) % 3 > 0
    dirty = np.where(valid[:, None], x, np.nan)
    a = kmeans(jax.random.key(2), dirty, num_clusters=4, valid=jnp.asarray(valid))
    b = kmeans(jax.random.key(2), np.where(valid[:, None], x, 1e3), num_clusters=4, valid=jnp.asarray(valid))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(lloyd(x[valid], np.asarray(a), 1), a, atol=1e-3)


def test_an_empty_cluster_moves_to_the_farthest_point():
    x = jnp.asarray([[0.0], [1.0], [2.0], [50.0]])
    step = clustering._lloyd(x, jnp.ones(4, bool), jnp.asarray([[1.0], [-400.0]]), tiny=jnp.float32(1e-9))
    np.testing.assert_allclose(step, [[13.25], [50.0]])


def test_is_deterministic_and_rejects_nonsense():
    x = blobs()
    np.testing.assert_array_equal(kmeans(jax.random.key(5), x, num_clusters=6), kmeans(jax.random.key(5), x, num_clusters=6))
    with pytest.raises(ValueError, match="num_clusters=0"):
        kmeans(jax.random.key(0), x, num_clusters=0)
