"""A voice that the music accompanies (SingSong, arXiv 2301.12662): how it is heard, its tokens in the windows of a stage, and the mix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from musiclm_jax.arrays import Float, Int
from musiclm_jax.audio.loudness import TARGET_LUFS, gain_to, level
from musiclm_jax.checks import NOT_NEGATIVE, check_numbers
from musiclm_jax.generation.recording import Recording, read_recording
from musiclm_jax.generation.stages import StageSpec
from musiclm_jax.specs import AudioSpec
from musiclm_jax.tokens import ABSENT

# Of a voice before it is tokenized, the root of the mean square; softer than the silence below, it stays.
_RMS, _SILENCE = 0.1, 1e-3


@dataclasses.dataclass(frozen=True)
class VoiceConfig:
    """How a voice is prepared before it is tokenized. SingSong adds white noise, in training and in generation, to hide traces of the band in the voice."""

    # Level of the noise, as a share of the voice's. The value is ours.
    noise: float = 0.1

    def __post_init__(self):
        check_numbers(self, noise=NOT_NEGATIVE)

    def heard(self, wave: Float[np.ndarray, "B N"]) -> Float[np.ndarray, "B N"]:
        """Windows of voices at one level, with noise, which depends on the shape alone."""
        rms = np.sqrt(np.mean(np.square(wave), axis=1, keepdims=True))
        noise = np.random.default_rng(0).standard_normal(wave.shape, np.float32)
        return (wave * (_RMS / np.maximum(rms, _SILENCE)) + self.noise * _RMS * noise).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class GivenVoice:
    """The tokens of a voice in the windows of music (`stream.Given`), ABSENT where it has ended. wave None: there is no voice."""

    config: VoiceConfig
    spec: AudioSpec
    # Waves [B, N] -> semantic tokens [B, T].
    encode: Callable[[np.ndarray], Int[np.ndarray, "B T"]]
    wave: Float[np.ndarray, "N"] | None

    def __call__(self, stage: StageSpec, start_sec: float) -> Int[np.ndarray, "1 T"]:
        steps, size = self.spec.semantic_tokens(float(stage.window_sec)), self.spec.semantic_samples
        found, start = np.full((1, steps), ABSENT, np.int32), round(start_sec * self.spec.sample_rate_hz)
        piece = np.zeros(0, np.float32) if self.wave is None else self.wave[start : start + steps * size]
        if count := len(piece) // size:
            heard = self.config.heard(piece[None, : count * size])
            padded = np.pad(heard, ((0, 0), (0, (steps - count) * size)))  # One shape, so that one program is compiled.
            found[:, :count] = self.encode(padded)[:, :count]
        return found


def read_voice(given: Recording, spec: AudioSpec, *, seconds: float | int) -> Float[np.ndarray, "N"]:
    """The first `seconds` of a voice at the model's rate. Raises UserError as `read_recording`."""
    return read_recording(given, "voice", rate=spec.sample_rate_hz, least=spec.sample_rate_hz, seconds=seconds)


def mix(band: Float[np.ndarray, "N"], voice: Float[np.ndarray, "M"], *, sample_rate_hz: int) -> Float[np.ndarray, "N"]:
    """Band and voice at the same loudness, at -14 LUFS together. A voice shorter than the band is followed by silence; a longer one is cut."""
    voice = np.pad(voice[: len(band)], (0, max(0, len(band) - len(voice))))
    gains = (gain_to(wave, target_lufs=TARGET_LUFS, sample_rate_hz=sample_rate_hz) for wave in (band, voice))
    both = sum(wave * np.float32(gain or 1) for wave, gain in zip((band, voice), gains, strict=True))
    return level(both, sample_rate_hz=sample_rate_hz)
