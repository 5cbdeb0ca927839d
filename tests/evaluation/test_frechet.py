"""The Fréchet distance against its formulas with matrix roots, and its limit and interval against sets of which they are known."""

import numpy as np
import pytest
import scipy.linalg

from musiclm_jax.evaluation.frechet import compress, distance, distance_interval, extrapolate, fit, frechet_distance


def embeddings(n, dim=7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, dim)) @ rng.standard_normal((dim, dim)) + rng.standard_normal(dim)


def test_frechet_distance_is_its_formula_with_scipys_matrix_root():
    a, b = embeddings(101), embeddings(53, seed=1)
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-9)


def test_frechet_distance_of_gaussians_along_the_axes():
    # Diagonal covariances: the squared differences of means and of deviations.
    square = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    a, b = 2 * square + [3, 5], square * [1, 4] + [2, 3]
    unit = 4 / 3  # A variance over 3 degrees of freedom.
    np.testing.assert_allclose(frechet_distance(a, b), 1 + 4 + unit * ((2 - 1) ** 2 + (2 - 4) ** 2), rtol=1e-12)


@pytest.mark.parametrize("n", [2, 5, 101])  # Fewer rows than widths too.
def test_frechet_distance_is_a_distance(n):
    a, b = embeddings(n), embeddings(n + 6, seed=1)
    assert frechet_distance(a, a) < 1e-10 * a.size
    np.testing.assert_allclose(frechet_distance(a, a + 0.5), 0.25 * 7, rtol=1e-9)
    np.testing.assert_allclose(frechet_distance(a, b), frechet_distance(b, a), rtol=1e-9)
    turn = np.linalg.qr(embeddings(7, seed=2))[0]
    np.testing.assert_allclose(frechet_distance(a @ turn, b @ turn), frechet_distance(a, b), rtol=1e-9)


def test_frechet_distance_of_numbers_and_of_nonsense():
    np.testing.assert_allclose(frechet_distance(np.array([[0.0], [2]]), np.array([[0.0], [6]])), 2**2 + 2 * (3 - 1) ** 2)
    with pytest.raises(ValueError, match="1 and 5 embeddings"):
        frechet_distance(embeddings(1), embeddings(5))


def test_frechet_distance_is_fadtks_formula():
    """fadtk takes the root by eigenvalues: sqrt(S) = V sqrt(D) V^-1 of the product of the covariances."""
    a, b = embeddings(101), embeddings(53, seed=1)
    product = np.cov(a.T) @ np.cov(b.T)
    values, vectors = np.linalg.eig(product)
    root = ((vectors * np.sqrt(values.astype(complex))) @ np.linalg.inv(vectors)).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * np.trace(root)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-8)


def test_it_is_accurate_where_matrix_roots_are_not():
    # 5 rows of 40 dimensions, far from 0: both covariances are singular.
    a, shift = embeddings(5, dim=40) + 1e3, np.full(40, 0.01)
    np.testing.assert_allclose(frechet_distance(a, a + shift), 40 * 0.01**2, rtol=1e-6)


def pieces(rows, lengths):
    return [compress(each) for each in np.split(rows, np.cumsum(lengths)[:-1])]


def test_clips_are_compressed_without_loss():
    rows = embeddings(60, dim=5)
    whole, cut = fit([compress(rows)]), fit(pieces(rows, [1, 3, 40, 16]))
    assert [len(each) for each in pieces(rows, [1, 3, 40, 16])] == [1, 3, 6, 6] and whole.num_rows == cut.num_rows == 60
    for each in (whole, cut):
        np.testing.assert_allclose(each.mean, rows.mean(0), rtol=1e-10)
        np.testing.assert_allclose(each.factor.T @ each.factor, np.cov(rows.T), rtol=1e-9)


def test_a_clip_that_counts_twice_is_there_twice():
    rows = embeddings(20, dim=3)
    counted = fit(pieces(rows, [5, 10, 5]), np.array([2.0, 0.0, 1.0]))
    repeated = fit([compress(np.concatenate([rows[:5], rows[:5], rows[15:]]))])
    assert counted.num_rows == repeated.num_rows == 15
    np.testing.assert_allclose(counted.mean, repeated.mean, rtol=1e-9)
    np.testing.assert_allclose(counted.factor.T @ counted.factor, repeated.factor.T @ repeated.factor, rtol=1e-9)


def test_one_embedding_has_no_covariance():
    rows = embeddings(30)
    reference, one = fit([compress(rows)]), fit([compress(rows[:1])])
    np.testing.assert_allclose(distance(reference, one), np.sum((rows.mean(0) - rows[0]) ** 2) + np.trace(np.cov(rows.T)), rtol=1e-9)
    with pytest.raises(ValueError, match="at least one"):
        fit([np.zeros((0, 8))])


def draws(num_clips, *, seed, dim=12):
    """Clips of 3 embeddings, standard normal: sets of them are at distance 0 but for the number of clips."""
    rng = np.random.default_rng(seed)
    return [compress(rng.standard_normal((3, dim))) for _ in range(num_clips)]


def test_the_limit_is_near_the_truth_and_the_distance_is_not():
    reference = fit([compress(np.random.default_rng(0).standard_normal((100_000, 12)))])
    clips = draws(60, seed=1)
    limit = extrapolate(reference, clips, rng=np.random.default_rng(2))
    assert abs(limit.value) < 0.15 * distance(reference, fit(clips)) and 0.8 < limit.r2 <= 1
    assert extrapolate(reference, clips[:9], rng=np.random.default_rng(2)) is None
    wide = [compress(np.random.default_rng(i).standard_normal((3, 40))) for i in range(20)]  # Of 10 clips there are 30 embeddings of 40 dimensions.
    assert extrapolate(fit(wide), wide, rng=np.random.default_rng(2)) is None


def test_the_interval_contains_the_distance_and_narrows():
    reference = fit([compress(np.random.default_rng(0).standard_normal((1000, 12)) + 0.5)])
    few, many = (draws(count, seed=3) for count in (20, 320))
    widths = []
    for clips in (few, many):
        low, high = distance_interval(reference, clips, rng=np.random.default_rng(4))
        assert low < distance(reference, fit(clips)) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    assert distance_interval(reference, few[:1], rng=np.random.default_rng(4)) is None
