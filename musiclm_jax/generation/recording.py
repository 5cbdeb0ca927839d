"""Recordings that steer music, read from a file or an array."""

from __future__ import annotations

import os

import numpy as np
import soxr

from musiclm_jax import audio
from musiclm_jax.arrays import Float
from musiclm_jax.errors import UserError

# A file; a wave at the model's rate; or a wave of any rate, [N] or [N, channels], with its rate in Hz.
Recording = str | os.PathLike | np.ndarray | tuple[np.ndarray, int]
# Samples below it, -60 dB of full scale, are silent, as in audio files.
_AUDIBLE = 10 ** (-60 / 20)


def read_recording(given: Recording, what: str, *, rate: int, least: int, seconds: float | int | None) -> Float[np.ndarray, "N"]:
    """The first `seconds` of a recording, mono at `rate`. None: all of it.

    Args:
        what: its name in errors.

    Raises:
        UserError: it is no audio, has fewer than `least` samples, or is silent or not finite.
    """
    if isinstance(given, (str, os.PathLike)):
        return audio.read(given, sample_rate_hz=rate, min_samples=least, end_sec=seconds)
    wave, wave_rate = given if isinstance(given, tuple) else (given, rate)
    wave = np.asarray(wave, np.float32)
    if wave.ndim not in (1, 2) or wave_rate < 1:
        raise UserError(f"the {what} has shape {list(wave.shape)} at {wave_rate} Hz: give samples [N], or [N, channels], and the rate in Hz")
    wave = wave if seconds is None else wave[: round(seconds * wave_rate)]
    wave = wave if wave.ndim == 1 else wave.mean(axis=1)
    wave = wave if wave_rate == rate else soxr.resample(wave, wave_rate, rate)
    if len(wave) < least:
        raise UserError(f"the {what} of {len(wave) / rate:.2f} s is too short: at least {least / rate:.2f} s are needed")
    if not np.isfinite(wave).all():
        raise UserError(f"the {what} has NaN or infinite samples: export it again")
    if np.abs(wave).max() < _AUDIBLE:
        raise UserError(f"the {what} is silent: give one that is not")
    return wave
