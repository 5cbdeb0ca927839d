"""The tokens of a clip store, made once by the frozen models, and the batches that the stages train on. NumPy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from musiclm_jax.data.clips import Clip, ClipStore, draw, draw_start, step_rng
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


# ---------------------------------------------------------------------------------------------------------------------- The store


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """Tokens of all clips, end to end in the order of `clips`; `*_at` is where each clip begins, with the total last.

    semantic: int16 [sum T]. acoustic: int16 [sum 2T, Q]. windows: float16 [sum W, D], MuLan embeddings of 10 s each second.
    texts: int16 [sum captions, Q], MuLan tokens of the captions. None: not opened, as a stage that does not learn from it needs no such file.
    """

    clips: tuple[Clip, ...]
    audio: AudioSpec
    semantic: np.ndarray | None
    acoustic: np.ndarray | None
    windows: np.ndarray
    texts: np.ndarray
    semantic_at: np.ndarray
    windows_at: np.ndarray
    texts_at: np.ndarray

    @classmethod
    def open(cls, store: ClipStore, *, audio: AudioSpec, files: Mapping[str, Path], num_windows: Callable[[int], int]) -> TokenStore:
        """files: those of "windows", "texts" and, where needed, "semantic" and "acoustic". num_windows: of a clip of n samples."""
        offsets = lambda counts: np.concatenate([[0], np.cumsum(list(counts))]).astype(np.int64)  # noqa: E731
        semantic_at = offsets(-(-clip.length // audio.semantic_samples) for clip in store.clips)
        windows_at = offsets(num_windows(clip.length) for clip in store.clips)
        texts_at = offsets(len(clip.captions) for clip in store.clips)
        expected = {"semantic": semantic_at[-1], "acoustic": semantic_at[-1] * audio.frames_per_semantic, "windows": windows_at[-1], "texts": texts_at[-1]}
        arrays = {kind: np.load(path, mmap_mode="r") for kind, path in files.items()}
        for kind, array in arrays.items():
            if len(array) != expected[kind]:
                raise UserError(f"{files[kind]} has {len(array)} rows, the clips have {expected[kind]}: it is of other clips; delete its folder and run again")
        return cls(
            clips=store.clips, audio=audio, semantic=arrays.get("semantic"), acoustic=arrays.get("acoustic"), windows=arrays["windows"], texts=arrays["texts"],
            semantic_at=semantic_at, windows_at=windows_at, texts_at=texts_at,
        )  # fmt: skip

    def holds(self, crop_sec: float | int) -> np.ndarray:
        """Whether each clip is as long as a crop, bool [clips]. Shorter clips give no example."""
        return np.diff(self.semantic_at) >= self.audio.semantic_tokens(crop_sec)

    def chunks(self, stream: str, split: str, *, first_level: int = 0, num_levels: int | None = None, rows: int = 2**18) -> Iterator[np.ndarray]:
        """The "semantic" or "acoustic" codes of a split's clips, end to end, int16 [n, levels] of up to `rows` rows each, so that little is in memory.

        num_levels: of "acoustic", from `first_level` on; None: all of them. "semantic" has one.
        """
        array, ratio = (self.semantic[:, None], 1) if stream == "semantic" else (self.acoustic, self.audio.frames_per_semantic)
        levels = slice(first_level, None if num_levels is None else first_level + num_levels)
        at, some = self.semantic_at * ratio, []
        for i in (i for i, clip in enumerate(self.clips) if clip.split == split):
            for first in range(at[i], at[i + 1], rows):
                piece = array[first : min(first + rows, at[i + 1]), levels]
                if sum(map(len, some)) + len(piece) > rows:
                    yield np.concatenate(some)
                    some = []
                some.append(piece)
        if some:
            yield np.concatenate(some)


def covering_windows(start_sec: float | int, end_sec: float | int, *, num_windows: int, window_sec: float, hop_sec: float) -> slice:
    """The windows that share the most time with [start_sec, end_sec]: all that lie inside a long crop, all that contain a short one.

    They are neighbours, since the shared time rises, stays and falls from window to window.
    """
    begin = np.arange(num_windows) * hop_sec
    shared = np.minimum(begin + window_sec, end_sec) - np.maximum(begin, start_sec)
    best = np.flatnonzero(shared > shared.max() - 1e-6)
    return slice(int(best[0]), int(best[-1]) + 1)


def token_source(
    store: TokenStore,
    *,
    streams: Sequence[str],
    split: str,
    crop_sec: float,
    batch_size: int,
    seed: int,
    window_sec: float,
    hop_sec: float,
    mulan_tokens: Callable[[np.ndarray], np.ndarray],
    text_share: float = 0.0,
) -> Source:
    """step -> the `streams` of random crops: "semantic" int32 [B, T], "acoustic" int32 [B, 2T, Q], "mulan" int32 [B, Q].

    The MuLan tokens of a crop are those of its audio, `mulan_tokens` (embeddings [B, D], the mean over the crop's windows -> [B, Q]), as in
    MusicLM (arXiv 2301.11325, section 3.2), or, for a share `text_share` of the examples, those of a random caption of the clip.

    Raises:
        UserError: no clip of the split is as long as a crop.
    """
    length = store.audio.semantic_tokens(crop_sec)
    totals = np.diff(store.semantic_at)
    holds = store.holds(crop_sec)
    candidates = [i for i, clip in enumerate(store.clips) if clip.split == split and holds[i]]
    if not candidates:
        longest = max((clip.length for clip in store.clips if clip.split == split), default=0) / store.audio.sample_rate_hz
        raise UserError(f"no {split} clip is as long as crop_sec={crop_sec:g} (the longest: {longest:g} s): lower crop_sec or add longer clips")
    weights = totals[candidates].astype(np.float64)
    token_sec, ratio = 1 / store.audio.semantic_rate_hz, store.audio.frames_per_semantic

    def embedding(clip: int, start: int) -> np.ndarray:
        first, last = store.windows_at[clip : clip + 2]
        where = covering_windows(start * token_sec, (start + length) * token_sec, num_windows=int(last - first), window_sec=window_sec, hop_sec=hop_sec)
        return store.windows[first:last][where].astype(np.float32).mean(axis=0)

    def source(step: int) -> dict[str, np.ndarray]:
        rng = step_rng(seed, step)
        clips = [candidates[i] for i in draw(rng, weights, batch_size=batch_size)]
        starts = [draw_start(rng, int(totals[clip]), length) for clip in clips]
        from_text = rng.random(batch_size) < text_share
        captions = [rng.integers(store.texts_at[clip], store.texts_at[clip + 1]) for clip in clips]
        at = [store.semantic_at[clip] + start for clip, start in zip(clips, starts, strict=True)]
        batch = {}
        if "mulan" in streams:
            audio = mulan_tokens(np.stack([embedding(clip, start) for clip, start in zip(clips, starts, strict=True)]))
            batch["mulan"] = np.where(from_text[:, None], store.texts[captions], audio).astype(np.int32)
        if "semantic" in streams:
            batch["semantic"] = np.stack([store.semantic[i : i + length] for i in at]).astype(np.int32)
        if "acoustic" in streams:
            batch["acoustic"] = np.stack([store.acoustic[i * ratio : (i + length) * ratio] for i in at]).astype(np.int32)
        return batch

    return source
