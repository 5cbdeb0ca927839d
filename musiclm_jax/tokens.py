"""Token layouts: which codes a stage reads, which codes it writes, and their ids in the stage's vocabulary.

The sequence of a stage is the prefix (its conditions), then the target. Each level of each segment has a block of `codes` ids: id = offset of the segment +
level * codes + code, so that no two levels share an id (AudioLM, arXiv 2209.03143, section III-B, has offsets by level). Streams of several levels are
flattened row-major: all levels of one time step, then the next time step. There are no BOS and EOS tokens: the last prefix token predicts the first target
token, and lengths are given in seconds. One more id, `mask_id`, replaces conditions that are dropped or absent, and is the whole prefix of a stage without
conditions (AudioLM's semantic stage).

Codes may be NumPy or JAX arrays, and ids are then the same: generation prepares its sequences on the host, training inside a jitted function.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.arrays import Array, Int
from musiclm_jax.errors import UserError
from musiclm_jax.specs import Stream

# A batch of streams: "mulan" [B, Q] or [B, steps, Q], "semantic" [B, T], "acoustic" [B, T, Q].
Streams = Mapping[str, Array | np.ndarray]
# In the place of each code of a step that is not given. Its id is `mask_id`. In training only optional streams may lack steps.
ABSENT = -1


@dataclasses.dataclass(frozen=True)
class Levels:
    """Consecutive levels of a token stream, [first, end)."""

    # Name of the stream.
    stream: str
    first: int = 0
    # The level after the last one. None: all levels from `first` on.
    end: int | None = None

    def of(self, streams: Mapping[str, Stream]) -> Segment:
        """These levels as a segment of a sequence. Raises UserError if there is no such stream or level."""
        if self.stream not in streams:
            raise UserError(f"no part writes the stream {self.stream!r}: choose one of {', '.join(streams)}")
        stream = streams[self.stream]
        end = stream.levels if self.end is None else self.end
        if not 0 <= self.first < end <= stream.levels:
            raise UserError(f"levels {self.first} to {end} of {stream.name!r}, which has {stream.levels}: choose 0 <= first < end <= {stream.levels}")
        return Segment(stream.name, end - self.first, stream.codes, stream.rate_hz, self.first, stream.steps, stream.optional)


@dataclasses.dataclass(frozen=True)
class Segment:
    """Consecutive levels of one token stream, as a part of a stage's sequence."""

    # Name of the stream, which is its key in a batch.
    stream: str
    levels: int
    codes: int
    # Time steps per second. 0: the segment has `num_steps` steps in every sequence.
    rate_hz: int = 0
    # The first level of the stream in this segment. The paper's fine stage writes the levels of "acoustic" from 4 on.
    first_level: int = 0
    # Only if rate_hz is 0.
    num_steps: int = 1
    # Whether codes may be ABSENT.
    optional: bool = False

    @property
    def vocab_size(self) -> int:
        return self.levels * self.codes

    def steps(self, seconds: float | int) -> int:
        """Number of time steps that cover `seconds`."""
        return math.ceil(round(seconds * self.rate_hz, 6)) if self.rate_hz else self.num_steps

    def take(self, streams: Streams) -> Int[Array, "B T Q"] | Int[np.ndarray, "B T Q"]:
        """The codes of this segment in a batch of streams, int32, with axes for time and level.

        Raises:
            ValueError: the batch lacks the stream, or the stream lacks levels.
        """
        if self.stream not in streams:
            raise ValueError(f"expected a batch with the stream {self.stream!r}, got {sorted(streams)}")
        codes = streams[self.stream].astype(np.int32)
        if codes.ndim == 2:  # [B, Q] of one step, or [B, T] of one level.
            codes = codes[:, :, None] if self.rate_hz else codes[:, None, :]
        last = self.first_level + self.levels
        if codes.shape[2] < last:
            raise ValueError(f"{self.stream!r} has {codes.shape[2]} levels, expected levels {self.first_level} to {last - 1}")
        return codes[:, :, self.first_level : last]


@dataclasses.dataclass(frozen=True)
class StageLayout:
    """The prefix and the target of one stage, and the map between (segment, level, code) and the ids of its vocabulary."""

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
        """Number of ids of codes, V. `mask_id` is one more id, which occurs in inputs only."""
        return sum(segment.vocab_size for segment in self.segments)

    @property
    def mask_id(self) -> int:
        return self.vocab_size

    def num_target_tokens(self, seconds: float | int) -> int:
        return self.target.steps(seconds) * self.target.levels

    def num_tokens(self, seconds: float | int) -> int:
        """Number of tokens of the whole sequence, prefix and target, for a crop of `seconds`."""
        return (not self.prefix) + sum(segment.steps(seconds) * segment.levels for segment in self.segments)

    def prefix_steps(self, segment: Segment, num_steps: int) -> int:
        """Number of steps of a prefix segment that have the duration of `num_steps` target steps."""
        return num_steps * segment.rate_hz // self.target.rate_hz if segment.rate_hz else segment.num_steps

    def positions(self, num_steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Segment, time and level of each token of a sequence with `num_steps` target steps, prefix first.

        Returns:
            (index of the segment, time, level within the segment), int32 with one entry per token. Times are in steps of the target for all streams, and
            -1 for streams without a rate.
        """
        numbers, times, levels = ([], [], []) if self.prefix else ([[0]], [[-1]], [[0]])
        for number, segment in enumerate(self.segments):
            when = np.arange(self.prefix_steps(segment, num_steps))
            when = when * self.target.rate_hz // segment.rate_hz if segment.rate_hz else np.full(len(when), -1)
            times.append(np.repeat(when, segment.levels))
            levels.append(np.tile(np.arange(segment.levels), len(when)))
            numbers.append(np.full(len(times[-1]), number))
        return tuple(np.concatenate(each).astype(np.int32) for each in (numbers, times, levels))

    def to_ids(self, index: int, codes: Int[Array, "B T Q"] | Int[np.ndarray, "B T Q"]) -> Int[Array, "B TQ"] | Int[np.ndarray, "B TQ"]:
        """Flattens codes of segment `index` to ids, time-major: [B, T, Q] -> [B, T * Q]; ABSENT becomes `mask_id`.

        Raises:
            ValueError: the number of levels differs.
        """
        segment = self.segments[index]
        if codes.shape[2] != segment.levels:
            raise ValueError(f"codes have {codes.shape[2]} levels, expected {segment.levels}, those of segment {index} ({segment.stream})")
        ids = codes + self._level_offsets(index)
        if isinstance(codes, np.ndarray):  # In generation any stream may be absent, such as MuLan's without a prompt.
            ids = np.where(codes == ABSENT, self.mask_id, ids)
        elif segment.optional:
            ids = jnp.where(codes == ABSENT, self.mask_id, ids)
        return ids.reshape(codes.shape[0], -1)

    def _level_offsets(self, index: int) -> Int[np.ndarray, "Q"]:
        """The first id of each level of a segment."""
        segment = self.segments[index]
        return self.offsets[index] + segment.codes * np.arange(segment.levels, dtype=np.int32)

    def prefix_ids(self, streams: Streams, *, batch: int | None = None) -> Int[Array, "B P"] | Int[np.ndarray, "B P"]:
        """The conditions of a batch as one sequence of ids. batch: the batch size, needed only if the streams have neither prefix nor target."""
        if not self.prefix:
            return np.full((len(streams[self.target.stream]) if batch is None else batch, 1), self.mask_id, np.int32)
        parts = [self.to_ids(i, segment.take(streams)) for i, segment in enumerate(self.prefix)]
        return (np if isinstance(parts[0], np.ndarray) else jnp).concatenate(parts, axis=1)

    def keep(self, ids: Int[np.ndarray, "B P"], stream: str, *, num_steps: int) -> Int[np.ndarray, "B P"]:
        """Prefix ids with `mask_id` in the place of all streams but one. num_steps: of the target."""
        own = [number for number, segment in enumerate(self.prefix) if segment.stream == stream]
        return np.where(np.isin(self.positions(num_steps)[0][: ids.shape[1]], own), ids, self.mask_id)

    def target_codes(self, streams: Streams) -> Int[Array, "B T Q"] | Int[np.ndarray, "B T Q"]:
        """The codes that the stage is trained to predict, in [0, target.codes)."""
        return self.target.take(streams)

    def check(self, streams: Streams) -> None:
        """Raises UserError if codes of a batch are out of range or its streams differ in duration. It reads the values on the host."""
        seconds = {}
        for segment in self.segments:
            codes = np.asarray(jax.device_get(segment.take(streams)))
            if segment.optional:
                codes = np.where(codes == ABSENT, 0, codes)
            if codes.size and (codes.min() < 0 or codes.max() >= segment.codes):
                raise UserError(
                    f"{segment.stream} has codes from {codes.min()} to {codes.max()}, the {self.name} stage expects 0 to {segment.codes - 1}: "
                    "tokenize with the models that the stage was trained with"
                )
            if segment.rate_hz:
                seconds[segment.stream] = codes.shape[1] / segment.rate_hz
            elif codes.shape[1] != segment.num_steps:
                raise UserError(f"{segment.stream} has {codes.shape[1]} steps, the {self.name} stage expects {segment.num_steps}: make them equal")
        if len(set(seconds.values())) > 1:
            raise UserError(f"the streams of the {self.name} stage differ in length: {seconds} seconds; cut them to the same length")


def make_layout(name: str, prefix: Sequence[Levels], target: Levels, streams: Mapping[str, Stream]) -> StageLayout:
    """The layout of a stage that reads `prefix` and writes `target`. Raises UserError if a stream or level is missing, or the target has no rate."""
    try:
        layout = StageLayout(name, tuple(each.of(streams) for each in prefix), target.of(streams))
    except UserError as error:
        raise UserError(f"stage {name!r}: {error}") from None
    if not layout.target.rate_hz:
        raise UserError(f"stage {name!r} writes {target.stream!r}, which has no rate: choose a stream with a rate_hz above 0")
    return layout
