"""The piece of a clip: a tune, or composed themes, as verse and chorus of a piece, of which the clip is a stretch of at most 30 s.

The lead plays throughout: intros are the last bars of the verse, breaks the first bars of the chorus with less of a band.
"""

import dataclasses

import numpy as np

from musiclm_jax.corpus.clip import CLIP_SEC, Split, pick
from musiclm_jax.corpus.sampled import harmony, melody
from musiclm_jax.corpus.sampled.attributes import Attributes
from musiclm_jax.corpus.sampled.bars import METERS, TICKS, Chord, Meter, Section, Tone
from musiclm_jax.corpus.sampled.styles import STYLES
from musiclm_jax.corpus.sampled.tunes import cut, draw_tune

# Before the first beat, so that early notes are in the clip.
LEAD_IN_SEC = 0.05
# A piece that ends is at least so long, and the sound of the last chord has so long to die away.
LEAST_SEC = 12.0
DECAY_SEC = 2.2
# How much longer the last beat is with a ritardando, which grows over two bars.
_RITARDANDO = 0.6
_TUNE_RATE = 0.5
# Tunes are drawn anew, a few times, if the tempo would make them slower or faster than this.
_NOTES_PER_SEC = (0.8, 5.5)
_TRIES = 6
_ORDERS = (
    ("intro", "verse", "verse", "chorus", "chorus", "break"),
    ("verse", "chorus", "verse", "chorus", "break"),
    ("intro", "verse", "chorus", "verse", "chorus", "break"),
    ("verse", "verse", "chorus", "break"),
    ("intro", "chorus", "verse", "break", "chorus"),
)
_FROM_THE_TOP_RATE = 0.5


@dataclasses.dataclass(frozen=True)
class Passage:
    # A name in the form of attributes.Attributes.
    name: str
    # In bars from the start of the clip; below 0 if the clip begins within it.
    start: int
    bars: int


@dataclasses.dataclass(frozen=True)
class Piece:
    """What the lead plays, and over which chords. It is the same for all variants of a clip."""

    meter: Meter
    bars: int
    passages: tuple[Passage, ...]
    # Ticks from the first bar of the clip.
    melody: tuple[Tone, ...]
    # One for each slot of the meter.
    chords: tuple[Chord, ...]
    # Ticks before the first bar: a pickup.
    lead_in: int
    # Whether it ends by itself; the last passage is then the ending, of two bars.
    ends: bool
    # Share by which the last beat is longer than others.
    ritardando: float
    # Name of the tune; empty if it is composed.
    tune: str

    def seconds(self, tick: int | float, tempo_bpm: int) -> float:
        """When a tick is, from the start of the clip."""
        late = max(0, tick - (self.bars - 2) * self.meter.bar)
        delay = self.ritardando * late**2 / (4 * self.meter.bar)
        return LEAD_IN_SEC + (tick + self.lead_in + delay) * 60 / (TICKS * tempo_bpm)

    def length_sec(self, tempo_bpm: int) -> float:
        return round(self.seconds(self.bars * self.meter.bar, tempo_bpm) + DECAY_SEC, 3) if self.ends else float(CLIP_SEC)

    def passage(self, bar: int) -> Passage:
        return next(passage for passage in self.passages if bar < passage.start + passage.bars)


def make_piece(attributes: Attributes, *, split: Split, ending: bool, rng: np.random.Generator) -> Piece:
    meter = METERS[attributes.meter]
    bar_sec = meter.beats * 60 / attributes.tempo_bpm
    clip_bars = int(np.ceil(CLIP_SEC / bar_sec))
    name, themes = _from_tune(attributes, split, clip_bars, rng) if rng.random() < _TUNE_RATE else ("", _composed(attributes, clip_bars, rng))
    ritardando = _RITARDANDO if ending and rng.random() < 0.6 else 0.0
    if ending:
        most = int((CLIP_SEC - DECAY_SEC - LEAD_IN_SEC - ritardando * bar_sec) / bar_sec - 0.5)
        least = min(most, max(4, int(np.ceil((LEAST_SEC - DECAY_SEC) / bar_sec))))
        clip_bars = int(rng.integers(least, most + 1, size=2).max())
    # The longest piece that is needed, from which the clip is cut.
    sequence = _sequence(themes, 2 * clip_bars + 32, bar_sec, meter, rng)
    starts = np.cumsum([0, *(section.bars for _, section in sequence)])
    if ending:
        last = int(rng.integers(2)) + int(np.searchsorted(starts, clip_bars - 2))
        while sequence[last - 1][0] in ("intro", "break"):
            last += 1
        sequence = [*sequence[:last], ("ending", _ending(sequence[last - 1][1], meter, attributes.mode, rng))]
        skip = int(starts[last]) + 2 - clip_bars
    else:
        top = rng.random() < _FROM_THE_TOP_RATE
        skip = 0 if top else int(starts[int(rng.integers(1, 4))]) + (2 if rng.random() < 0.3 else 0)
    return _lay_out(sequence, skip, clip_bars, attributes.mode, meter, ends=ending, ritardando=ritardando, tune=name, rng=rng)


def _from_tune(attributes: Attributes, split: Split, clip_bars: int, rng: np.random.Generator) -> tuple[str, list[Section]]:
    meter, style = METERS[attributes.meter], STYLES[attributes.style]
    for _ in range(_TRIES):
        tune = draw_tune(split=split, meter=attributes.meter, mode=attributes.mode, rng=rng)
        seconds = sum(section.bars for section in tune.sections) * meter.beats * 60 / attributes.tempo_bpm
        if _NOTES_PER_SEC[0] <= sum(len(section.melody) for section in tune.sections) / seconds <= _NOTES_PER_SEC[1]:
            break
    sections = list(tune.sections)
    if clip_bars < 12 and rng.random() < 0.6:  # Halves of sections, so that more than one is in the clip.
        sections = [cut(section, 4, 8, meter.bar) if section.bars == 8 else section for section in sections]
    sections = [section for section in sections if section.melody]
    pair, calm = [sections[0], sections[-1]], rng.uniform(0.4, 1.2) * (0.5 if style.sevenths else 1.0)
    return tune.name, [dataclasses.replace(section, chords=harmony.find_chords(section, meter, attributes.mode, calm=calm)) for section in pair]


def _composed(attributes: Attributes, clip_bars: int, rng: np.random.Generator) -> list[Section]:
    style, meter, mode = STYLES[attributes.style], METERS[attributes.meter], attributes.mode
    bar_sec = meter.beats * 60 / attributes.tempo_bpm
    bars = 12 if style.progressions == "blues" and clip_bars >= 12 else 8 if clip_bars >= 12 or rng.random() < 0.4 else 4
    wish = ("sustained", "flowing", "busy")[int(rng.integers(3))]
    motifs = melody.draw_motifs(meter, melody.notes_per_bar(wish, bar_sec), style.syncopation, rng)
    sections = []
    for start in (int(rng.choice((0, 2, 4))), int(rng.choice((4, 7)))):
        chords = harmony.draw_chords(style.progressions, mode, bars, meter, rng)
        tones = melody.compose_melody(chords, meter, mode, motifs, start, rng)
        sections.append(Section(bars=bars, melody=tones, chords=chords))
        # The chorus has a motif in common with the verse.
        motifs = {**melody.draw_motifs(meter, melody.notes_per_bar(wish, bar_sec), style.syncopation, rng), "b": motifs["a"]}
    return sections


def _sequence(themes: list[Section], least_bars: int, bar_sec: float, meter: Meter, rng: np.random.Generator) -> list[tuple[str, Section]]:
    """Names and sections of a piece of at least as many bars."""
    verse, chorus = themes
    short = 4 if bar_sec < 1.7 else 2
    sections = {"verse": verse, "chorus": chorus, "intro": _stretch(verse, verse.bars - short, short, meter), "break": _stretch(chorus, 0, short, meter)}
    order = list(pick(_ORDERS, rng))
    sequence, bars = [], 0
    while bars < least_bars or len(sequence) < len(order):
        names = order if not sequence else [name for name in order if name != "intro"]
        sequence += [(name, sections[name]) for name in names]
        bars = sum(section.bars for _, section in sequence)
    return sequence


def _stretch(section: Section, first: int, bars: int, meter: Meter) -> Section:
    """Some bars of a section, with their chords."""
    slots = len(section.chords) // section.bars
    return dataclasses.replace(cut(section, first, first + bars, meter.bar), chords=section.chords[first * slots : (first + bars) * slots])


def _ending(before: Section, meter: Meter, mode: str, rng: np.random.Generator) -> Section:
    """Dominant and tonic, a bar each; the lead goes to the nearest tonic by step."""
    last = before.melody[-1].pitch
    tonic = 12 * round(last / 12)
    third = 4 if mode == "major" else 3
    half = meter.bar // 2 if meter.beats != 3 else 2 * TICKS
    lines = (
        [(half, 2), (meter.bar - half, -1)],
        [(meter.bar - TICKS, 2), (TICKS, 2)],
        [(TICKS, third), (meter.bar - TICKS, 2)],
        [(half, -1), (meter.bar - half, 2)],
    )
    line = [*pick(lines, rng), (meter.bar, 0)]
    tones, tick = [], 0
    for length, above in line:
        tones.append(Tone(tick=tick, length=length, pitch=tonic + above))
        tick += length
    slots = meter.bar // meter.slot
    dominant, home = harmony.chord(("V", "V7")[int(rng.integers(2))]), harmony.chord("I" if mode == "major" else "i")
    return Section(bars=2, melody=tuple(tones), chords=(dominant,) * slots + (home,) * slots)


def _lay_out(
    sequence: list[tuple[str, Section]], skip: int, bars: int, mode: str, meter: Meter, *, ends: bool, ritardando: float, tune: str, rng: np.random.Generator
) -> Piece:
    """Writes the sections one after another, beginning `skip` bars later. Repeats of a section are varied."""
    tones: list[Tone] = []
    chords, passages, start, seen, pickup = [], [], -skip, [], 0
    for name, section in sequence:
        line = section.melody
        if section in seen and name != "ending":
            line = melody.vary(line, meter, mode, rng)
        seen.append(section)
        begin = start * meter.bar
        if not start and line:
            pickup = max(0, -line[0].tick)
        while tones and line and tones[-1].tick >= begin + line[0].tick:
            tones.pop()
        if tones and line and tones[-1].end > begin + line[0].tick:
            tones[-1] = dataclasses.replace(tones[-1], length=begin + line[0].tick - tones[-1].tick)
        tones += [dataclasses.replace(tone, tick=tone.tick + begin) for tone in line]
        chords += section.chords
        if -section.bars < start < bars:
            passages.append(Passage(name=name, start=start, bars=section.bars))
        start += section.bars
    slots = meter.bar // meter.slot
    kept = [tone for tone in tones if -pickup <= tone.tick < bars * meter.bar]
    return Piece(
        meter=meter,
        bars=bars,
        passages=tuple(passages),
        melody=tuple(kept),
        chords=tuple(chords[skip * slots : (skip + bars) * slots]),
        lead_in=pickup,
        ends=ends,
        ritardando=ritardando,
        tune=tune,
    )
