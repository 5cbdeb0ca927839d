import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.errors import UserError
from musiclm_jax.nn.quantize import RVQConfig, RVQState, perplexity, quantize_train, rvq_decode, rvq_encode, rvq_fit

LEVELS, CODES, DIM = 3, 7, 5


def books(seed=0):
    return jax.random.normal(jax.random.key(seed), (LEVELS, CODES, DIM)) * jnp.array([1.0, 0.5, 0.25])[:, None, None]


def state(seed=0, count=10.0):
    codebooks = books(seed)
    return RVQState(codebooks, codebooks * count, jnp.full((LEVELS, CODES), count), jnp.ones((), bool))


def latents(batch=4, frames=11, seed=1):
    return jax.random.normal(jax.random.key(seed), (batch, frames, DIM))


@functools.partial(jax.jit, static_argnames="config")
def _quantize(x, state, config, levels, rng):
    return quantize_train(x, state, config, num_levels=levels, rng=rng)


def quantize(x, state, config=RVQConfig(), levels=None, seed=0):
    levels = jnp.full(x.shape[0], LEVELS) if levels is None else jnp.asarray(levels)
    return _quantize(x, state, config, levels, jax.random.key(seed))


def test_encode_is_the_greedy_loop():
    x, codebooks = np.asarray(latents()), np.asarray(books(), np.float64)
    expected = np.zeros((4, 11, LEVELS), np.int32)
    for index in np.ndindex(4, 11):
        residual = x[index].astype(np.float64)
        for q, book in enumerate(codebooks):
            expected[index][q] = np.argmin(np.sum((residual - book) ** 2, axis=-1))
            residual = residual - book[expected[index][q]]
    codes = rvq_encode(books(), jnp.asarray(x))
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, expected)


def test_decode_adds_the_chosen_codes_of_any_number_of_levels():
    codes = rvq_encode(books(), latents())
    for q in range(1, LEVELS + 1):
        expected = sum(np.asarray(books())[i][np.asarray(codes)[..., i]] for i in range(q))
        np.testing.assert_allclose(rvq_decode(books(), codes[..., :q]), expected, atol=1e-6)
    with pytest.raises(ValueError, match="codes have 4 levels, expected at most 3, the number of codebooks"):
        rvq_decode(books(), jnp.zeros((2, 4), jnp.int32))


def test_fit_lowers_the_distortion_level_by_level():
    x = latents(batch=1, frames=101)[0]
    codebooks = rvq_fit(jax.random.key(0), x, num_levels=LEVELS, num_codes=CODES, num_iters=10)
    codes = rvq_encode(codebooks, x)
    errors = [float(jnp.mean(jnp.square(x))), *(float(jnp.mean(jnp.square(x - rvq_decode(codebooks, codes[:, :q])))) for q in (1, 2, 3))]
    assert all(after < 0.8 * before for before, after in zip(errors, errors[1:]))


def test_training_output_is_that_of_the_codes_at_inference():
    x = latents()
    y, codes, _, _, _ = quantize(x, state())
    np.testing.assert_array_equal(codes, rvq_encode(books(), x))
    np.testing.assert_allclose(y, rvq_decode(books(), codes), atol=1e-6)


def test_dropped_levels_neither_count_nor_add():
    x, levels = latents(), [1, 3, 2, 1]
    y, codes, _, new, _ = quantize(x, state(), RVQConfig(dead_code_ratio=0.0), levels)
    for b, q in enumerate(levels):
        np.testing.assert_allclose(y[b], rvq_decode(books(), codes[b, :, :q]), atol=1e-6)
    for q in range(LEVELS):
        used = [b for b, n in enumerate(levels) if n > q]
        counts = np.bincount(np.asarray(codes)[used, :, q].ravel(), minlength=CODES)
        np.testing.assert_allclose(new.ema_count[q], 0.99 * 10 + 0.01 * counts, atol=1e-5)


def test_codes_move_to_the_mean_of_their_frames():
    # Without memory one step is one k-means step.
    x = latents()
    _, codes, _, new, _ = quantize(x, state(), RVQConfig(ema_decay=0.0, dead_code_ratio=0.0))
    frames, ids = np.asarray(x).reshape(-1, DIM), np.asarray(codes)[..., 0].ravel()
    for c in np.unique(ids):
        np.testing.assert_allclose(new.codebooks[0, c], frames[ids == c].mean(axis=0), rtol=1e-4, atol=1e-5)


def test_a_level_that_nobody_used_keeps_its_codes():
    before = state()
    _, _, _, after, _ = quantize(latents(), before, levels=[1, 1, 2, 1])
    for new, old in zip(jax.tree.leaves((after.codebooks, after.ema_sum, after.ema_count)), (before.codebooks, before.ema_sum, before.ema_count)):
        np.testing.assert_array_equal(new[2], old[2])
        assert np.any(np.asarray(new[1]) != np.asarray(old[1]))


def test_dead_codes_restart_at_valid_frames_and_stay():
    codebooks = books().at[0, 2].set(1e3)  # Far from everything.
    before = RVQState(codebooks, codebooks * 10, jnp.full((LEVELS, CODES), 10.0).at[0, 2].set(0.1), jnp.ones((), bool))
    x = latents()
    _, codes, _, after, _ = quantize(x, before, levels=[3, 3, 0, 0])
    assert not np.any(np.asarray(codes)[..., 0] == 2)
    valid = np.asarray(x[:2]).reshape(-1, DIM)
    assert np.min(np.max(np.abs(valid - np.asarray(after.codebooks[0, 2])), axis=-1)) == 0
    # Sum and count agree with it, so that the next step does not take it back.
    np.testing.assert_allclose(after.ema_sum[0, 2] / after.ema_count[0, 2], after.codebooks[0, 2], rtol=1e-5)
    _, codes, _, later, _ = quantize(x, after, RVQConfig(dead_code_ratio=0.0))
    assert np.any(np.asarray(codes)[..., 0] == 2)
    np.testing.assert_allclose(later.codebooks[0, 2], after.codebooks[0, 2], atol=0.5)


def test_restarts_end_a_collapse():
    # All codes of a level in one spot: only restarts can spread them.
    x = latents()
    collapsed = RVQState(jnp.zeros((LEVELS, CODES, DIM)), jnp.zeros((LEVELS, CODES, DIM)), jnp.full((LEVELS, CODES), 1e-3), jnp.ones((), bool))
    for step in range(50):
        *_, collapsed, metrics = quantize(x, collapsed, seed=step)
    assert all(metrics[f"perplexity_{q}"] > CODES / 2 for q in (1, 2, 3))


def test_first_batch_initializes_level_by_level():
    x = latents()
    empty = RVQState.empty(num_levels=LEVELS, num_codes=CODES, dim=DIM)
    y, codes, _, new, metrics = quantize(x, empty)
    assert bool(new.initialized) and not bool(empty.initialized)
    codebooks = rvq_fit(jax.random.split(jax.random.key(0))[0], x.reshape(-1, DIM), num_levels=LEVELS, num_codes=CODES, num_iters=10)
    np.testing.assert_array_equal(codes, rvq_encode(codebooks, x))
    assert jnp.mean(jnp.square(y - x)) < 0.3 * jnp.mean(jnp.square(x))
    assert all(metrics[f"codebook_use_{q}"] == 1 for q in (1, 2, 3))


def test_gradients_pass_straight_through_and_commitment_comes_from_every_level():
    x = latents()
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(quantize(x, state())[0]))(x), jnp.ones_like(x))
    commitment = lambda x, levels: quantize(x, state(), levels=levels)[2]  # noqa: E731
    slope = jax.grad(commitment)(x, [LEVELS] * 4)
    _, codes, *_ = quantize(x, state())
    # d/dx of the mean over B T D and Q of the squared residuals: 2 / (B T D Q) times their sum.
    residuals = sum(x - rvq_decode(books(), codes[..., :q]) for q in range(1, LEVELS + 1))
    np.testing.assert_allclose(slope, 2 * residuals / (x.size * LEVELS), atol=1e-6)


def test_perplexity():
    np.testing.assert_allclose(perplexity(jnp.array([[5.0, 5, 5, 5], [9, 0, 0, 0], [4, 4, 0, 0], [0, 0, 0, 0]])), [4, 1, 2, 1], rtol=1e-6)


def test_perplexity_of_probabilities_and_its_gradient():
    counts = jnp.array([3.0, 1, 4, 1, 5])
    probabilities = counts / counts.sum()
    np.testing.assert_allclose(perplexity(counts), perplexity(probabilities), rtol=1e-6)
    np.testing.assert_allclose(perplexity(1e-3 * probabilities), perplexity(probabilities), rtol=1e-6)  # Whatever they add up to.
    # d exp(H) / d p = -exp(H) (log p + 1), of which the part along (1, ..., 1) goes into the sum.
    p = np.asarray(probabilities, np.float64)
    entropy = -np.sum(p * np.log(p))
    np.testing.assert_allclose(jax.grad(perplexity)(probabilities), -np.exp(entropy) * (np.log(p) + entropy), rtol=1e-4)
    assert jnp.all(jnp.isfinite(jax.grad(perplexity)(jnp.array([0.5, 0.0, 0.5])))) and jnp.all(jnp.isfinite(jax.grad(perplexity)(jnp.zeros(3))))


def test_nonsense_is_refused():
    with pytest.raises(UserError, match="ema_decay=1.0"):
        RVQConfig(ema_decay=1.0)
