"""Beats, bars and what is written on them, before it is played: tones, chords and sections."""

import dataclasses

# Ticks of a beat: a quarter, in 6/8 a dotted quarter.
TICKS = 12


@dataclasses.dataclass(frozen=True)
class Meter:
    # Of a bar.
    beats: int
    # Ticks of a sixteenth, the grid of patterns.
    step: int
    # Ticks for which a chord lasts at least.
    slot: int

    @property
    def bar(self) -> int:
        """Ticks of a bar."""
        return self.beats * TICKS


METERS = {"4/4": Meter(beats=4, step=3, slot=24), "3/4": Meter(beats=3, step=3, slot=36), "6/8": Meter(beats=2, step=2, slot=12)}


@dataclasses.dataclass(frozen=True)
class Tone:
    """A note of a melody."""

    # From the first bar; below 0 in a pickup.
    tick: int
    length: int
    # Semitones above the tonic.
    pitch: int

    @property
    def end(self) -> int:
        return self.tick + self.length


@dataclasses.dataclass(frozen=True)
class Chord:
    # Semitones above the tonic, 0 to 11.
    root: int
    # Semitones above the root, beginning with 0.
    tones: tuple[int, ...]

    @property
    def classes(self) -> frozenset[int]:
        """The pitch classes, as semitones above the tonic."""
        return frozenset((self.root + tone) % 12 for tone in self.tones)


@dataclasses.dataclass(frozen=True)
class Section:
    """A verse, chorus or the like."""

    bars: int
    melody: tuple[Tone, ...]
    # One for each slot of the meter.
    chords: tuple[Chord, ...] = ()
