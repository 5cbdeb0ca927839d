"""The timing tokens of training crops: where each lies in its piece. No model writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from musiclm_jax.arrays import Int
from musiclm_jax.data.clips import ClipStore
from musiclm_jax.data.folder import part_of_name
from musiclm_jax.generation.timing import TimingConfig


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a clip lies in its piece, in seconds. total_sec: of the piece. None: not known."""

    start_sec: float
    total_sec: float | None


def places(store: ClipStore) -> tuple[Place, ...]:
    """Where each clip lies in its piece, which is its file. The seconds of a file of which parts are listed are known if one of them goes to its end."""
    parts = [part_of_name(clip.file_name) for clip in store.clips]
    starts = [start_sec or 0.0 for _, start_sec, _ in parts]
    totals = {
        name: start_sec + clip.length / store.sample_rate_hz
        for (name, _, end_sec), start_sec, clip in zip(parts, starts, store.clips, strict=True)
        if end_sec is None
    }
    return tuple(Place(start_sec, totals.get(name)) for (name, _, _), start_sec in zip(parts, starts, strict=True))


@dataclasses.dataclass(frozen=True)
class TimingTokens:
    """The timing tokens of crops (`data.token_store.ClipTokens`)."""

    config: TimingConfig
    # Of each clip.
    places: tuple[Place, ...]

    def crops(
        self, clips: Sequence[int], starts_sec: Sequence[float], crop_sec: float | int, *, rows: np.ndarray, rng: np.random.Generator, text_share: float
    ) -> Int[np.ndarray, "b 2"]:
        del crop_sec, rng, text_share
        of = [(self.places[clips[row]], starts_sec[row]) for row in rows]
        return np.stack([self.config.tokens(place.start_sec + start_sec, place.total_sec) for place, start_sec in of])
