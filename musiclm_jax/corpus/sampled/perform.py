"""From written notes to played ones: swing, a ritardando, accents, small deviations, strummed chords and the lead's articulation."""

import numpy as np

from musiclm_jax.corpus.sampled.attributes import Attributes
from musiclm_jax.corpus.sampled.bars import TICKS
from musiclm_jax.corpus.sampled.form import Piece
from musiclm_jax.corpus.sampled.instruments import INSTRUMENTS
from musiclm_jax.corpus.sampled.score import Note
from musiclm_jax.corpus.sampled.styles import STYLES
from musiclm_jax.corpus.sampled.written import Written

_VELOCITY = {"soft": 56, "medium": 78, "loud": 100}
_PART_VELOCITY = {"lead": 10, "counter": -6, "chords": -10, "pad": -16, "bass": 0, "drums": 6}
# Drums are less soft in soft music than the others, and less loud in loud music.
_DRUM_DYNAMICS = 0.6
_PASSAGE_VELOCITY = {"intro": -6, "verse": 0, "chorus": 6, "break": -6, "ending": 0}
_VELOCITY_SPREAD = 4.0
# Standard deviation of starts, in seconds, by part; none is further away than 2.5 of them.
_SPREAD_SEC = {"lead": 0.009, "counter": 0.011, "chords": 0.007, "pad": 0.012, "bass": 0.007, "drums": 0.004}
# Seconds between the notes of a chord, by family.
_STRUM_SEC = {"guitar": 0.016, "plucked": 0.02, "piano": 0.004, "electric piano": 0.004}
# Staccato notes sound for a share of their length, but are not followed by longer silence than this.
_STACCATO, _STACCATO_REST_SEC, _LEGATO = 0.5, 0.2, 0.97
_SHORTEST_SEC = 0.07


def play_notes(written: list[Written], piece: Piece, attributes: Attributes, rng: np.random.Generator) -> tuple[Note, ...]:
    """The notes as they are played, by start. Those that would start after the end are left out."""
    written = sorted(written, key=lambda note: (note.tick, note.part, note.rank, note.pitch))
    deviations = np.clip(rng.normal(size=(2, len(written))), -2.5, 2.5)
    length_sec = piece.length_sec(attributes.tempo_bpm)
    notes = []
    for note, late, loud in zip(written, *deviations, strict=True):
        start, stop = (piece.seconds(_swing(tick, attributes), attributes.tempo_bpm) for tick in (note.tick, note.tick + note.length))
        strum = 0.0 if note.part != "chords" else note.rank * _STRUM_SEC.get(INSTRUMENTS[attributes.chords].family, 0.002)
        begin = max(0.0, start + late * _SPREAD_SEC[note.part] + strum)
        length = stop - start if note.part != "lead" else _sounding_sec(note, stop - start, piece, attributes)
        velocity = _velocity(note, piece, attributes) + loud * _VELOCITY_SPREAD
        if begin < length_sec:
            notes.append(Note(note.part, note.pitch, round(begin, 4), round(max(_SHORTEST_SEC, length), 4), int(np.clip(round(velocity), 8, 127))))
    return tuple(sorted(notes, key=lambda note: note.start_sec))


def _swing(tick: int, attributes: Attributes) -> int | float:
    """The tick with swing: the first of two eighths, or sixteenths, has up to two thirds of both."""
    if attributes.feel != "swing":
        return tick
    pair = TICKS // 2 if STYLES[attributes.style].swings_sixteenths else TICKS
    # Fast music swings less.
    share = 0.58 if pair < TICKS else float(np.clip(0.67 - 0.001 * (attributes.tempo_bpm - 120), 0.58, 0.67))
    whole, part = divmod(tick, pair)
    half = pair / 2
    return whole * pair + (part * share / 0.5 if part < half else pair * share + (part - half) * (1 - share) / 0.5)


def _sounding_sec(note: Written, length_sec: float, piece: Piece, attributes: Attributes) -> float:
    """How long a note of the lead sounds. Long notes, and the last, are held in staccato, too."""
    held = note.length > 2 * TICKS or (piece.ends and note.tick >= (piece.bars - 1) * piece.meter.bar)
    if attributes.articulation == "staccato" and not held:
        return max(_STACCATO * length_sec, length_sec - _STACCATO_REST_SEC)
    return _LEGATO * length_sec


def _velocity(note: Written, piece: Piece, attributes: Attributes) -> float:
    bar, within = divmod(note.tick, piece.meter.bar)
    place = 6 if within == 0 else 2 if within % TICKS == 0 else -3
    arch = 4 * np.sin(np.pi * (bar % 4 + within / piece.meter.bar) / 4) - 2
    passage = _PASSAGE_VELOCITY[piece.passage(max(0, min(bar, piece.bars - 1))).name]
    medium, level = _VELOCITY["medium"], _VELOCITY[attributes.dynamics]
    level = medium + _DRUM_DYNAMICS * (level - medium) if note.part == "drums" else level
    return level + _PART_VELOCITY[note.part] + place + arch + passage + note.accent
