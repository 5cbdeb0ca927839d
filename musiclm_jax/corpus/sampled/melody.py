"""Composed melodies: motifs that are answered, repeated and moved with the chords; and small changes from one repeat to the next."""

import dataclasses

import numpy as np

from musiclm_jax.corpus.clip import pick
from musiclm_jax.corpus.sampled.bars import TICKS, Chord, Meter, Tone
from musiclm_jax.corpus.terms import SCALES

# Rhythms of one beat and of two, in ticks; negative numbers are rests. By whether the beat has two halves or three thirds.
_CELLS = {
    3: {
        "even": ((12,), (12,), (6, 6), (6, 6), (9, 3), (3, 3, 6), (6, 3, 3), (3, 3, 3, 3), (24,), (18, 6), (12, 6, 6), (6, 6, 12), (4, 4, 4)),
        "odd": ((3, 6, 3), (-6, 6), (6, 12, 6), (-3, 9), (9, 9, 6), (3, 6, 6, 9), (-6, 6, 6, 6), (6, 18), (-12, 6, 6), (3, 9, 12)),
    },
    2: {
        "even": ((12,), (8, 4), (8, 4), (4, 4, 4), (6, 2, 4), (24,), (20, 4), (12, 8, 4), (4, 4, 4, 12)),
        "odd": ((4, 8), (-4, 4, 4), (8, 8, 8), (-8, 4)),
    },
}
# Bars of a phrase: equal letters have equal rhythms and steps. The last bar closes.
_FORMS = {4: ("aab", "aba", "abc", "abb"), 8: ("abacaba", "aabcaab", "abcdabc", "aabbaab", "ababcab")}
_SHAPES = (
    (1, 1, -1, -1),
    (-1, -1, -1, 2),
    (2, -1, -1, 2),
    (1, 1, 1, -2),
    (0, 0, 2, -1),
    (4, -1, -1, -1),
    (-2, 1, 1, 1),
    (2, -1, 2, -1),
    (2, 2, -1, -1),
    (-2, 3, -2, 3),
    (2, 2, 3, -1, -1, -2),
    (-1, 3, -1, -1),
    (0, 4, -1, 0, -1),
)
LOWEST, HIGHEST = -3, 9
# Of the notes of a repeat.
_ORNAMENT_RATE, _JOIN_RATE = 0.16, 0.05
# Share of a bar that rests should not exceed.
_LONGEST_REST = 0.13


@dataclasses.dataclass(frozen=True)
class Motif:
    """The rhythm of a bar in ticks, rests below 0, and the steps of the scale to each note."""

    rhythm: tuple[int, ...]
    steps: tuple[int, ...]


def draw_motifs(meter: Meter, notes_per_bar: float, syncopation: float, rng: np.random.Generator) -> dict[str, Motif]:
    motifs = {}
    for letter in "abcd":
        rhythm = _draw_rhythm(meter, notes_per_bar * rng.uniform(0.8, 1.25), syncopation, rng)
        shape = pick(_SHAPES, rng)
        steps = [shape[index % len(shape)] if rng.random() < 0.8 else int(rng.integers(-2, 3)) for index in range(len(rhythm))]
        motifs[letter] = Motif(rhythm=rhythm, steps=tuple(steps))
    return motifs


def compose_melody(chords: tuple[Chord, ...], meter: Meter, mode: str, motifs: dict[str, Motif], start: int, rng: np.random.Generator) -> tuple[Tone, ...]:
    """A melody of 4 or 8 bars, or 4 more, over the chords, one for each slot. start: the degree of the scale near which it begins, 0 for the tonic."""
    slots = meter.bar // meter.slot
    bars = len(chords) // slots
    form = _FORMS[8 if bars > 4 else 4]
    letters = ("" if bars < 12 else "abac") + pick(form, rng)
    tones, degree = [], start
    for bar, letter in enumerate(letters):
        halfway = bar == bars // 2 - 1
        motif = _half_close(motifs[letter], meter) if halfway and bars > 4 else motifs[letter]
        if bar and letter == letters[0]:
            degree += int(np.sign(start - degree)) * min(3, abs(start - degree))
        degree = _bar(tones, motif, bar * meter.bar, degree, chords, meter, mode)
    close = _closing(meter, rng)
    # Down or up to the nearest tonic, by step.
    target = 0 if degree < 4 else 7
    distance = [int(np.sign(degree - target)) * (len(close) - 1 - index) for index in range(len(close))]
    tick = (bars - 1) * meter.bar
    for length, above in zip(close, distance, strict=True):
        tones.append(Tone(tick=tick, length=length, pitch=_pitch(target + above, mode, chords[tick // meter.slot])))
        tick += length
    return tuple(tones)


def vary(tones: tuple[Tone, ...], meter: Meter, mode: str, rng: np.random.Generator) -> tuple[Tone, ...]:
    """A repeat of a melody, in which a few notes have a passing note or a neighbour after them, or are joined. The last is as it was."""
    scale = [octave + pitch for octave in (-24, -12, 0, 12, 24) for pitch in SCALES[mode]]
    varied: list[Tone] = []
    for tone, after, draw in zip(tones, tones[1:], rng.random(len(tones))):
        if varied and tone.tick < varied[-1].end:  # It is joined with the note before.
            continue
        joins = tone.tick % TICKS == 0 and tone.length == after.length <= TICKS // 2 and after is not tones[-1]
        if draw < _ORNAMENT_RATE and tone.end == after.tick:
            varied += _ornament(tone, after, scale, 2 * meter.step)
        elif draw > 1 - _JOIN_RATE and tone.end == after.tick and joins:
            varied.append(Tone(tone.tick, tone.length + after.length, tone.pitch))
        else:
            varied.append(tone)
    return (*varied, tones[-1])


def _ornament(tone: Tone, after: Tone, scale: list[int], length: int) -> list[Tone]:
    """A note of a beat or more, with a note between it and the next at its end, or its upper neighbour; other notes as they are."""
    low, high = sorted((tone.pitch, after.pitch))
    between = [pitch for pitch in scale if low < pitch < high] or [pitch for pitch in scale if 0 < pitch - tone.pitch < 3]
    if tone.length < TICKS or high - low > 5 or not between:
        return [tone]
    return [Tone(tone.tick, tone.length - length, tone.pitch), Tone(tone.end - length, length, between[len(between) // 2])]


def notes_per_bar(density: str, bar_sec: float) -> float:
    """How many notes a bar has, by the density that is wished."""
    return {"sustained": 1.0, "flowing": 2.1, "busy": 3.6}[density] * bar_sec


def density(tones: tuple[Tone, ...], seconds: float) -> str:
    """sustained, flowing or busy."""
    rate = len(tones) / seconds
    return "sustained" if rate < 1.5 else "flowing" if rate < 3.0 else "busy"


def _draw_rhythm(meter: Meter, notes: float, syncopation: float, rng: np.random.Generator) -> tuple[int, ...]:
    """Of some rhythms of a bar the one whose notes are nearest in number, and which rests little."""
    cells = _CELLS[meter.step]
    best, least = (), float("inf")
    for _ in range(8):
        rhythm, filled = [], 0
        while filled < meter.bar:
            pool = cells["odd" if rng.random() < syncopation else "even"]
            cell = pick(pool, rng)
            size = sum(map(abs, cell))
            if filled + size <= meter.bar:
                rhythm += cell
                filled += size
        silent = -sum(length for length in rhythm if length < 0) / meter.bar
        distance = abs(sum(length > 0 for length in rhythm) - notes) + 6 * max(0.0, silent - _LONGEST_REST)
        if distance < least:
            best, least = tuple(rhythm), distance
    return best


def _half_close(motif: Motif, meter: Meter) -> Motif:
    """The motif, with a long note in its second half."""
    rhythm, filled = [], 0
    for length in motif.rhythm:
        if filled >= meter.bar // 2:
            break
        rhythm.append(length)
        filled += abs(length)
    rest = meter.bar - filled
    rhythm += [rest] if rest else []
    return Motif(rhythm=tuple(rhythm), steps=motif.steps[: len(rhythm)])


def _closing(meter: Meter, rng: np.random.Generator) -> tuple[int, ...]:
    """The rhythm of a last bar, of which a little at the end is silent."""
    beat = TICKS
    options = ((2 * beat, meter.bar - 2 * beat), (beat, meter.bar - beat), (beat, beat, meter.bar - 2 * beat), (meter.bar,))
    close = [length for length in pick(options, rng) if length]
    if close[-1] > beat and rng.random() < 0.5:
        close[-1] -= beat // 2
    return tuple(close)


def _bar(tones: list[Tone], motif: Motif, tick: int, degree: int, chords: tuple[Chord, ...], meter: Meter, mode: str) -> int:
    """Adds a bar to `tones`. Long notes, and notes on strong beats, are moved to notes of the chord. Returns the degree that it ends on."""
    for length, step in zip(motif.rhythm, motif.steps, strict=True):
        if length > 0:
            chord = chords[tick // meter.slot]
            strong = tick % meter.slot == 0 or length > TICKS
            degree = _bend(degree + step, chord, mode, strong)
            tones.append(Tone(tick=tick, length=length, pitch=_pitch(degree, mode, chord)))
        tick += abs(length)
    return degree


def _bend(degree: int, chord: Chord, mode: str, strong: bool) -> int:
    """The degree within the range, if `strong` the nearest of the chord."""
    degree = 2 * LOWEST - degree if degree < LOWEST else 2 * HIGHEST - degree if degree > HIGHEST else degree
    if not strong:
        return degree
    fitting = [near for near in range(LOWEST, HIGHEST + 1) if _pitch(near, mode, chord) % 12 in chord.classes]
    return min(fitting, key=lambda near: (abs(near - degree), near))


def _pitch(degree: int, mode: str, chord: Chord) -> int:
    """Semitones above the tonic. The seventh of minor is raised over the dominant with its leading tone."""
    raised = mode == "minor" and degree % 7 == 6 and 11 in chord.classes
    return 12 * (degree // 7) + SCALES[mode][degree % 7] + int(raised)
