import numpy as np
import pytest

from musiclm_jax.audio.loudness import PEAK, Leveller, gain_to, level, loudness_lufs

RATE = 24_000
OPTIONS = {"sample_rate_hz": RATE}


def sine(seconds, amplitude, hz=440):
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)


def attacks(seconds, amplitude):
    """A soft tone with a loud click each half second."""
    wave = sine(seconds, 0.03)
    for start in range(0, len(wave), RATE // 2):
        wave[start : start + 200] += amplitude * np.exp(-np.arange(200) / 40) * np.sin(np.arange(200) * 0.6)
    return wave


@pytest.mark.parametrize("wave", [sine(8, 0.3), sine(8, 0.02), attacks(8, 0.9), np.concatenate([sine(5, 0.1), sine(7, 0.06)])])
def test_music_has_the_target(wave):
    found = level(wave, **OPTIONS)
    assert len(found) == len(wave) and found.dtype == np.float32
    assert loudness_lufs(found, **OPTIONS) == pytest.approx(-14, abs=1)
    assert np.abs(found).max() <= PEAK + 1e-6


def test_a_burst_after_soft_music_is_no_louder_than_it_may_be():
    wave = np.concatenate([sine(6, 0.01), sine(2, 0.5), sine(4, 0.01), sine(2, 0.7)])
    found = level(wave, **OPTIONS)
    assert max(loudness_lufs(found[second * RATE : (second + 1) * RATE], **OPTIONS) for second in range(14)) < -11
    assert loudness_lufs(found, **OPTIONS) == pytest.approx(-14, abs=1)


def test_peaks_between_samples_are_limited():
    wave = 1.5 * np.sin(np.pi / 2 * np.arange(RATE) + np.pi / 4)  # Samples at 0.7 of the peaks between them.
    found = level(wave, sample_rate_hz=RATE, target_lufs=3.0)
    points = np.abs(np.fft.irfft(np.pad(np.fft.rfft(found[2000:-2000]), (0, 30_000)), n=20_000 + 60_000)).max() * 4
    assert np.abs(found[2000:-2000]).max() < 0.75 * PEAK
    assert points <= PEAK * 1.05


def test_pieces_do_not_matter_and_a_beginning_is_one():
    wave, rng = attacks(7.4, 0.5) * np.linspace(0.3, 1, round(7.4 * RATE)), np.random.default_rng(0)
    whole, leveller, pieces = level(wave, **OPTIONS), Leveller(**OPTIONS), []
    cuts = [0, *sorted(rng.integers(len(wave), size=12)), len(wave)]
    for start, stop in zip(cuts, cuts[1:]):
        pieces.append(leveller.push(wave[start:stop]))
    np.testing.assert_array_equal(np.concatenate([*pieces, leveller.finish()]), whole)
    for seconds in (3.0, 4.7, 6.1):
        beginning = level(wave[: round(seconds * RATE)], **OPTIONS)
        sure = int(seconds) * RATE - RATE * 6 // 1000
        np.testing.assert_array_equal(beginning[:sure], whole[:sure])


def test_silence_and_little():
    np.testing.assert_array_equal(level(np.zeros(4 * RATE), **OPTIONS), 0)
    assert len(level(np.zeros(0), **OPTIONS)) == 0
    assert gain_to(np.zeros(RATE), target_lufs=-14.0, **OPTIONS) is None
    assert 0.1 < np.abs(level(sine(0.1, 0.01), **OPTIONS)).max() < PEAK
    assert np.abs(level(sine(1, 1e-4), **OPTIONS)).max() == pytest.approx(1e-4 * 10**1.5, rel=2e-2)  # The gain is at most 30 dB.
