"""The same music in another level, cut, filtered and with noise is found; other music is not."""

import numpy as np

from musiclm_jax.data.fingerprint import fingerprint, near_duplicates

RATE = 8000


def music(seed, seconds=12):
    """Notes of random pitch and length with four harmonics."""
    rng, parts = np.random.default_rng(seed), []
    while sum(map(len, parts)) < seconds * RATE:
        length = int(rng.uniform(0.1, 0.5) * RATE)
        time = np.arange(length) / RATE
        pitch = rng.uniform(200, 800)
        parts.append(sum(rng.uniform(0.2, 1) * np.sin(2 * np.pi * pitch * k * time) for k in (1, 2, 3, 4)) * np.exp(-4 * time))
    return 0.1 * np.concatenate(parts)[: seconds * RATE].astype(np.float32)


def test_changed_copies_are_found_and_others_are_not():
    rng = np.random.default_rng(0)
    copy = 0.3 * music(0)[int(2.13 * RATE) :]  # Another level, cut, and between the frames of the original.
    copy = np.convolve(copy, [0.25, 0.5, 0.25], "same") + rng.normal(size=len(copy)) * 1e-3
    waves = [music(0), music(1), copy, music(2), music(3), np.tile(music(1)[: RATE // 2], 20)]
    prints = [fingerprint(wave.astype(np.float32), RATE) for wave in waves]
    assert all(each.dtype == np.uint32 for each in prints)
    assert near_duplicates(prints) == [(0, 2)]


def test_what_has_no_sound_is_like_nothing():
    silence = fingerprint(np.zeros(10 * RATE, np.float32), RATE)
    assert len(silence) and not silence.any()
    assert near_duplicates([silence, silence, silence]) == []
    assert fingerprint(np.zeros(100, np.float32), RATE).shape == (0,)
    assert near_duplicates([np.zeros(0, np.uint32)] * 2) == [] == near_duplicates([silence])
