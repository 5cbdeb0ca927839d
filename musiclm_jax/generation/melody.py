"""A melody that the music is to follow, and its tokens in the windows of a stage."""

from __future__ import annotations

import numpy as np

from musiclm_jax.arrays import Float, Int
from musiclm_jax.generation.recording import Recording, read_recording
from musiclm_jax.models.melody import MelodyConfig
from musiclm_jax.tokens import ABSENT

# A melody is at least this part of a window of the embedder: 0.5 s of 4 s.
_LEAST = 1 / 8


def read_melody(given: Recording, config: MelodyConfig, *, seconds: float | int) -> Float[np.ndarray, "N"]:
    """The first `seconds` of a melody, mono at the rate of the embedder. No more of a file is read.

    Raises:
        UserError: it is no audio, shorter than an eighth of a window of the embedder, silent, or not finite.
    """
    return read_recording(given, "melody", rate=config.mel.sample_rate_hz, least=round(_LEAST * config.window_samples), seconds=seconds)


def no_melody(config: MelodyConfig) -> Int[np.ndarray, "1 W Q"]:
    """The tokens of a stage that is given no melody."""
    return np.full((1, config.condition_windows, config.num_levels), ABSENT, np.int32)
