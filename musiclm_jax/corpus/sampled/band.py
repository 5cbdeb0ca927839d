"""The parts of the band, written from patterns over the chords of a piece: bass, chords, pad, counter-melody and drums."""

import dataclasses

import numpy as np

from musiclm_jax.corpus.clip import pick
from musiclm_jax.corpus.sampled import patterns
from musiclm_jax.corpus.sampled.attributes import Attributes
from musiclm_jax.corpus.sampled.bars import TICKS, Chord
from musiclm_jax.corpus.sampled.form import Piece
from musiclm_jax.corpus.sampled.harmony import add_seventh
from musiclm_jax.corpus.sampled.instruments import INSTRUMENTS
from musiclm_jax.corpus.sampled.patterns import CLAP, CRASH, HAT, KICK, OPEN, RIDE, SNARE, STICK
from musiclm_jax.corpus.sampled.styles import STYLES
from musiclm_jax.corpus.sampled.written import Written

# Lowest notes of bass lines and of chords, as MIDI pitch.
_BASS_FLOOR = 28
_CHORD_FLOORS = {"guitar": 47, "strings": 50, "plucked": 50, "brass": 50, "voice": 50, "mallets": 55}
_PAD_FLOOR, _FLOOR = 53, 50
# Instruments that speak too slowly for short chords, and the patterns that they play.
_SLOW, _SUSTAINED = ("synth pad", "choir", "strings", "church organ"), ("held", "halves", "beats", "eighths")
# Instruments whose broken chords ring until the chord may change, as with a pedal.
_RINGING = ("piano", "electric piano", "guitar", "plucked", "mallets")
# Without a bass, patterns begin on a low root.
_LOW_FLOOR = 41
_DRUM_ACCENTS = {"X": 14, "x": 0, "g": -30}
# Drums may be silent for so long at the beginning.
_LATEST_DRUMS_SEC = 3.0
_FILL_RATE, _CRASH_RATE, _RIDE_RATE, _OPEN_HAT_RATE = 0.7, 0.5, 0.4, 0.4
_ACOUSTIC_DRUMS = {CLAP: SNARE}


def write_band(piece: Piece, attributes: Attributes, rng: np.random.Generator) -> list[Written]:
    """All parts but the lead. Which of them are silent in which passages is drawn first."""
    silent = [_silent(piece, passage.name, number, rng) for number, passage in enumerate(piece.passages)]
    notes = []
    if attributes.bass:
        notes += _bass(piece, attributes, rng)
    if attributes.chords:
        notes += _chords(piece, attributes, rng)
    if attributes.pad:
        notes += _pad(piece, attributes)
    if attributes.counter:
        notes += _counter(piece, attributes, rng)
    spans = [
        (passage.start * piece.meter.bar, (passage.start + passage.bars) * piece.meter.bar, parts)
        for passage, parts in zip(piece.passages, silent, strict=True)
    ]
    notes = [note for note in notes if not any(start <= note.tick < stop and note.part in parts for start, stop, parts in spans)]
    return notes + (_drums(piece, attributes, rng) if attributes.drums else [])


def _silent(piece: Piece, name: str, number: int, rng: np.random.Generator) -> frozenset[str]:
    """The parts that do not play in a passage."""
    draws = rng.random(4)
    if name == "ending" or len(piece.passages) < 2:
        return frozenset()
    if name == "intro":
        return frozenset({"counter", "pad"} | ({"bass"} if draws[0] < 0.6 else set()))
    if name == "break":
        return frozenset({("chords", "bass", "pad")[int(3 * draws[1])], "counter"})
    if name == "verse":
        return frozenset(({"counter"} if draws[2] < 0.5 else set()) | ({"pad"} if draws[3] < 0.35 else set()))
    return frozenset()


def _slot_chords(piece: Piece, attributes: Attributes) -> list[Chord]:
    """A chord for each slot, with sevenths where the style has them."""
    rich = STYLES[attributes.style].sevenths
    last = len(piece.chords) - piece.meter.bar // piece.meter.slot if piece.ends else len(piece.chords)
    return [add_seventh(chord) if rich and index < last else chord for index, chord in enumerate(piece.chords)]


def _pattern_hits(pattern: str, step: int) -> list[tuple[int, int, str]]:
    """(tick, length, character) of the notes of a bar."""
    hits: list[tuple[int, int, str]] = []
    for index, character in enumerate(pattern):
        if character == "-" and hits:
            tick, length, name = hits[-1]
            hits[-1] = (tick, length + step, name)
        elif character not in "-.":
            hits.append((index * step, step, character))
    return hits


def _played(piece: Piece, options: tuple[str, ...], chords: list[Chord], rng: np.random.Generator) -> list[tuple[int, int, str, int]]:
    """(tick, length, character, slot) of one pattern in all bars, sometimes another in the chorus. Notes end, and begin anew, where the chord changes."""
    slots = piece.meter.bar // piece.meter.slot
    main, other = (pick(options, rng) for _ in range(2))
    hits = []
    for bar in range(piece.bars):
        pattern = other if piece.passage(bar).name == "chorus" else main
        final = piece.ends and bar == piece.bars - 1
        for tick, length, name in [(0, piece.meter.bar, "final")] if final else _pattern_hits(pattern, piece.meter.step):
            while length > 0:
                slot = tick // piece.meter.slot
                stop = slot + 1
                while stop < slots and chords[bar * slots + stop] == chords[bar * slots + slot]:
                    stop += 1
                held = min(length, stop * piece.meter.slot - tick)
                hits.append((bar * piece.meter.bar + tick, held, name, bar * slots + slot))
                tick, length = tick + held, length - held
    return hits


def _bass(piece: Piece, attributes: Attributes, rng: np.random.Generator) -> list[Written]:
    style = STYLES[attributes.style]
    chords = _slot_chords(piece, attributes)
    names = [name for name in style.bass_lines if attributes.meter in patterns.BASSES[name]]
    options = patterns.BASSES[pick(names, rng)][attributes.meter]
    notes, steps = [], 0
    for tick, length, name, slot in _played(piece, options, chords, rng):
        chord, after = chords[slot], chords[min(slot + 1, len(chords) - 1)]
        root, target = (_BASS_FLOOR + (attributes.tonic + c.root - _BASS_FLOOR) % 12 for c in (chord, after))
        fifth = chord.tones[2] if root + chord.tones[2] <= 45 else chord.tones[2] - 12
        steps = steps + 1 if name == "w" else 0
        above = {"r": 0, "final": 0, "f": fifth, "o": 12, "t": chord.tones[1], "w": chord.tones[1] if steps % 2 else chord.tones[2]}.get(name)
        # Walking from a lower root goes over the third, from a higher one down to it by step.
        pitch = root + above if above is not None else target + (-1 if target >= root else 2)
        notes.append(Written("bass", pitch, tick, length))
    return notes


def _voicings(chords: list[Chord], tonic: int, floor: int) -> list[list[int]]:
    """The notes of each chord, from below, in the inversion that is nearest to the chord before."""
    voicings, center = [], floor + 6.0
    for chord in chords:
        classes = [(tonic + chord.root + tone) % 12 for tone in chord.tones]
        best: list[int] = []
        for lowest in classes:
            bottom = floor + (lowest - floor) % 12
            notes = sorted(bottom + (other - bottom) % 12 for other in classes)
            if not best or abs(np.mean(notes) - center) < abs(np.mean(best) - center):
                best = notes
        center = 0.6 * float(np.mean(best)) + 0.4 * (floor + 6)
        voicings.append(best)
    return voicings


def _chords(piece: Piece, attributes: Attributes, rng: np.random.Generator) -> list[Written]:
    style = STYLES[attributes.style]
    chords = _slot_chords(piece, attributes)
    floor = _CHORD_FLOORS.get(INSTRUMENTS[attributes.chords].family, _FLOOR)
    voicings = _voicings(chords, attributes.tonic, floor)
    names = [name for name in style.comps if attributes.meter in patterns.COMPS[name]]
    if attributes.chords in _SLOW:
        names = [name for name in names if name in _SUSTAINED] or ["held"]
    options = patterns.COMPS[pick(names, rng)][attributes.meter]
    notes = []
    for tick, length, name, slot in _played(piece, options, chords, rng):
        voicing = voicings[slot]
        if not attributes.bass:
            root = attributes.tonic + chords[slot].root
            voicing = [_LOW_FLOOR + (root - _LOW_FLOOR) % 12, *voicing]
        if name.isdigit():
            if INSTRUMENTS[attributes.chords].family in _RINGING:
                length = piece.meter.slot - tick % piece.meter.slot
            pitches = [voicing[int(name) % len(voicing)] + 12 * (int(name) // len(voicing))]
        else:
            pitches = {"l": voicing[:1], "u": voicing[1:][::-1]}.get(name, voicing)
        accent = 4 if name in ("l", "0") else 0
        notes += [Written("chords", pitch, tick, length, accent, rank) for rank, pitch in enumerate(pitches)]
    return notes


def _pad(piece: Piece, attributes: Attributes) -> list[Written]:
    chords = piece.chords
    notes, slot = [], 0
    for voicing in _voicings(list(chords), attributes.tonic, _PAD_FLOOR):
        tick = slot * piece.meter.slot
        for pitch in voicing:
            held = next((index for index in range(len(notes) - 1, max(-1, len(notes) - 9), -1) if notes[index].pitch == pitch), None)
            # A pad re-enters with each bar of two, and holds common notes until then.
            if held is not None and notes[held].tick + notes[held].length == tick and tick % (2 * piece.meter.bar):
                notes[held] = dataclasses.replace(notes[held], length=notes[held].length + piece.meter.slot)
            else:
                notes.append(Written("pad", pitch, tick, piece.meter.slot))
        slot += 1
    return notes


def _counter(piece: Piece, attributes: Attributes, rng: np.random.Generator) -> list[Written]:
    """Long notes of the chords that move little, and a few short ones while the lead holds a note."""
    instrument = INSTRUMENTS[attributes.counter]
    low = max(instrument.low, min(instrument.high - 14, 55))
    pitch, notes = low + 7, []
    span = max(piece.meter.slot, TICKS * 2)
    for tick in range(0, piece.bars * piece.meter.bar, span):
        chord = piece.chords[tick // piece.meter.slot]
        lead = {tone.pitch % 12 for tone in piece.melody if tone.tick <= tick < tone.end}
        tones = [p for p in range(low, low + 15) if (p - attributes.tonic) % 12 in chord.classes - (lead if len(lead) < 3 else set())]
        pitch = min(tones or [pitch], key=lambda p: (abs(p - pitch) + 2 * (p == pitch), p))
        holds = any(tone.tick <= tick and tone.end >= tick + 2 * TICKS for tone in piece.melody)
        others = [p for p in tones if 0 < abs(p - pitch) <= 5]
        if holds and others and rng.random() < 0.6:
            turn = pick(others, rng)
            notes += [Written("counter", pitch, tick, TICKS), Written("counter", turn, tick + TICKS, span - TICKS)]
            pitch = turn
        elif notes and notes[-1].pitch == pitch and notes[-1].length < 2 * piece.meter.bar and notes[-1].tick + notes[-1].length == tick:
            notes[-1] = dataclasses.replace(notes[-1], length=notes[-1].length + span)
        else:
            notes.append(Written("counter", pitch, tick, span))
    return notes


def _drums(piece: Piece, attributes: Attributes, rng: np.random.Generator) -> list[Written]:
    """A groove, thinner in intros and breaks, with fills before the next passage and crashes after them."""
    grooves = patterns.GROOVES[attributes.style][attributes.meter]
    groove = pick(grooves, rng)
    hands = attributes.kit == "hand drums"
    fills = (patterns.HAND_FILLS if hands else patterns.FILLS)[attributes.meter]
    kit = _ACOUSTIC_DRUMS if attributes.kit in ("acoustic", "brushes") else {}
    bar_sec = piece.seconds(piece.meter.bar, attributes.tempo_bpm) - piece.seconds(0, attributes.tempo_bpm)
    rides = attributes.kit in ("acoustic", "brushes") and HAT in groove and bool(rng.random() < _RIDE_RATE)
    notes: list[Written] = []
    for bar in range(piece.bars):
        passage = piece.passage(bar)
        last = bar == passage.start + passage.bars - 1
        tacet = passage.name == "intro" and (bar + 1) * bar_sec < _LATEST_DRUMS_SEC and not last
        fill = pick(fills, rng) if last and rng.random() < _FILL_RATE else {}
        thin = passage.name in ("intro", "break") and not last
        played = {drum: line for drum, line in groove.items() if not (thin and drum in (SNARE, CLAP, STICK))} or groove
        if rides and passage.name == "chorus":
            played = {RIDE if drum == HAT else drum: line for drum, line in played.items()}
        if HAT in played and bar % 4 == 3 and not fill and rng.random() < _OPEN_HAT_RATE:
            played = {**played, HAT: played[HAT][:-2] + "..", OPEN: "." * (len(played[HAT]) - 2) + "x."}
        if piece.ends and bar == piece.bars - 1:
            played, fill = {KICK: "X" + "." * 15, **({} if hands else {CRASH: "x" + "." * 15})}, {}
        elif not hands and attributes.kit != "brushes" and bar == passage.start and bar and passage.name != "break" and rng.random() < _CRASH_RATE:
            played = {**played, CRASH: "X" + "." * 15}
        if not tacet:
            notes += _groove_bar(played, fill, bar * piece.meter.bar, piece.meter.step, kit)
    return notes


def _groove_bar(groove: dict[int, str], fill: dict[int, str], start: int, step: int, kit: dict[int, int]) -> list[Written]:
    """A bar of a groove, from the first note of the fill on the fill. kit: drums that are played instead of others."""
    begin = min((len(line) - len(line.lstrip(".")) for line in fill.values()), default=99)
    hits = [(drum, index, mark) for drum, line in groove.items() for index, mark in enumerate(line) if mark != "." and index < begin]
    hits += [(drum, index, mark) for drum, line in fill.items() for index, mark in enumerate(line) if mark != "."]
    return [Written("drums", kit.get(drum, drum), start + index * step, step, _DRUM_ACCENTS[mark]) for drum, index, mark in hits]
