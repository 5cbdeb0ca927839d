"""Pairs for the melody embedder: the same seconds of a melody in two renderings. NumPy only."""

from __future__ import annotations

import numpy as np

from musiclm_jax.data.clips import Clip, ClipStore, crop_samples, draw, draw_start, step_rng
from musiclm_jax.data.prefetch import Source
from musiclm_jax.errors import UserError


def renderings(store: ClipStore, split: str) -> list[list[Clip]]:
    """The clips of each melody of a split that has two or more, by the melody's name and their own."""
    groups: dict[str, list[Clip]] = {}
    for clip in store.split(split):
        if clip.melody is not None:
            groups.setdefault(clip.melody, []).append(clip)
    return [sorted(groups[name], key=lambda clip: clip.file_name) for name in sorted(groups) if len(groups[name]) > 1]


def pair_source(store: ClipStore, *, split: str, crop_sec: float, batch_size: int, seed: int) -> Source:
    """step -> {"wave", "other_wave": float32 [B, N], "melody": int32 [B], the number of the melody}, random crops of `crop_sec`.

    Two different renderings of each melody are drawn, and the same crop of both: second for second they must be the same music. Of two the longer
    one is cut, and zeros are added on the right where both are shorter than a crop.
    """
    melodies = renderings(store, split)
    if not melodies:
        raise UserError(
            f"no melody of split {split!r} has two renderings: give clips of one tune the same \"melody\" in metadata.jsonl, "
            "or let `musiclm corpus DIR --variants 2` make some"
        )
    crop = crop_samples(crop_sec, store.sample_rate_hz)
    lengths = np.array([min(clip.length for clip in clips) for clips in melodies], np.float64)

    def source(step: int) -> dict[str, np.ndarray]:
        rng = step_rng(seed, step)
        chosen = draw(rng, lengths, batch_size=batch_size)
        pairs = [_pair(rng, melodies[i]) for i in chosen]
        wave, other = (np.stack(waves) for waves in zip(*pairs, strict=True))
        return {"wave": wave, "other_wave": other, "melody": chosen.astype(np.int32)}

    def _pair(rng: np.random.Generator, clips: list[Clip]) -> list[np.ndarray]:
        pair = [clips[i] for i in rng.choice(len(clips), 2, replace=False)]
        length = min(clip.length for clip in pair)
        start = draw_start(rng, length, crop)
        waves = [store.wave(clip, start, min(crop, length - start)) for clip in pair]
        return [np.pad(wave, (0, crop - len(wave))) for wave in waves]

    return source
