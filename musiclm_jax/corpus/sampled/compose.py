"""Composes a clip: its attributes and notes, and the variants of it with the same melody."""

import dataclasses

import numpy as np

from musiclm_jax.corpus.clip import clip_rng, clip_split
from musiclm_jax.corpus.sampled import melody
from musiclm_jax.corpus.sampled.attributes import Attributes
from musiclm_jax.corpus.sampled.band import write_band
from musiclm_jax.corpus.sampled.draw import draw_attributes, draw_band
from musiclm_jax.corpus.sampled.form import Piece, make_piece
from musiclm_jax.corpus.sampled.instruments import INSTRUMENTS, LEADS
from musiclm_jax.corpus.sampled.perform import play_notes
from musiclm_jax.corpus.sampled.score import Score
from musiclm_jax.corpus.sampled.written import Written
from musiclm_jax.corpus.terms import DYNAMICS

# Share of the variants that are the lead alone, so that an embedder cannot rely on the band.
_ALONE_RATE = 0.25


def compose_clip(seed: int, index: int, *, variant: int = 0, ending: bool = False) -> Score:
    """Composes clip `index` of the corpus `seed`, both at least 0. The result depends on the arguments alone.

    Variants of 1 and more have the melody (pitches but for octaves, steps and lengths), key and tempo of the clip, with another lead and another band, or
    alone. With `ending` the piece ends by a cadence within 12 to 30 s; otherwise the clip is 30 s of a piece, and is cut.
    """
    attributes = draw_attributes(clip_rng(seed, index, "attributes"))
    piece = make_piece(attributes, split=clip_split(index), ending=ending, rng=clip_rng(seed, index, "music"))
    rng = clip_rng(seed, index, "variant", variant=variant)
    if variant:
        attributes = _rearrange(attributes, index, variant, rng)
    written = _lead(piece, attributes) + write_band(piece, attributes, rng)
    notes = play_notes(written, piece, attributes, rng)
    seconds = piece.seconds(piece.bars * piece.meter.bar, attributes.tempo_bpm)
    playing = {note.part for note in notes}
    silent = {part: "" for part in ("bass", "chords", "pad", "counter") if part not in playing}
    attributes = dataclasses.replace(attributes, density=melody.density(piece.melody, seconds), form=_form(piece), tune=piece.tune, **silent)
    return Score(attributes=attributes, notes=notes, length_sec=piece.length_sec(attributes.tempo_bpm))


def _rearrange(attributes: Attributes, index: int, variant: int, rng: np.random.Generator) -> Attributes:
    """The attributes of a variant: another lead for each in turn, and another band or none."""
    others = [name for name in LEADS if name != attributes.instrument]
    lead = others[(7 * index + 11 * variant) % len(others)]
    attributes = dataclasses.replace(attributes, instrument=lead, family=INSTRUMENTS[lead].family, dynamics=str(rng.choice(DYNAMICS)))
    if rng.random() < _ALONE_RATE:
        return dataclasses.replace(attributes, drums=False, kit="", bass="", chords="", pad="", counter="")
    return draw_band(attributes, rng, solo_rate=0.0)


def _form(piece: Piece) -> tuple[str, ...]:
    """The names of the passages, equal ones in a row once."""
    names = [passage.name for passage in piece.passages]
    return tuple(name for name, before in zip(names, [None, *names]) if name != before)


def _lead(piece: Piece, attributes: Attributes) -> list[Written]:
    """The melody in the octave that fits the lead's range best. Notes beyond the range are moved by octaves."""
    instrument = INSTRUMENTS[attributes.instrument]
    pitches = np.array([60 + attributes.tonic + tone.pitch for tone in piece.melody])
    center = (instrument.low + instrument.high) / 2

    def misfit(octave: int) -> float:
        moved = pitches + 12 * octave
        return 4 * np.mean((moved < instrument.low) | (moved > instrument.high)) + abs(moved.mean() - center) / 12

    octave = min(range(-5, 4), key=misfit)
    return [
        Written("lead", _into(int(pitch) + 12 * octave, instrument.low, instrument.high), tone.tick, tone.length)
        for pitch, tone in zip(pitches, piece.melody, strict=True)
    ]


def _into(pitch: int, low: int, high: int) -> int:
    while pitch < low:
        pitch += 12
    while pitch > high:
        pitch -= 12
    return pitch
