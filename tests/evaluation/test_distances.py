import numpy as np
import pytest
import scipy.optimize

from musiclm_jax.evaluation.distances import centroid_distances, matching_costs, sinkhorn_distance


def exact_transport(cost, a, b):
    """Optimal transport as a linear program."""
    n, m = cost.shape
    sums = np.concatenate([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    return scipy.optimize.linprog(cost.ravel(), A_eq=sums, b_eq=np.concatenate([a, b]), method="highs").fun


@pytest.mark.parametrize("epsilon", [0.1, 0.01])
def test_sinkhorn_is_optimal_transport_up_to_its_blur(epsilon):
    rng = np.random.default_rng(0)
    cost, a, b = rng.uniform(size=(5, 7)), rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(7))
    found, exact = sinkhorn_distance(cost, a, b, epsilon=epsilon, iterations=5000), exact_transport(cost, a, b)
    assert -1e-6 < found - exact < epsilon * np.log(5)


def test_sinkhorn_at_small_epsilon_is_optimal_transport():
    rng = np.random.default_rng(0)
    cost, a, b = rng.uniform(size=(5, 7)), rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(7))
    np.testing.assert_allclose(sinkhorn_distance(cost, a, b, epsilon=1e-3, iterations=10_000), exact_transport(cost, a, b), atol=1e-4)
    # The same mass everywhere is the default, mass is normalized, and an empty bin is none, whatever it would cost.
    np.testing.assert_allclose(sinkhorn_distance(cost, epsilon=0.1), sinkhorn_distance(cost, np.full(5, 3.0), np.ones(7), epsilon=0.1))
    wider = np.concatenate([cost, np.full((1, 7), np.nan)])
    np.testing.assert_allclose(sinkhorn_distance(wider, np.append(a, 0), b, epsilon=0.1), sinkhorn_distance(cost, a, b, epsilon=0.1))


def test_sinkhorn_refuses_nonsense():
    cost = np.ones((2, 3))
    with pytest.raises(ValueError, match="minima -1.0"):
        sinkhorn_distance(cost, np.array([2.0, -1]), epsilon=0.1)
    with pytest.raises(ValueError, match="sums 0.0"):
        sinkhorn_distance(cost, np.zeros(2), epsilon=0.1)
    with pytest.raises(ValueError, match="epsilon=0"):
        sinkhorn_distance(cost, epsilon=0.0)


def test_pairs_are_compared_as_each_alone():
    rng = np.random.default_rng(0)
    cost, a, b = rng.uniform(size=(3, 5, 7)), rng.dirichlet(np.ones(5), 3), rng.dirichlet(np.ones(7), 3)
    a[1, 2:], b[2, 4] = 0, 0
    together = sinkhorn_distance(cost, a, b, epsilon=0.1)
    assert together.shape == (3,)
    np.testing.assert_allclose(together, [sinkhorn_distance(*each, epsilon=0.1) for each in zip(cost, a, b)], rtol=1e-6)
    np.testing.assert_allclose(
        together, [sinkhorn_distance(c[np.ix_(p > 0, q > 0)], p[p > 0], q[q > 0], epsilon=0.1) for c, p, q in zip(cost, a, b)], rtol=1e-6
    )


def test_matching_costs_compare_histograms():
    rng = np.random.default_rng(0)
    centroids = rng.standard_normal((31, 5))
    distances = centroid_distances(centroids)
    np.testing.assert_allclose(distances, np.linalg.norm(centroids[:, None] - centroids, axis=-1), atol=1e-7)
    ids, other = rng.integers(31, size=(2, 1, 125))
    settings = {"epsilon": 0.05, "iterations": 1000}
    (cost,) = matching_costs(ids, other, distances, **settings)
    assert matching_costs(ids, rng.permutation(ids, axis=1), distances, **settings)[0] < 1e-3 < cost  # Order does not matter.
    np.testing.assert_allclose(matching_costs(other, ids, distances, **settings), cost, rtol=1e-3)
    # The names of the tokens do not matter, only where their centroids are.
    names = rng.permutation(31)
    np.testing.assert_allclose(matching_costs(names[ids], names[other], centroid_distances(centroids[np.argsort(names)]), **settings), cost, rtol=1e-6)
    # One mass for each token is the same as one for each bin.
    np.testing.assert_allclose(sinkhorn_distance(distances[ids[0][:, None], other[0]], **settings), cost, rtol=1e-4)
    # Pairs of many blocks, of different numbers of bins.
    pairs = [np.minimum(rng.integers(31, size=(301, 9)), np.arange(301)[:, None] % 31) for _ in range(2)]
    found = matching_costs(*pairs, distances, **settings)
    np.testing.assert_allclose(found[200], matching_costs(pairs[0][200:201], pairs[1][200:201], distances, **settings)[0], rtol=1e-4)
    # One token of four is another one: what the linear program says, and no more than moving that one.
    exact = exact_transport(distances[np.ix_([1, 2, 3, 4], [1, 2, 3, 9])], np.full(4, 0.25), np.full(4, 0.25))
    assert exact <= distances[4, 9] / 4
    (found,) = matching_costs(np.array([[1, 2, 3, 4]]), np.array([[1, 2, 3, 9]]), distances, **settings)
    assert -1e-6 < found - exact < 0.05 * np.log(4)
