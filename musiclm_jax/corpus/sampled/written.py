"""A note as it is written: on the grid, before a player makes it sooner or later, softer or louder."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Written:
    # A name in attributes.PARTS.
    part: str
    # MIDI pitch, or General MIDI key of a drum.
    pitch: int
    # From the first bar.
    tick: int
    length: int
    # In steps of MIDI velocity, above what its place in the bar gives.
    accent: int = 0
    # Place among the notes of a chord that are struck one after another, from 0.
    rank: int = 0
