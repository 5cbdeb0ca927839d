"""Tokens of the clips of a store, computed once by the frozen models, and the batches on which the stages are trained. NumPy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from musiclm_jax.arrays import Bool, Int
from musiclm_jax.data.clips import ClipStore, draw, draw_start, load_array, step_rng
from musiclm_jax.data.prefetch import Rows, Source
from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath
from musiclm_jax.specs import AudioSpec

# ---------------------------------------------------------------------------------------------------------------------- Windows of waves


@dataclasses.dataclass(frozen=True)
class Piece:
    """A window of a clip: samples from `start` on. Its tokens [skip, skip + keep) are tokens [at, at + keep) of the clip; the others are context."""

    clip: int
    start: int
    skip: int
    at: int
    keep: int


def pieces(lengths: Sequence[int], *, token_samples: int, window: int, context: int) -> list[Piece]:
    """Windows of `window` tokens that cover clips of `lengths` samples, so that each token of a clip is kept from exactly one window.

    A window begins `context` tokens before the first token that is kept. The last window of a clip ends at the clip's end, so that only clips shorter
    than a window are zero-padded.

    Raises:
        ValueError: `context` is negative, or not below `window`.
    """
    if not 0 <= context < window:
        raise ValueError(f"context={context}, window={window} tokens: expected 0 <= context < window")
    found = []
    for clip, length in enumerate(lengths):
        total, at = -(-length // token_samples), 0
        while at < total:
            start = max(min(at - context, total - window), 0)
            keep = min(start + window, total) - at
            found.append(Piece(clip=clip, start=start * token_samples, skip=at - start, at=at, keep=keep))
            at += keep
    return found


def wave_batches(store: ClipStore, where: Sequence[tuple[int, int]], *, samples: int, batch_size: int) -> Iterator[np.ndarray]:
    """Batches of waves, float32 [batch_size, samples], at (clip number, first sample) in order. The last one is zero-padded to the full batch size."""
    for first in range(0, len(where), batch_size):
        batch = np.zeros((batch_size, samples), np.float32)
        for row, (clip, start) in enumerate(where[first : first + batch_size]):
            batch[row] = store.wave(store.clips[clip], start, samples)
        yield batch


# ---------------------------------------------------------------------------------------------------------------------- Tokens of clips


@runtime_checkable
class ClipTokens(Protocol):
    """The tokens of one stream for all clips of a store."""

    def crops(
        self,
        clips: Sequence[int],
        starts_sec: Sequence[float],
        crop_sec: float | int,
        *,
        rows: Int[np.ndarray, "b"],
        rng: np.random.Generator,
        text_share: float,
    ) -> Int[np.ndarray, "b ..."]:
        """Tokens of some crops of a batch, int32.

        Args:
            clips: number of the clip of each crop of the batch.
            starts_sec: start of each crop of the batch.
            crop_sec: length of all crops.
            rows: the crops whose tokens are returned.
            rng: for streams with random choices, which are drawn for the whole batch, so that they do not depend on `rows`.
            text_share: share of crops for which the MuLan stream takes tokens of a caption instead of the audio. Other streams ignore it.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TokenArray:
    """Tokens of a stream with a rate: int16 [sum T] or [sum T, Q], concatenated in the order of the clips, memory-mapped.

    `at` has the first row of each clip, and the total at the end.
    """

    codes: np.ndarray
    at: np.ndarray
    rate_hz: int

    @classmethod
    def open(cls, path: AnyPath, store: ClipStore, *, rate_hz: int, spec: AudioSpec) -> TokenArray:
        """Memory-maps a token file. Raises UserError if it cannot be read, or its number of tokens is not that of the store's clips."""
        per_semantic = rate_hz // spec.semantic_rate_hz
        at = offsets(per_semantic * -(-clip.length // spec.semantic_samples) for clip in store.clips)
        codes = load_array(path)
        if len(codes) != at[-1]:
            raise UserError(f"{path} has {len(codes)} tokens where the clips have {at[-1]}: it belongs to other clips; run the step that makes it again")
        return cls(codes, at, rate_hz)

    def crops(
        self,
        clips: Sequence[int],
        starts_sec: Sequence[float],
        crop_sec: float | int,
        *,
        rows: Int[np.ndarray, "b"],
        rng: np.random.Generator,
        text_share: float,
    ) -> Int[np.ndarray, "b ..."]:
        del rng, text_share
        length, first = round(crop_sec * self.rate_hz), [self.at[clips[row]] + round(starts_sec[row] * self.rate_hz) for row in rows]
        return np.stack([self.codes[i : i + length] for i in first]).astype(np.int32)

    def chunks(self, store: ClipStore, split: str, *, levels: slice = slice(None), rows: int = 2**18) -> Iterator[Int[np.ndarray, "n Q"]]:
        """The concatenated tokens of a split's clips, as arrays [n, Q] of at most `rows` rows, to bound memory. levels: the levels to return."""
        codes, some = self.codes.reshape(len(self.codes), -1), []
        for i in (i for i, clip in enumerate(store.clips) if clip.split == split):
            for first in range(self.at[i], self.at[i + 1], rows):
                piece = codes[first : min(first + rows, self.at[i + 1]), levels]
                if sum(map(len, some)) + len(piece) > rows:
                    yield np.concatenate(some)
                    some = []
                some.append(piece)
        if some:
            yield np.concatenate(some)


def offsets(counts: Iterable[int]) -> Int[np.ndarray, "n"]:
    """The first row of each of several concatenated arrays of `counts` rows, and the total at the end, int64."""
    return np.concatenate([[0], np.cumsum(list(counts))]).astype(np.int64)


def long_enough(store: ClipStore, crop_sec: float | int, spec: AudioSpec) -> Bool[np.ndarray, "n"]:
    """Whether each clip has at least as many semantic tokens as a crop. Shorter clips are not used."""
    return np.array([clip.length + spec.semantic_samples > crop_sec * store.sample_rate_hz for clip in store.clips])


def covering_windows(start_sec: float | int, end_sec: float | int, *, num_windows: int, window_sec: float, hop_sec: float) -> slice:
    """The windows that share the most time with [start_sec, end_sec]: all windows inside a long crop, all windows that contain a short one.

    They are consecutive, because the shared time first rises, then stays, then falls from window to window.
    """
    begin = np.arange(num_windows) * hop_sec
    shared = np.minimum(begin + window_sec, end_sec) - np.maximum(begin, start_sec)
    best = np.flatnonzero(shared > shared.max() - 1e-6)
    return slice(int(best[0]), int(best[-1]) + 1)


def crop_source(
    store: ClipStore,
    tokens: Mapping[str, ClipTokens],
    *,
    split: str,
    crop_sec: float | int,
    batch_size: int,
    seed: int,
    spec: AudioSpec,
    text_share: float = 0.0,
    end_share: float = 0.0,
) -> Source:
    """A source of training batches of random crops: step -> {stream: int32 tokens}. Crops begin at a semantic token.

    Args:
        tokens: the streams.
        crop_sec: length of the crops.
        spec: the rates.
        text_share: see `ClipTokens.crops`.
        end_share: of crops that are the end of their clip.

    Raises:
        UserError: no clip of the split is as long as a crop.
    """
    long = long_enough(store, crop_sec, spec)
    candidates = [i for i, clip in enumerate(store.clips) if clip.split == split and long[i]]
    if not candidates:
        longest = max((clip.length for clip in store.clips if clip.split == split), default=0) / store.sample_rate_hz
        raise UserError(f"no {split} clip is as long as a crop of {crop_sec:g} s (the longest: {longest:g} s): give longer clips, or train on shorter crops")
    length = spec.semantic_tokens(crop_sec)
    totals = np.array([-(-clip.length // spec.semantic_samples) for clip in store.clips])
    weights = totals[candidates].astype(np.float64)

    def source(step: int, rows: Rows = np.arange) -> dict[str, np.ndarray]:
        rng, here = step_rng(seed, step), rows(batch_size)
        clips = [candidates[i] for i in draw(rng, weights, batch_size=batch_size)]
        starts = [draw_start(rng, int(totals[clip]), length) / spec.semantic_rate_hz for clip in clips]
        if end_share:
            ends = [(int(totals[clip]) - length) / spec.semantic_rate_hz for clip in clips]
            starts = [end if chance < end_share else start for start, end, chance in zip(starts, ends, rng.random(batch_size), strict=True)]
        return {name: each.crops(clips, starts, crop_sec, rows=here, rng=rng, text_share=text_share) for name, each in tokens.items()}

    return source
