"""Token layouts: which codes a stage reads, which it writes, and where each lies in the stage's own vocabulary.

A stage sees one sequence: the prefix (its conditions), then the target. Every level of every stream owns a block of `codes` ids, so
id = block offset + level * codes + code, and no two levels ever share an id (AudioLM, arXiv 2209.03143, section III-B, offsets by level).
Streams of several levels are flattened row-major: all levels of one time step, then the next step. There is no BOS and no EOS: the last
prefix token predicts the first target, and lengths are fixed by seconds. One more id, `mask_id`, replaces conditions that are withheld.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.arrays import Array, Int
from musiclm_jax.errors import UserError
from musiclm_jax.specs import AudioSpec, TokenSpec

STAGES = ("semantic", "coarse", "fine")


@dataclasses.dataclass(frozen=True)
class Segment:
    """Consecutive levels of one token stream, as a part of a stage's sequence."""

    # The stream's key in a batch: "mulan" [B, Q], "semantic" [B, T] or "acoustic" [B, T, Q].
    stream: str
    levels: int
    codes: int
    # Time steps per second. 0: one step per sequence, whatever its length (a MuLan embedding).
    rate_hz: int = 0
    # The first of the stream's levels in this segment: the fine stage writes levels coarse_levels, ... of "acoustic".
    first_level: int = 0

    @property
    def vocab_size(self) -> int:
        return self.levels * self.codes

    def steps(self, seconds: float | int) -> int:
        """Time steps that cover `seconds`."""
        return math.ceil(round(seconds * self.rate_hz, 6)) if self.rate_hz else 1

    def take(self, streams: Mapping[str, Array | np.ndarray]) -> Int[Array, "B T Q"]:
        """This segment's codes out of a batch of streams, with time and level as axes."""
        if self.stream not in streams:
            raise ValueError(f"the batch has {sorted(streams)}, not {self.stream!r}")
        codes = jnp.asarray(streams[self.stream], jnp.int32)
        if codes.ndim == 2:  # [B, Q] once per sequence, or [B, T] of a single level
            codes = codes[:, :, None] if self.rate_hz else codes[:, None, :]
        last = self.first_level + self.levels
        if codes.shape[2] < last:
            raise ValueError(f"{self.stream!r} has {codes.shape[2]} levels; this stage needs levels {self.first_level}..{last - 1}")
        return codes[:, :, self.first_level : last]


@dataclasses.dataclass(frozen=True)
class StageLayout:
    """Prefix and target of one stage, and the map between (segment, level, code) and the ids of its vocabulary."""

    name: str
    prefix: tuple[Segment, ...]
    target: Segment

    @property
    def segments(self) -> tuple[Segment, ...]:
        return (*self.prefix, self.target)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First id of each segment, in the order of `segments`."""
        sizes = [segment.vocab_size for segment in self.segments]
        return tuple(sum(sizes[:i]) for i in range(len(sizes)))

    @property
    def target_offset(self) -> int:
        return self.offsets[-1]

    @property
    def vocab_size(self) -> int:
        """Ids that stand for codes; `mask_id` comes on top, as input only."""
        return sum(segment.vocab_size for segment in self.segments)

    @property
    def mask_id(self) -> int:
        return self.vocab_size

    def num_target_tokens(self, seconds: float | int) -> int:
        return self.target.steps(seconds) * self.target.levels

    def num_tokens(self, seconds: float | int) -> int:
        """Length of the whole sequence, prefix and target, for a crop of `seconds`."""
        return sum(segment.steps(seconds) * segment.levels for segment in self.segments)

    def positions(self, num_steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What each token of a sequence of `num_steps` target steps belongs to, prefix first: (index of its segment, its time, its level within the
        segment), int32 [L] each.

        Times are in steps of the target, so that tokens of all streams that sound together have the same; -1 for a stream without a rate.
        """
        numbers, times, levels = [], [], []
        for number, segment in enumerate(self.segments):
            when = np.array([-1])
            if segment.rate_hz:
                when = np.arange(num_steps * segment.rate_hz // self.target.rate_hz) * self.target.rate_hz // segment.rate_hz
            times.append(np.repeat(when, segment.levels))
            levels.append(np.tile(np.arange(segment.levels), len(when)))
            numbers.append(np.full(len(times[-1]), number))
        return tuple(np.concatenate(each).astype(np.int32) for each in (numbers, times, levels))

    def to_ids(self, index: int, codes: Int[Array, "B T Q"]) -> Int[Array, "B TQ"]:
        """Codes of segment `index` as flat ids, time-major: [B, T, Q] -> [B, T * Q]."""
        segment = self.segments[index]
        if codes.shape[2] != segment.levels:
            raise ValueError(f"segment {index} ({segment.stream}) has {segment.levels} levels; the codes have {codes.shape[2]}")
        ids = codes + self.offsets[index] + segment.codes * jnp.arange(segment.levels, dtype=jnp.int32)
        return ids.reshape(codes.shape[0], -1)

    def to_codes(self, index: int, ids: Int[Array, "B TQ"]) -> Int[Array, "B T Q"]:
        """Inverse of `to_ids`."""
        segment = self.segments[index]
        ids = ids.reshape(ids.shape[0], -1, segment.levels)
        return ids - self.offsets[index] - segment.codes * jnp.arange(segment.levels, dtype=jnp.int32)

    def prefix_ids(self, streams: Mapping[str, Array | np.ndarray]) -> Int[Array, "B P"]:
        """The conditions of a batch as one sequence of ids."""
        parts = [self.to_ids(i, segment.take(streams)) for i, segment in enumerate(self.prefix)]
        return jnp.concatenate(parts, axis=1)

    def target_codes(self, streams: Mapping[str, Array | np.ndarray]) -> Int[Array, "B T Q"]:
        """What the stage learns to write, as codes in [0, target.codes)."""
        return self.target.take(streams)

    def check(self, streams: Mapping[str, Array | np.ndarray]) -> None:
        """Raises UserError where codes of a batch are out of range or streams disagree on the duration. On the host: reads the values."""
        seconds = {}
        for segment in self.segments:
            codes = np.asarray(jax.device_get(segment.take(streams)))
            if codes.size and (codes.min() < 0 or codes.max() >= segment.codes):
                raise UserError(
                    f"{segment.stream} codes reach from {codes.min()} to {codes.max()}, the {self.name} stage knows 0..{segment.codes - 1}: "
                    "tokenize with the models that the stage was trained with"
                )
            if segment.rate_hz:
                seconds[segment.stream] = codes.shape[1] / segment.rate_hz
        if len(set(seconds.values())) > 1:
            raise UserError(f"the streams of the {self.name} stage differ in length: {seconds} seconds; cut them to the same span")


def stage_layout(name: str, tokens: TokenSpec, *, audio: AudioSpec = AudioSpec(), fine_sees_mulan: bool = False) -> StageLayout:
    """The layout of MusicLM's "semantic", "coarse" or "fine" stage (arXiv 2301.11325, section 3.2).

    The paper leaves open whether the fine stage sees MuLan tokens; AudioLM's sees coarse codes only, which is the default here.
    """
    mulan = Segment("mulan", tokens.mulan_levels, tokens.mulan_codes)
    semantic = Segment("semantic", 1, tokens.semantic_codes, audio.semantic_rate_hz)
    coarse = Segment("acoustic", tokens.coarse_levels, tokens.acoustic_codes, audio.frame_rate_hz)
    fine = Segment("acoustic", tokens.fine_levels, tokens.acoustic_codes, audio.frame_rate_hz, tokens.coarse_levels)
    if name == "semantic":
        return StageLayout(name, (mulan,), semantic)
    if name == "coarse":
        return StageLayout(name, (mulan, semantic), coarse)
    if name == "fine":
        return StageLayout(name, (mulan, coarse) if fine_sees_mulan else (coarse,), fine)
    raise UserError(f"stage {name!r}: choose one of {', '.join(STAGES)}")
