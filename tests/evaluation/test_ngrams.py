import tracemalloc

import numpy as np
import pytest

from musiclm_jax.data.clips import Clip, ClipStore
from musiclm_jax.data.token_store import TokenArray
from musiclm_jax.evaluation.ngrams import ngram_nats
from musiclm_jax.specs import AudioSpec


def in_one_piece(train, held_out, *, num_codes, weight=20.0):
    """By the formulas, over all codes at once."""
    unigram, bigram = [], []
    for ours, theirs in zip(train.T.astype(np.int64), held_out.T.astype(np.int64), strict=True):
        p = np.bincount(ours, minlength=num_codes) + 1.0
        p /= p.sum()
        pairs = np.bincount(ours[:-1] * num_codes + ours[1:], minlength=num_codes**2).reshape(num_codes, num_codes)
        after = (pairs + weight * p) / (pairs.sum(axis=1, keepdims=True) + weight)
        unigram.append(-np.log(p[theirs]).mean())
        bigram.append(-np.log(after[theirs[:-1], theirs[1:]]).mean())
    return np.array(unigram), np.array(bigram)


def test_a_cycle_is_known_from_the_step_before():
    codes = np.stack([np.arange(4000) % 8, np.zeros(4000, int)], axis=1)
    unigram, bigram = ngram_nats([codes[:3000]], [codes[3000:]], num_codes=8, weight=1.0)
    np.testing.assert_allclose(unigram, [np.log(8), 0], atol=5e-3)
    np.testing.assert_allclose(bigram, 0, atol=2e-2)


def test_noise_costs_its_entropy():
    rng = np.random.default_rng(0)
    p = np.array([0.5, 0.3, 0.2])
    codes = rng.choice(3, size=(40_000, 1), p=p)
    unigram, bigram = ngram_nats([codes[:30_000]], [codes[30_000:]], num_codes=3)
    np.testing.assert_allclose([unigram[0], bigram[0]], -p @ np.log(p), atol=0.01)


def test_codes_never_seen_cost_a_finite_number():
    unigram, bigram = ngram_nats([np.zeros((50, 1), int)], [np.full((10, 1), 3)], num_codes=4)
    assert 3 < unigram[0] < 5 and 2 < bigram[0] < 5


def test_chunks_count_as_one_piece():
    rng = np.random.default_rng(0)
    train, held_out = (np.minimum(rng.integers(0, 13, (n, 5)), rng.integers(0, 13, (n, 5))).astype(np.int16) for n in (997, 211))
    expected = in_one_piece(train, held_out, num_codes=13, weight=3.0)
    for borders in ([], [1], [500], [0, 7, 7, 8, 100]):
        found = ngram_nats(iter(np.split(train, borders)), iter(np.split(held_out, borders)), num_codes=13, weight=3.0)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_codes_out_of_range_and_too_few_are_refused():
    one = np.zeros((3, 1), int)
    with pytest.raises(ValueError, match=r"codes in \[0, 4\), got 0 to 4"):
        ngram_nats([one], [np.array([[0], [4]])], num_codes=4)
    for chunks in ([], [one[:0]], [one[:1]]):
        with pytest.raises(ValueError, match="two time steps"):
            ngram_nats([one], chunks, num_codes=4)


def test_memory_does_not_grow_with_the_data(tmp_path):
    """A store of 40 MB of codes of two levels, many short clips and a long one, counted in a twentieth."""
    seconds = [100_000, *[60] * 700]
    total = sum(seconds) * 50
    codes = np.lib.format.open_memmap(tmp_path / "acoustic.npy", "w+", np.int16, (total, 3))
    for first in range(0, total, 2**16):  # A cycle of 7, in the last two levels.
        codes[first : first + 2**16] = (np.arange(first, min(first + 2**16, total)) % 7)[:, None] + [0, 1, 2]
    del codes
    clips = tuple(Clip(f"{i}.wav", 0, n * 24_000, (), "test" if i % 10 == 1 else "train", {}) for i, n in enumerate(seconds))
    store = ClipStore(np.zeros(0, np.int16), clips, 24_000)
    tokens = TokenArray.open(tmp_path / "acoustic.npy", store, rate_hz=50, spec=AudioSpec())
    tracemalloc.start()
    try:
        train, test = (tokens.chunks(store, split, levels=slice(1, 3), rows=2**14) for split in ("train", "test"))
        unigram, bigram = ngram_nats(train, test, num_codes=11)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2e6 < tokens.codes.nbytes / 20
    np.testing.assert_allclose(unigram, np.log(7), atol=0.01)
    assert np.all(bigram < 0.2)  # But for the borders of clips, the next code is known.
