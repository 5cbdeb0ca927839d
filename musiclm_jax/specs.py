"""Rates and vocabulary sizes of token streams. No JAX here: this file is arithmetic.

MusicLM (arXiv 2301.11325), section 3.1: 24 kHz audio, acoustic tokens at 50 Hz x 12 levels x 1024, semantic tokens at 25 Hz x 1024,
12 x 1024 MuLan tokens per clip.
"""

from __future__ import annotations

import dataclasses

from musiclm_jax.checks import SIZE, check_numbers
from musiclm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class AudioSpec:
    """How seconds, samples, acoustic frames and semantic tokens line up.

    Acoustic frame f covers samples [480 f, 480 f + 480); semantic token s covers [960 s, 960 s + 960); so s = f // 2, exactly.
    """

    sample_rate_hz: int = 24_000
    # Acoustic frames per second (SoundStream).
    frame_rate_hz: int = 50
    # Semantic tokens per second (w2v-BERT + k-means).
    semantic_rate_hz: int = 25

    def __post_init__(self):
        check_numbers(self, sample_rate_hz=SIZE, frame_rate_hz=SIZE, semantic_rate_hz=SIZE)
        if self.sample_rate_hz % self.frame_rate_hz or self.frame_rate_hz % self.semantic_rate_hz:
            raise UserError(
                f"sample_rate_hz={self.sample_rate_hz}, frame_rate_hz={self.frame_rate_hz}, semantic_rate_hz={self.semantic_rate_hz}: "
                "each must be a whole multiple of the next, or the token streams drift apart"
            )

    @property
    def frame_samples(self) -> int:
        return self.sample_rate_hz // self.frame_rate_hz

    @property
    def semantic_samples(self) -> int:
        return self.sample_rate_hz // self.semantic_rate_hz

    @property
    def frames_per_semantic(self) -> int:
        return self.frame_rate_hz // self.semantic_rate_hz

    def semantic_tokens(self, seconds: float) -> int:
        """Semantic tokens that cover `seconds`, rounded up to a whole token."""
        return -int(-round(seconds * self.sample_rate_hz) // self.semantic_samples)

    def frames(self, seconds: float) -> int:
        """Acoustic frames that cover `seconds`, rounded up to a whole semantic token."""
        return self.semantic_tokens(seconds) * self.frames_per_semantic


@dataclasses.dataclass(frozen=True)
class Stream:
    """A stream of tokens. The codec writes "acoustic", w2v-BERT "semantic", and MuLan "mulan", the melody
    embedder "melody". "timing" needs no model; "voice" is "semantic" of another recording."""

    name: str
    levels: int
    # Codes of one level.
    codes: int
    # Time steps per second. 0: the stream has no time axis, and `steps` steps in every sequence.
    rate_hz: int = 0
    # Steps of a stream without a time axis: 1 for a MuLan embedding, 3 for the embeddings of a melody.
    steps: int = 1
    # Whether steps may be absent, as those of a melody that is not given: `tokens.ABSENT` in the place of their codes.
    optional: bool = False

    def __post_init__(self):
        if min(self.levels, self.codes, self.steps) < 1 or self.rate_hz < 0:
            raise UserError(f"stream {self}: levels, codes and steps are 1 or more, rate_hz is 0 or more")
