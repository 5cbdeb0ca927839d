"""A melody that the music is to follow: read from a file or an array, and its tokens in the windows of a stage."""

from __future__ import annotations

import os

import numpy as np
import soxr

from musiclm_jax import audio
from musiclm_jax.arrays import Float, Int
from musiclm_jax.errors import UserError
from musiclm_jax.models.melody import MelodyConfig
from musiclm_jax.tokens import ABSENT

# A file; a wave at the model's rate; or a wave of any rate, [N] or [N, channels], with its rate in Hz.
Melody = str | os.PathLike | np.ndarray | tuple[np.ndarray, int]
# A melody is at least this part of a window of the embedder: 0.5 s of 4 s.
_LEAST = 1 / 8
# Samples below it, -60 dB of full scale, are silent, as in audio files.
_AUDIBLE = 10 ** (-60 / 20)


def read_melody(given: Melody, config: MelodyConfig, *, seconds: float | int) -> Float[np.ndarray, "N"]:
    """The first `seconds` of a melody, mono at the rate of the embedder. No more of a file is read.

    Raises:
        UserError: it is no audio, shorter than an eighth of a window of the embedder, silent, or not finite.
    """
    return read_recording(given, "melody", rate=config.mel.sample_rate_hz, least=round(_LEAST * config.window_samples), seconds=seconds)


def read_recording(given: Melody, what: str, *, rate: int, least: int, seconds: float | int) -> Float[np.ndarray, "N"]:
    """The first `seconds` of a recording, mono at `rate`. what: its name in errors. UserError: no audio, fewer than `least` samples, silent, or not finite."""
    if isinstance(given, (str, os.PathLike)):
        return audio.read(given, sample_rate_hz=rate, min_samples=least, end_sec=seconds)
    wave, wave_rate = given if isinstance(given, tuple) else (given, rate)
    wave = np.asarray(wave, np.float32)
    if wave.ndim not in (1, 2) or wave_rate < 1:
        raise UserError(f"the {what} has shape {list(wave.shape)} at {wave_rate} Hz: give samples [N], or [N, channels], and the rate in Hz")
    wave = wave[: round(seconds * wave_rate)]
    wave = wave if wave.ndim == 1 else wave.mean(axis=1)
    wave = wave if wave_rate == rate else soxr.resample(wave, wave_rate, rate)
    if len(wave) < least:
        raise UserError(f"the {what} of {len(wave) / rate:.2f} s is too short: at least {least / rate:.2f} s are needed")
    if not np.isfinite(wave).all():
        raise UserError(f"the {what} has NaN or infinite samples: export it again")
    if np.abs(wave).max() < _AUDIBLE:
        raise UserError(f"the {what} is silent: give one that is not")
    return wave


def no_melody(config: MelodyConfig) -> Int[np.ndarray, "1 W Q"]:
    """The tokens of a stage that is given no melody."""
    return np.full((1, config.condition_windows, config.num_levels), ABSENT, np.int32)
