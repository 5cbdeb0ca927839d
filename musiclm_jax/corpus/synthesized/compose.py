"""A small composer, which turns the attributes of a clip into notes on an eighth-note grid.

A clip alternates two sections, A B A B ..., up to its end. A section is a phrase played twice with the same rhythms and melodic steps, except for the last
bar; the melody is moved to tones of the chords. Sections end on the tonic. Minor is natural minor, with the seventh raised over the dominant chord only.
"""

import dataclasses

import numpy as np

from musiclm_jax.corpus.clip import CLIP_SEC, pick
from musiclm_jax.corpus.synthesized.attributes import STYLES, Attributes
from musiclm_jax.corpus.terms import SCALES

# Silence before the first beat, so that no early note starts before the clip.
LEAD_IN_SEC = 0.02
# Notes start at most this much early or late.
MAX_SHIFT_SEC = 0.008

DOMINANT = 4
LEADING_TONE = 6

# Chord roots as scale degrees (0 = tonic), one per bar. An opening ends on the dominant, a closing on the tonic.
_OPENINGS = {
    "major": ((0, 3, 0, 4), (0, 5, 3, 4), (0, 0, 3, 4), (0, 4, 0, 4)),
    "minor": ((0, 3, 0, 4), (0, 5, 3, 4), (0, 0, 3, 4), (0, 6, 5, 4)),
}
_CLOSINGS = {
    "major": ((0, 3, 4, 0), (0, 4, 0, 0), (0, 1, 4, 0), (0, 4, 3, 0)),
    "minor": ((0, 3, 4, 0), (0, 4, 0, 0), (0, 5, 4, 0), (0, 6, 3, 0)),
}

# Melody rhythms of a bar in eighths, by (beats per bar, tempo band). Slow music has few eighths, fast music many.
_RHYTHMS = {
    (4, "slow"): ((2, 2, 2, 2), (4, 2, 2), (2, 2, 4), (4, 4), (2, 4, 2), (2, 2, 2, 1, 1)),
    (4, "mid"): ((2, 2, 2, 2), (2, 2, 4), (4, 2, 2), (2, 1, 1, 2, 2), (2, 2, 1, 1, 2), (3, 1, 2, 2), (3, 1, 4)),
    (4, "fast"): ((2, 2, 2, 2), (2, 1, 1, 2, 2), (1, 1, 2, 2, 2), (2, 2, 1, 1, 2), (1, 1, 2, 1, 1, 2), (2, 2, 4)),
    (3, "slow"): ((2, 2, 2), (4, 2), (2, 4), (2, 2, 1, 1)),
    (3, "mid"): ((2, 2, 2), (4, 2), (2, 1, 1, 2), (3, 1, 2), (2, 2, 1, 1)),
    (3, "fast"): ((2, 2, 2), (4, 2), (2, 1, 1, 2), (1, 1, 2, 2), (2, 2, 1, 1)),
}
_ENDINGS = {4: ((4, 4), (2, 2, 4), (6, 2), (8,)), 3: ((6,), (2, 4), (4, 2))}

# Middle of the melody's range as MIDI pitch, by lead instrument.
_REGISTERS = {
    "piano": 70,
    "guitar": 64,
    "flute": 74,
    "strings": 70,
    "organ": 68,
    "electric piano": 66,
    "bell": 76,
    "synth lead": 72,
}
# Lowest note of the chords as MIDI pitch, by the instrument that plays them; _CHORD_FLOOR for all others.
_CHORD_FLOOR = 50
_CHORD_FLOORS = {"flute": 59, "bell": 60, "guitar": 47}
_BASS_FLOOR = 36

# Accompaniment figures by beats per bar: (eighth in the bar, length in eighths, indices of the notes of the chord, root first).
_ALL = (0, 1, 2)
FIGURES = {
    "sustained": {4: ((0, 8, _ALL),), 3: ((0, 6, _ALL),)},
    "halves": {4: ((0, 4, _ALL), (4, 4, _ALL)), 3: ((0, 4, _ALL), (4, 2, _ALL))},
    "beats": {4: tuple((s, 2, _ALL) for s in (0, 2, 4, 6)), 3: tuple((s, 2, _ALL) for s in (0, 2, 4))},
    "oompah": {
        4: ((0, 2, (0,)), (2, 2, (1, 2)), (4, 2, (0,)), (6, 2, (1, 2))),
        3: ((0, 2, (0,)), (2, 2, (1, 2)), (4, 2, (1, 2))),
    },
    "offbeats": {4: tuple((s, 1, _ALL) for s in (1, 3, 5, 7)), 3: tuple((s, 1, _ALL) for s in (1, 3, 5))},
    "arpeggio": {
        4: tuple((2 * i, 2, (n,)) for i, n in enumerate((0, 1, 2, 1))),
        3: tuple((2 * i, 2, (n,)) for i, n in enumerate((0, 1, 2))),
    },
}

# Drum grooves by style: drum -> beats per bar -> eighths of the bar on which it is played.
_EVERY_BEAT = {4: (0, 2, 4, 6), 3: (0, 2, 4)}
_EVERY_EIGHTH = {4: tuple(range(8)), 3: tuple(range(6))}
_GROOVES = {
    "ballad": {"kick": {4: (0, 4), 3: (0,)}, "snare": {4: (2, 6), 3: (4,)}, "hat": _EVERY_BEAT},
    "ambient": {"kick": {4: (0, 4)}, "snare": {4: (6,)}, "hat": _EVERY_BEAT},
    "lo-fi": {"kick": {4: (0, 4, 5)}, "snare": {4: (2, 6)}, "hat": _EVERY_BEAT},
    "march": {"kick": {4: (0, 4)}, "snare": {4: (0, 2, 4, 6, 7)}, "hat": {4: (2, 6)}},
    "folk": {"kick": {4: (0, 4), 3: (0,)}, "snare": {4: (2, 6), 3: (2, 4)}, "hat": _EVERY_BEAT},
    "waltz": {"kick": {3: (0,)}, "snare": {3: (2, 4)}, "hat": _EVERY_BEAT},
    "dance": {"kick": _EVERY_BEAT, "snare": {4: (2, 6)}, "hat": {4: (1, 3, 5, 7)}},
    "rock": {"kick": {4: (0, 4)}, "snare": {4: (2, 6)}, "hat": _EVERY_EIGHTH},
}

# Linear gain of each part relative to the lead.
LEVELS = {"lead": 1.0, "chord": 0.2, "pad": 0.16, "bass": 0.5, "kick": 0.9, "snare": 0.55, "hat": 0.2}
_JITTER = 0.08


@dataclasses.dataclass(frozen=True)
class Note:
    # A name in voices.VOICES or voices.DRUMS.
    voice: str
    # A name in LEVELS.
    part: str
    # MIDI pitch; 0 for drums.
    pitch: int
    # Start, from the start of the clip, and length on the grid, in eighths.
    step: int
    length: int
    # Deviation of the start from the grid, early (-) or late (+), at most MAX_SHIFT_SEC.
    shift_sec: float
    # Linear gain.
    gain: float


def onset_sec(note: Note, *, tempo_bpm: int) -> float:
    """The start of the note, in seconds from the start of the clip."""
    return LEAD_IN_SEC + note.step * 30 / tempo_bpm + note.shift_sec


def compose(attributes: Attributes, *, rng: np.random.Generator) -> list[Note]:
    """Composes one clip. The notes are ordered by bar, and within a bar by part."""
    steps_per_bar = 2 * attributes.beats_per_bar
    num_steps, num_bars, section_bars = form(attributes)
    figure = str(rng.choice(STYLES[attributes.style].figures))
    sections = [_section(attributes, section_bars, start_degree, rng) for start_degree in (2, 4)]

    # (voice, part, pitch, step in bar, length) of every note of a bar.
    parts: list[tuple[str, str, int, int, int]]
    notes = []
    for bar in range(num_bars):
        roots, melody = sections[(bar // section_bars) % 2]
        root = roots[bar % section_bars]
        parts = [(attributes.instrument, "lead", *event) for event in melody[bar % section_bars]]
        parts += _chord_bar(attributes, root, figure)
        parts += _bass_bar(attributes, root) if attributes.bass else []
        parts += _drum_bar(attributes) if attributes.drums else []
        for voice, part, pitch, step, length in parts:
            if bar * steps_per_bar + step < num_steps:
                notes.append(_play(voice, part, pitch, bar * steps_per_bar, step, length, rng))
    return notes


def form(attributes: Attributes) -> tuple[int, int, int]:
    """(eighths of a clip, its bars, bars of a section)."""
    num_steps = int((CLIP_SEC - LEAD_IN_SEC - MAX_SHIFT_SEC) * attributes.tempo_bpm / 30)
    num_bars = -(-num_steps // (2 * attributes.beats_per_bar))
    # Both sections must occur within the clip: phrases have two bars in slow music, four in fast music.
    return num_steps, num_bars, 4 if num_bars < 14 else 8


def final_bar(attributes: Attributes, *, bar: int, lead_pitch: int, rng: np.random.Generator) -> list[Note]:
    """The bar with which a piece ends: all parts hold the tonic chord, and drums play once. lead_pitch: a tonic."""
    length = 2 * attributes.beats_per_bar
    root = _bass_bar(attributes, 0)[0]
    parts = [(attributes.instrument, "lead", lead_pitch, 0, length), *_chord_bar(attributes, 0, "sustained")]
    parts += [(*root[:4], length)] if attributes.bass else []
    parts += [("kick", "kick", 0, 0, 1)] if attributes.drums else []
    return [_play(*part[:3], bar * length, *part[3:], rng) for part in parts]


def _play(voice: str, part: str, pitch: int, bar_step: int, step: int, length: int, rng: np.random.Generator) -> Note:
    """Makes a note with an accent by its position in the bar, and random deviations of its start and gain."""
    accent = 1.0 if step == 0 else 0.9 if step % 2 == 0 else 0.8
    return Note(
        voice=voice,
        part=part,
        pitch=pitch,
        step=bar_step + step,
        length=length,
        shift_sec=float(np.clip(rng.normal(0.0, MAX_SHIFT_SEC / 3), -MAX_SHIFT_SEC, MAX_SHIFT_SEC)),
        gain=float(LEVELS[part] * accent * rng.uniform(1 - _JITTER, 1 + _JITTER)),
    )


def _section(attributes: Attributes, num_bars: int, start_degree: int, rng: np.random.Generator) -> tuple[tuple[int, ...], list[list[tuple[int, int, int]]]]:
    """Composes one section: its chord roots [num_bars], and for each bar the melody as a list of (pitch, step in bar, length)."""
    closing = pick(_CLOSINGS[attributes.mode], rng)
    roots = closing if num_bars == 4 else pick(_OPENINGS[attributes.mode], rng) + closing

    rhythms = _RHYTHMS[attributes.beats_per_bar, attributes.tempo]
    phrase = [pick(rhythms, rng) for _ in range(2)]
    if num_bars == 8:
        phrase += [phrase[0], pick(rhythms, rng)]
    phrase = [(rhythm, rng.choice((-2, -1, -1, 0, 1, 1, 2), size=len(rhythm)).tolist()) for rhythm in phrase]
    ending = pick(_ENDINGS[attributes.beats_per_bar], rng)
    bars = phrase + phrase[:-1] + [(ending, [-1] * len(ending))]

    melody, degree = [], start_degree
    for bar, (root, (rhythm, moves)) in enumerate(zip(roots, bars, strict=True)):
        events, step = [], 0
        for length, move in zip(rhythm, moves, strict=True):
            at_home = bar == num_bars - 1 and step + length == 2 * attributes.beats_per_bar
            tones = (0,) if at_home else (0, 2, 4) if step % 4 == 0 or length >= 3 else tuple(range(7))
            degree = _bend(degree + move, root, tones)
            events.append((_lead_pitch(attributes, degree, root), step, length))
            step += length
        melody.append(events)
    return roots, melody


def _bend(degree: int, root: int, tones: tuple[int, ...]) -> int:
    """The nearest scale degree in the melody's range that is one of `tones`, as degrees above the chord's root."""
    low, high = -2, 7
    degree = 2 * low - degree if degree < low else 2 * high - degree if degree > high else degree
    allowed = [near for near in range(low, high + 1) if (near - root) % 7 in tones]
    return min(allowed, key=lambda near: (abs(near - degree), near))


def _semitones(attributes: Attributes, degree: int, root: int) -> int:
    """Semitones from the tonic up to a scale degree, over the chord on `root`."""
    raised = attributes.mode == "minor" and root == DOMINANT and degree % 7 == LEADING_TONE
    return 12 * (degree // 7) + SCALES[attributes.mode][degree % 7] + int(raised)


def _lead_pitch(attributes: Attributes, degree: int, root: int) -> int:
    # The melody ranges from 2 degrees below the tonic to 7 above it, so the tonic is below the middle.
    lowest_tonic = _REGISTERS[attributes.instrument] - 10
    tonic = lowest_tonic + (attributes.tonic - lowest_tonic) % 12
    return tonic + _semitones(attributes, degree, root)


def _chord_bar(attributes: Attributes, root: int, figure: str) -> list[tuple[str, str, int, int, int]]:
    voice = attributes.accompaniment
    floor = _CHORD_FLOORS.get(voice, _CHORD_FLOOR)
    classes = [attributes.tonic + _semitones(attributes, root + third, root) for third in (0, 2, 4)]
    # All notes are within one octave, so that successive chords are close to each other. The root is the first note.
    pitches = [floor + (pitch_class - floor) % 12 for pitch_class in classes]
    part, figure = ("pad", "sustained") if voice == "pad" else ("chord", figure)
    hits = FIGURES[figure][attributes.beats_per_bar]
    return [(voice, part, pitches[tone], step, length) for step, length, tones in hits for tone in tones]


def _bass_bar(attributes: Attributes, root: int) -> list[tuple[str, str, int, int, int]]:
    def pitch(degree: int) -> int:
        return _BASS_FLOOR + (attributes.tonic + _semitones(attributes, degree, root) - _BASS_FLOOR) % 12

    if attributes.beats_per_bar == 3:
        hits = [(root, 0, 4), (root + 4, 4, 2)]
    elif attributes.style in ("rock", "dance"):
        hits = [(root, step, 2) for step in (0, 2, 4, 6)]
    else:
        hits = [(root, 0, 4), (root + 4, 4, 4)]
    return [("bass", "bass", pitch(degree), step, length) for degree, step, length in hits]


def _drum_bar(attributes: Attributes) -> list[tuple[str, str, int, int, int]]:
    groove = _GROOVES[attributes.style]
    return [(piece, piece, 0, step, 1) for piece in groove for step in groove[piece][attributes.beats_per_bar]]
