import numpy as np

from musiclm_jax.evaluation.ngrams import ngram_nats


def test_a_cycle_is_known_from_the_step_before():
    codes = np.stack([np.arange(4000) % 8, np.zeros(4000, int)], axis=1)
    unigram, bigram = ngram_nats(codes[:3000], codes[3000:], num_codes=8, weight=1.0)
    np.testing.assert_allclose(unigram, [np.log(8), 0], atol=5e-3)
    np.testing.assert_allclose(bigram, 0, atol=2e-2)


def test_noise_costs_its_entropy():
    rng = np.random.default_rng(0)
    p = np.array([0.5, 0.3, 0.2])
    codes = rng.choice(3, size=(40_000, 1), p=p)
    unigram, bigram = ngram_nats(codes[:30_000], codes[30_000:], num_codes=3)
    np.testing.assert_allclose([unigram[0], bigram[0]], -p @ np.log(p), atol=0.01)


def test_codes_never_seen_cost_a_finite_number():
    unigram, bigram = ngram_nats(np.zeros((50, 1), int), np.full((10, 1), 3), num_codes=4)
    assert 3 < unigram[0] < 5 and 2 < bigram[0] < 5
