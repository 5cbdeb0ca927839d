"""Renderings of melodies: training pairs for the melody embedder, and the melody of a crop as another rendering has it. NumPy only."""

from __future__ import annotations

import numpy as np

from musiclm_jax.data.clips import Clip, ClipStore, crop_samples, draw, draw_start, step_rng
from musiclm_jax.data.prefetch import Rows, Source
from musiclm_jax.errors import UserError


def renderings(store: ClipStore, split: str) -> list[list[Clip]]:
    """The clips of each melody of a split with at least two renderings, in the order of the melodies' names and the clips' names."""
    groups: dict[str, list[Clip]] = {}
    for clip in store.split(split):
        if clip.melody is not None:
            groups.setdefault(clip.melody, []).append(clip)
    return [sorted(groups[name], key=lambda clip: clip.file_name) for name in sorted(groups) if len(groups[name]) > 1]


def other_renderings(store: ClipStore) -> list[tuple[int, ...]]:
    """Of each clip, the numbers of the other clips with the same melody, in the order of the clips. None of them: ()."""
    groups: dict[str, list[int]] = {}
    for number, clip in enumerate(store.clips):
        if clip.melody is not None:
            groups.setdefault(clip.melody, []).append(number)
    return [tuple(other for other in groups.get(clip.melody, ()) if other != number) for number, clip in enumerate(store.clips)]


def pair_source(store: ClipStore, *, split: str, crop_sec: float, batch_size: int, seed: int) -> Source:
    """A source of training batches of random crops: step -> {"wave", "other_wave": float32 [B, N], "melody": int32 [B], the number of the melody}.

    Two different renderings of each melody are drawn, and the same crop of both, so renderings must be aligned in time. The longer rendering is cut to
    the length of the other. Pairs shorter than a crop are zero-padded on the right.

    Raises:
        UserError: no melody of the split has two renderings.
    """
    melodies = renderings(store, split)
    if not melodies:
        raise UserError(
            f'no melody of split {split!r} has two renderings: give clips of one melody the same "melody" in metadata.jsonl, '
            "or make a corpus with `musiclm corpus DIR --variants 2`"
        )
    crop = crop_samples(crop_sec, store.sample_rate_hz)
    lengths = np.array([min(clip.length for clip in clips) for clips in melodies], np.float64)

    def source(step: int, rows: Rows = np.arange) -> dict[str, np.ndarray]:
        rng, here = step_rng(seed, step), rows(batch_size)
        chosen = draw(rng, lengths, batch_size=batch_size)
        pairs = [_draw_pair(rng, melodies[i], crop) for i in chosen]
        wave, other = (np.stack(waves) for waves in zip(*(_waves(store, *pairs[row], crop) for row in here), strict=True))
        return {"wave": wave, "other_wave": other, "melody": chosen[here].astype(np.int32)}

    return source


def _draw_pair(rng: np.random.Generator, clips: list[Clip], crop: int) -> tuple[list[Clip], int]:
    """Two renderings of a melody, and the start of the crop."""
    pair = [clips[i] for i in rng.choice(len(clips), 2, replace=False)]
    return pair, draw_start(rng, min(clip.length for clip in pair), crop)


def _waves(store: ClipStore, pair: list[Clip], start: int, crop: int) -> list[np.ndarray]:
    length = min(crop, min(clip.length for clip in pair) - start)
    return [np.pad(store.wave(clip, start, length), (0, crop - length)) for clip in pair]
