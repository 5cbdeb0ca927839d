"""Where music is in its piece (Stable Audio, arXiv 2402.04825): seconds from the start of the piece, and seconds of the piece in all, so that it can end."""

from __future__ import annotations

import dataclasses

import numpy as np

from musiclm_jax.arrays import Float, Int
from musiclm_jax.checks import SIZE, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.generation.stages import StageSpec
from musiclm_jax.specs import Stream
from musiclm_jax.tokens import ABSENT


@dataclasses.dataclass(frozen=True)
class TimingConfig:
    """The two timing tokens of a stage's window, each the nearest whole second. They are two levels, so that each has embeddings of its own."""

    # Codes of each token. The last one stands for all longer times, too.
    num_codes: int = 512

    def __post_init__(self):
        check_numbers(self, num_codes=SIZE)

    @property
    def stream(self) -> Stream:
        return Stream("timing", 2, self.num_codes, optional=True)

    @property
    def codebooks(self) -> Float[np.ndarray, "2 C K"]:
        """Vectors of the codes, with which a stage's embeddings may begin (`models.stage.start_from_codebooks`), so that near seconds are alike: sines and
        cosines with periods of 16 to 1024 s."""
        angles = 2 * np.pi * np.arange(self.num_codes)[:, None] / (16 * 2.0 ** np.arange(7))
        return np.tile(np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32), (2, 1, 1))

    def tokens(self, start_sec: float, total_sec: float | int | None) -> Int[np.ndarray, "2"]:
        """start_sec: from the start of the piece to that of the window. total_sec: of the piece. None: not known."""
        return np.array([ABSENT if sec is None else min(round(sec), self.num_codes - 1) for sec in (start_sec, total_sec)], np.int32)


@dataclasses.dataclass(frozen=True)
class GivenTiming:
    """The timing tokens of the windows of music (`stream.Given`)."""

    config: TimingConfig
    # Of the piece that is to end by itself. None: the tokens are absent.
    total_sec: float | int | None

    def __call__(self, stage: StageSpec, start_sec: float) -> Int[np.ndarray, "1 2"]:
        return np.full((1, 2), ABSENT, np.int32) if self.total_sec is None else self.config.tokens(start_sec, self.total_sec)[None]


def given_timing(config: TimingConfig | None, *, ending: bool, seconds: float | int | None) -> dict[str, GivenTiming]:
    """The timing that stages are given, {} for a model without it. ending: whether the music ends by itself after `seconds`. UserError: `seconds` is None."""
    if config is None:
        return {}
    if ending and seconds is None:
        raise UserError("an ending needs a length: give seconds, or leave the ending out")
    return {"timing": GivenTiming(config, seconds if ending else None)}
