"""A stage at work on music of any length: it draws window after window, and keeps only what is still read.

A window begins where the last one ended, less the overlap, from which it continues. So the windows are those of `StageSpec.windows`, unless its conditions
change on the way (`StageTrack.turn`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from musiclm_jax.arrays import Int
from musiclm_jax.generation.devices import Weights
from musiclm_jax.generation.sampler import Decoder, Keys, Progress, SamplingConfig, sample_codes
from musiclm_jax.generation.stages import StageSpec, window_keys


class StageTrack:
    """The codes of one stage, for several rows. Steps are numbered from the beginning of the music.

    Attributes: spec, layout: of the stage. keys: one per row that is drawn; a multiple of the rows of codes, each of which is then continued in several ways.
        last: the step at which the piece ends by itself. None: it does not.
    """

    last: int | None = None

    def __init__(self, spec: StageSpec, decoder: Decoder, weights: Weights, sampling: SamplingConfig, keys: Keys, *, rows: int):
        self.spec, self.layout, self.keys = spec, decoder.layout, keys
        self._draw = functools.partial(sample_codes, decoder, weights, sampling=sampling)
        self._window, hop = (self.layout.target.steps(seconds) for seconds in (spec.window_sec, spec.hop_sec))
        self._overlap = self._window - hop
        self._codes = np.zeros((rows, 0, self.layout.target.levels), np.int32)
        self._first, self._start = 0, 0

    @property
    def rows(self) -> int:
        return len(self._codes)

    @property
    def end(self) -> int:
        """The number of steps that are drawn."""
        return self._first + self._codes.shape[1]

    def begin_with(self, codes: Int[np.ndarray, "B n Q"]) -> None:
        """Takes the first steps as given."""
        self._codes = np.asarray(codes, np.int32)
        self._start = max(0, self.end - self._overlap)

    def next_window(self) -> tuple[int, int]:
        """(first step, step after the last one) of the window that is drawn next. No window goes beyond the end of the piece, as no training crop does."""
        start = self.end - self._overlap if self.end == self._start + self._window else self._start
        if self.last is not None and self._overlap and self.end < self.last:
            start = max(0, min(start, self.last - self._window))
        return start, start + self._window

    def turn(self) -> None:
        """Begins a new window, since its conditions have changed."""
        self._start = max(0, self.end - self._overlap)

    def draw(
        self,
        conditions: Mapping[str, np.ndarray],
        *,
        until: int,
        excluded: Int[np.ndarray, "B Q"] | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        """Draws the next window, or a part of it, up to the step `until`.

        Args:
            conditions: the streams of its prefix, those with a rate from the first step of the window on, as long as the window.
            excluded: MuLan tokens of what guidance pushes away from, ABSENT where that is nothing.
        """
        self._start, stop = self.next_window()
        known = self._codes[:, self._start - self._first :]
        groups = len(known)
        codes = self._draw(
            self.layout.prefix_ids(conditions, batch=groups),
            num_steps=self._window,
            until=min(stop, until) - self._start,
            keys=window_keys(self.keys, self.spec.name, self._start),
            prompt=known if known.shape[1] else None,
            free_ids=None if excluded is None else self._only("mulan", excluded, conditions),
            on_progress=on_progress,
        )
        ways = len(self.keys) // groups
        self._codes = np.concatenate([np.repeat(self._codes, ways, axis=0), codes[:, known.shape[1] :]], axis=1)

    def _only(self, stream: str, codes: np.ndarray, conditions: Mapping[str, np.ndarray]) -> Int[np.ndarray, "B P"]:
        """The ids of a prefix in which one stream has these codes, and the others are masked."""
        ids = self.layout.prefix_ids({**conditions, stream: codes}, batch=len(codes))
        return self.layout.keep(ids, stream, num_steps=self._window)

    def draw_together(self, conditions: Mapping[str, np.ndarray], *, count: int, size: int) -> None:
        """Draws the next `count` windows at once, which do not overlap, in a batch of `size` for each row: of fewer windows the last is repeated.

        Args:
            conditions: the streams of its prefix, those with a rate from the first step of the first window on.
        """
        starts = [self.end + self._window * number for number in range(count)]
        rows = len(self.keys)
        cut = lambda number: {name: self._part(name, codes, number) for name, codes in conditions.items()}  # noqa: E731
        prefix = np.stack([self.layout.prefix_ids(cut(number), batch=rows) for number in range(count)], axis=1)
        keys = np.stack([window_keys(self.keys, self.spec.name, start) for start in starts], axis=1)
        at = np.minimum(np.arange(size), count - 1)
        codes = self._draw(prefix[:, at].reshape(rows * size, -1), num_steps=self._window, keys=keys[:, at].reshape(rows * size, -1))
        new = codes.reshape(rows, size * self._window, -1)[:, : count * self._window]
        self._codes = np.concatenate([self._codes, new], axis=1)
        self._start = starts[-1]

    def _part(self, name: str, codes: np.ndarray, number: int) -> np.ndarray:
        """The conditions of the window `number` of several."""
        segment = next(segment for segment in self.layout.prefix if segment.stream == name)
        if not segment.rate_hz:
            return codes
        steps = self.layout.prefix_steps(segment, self._window)
        return codes[:, steps * number : steps * (number + 1)]

    def codes(self, first: int, stop: int) -> Int[np.ndarray, "B T Q"]:
        """Codes of steps [first, stop), which must be kept still."""
        if first < self._first or stop > self.end:
            raise ValueError(f"steps {first} to {stop} of the {self.spec.name} stage: it has {self._first} to {self.end}")
        return self._codes[:, first - self._first : stop - self._first]

    def take(self, rows: Int[np.ndarray, "k"], keys: Keys) -> None:
        """Keeps some rows, each continued by its share of `keys`."""
        self._codes, self.keys = self._codes[rows], keys

    def forget(self, before: int) -> None:
        """Drops the codes of steps before `before`, but for those that the next window continues."""
        before = min(before, self.next_window()[0])
        if before > self._first:
            self._codes, self._first = self._codes[:, before - self._first :], before
