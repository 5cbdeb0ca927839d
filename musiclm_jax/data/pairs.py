"""Pairs for the melody embedder: the same seconds of a melody in two renderings. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from musiclm_jax.data.clips import draw, draw_start, step_rng
from musiclm_jax.data.prefetch import Source
from musiclm_jax.errors import UserError


def pair_source(
    render: Callable[[int, int], np.ndarray], clips: Sequence[int], *, num_variants: int, window_samples: int, batch_size: int, seed: int
) -> Source:
    """step -> {"wave", "other_wave": float32 [B, N], "melody": int32 [B], the clip's number}, N = window_samples.

    Args:
      render: (clip, variant) -> the wave of that rendering of the clip's melody. Second for second the renderings must be the same music; of two
        the longer one is cut, and zeros are added where both are shorter than N. For our corpus:
        `lambda clip, variant: corpus.render_variant(seed=0, index=clip, variant=variant).wave`.
        It is called for every window, so let it remember (`functools.lru_cache`) what took time to make.
      clips: Numbers of the clips to draw from.
      num_variants: Variants 0 to num_variants - 1 are drawn, two different ones for each pair.
    """
    if num_variants < 2 or not clips:
        raise UserError(f"{len(clips)} clips in {num_variants} variants make no pairs: give at least one clip, and two variants")

    def source(step: int) -> dict[str, np.ndarray]:
        rng = step_rng(seed, step)
        chosen = [clips[i] for i in draw(rng, np.ones(len(clips)), batch_size=batch_size)]
        pairs = [_pair(rng, [render(clip, int(variant)) for variant in rng.choice(num_variants, 2, replace=False)]) for clip in chosen]
        wave, other = (np.stack(waves) for waves in zip(*pairs, strict=True))
        return {"wave": wave, "other_wave": other, "melody": np.array(chosen, np.int32)}

    def _pair(rng: np.random.Generator, waves: list[np.ndarray]) -> list[np.ndarray]:
        length = min(map(len, waves))
        start = draw_start(rng, length, window_samples)
        pieces = [wave[start : min(start + window_samples, length)].astype(np.float32) for wave in waves]
        return [np.pad(piece, (0, window_samples - len(piece))) for piece in pieces]

    return source
