"""The tokens of a clip store, made once by the frozen models, and the batches that the stages train on. NumPy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from musiclm_jax.arrays import Bool, Int
from musiclm_jax.data.clips import ALIGN_SAMPLES, ClipStore, draw, draw_start, load_array, step_rng
from musiclm_jax.data.prefetch import Source
from musiclm_jax.errors import UserError
from musiclm_jax.specs import AudioSpec

# ---------------------------------------------------------------------------------------------------------------------- Windows of waves


@dataclasses.dataclass(frozen=True)
class Piece:
    """A window of a clip. Of its tokens, those from `skip` on are new; they begin at token `at` of the clip, and there are `keep` of them."""

    clip: int
    start: int
    skip: int
    at: int
    keep: int


def pieces(lengths: Sequence[int], *, token_samples: int, window: int, context: int) -> list[Piece]:
    """Windows of `window` tokens that cover clips of `lengths` samples, token by token, each once.

    A window begins `context` tokens before the first that is new. The last of a clip ends where the clip ends, so that only clips shorter than a
    window meet zero padding.
    """
    if not 0 <= context < window:
        raise ValueError(f"context={context} of window={window} tokens leaves nothing new: expected 0 <= context < window")
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
    """float32 [batch_size, samples] at (clip number, first sample), in order; the last batch is filled up with zeros: one shape, one program."""
    for first in range(0, len(where), batch_size):
        batch = np.zeros((batch_size, samples), np.float32)
        for row, (clip, start) in enumerate(where[first : first + batch_size]):
            batch[row] = store.wave(store.clips[clip], start, samples)
        yield batch


# ---------------------------------------------------------------------------------------------------------------------- Tokens of clips


@runtime_checkable
class ClipTokens(Protocol):
    """The tokens of one stream for all clips of a store, whatever they are made from."""

    def crops(
        self, clips: Sequence[int], starts_sec: Sequence[float], crop_sec: float | int, *, rng: np.random.Generator, text_share: float
    ) -> Int[np.ndarray, "B ..."]:
        """int32 tokens of crops, by number of the clip and start. rng, text_share: for a stream that may take a caption's tokens in the audio's place."""
        ...


@dataclasses.dataclass(frozen=True)
class TokenArray:
    """Tokens along time, end to end in the order of the clips: int16 [sum T] or [sum T, Q], memory-mapped. at: where each clip begins, the total last."""

    codes: np.ndarray
    at: np.ndarray
    rate_hz: int

    @classmethod
    def open(cls, path: Path, store: ClipStore, *, rate_hz: int, spec: AudioSpec) -> TokenArray:
        """Raises UserError where the file has not as many tokens as the clips ask for."""
        per_semantic = rate_hz // spec.semantic_rate_hz
        at = offsets(per_semantic * -(-clip.length // spec.semantic_samples) for clip in store.clips)
        codes = load_array(path)
        if len(codes) != at[-1]:
            raise UserError(f"{path} has {len(codes)} tokens, the clips have {at[-1]}: it is of other clips; run the step that makes it again")
        return cls(codes, at, rate_hz)

    def crops(
        self, clips: Sequence[int], starts_sec: Sequence[float], crop_sec: float | int, *, rng: np.random.Generator, text_share: float
    ) -> Int[np.ndarray, "B ..."]:
        del rng, text_share
        length, first = round(crop_sec * self.rate_hz), [self.at[clip] + round(start * self.rate_hz) for clip, start in zip(clips, starts_sec, strict=True)]
        return np.stack([self.codes[i : i + length] for i in first]).astype(np.int32)

    def chunks(self, store: ClipStore, split: str, *, levels: slice = slice(None), rows: int = 2**18) -> Iterator[Int[np.ndarray, "n Q"]]:
        """The tokens of a split's clips, end to end, [n, Q] of up to `rows` rows each, so that little is in memory."""
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
    """Where each of several runs of `counts` rows begins when they lie end to end, and the total last."""
    return np.concatenate([[0], np.cumsum(list(counts))]).astype(np.int64)


def long_enough(store: ClipStore, crop_sec: float | int) -> Bool[np.ndarray, "n"]:
    """Whether each clip is as long as a crop, up to its last semantic token. Those that are not give no example."""
    return np.array([clip.length + ALIGN_SAMPLES > crop_sec * store.sample_rate_hz for clip in store.clips])


def covering_windows(start_sec: float | int, end_sec: float | int, *, num_windows: int, window_sec: float, hop_sec: float) -> slice:
    """The windows that share the most time with [start_sec, end_sec]: all that lie inside a long crop, all that contain a short one.

    They are neighbours, since the shared time rises, stays and falls from window to window.
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
) -> Source:
    """step -> {stream: int32 tokens} of random crops, which begin on a semantic token.

    Raises:
        UserError: no clip of the split is as long as a crop.
    """
    long = long_enough(store, crop_sec)
    candidates = [i for i, clip in enumerate(store.clips) if clip.split == split and long[i]]
    if not candidates:
        longest = max((clip.length for clip in store.clips if clip.split == split), default=0) / store.sample_rate_hz
        raise UserError(f"no {split} clip is as long as a crop of {crop_sec:g} s (the longest: {longest:g} s): give longer clips, or train on shorter crops")
    length = spec.semantic_tokens(crop_sec)
    totals = np.array([-(-clip.length // spec.semantic_samples) for clip in store.clips])
    weights = totals[candidates].astype(np.float64)

    def source(step: int) -> dict[str, np.ndarray]:
        rng = step_rng(seed, step)
        clips = [candidates[i] for i in draw(rng, weights, batch_size=batch_size)]
        starts = [draw_start(rng, int(totals[clip]), length) / spec.semantic_rate_hz for clip in clips]
        return {name: each.crops(clips, starts, crop_sec, rng=rng, text_share=text_share) for name, each in tokens.items()}

    return source
