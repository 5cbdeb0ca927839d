"""Recordings of which music has the beginning, or the notes (AudioLM, arXiv 2209.03143, sections III-D and IV-B): the codes that stages begin with."""

from __future__ import annotations

import dataclasses

import numpy as np

from musiclm_jax.arrays import Float, Int
from musiclm_jax.errors import UserError
from musiclm_jax.models.tokenizers import AcousticTokenizer, SemanticTokenizer
from musiclm_jax.specs import AudioSpec

# Semantic tokens nearer than this to the end of a recording are not used, because they were encoded without what follows them. Farther away, tokens with and
# without it are as often the same as anywhere (docs/data.md).
_UNHEARD_SEC = 0.2


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What is given of the codes, such as those of a recording that music continues."""

    # What the result begins with: [1, N], whole acoustic frames.
    wave: Float[np.ndarray, "1 N"]
    # Without the last ones: they were encoded without what follows them.
    semantic: Int[np.ndarray, "1 T"]
    # None: acoustic codes are all drawn.
    acoustic: Int[np.ndarray, "1 F Q"] | None
    # Samples before the end of the wave in which its decoded codes fade in.
    fade: int

    def join(self, piece: Float[np.ndarray, "1 n"], *, at: int) -> Float[np.ndarray, "1 n"]:
        """A piece of decoded music from sample `at` on, with the recording itself where it lasts."""
        count = min(piece.shape[1], max(0, self.wave.shape[1] - at))
        share = np.clip((np.arange(at, at + count) - (self.wave.shape[1] - self.fade)) / self.fade, 0, 1).astype(np.float32)
        own = self.wave[:, at : at + count]
        return np.concatenate([own + share * (piece[:, :count] - own), piece[:, count:]], axis=1)


def read_beginning(
    wave: Float[np.ndarray, "N"], spec: AudioSpec, semantic: SemanticTokenizer, acoustic: AcousticTokenizer, *, seconds: float | int | None
) -> Beginning:
    """What music of `seconds` that continues a recording begins with. UserError: the recording is too short, or not shorter than the music."""
    frames, unheard = len(wave) // spec.frame_samples, spec.semantic_tokens(_UNHEARD_SEC)
    if frames // spec.frames_per_semantic <= unheard:
        raise UserError(f"a beginning of {len(wave) / spec.sample_rate_hz:.2f} s is too short to be continued: give one of at least 1 s")
    if seconds is not None and seconds * spec.sample_rate_hz <= len(wave):
        raise UserError(f"the beginning has {len(wave) / spec.sample_rate_hz:.2f} s, and seconds={seconds:g} are wanted in all: choose more")
    whole = np.asarray(wave[None, : frames * spec.frame_samples], np.float32)
    return Beginning(whole, semantic.encode(whole)[:, :-unheard], acoustic.encode(whole)[:, :frames], fade=spec.frame_samples)


def read_notes(wave: Float[np.ndarray, "N"], semantic: SemanticTokenizer) -> Beginning:
    """The semantic tokens of a recording, and no acoustic ones."""
    return Beginning(np.zeros((1, 0), np.float32), semantic.encode(wave[None]), None, fade=1)
