"""The notes of a clip, as the composer writes and the band plays them."""

import dataclasses

from musiclm_jax.corpus.sampled.attributes import Attributes


@dataclasses.dataclass(frozen=True)
class Note:
    # A name in attributes.PARTS.
    part: str
    # MIDI pitch; for drums the key of General MIDI's percussion map.
    pitch: int
    # From the start of the clip, at least 0.
    start_sec: float
    length_sec: float
    # 1 to 127.
    velocity: int


@dataclasses.dataclass(frozen=True)
class Score:
    attributes: Attributes
    # By start. They may sound beyond the end of the clip, which cuts them.
    notes: tuple[Note, ...]
    # Length of the clip: 30, or less if the piece ends.
    length_sec: float
