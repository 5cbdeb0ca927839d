"""Loudness of music that is made piece by piece: a gain that follows it, and a true-peak limiter. A second depends on itself and what is before it.

So a clip of whole seconds is the beginning of a long one also in its level. The first `START_SEC` have one gain, that of their loudness; from then on the gain
follows the loudness (ITU-R BS.1770, with its gates) of the last `WINDOW_SEC`, each second, but no second is much louder than the target. The limiter lowers
single attacks instead of the whole clip.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from musiclm_jax.arrays import Float

# Streaming services play at this loudness, and require this headroom, so that resampling in a player does not clip.
TARGET_LUFS, PEAK = -14.0, 10 ** (-1 / 20)
START_SEC, WINDOW_SEC, _HOP_SEC = 3.0, 4.0, 1.0
# What the whole so far lacks of the target, the next second has more, up to 2 dB.
_MAX_MORE_DB = 2.0
# In which the gain falls at a burst.
_BURST_SEC = 0.1
# No second after the start is louder than the target by more.
_MAX_ABOVE_DB = 1.0
# Limits the gain, so that a nearly silent wave does not become loud noise.
_MAX_GAIN = 10 ** (30 / 20)
# The largest change of the gain from one second to the next, 3 dB.
_MAX_CHANGE = 10 ** (3 / 20)
# Half a step of 16 bits. Waves below it are silent.
_SILENCE = 0.5 / 32768
# BS.1770 measures blocks of this length. Shorter waves are repeated to it.
_BLOCK_SEC = 0.4
# The limiter works in steps of 1 ms. It lowers the gain within _ATTACK of them before a peak, and returns by half in 40 ms.
_STEP_SEC, _ATTACK, _RELEASE = 1e-3, 5, 0.5 ** (1 / 40)
# Samples between samples at which peaks are measured (BS.1770, annex 2), and those before and after a step that the interpolation reads.
_OVERSAMPLING, _CONTEXT = 4, 12
# The limiter makes music softer: the gain is raised in so many rounds until the limited music has the target.
_ROUNDS = 8


class Leveller:
    """Brings a wave that comes in pieces to `target_lufs`, with peaks of at most -1 dBFS. `push` returns what is finished, `finish` the rest.

    Concatenated results do not depend on how the wave was cut into pieces. Those of the first whole seconds of a wave, `START_SEC` or more, are the beginning
    of those of the wave, but for their last 6 ms.
    """

    def __init__(self, *, sample_rate_hz: int, target_lufs: float = TARGET_LUFS, follows: bool = True):
        """follows: whether the gain follows the loudness. False: it is 1, and only peaks are limited."""
        self._rate, self._target, self._follows = sample_rate_hz, target_lufs, follows
        self._step = max(1, round(_STEP_SEC * sample_rate_hz))
        self._limiter = _Limiter(self._step)
        self._wave = np.zeros(0, np.float64)  # The last seconds that came, at most a window and what has no gain yet.
        self._first = 0  # Number of the first sample of `_wave` in the whole wave.
        self._levelled = 0  # Samples that have a gain.
        self._gain: float | None = None
        self._powers: list[float] = []  # Of the seconds that are levelled, 1 at 0 LUFS.

    def push(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "M"]:
        """Takes a piece of the wave. Returns the next samples that are finished, float32."""
        if not self._follows:
            return self._limiter.push(np.asarray(wave, np.float64))
        self._wave = np.concatenate([self._wave, np.asarray(wave, np.float64)])
        return self._limiter.push(np.concatenate([np.zeros(0), *self._segments(whole=False)]))

    def finish(self) -> Float[np.ndarray, "M"]:
        """Returns all samples that are left."""
        rest = self._limiter.push(np.concatenate([np.zeros(0), *self._segments(whole=True)]))
        return np.concatenate([rest, self._limiter.finish()])

    def _segments(self, *, whole: bool) -> Iterator[Float[np.ndarray, "N"]]:
        """The next pieces with their gains. whole: also the last one, which may be shorter than a second."""
        end = self._first + len(self._wave)
        while self._levelled < end:
            length = round((START_SEC if self._gain is None else _HOP_SEC) * self._rate)
            if end - self._levelled < length and not whole:
                return
            stop = min(self._levelled + length, end)
            piece = self._wave[self._levelled - self._first : stop - self._first]
            before, gain = self._gain, self._next_gain(stop if self._gain is None else self._levelled)
            most = gain_to(piece, target_lufs=self._target + _MAX_ABOVE_DB, sample_rate_hz=self._rate)
            self._gain = gain if before is None or most is None else min(gain, most)
            # A ramp, straight in dB, through a whole second, so that it does not depend on where the wave ends; down by more than 6 dB, at a burst, at once.
            turn = length if before is None or self._gain > before / 2 else _BURST_SEC * self._rate
            ramp = self._gain if before is None else before * (self._gain / before) ** np.minimum(1, np.arange(len(piece)) / turn)
            self._levelled = stop
            drop = max(0, stop - round(WINDOW_SEC * self._rate) - self._first)
            self._wave, self._first = self._wave[drop:], self._first + drop
            self._powers += [10 ** (self._loudness(_limited(piece * ramp, self._step)) / 10)] * max(1, round(len(piece) / self._rate))
            yield piece * ramp

    def _next_gain(self, stop: int) -> float:
        """The gain that the last seconds before sample `stop` need, or one on the way to it."""
        window = self._wave[max(0, stop - self._first - round(WINDOW_SEC * self._rate)) : stop - self._first]
        lacks = 0.0
        if self._powers and max(self._powers) > 0:  # As in BS.1770, seconds far below the others do not count.
            powers = np.array(self._powers)
            counted = powers[powers > 0.1 * powers[powers > 0].mean()]
            lacks = float(np.clip(self._target - 10 * np.log10(counted.mean()), -_MAX_MORE_DB, _MAX_MORE_DB))
        gain = gain_to(window, target_lufs=self._target + lacks, sample_rate_hz=self._rate)
        if gain is None:
            return self._gain or 1.0
        return gain if self._gain is None else float(np.clip(gain, self._gain / _MAX_CHANGE, self._gain * _MAX_CHANGE))

    def _loudness(self, wave: Float[np.ndarray, "N"]) -> float:
        return loudness_lufs(wave, sample_rate_hz=self._rate)


def level(wave: Float[np.ndarray, "N"], *, sample_rate_hz: int, target_lufs: float = TARGET_LUFS) -> Float[np.ndarray, "N"]:
    """A whole wave through a `Leveller`, float32."""
    leveller = Leveller(sample_rate_hz=sample_rate_hz, target_lufs=target_lufs)
    return np.concatenate([leveller.push(wave), leveller.finish()])


def gain_to(wave: Float[np.ndarray, "N"], *, target_lufs: float, sample_rate_hz: int) -> float | None:
    """The gain under which the limited wave has `target_lufs`, at most 30 dB. None: the wave is silent."""
    loudness = loudness_lufs(wave, sample_rate_hz=sample_rate_hz)
    if np.abs(wave).max(initial=0.0) < _SILENCE:
        return None
    gain = min(10 ** ((target_lufs - loudness) / 20), _MAX_GAIN)  # Below the gate of -70 the loudness is -inf.
    for _ in range(_ROUNDS):
        limited = _limited(gain * wave, max(1, round(_STEP_SEC * sample_rate_hz)))
        missing = target_lufs - loudness_lufs(limited, sample_rate_hz=sample_rate_hz)
        if not np.isfinite(missing) or missing < 0.1:
            break
        gain = min(gain * 10 ** (missing / 20), _MAX_GAIN)
    return float(gain)


def loudness_lufs(wave: Float[np.ndarray, "N"], *, sample_rate_hz: int) -> float:
    """The integrated loudness of ITU-R BS.1770, in LUFS. -inf: below its gate of -70."""
    import pyloudnorm  # Imported here, because it imports SciPy, which is slow.

    block = round(_BLOCK_SEC * sample_rate_hz)
    wave = np.asarray(wave, np.float64)
    if not len(wave):
        return -np.inf
    with np.errstate(divide="ignore"):
        return float(pyloudnorm.Meter(sample_rate_hz).integrated_loudness(wave if len(wave) >= block else np.resize(wave, block)))


class _Limiter:
    """Lowers a wave around samples, or points between samples, that are beyond PEAK. Results come some ms late."""

    def __init__(self, step: int):
        self._step = step
        self._wave = np.zeros(_CONTEXT)  # Samples that are not finished, after _CONTEXT that are.
        self._held: float | None = None

    def push(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "M"]:
        self._wave = np.concatenate([self._wave, wave])
        known = (len(self._wave) - 2 * _CONTEXT) // self._step  # Steps whose peaks are known.
        return self._finish_steps(known - _ATTACK - 1, known)

    def finish(self) -> Float[np.ndarray, "M"]:
        count = len(self._wave) - _CONTEXT
        steps = -(-count // self._step)
        self._wave = np.pad(self._wave, (0, steps * self._step - count + 2 * _CONTEXT))
        return self._finish_steps(steps, steps)[:count]

    def _finish_steps(self, count: int, known: int) -> Float[np.ndarray, "M"]:
        """The next `count` steps, limited. known: steps whose peaks are known, `count` and those that are looked ahead to."""
        if count <= 0:
            return np.zeros(0, np.float32)
        allowed = np.minimum(1.0, PEAK / np.maximum(_peaks(self._wave, known, self._step), 1e-9))
        # The smallest gain that this step or one soon after it allows; after the end any.
        ahead = np.lib.stride_tricks.sliding_window_view(np.pad(allowed, (0, _ATTACK + 1), constant_values=1.0), _ATTACK + 2)[:count].min(axis=1)
        gains = np.empty(count + 1)
        gains[0] = ahead[0] if self._held is None else self._held
        for number, gain in enumerate(ahead, start=1):  # Down at once, ahead of the peak; up slowly.
            gains[number] = min(gain, 1 - (1 - gains[number - 1]) * _RELEASE)
        self._held = float(gains[-1])
        curve = np.interp(np.arange(count * self._step) / self._step, np.arange(count + 1), gains)
        done, self._wave = self._wave[_CONTEXT : _CONTEXT + count * self._step] * curve, self._wave[count * self._step :]
        return done.astype(np.float32)


def _limited(wave: Float[np.ndarray, "N"], step: int) -> Float[np.ndarray, "N"]:
    limiter = _Limiter(step)
    return np.concatenate([limiter.push(wave), limiter.finish()])


def _peaks(wave: Float[np.ndarray, "N"], steps: int, step: int) -> Float[np.ndarray, "S"]:
    """The largest magnitude of each step of a wave that begins _CONTEXT samples before the first, also between its samples."""
    kernel = _interpolation()
    length = steps * step
    points = [np.abs(wave[_CONTEXT : _CONTEXT + length])]
    points += [np.abs(np.convolve(wave[: length + 2 * _CONTEXT], each, "valid")[:length]) for each in kernel]
    return np.max(points, axis=0).reshape(steps, step).max(axis=1)


@functools.cache
def _interpolation() -> list[Float[np.ndarray, "K"]]:
    """Windowed sinc filters for the points between two samples. Each reads _CONTEXT samples on both sides."""
    at = np.arange(-_CONTEXT, _CONTEXT + 1)
    window = np.hanning(2 * _CONTEXT + 3)[1:-1]
    return [np.sinc(at - part / _OVERSAMPLING)[::-1] * window for part in range(1, _OVERSAMPLING)]
