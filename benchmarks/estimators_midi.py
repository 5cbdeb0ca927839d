"""The estimators of `musiclm evaluate adherence` against outside truth: `python benchmarks/estimators_midi.py CORPUS [PIECES] [SOUNDFONT]`.

Pieces with known tempo, key, drums and lead instrument are written as MIDI and rendered by FluidSynth with a General MIDI soundfont (Debian: fluidsynth,
fluid-soundfont-gm), whose instruments are recorded and share nothing with the corpus. The estimators are fitted on 1,000 training clips of a corpus of
`musiclm corpus`, as the evaluation does. A piece has 10 s of melody, chords, bass, and drums or none, over I-vi-IV-V or its relative in minor.
"""

import dataclasses
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from musiclm_jax import audio
from musiclm_jax.corpus.synthesized.attributes import INSTRUMENTS
from musiclm_jax.evaluation.clips import read_clips, with_ground_truth
from musiclm_jax.evaluation.estimators import SAMPLE_RATE_HZ, Estimate, Estimators, fit_estimators, same_tempo

SECONDS, TICKS, DRUM_CHANNEL = 10, 480, 9
# Programs of General MIDI that are called as the corpus calls its instruments.
PROGRAMS = dict(zip(INSTRUMENTS, (0, 24, 73, 48, 19, 4, 14, 80), strict=True))
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
# Degrees of the chords' roots, one bar each.
CHORDS = {"major": (0, 5, 3, 4), "minor": (0, 5, 2, 6)}
KICK, SNARE, HAT = 36, 38, 42
CHORD_PROGRAM, BASS_PROGRAM = 0, 33
# (start and length in beats, channel, pitch, velocity).
Note = tuple[float, float, int, int, int]


@dataclasses.dataclass(frozen=True)
class Piece:
    instrument: str
    drums: bool
    tonic: int
    mode: str
    tempo_bpm: int
    notes: tuple[Note, ...]


def compose(number: int, rng: np.random.Generator) -> Piece:
    """A piece. Instruments take turns; the other attributes are drawn."""
    instrument = INSTRUMENTS[number % len(INSTRUMENTS)]
    mode, drums = ("major", "minor")[int(rng.integers(2))], bool(rng.integers(2))
    tonic, tempo = int(rng.integers(12)), int(rng.integers(65, 170))
    scale, notes = SCALES[mode], []

    def pitch(degree: int, base: int) -> int:
        return base + tonic + 12 * (degree // 7) + scale[degree % 7]

    for bar in range(int(SECONDS * tempo / 60 / 4) + 1):
        root, start = CHORDS[mode][bar % 4], 4.0 * bar
        notes += [(start + 2 * half, 1.9, 1, pitch(root + step, 48), 55) for half in range(2) for step in (0, 2, 4)]
        notes += [(start + beat, 0.9, 2, pitch(root, 36), 80) for beat in (0, 2)]
        notes += melody(start, root, pitch, rng)
        if drums:
            notes += beat(start)
    return Piece(instrument, drums, tonic, mode, tempo, tuple(notes))


def melody(start: float, root: int, pitch, rng: np.random.Generator) -> list[Note]:
    """A bar of notes of one and half a beat, of the chord on whole beats."""
    notes, at = [], 0.0
    while at < 4:
        length = float(rng.choice([0.5, 1.0])) if at % 1 == 0 else 0.5
        degree = root + int(rng.choice([0, 2, 4, 7])) if at % 1 == 0 else root + int(rng.integers(8))
        notes.append((start + at, 0.95 * length, 0, pitch(degree, 60), 100))
        at += length
    return notes


def beat(start: float) -> list[Note]:
    kicks_and_snares = [(start + at, 0.2, DRUM_CHANNEL, SNARE if at % 2 else KICK, 100) for at in range(4)]
    return kicks_and_snares + [(start + at / 2, 0.2, DRUM_CHANNEL, HAT, 70) for at in range(8)]


def write_midi(piece: Piece, path: Path) -> None:
    """A MIDI file of format 0."""
    events = [(0, struct.pack(">BBB", 0xFF, 0x51, 3) + round(6e7 / piece.tempo_bpm).to_bytes(3, "big"))]
    programs = {0: PROGRAMS[piece.instrument], 1: CHORD_PROGRAM, 2: BASS_PROGRAM}
    events += [(0, bytes([0xC0 | channel, program])) for channel, program in programs.items()]
    for start, length, channel, pitch, velocity in piece.notes:
        events.append((round(start * TICKS), bytes([0x90 | channel, pitch, velocity])))
        events.append((round((start + length) * TICKS), bytes([0x80 | channel, pitch, 0])))
    track, now = b"", 0
    for tick, event in sorted(events, key=lambda each: each[0]):
        track, now = track + variable_length(tick - now) + event, tick
    track += b"\x00\xff\x2f\x00"
    path.write_bytes(b"MThd" + struct.pack(">IHHH", 6, 0, 1, TICKS) + b"MTrk" + struct.pack(">I", len(track)) + track)


def variable_length(number: int) -> bytes:
    digits = [number & 127]
    while number := number >> 7:
        digits.append(number & 127 | 128)
    return bytes(reversed(digits))


def render(piece: Piece, soundfont: str, folder: Path) -> np.ndarray:
    midi, wav = folder / "piece.mid", folder / "piece.wav"
    write_midi(piece, midi)
    subprocess.run(["fluidsynth", "-q", "-ni", "-r", "48000", "-F", wav, soundfont, midi], check=True, stdout=subprocess.DEVNULL)
    return audio.read(wav)[: SECONDS * SAMPLE_RATE_HZ]


def fit(corpus: str) -> Estimators:
    folder, rng = read_clips(corpus), np.random.default_rng(0)
    train = [clip for clip in with_ground_truth(folder) if clip.split == "train"]
    train = [train[i] for i in rng.permutation(len(train))[:1000].tolist()]
    waves = [audio.read(folder.path / clip.file_name)[: SECONDS * SAMPLE_RATE_HZ].copy() for clip in train]
    return fit_estimators(waves, [clip.attributes for clip in train], rng=rng)


def judge(piece: Piece, found: Estimate) -> dict[str, bool]:
    return {
        "lead instrument": found.instrument == piece.instrument,
        "drums or none": found.drums == piece.drums,
        "mode": found.mode == piece.mode,
        "key": (found.tonic, found.mode) == (piece.tonic, piece.mode),
        "key up to the relative": relative(found.tonic, found.mode) == relative(piece.tonic, piece.mode),
        "tempo within 6 %": same_tempo(found.tempo_bpm, piece.tempo_bpm),
        "  the same up to octave": same_tempo(found.tempo_bpm, piece.tempo_bpm, meter="4/4"),
    }


def relative(tonic: int, mode: str) -> int:
    """The tonic of the major key with the same notes."""
    return tonic if mode == "major" else (tonic + 3) % 12


def main(corpus: str, num_pieces: int = 40, soundfont: str = "/usr/share/sounds/sf2/FluidR3_GM.sf2") -> None:
    estimators, rng = fit(corpus), np.random.default_rng(0)
    pieces = [compose(number, rng) for number in range(num_pieces)]
    with tempfile.TemporaryDirectory() as folder:
        found = [estimators.estimate(render(piece, soundfont, Path(folder))) for piece in pieces]
    right = [judge(piece, estimate) for piece, estimate in zip(pieces, found)]
    print("| attribute | right |\n|---|---|")
    for name in right[0]:
        print(f"| {name} | {sum(each[name] for each in right)} of {num_pieces} |")
    print("\n| lead instrument | taken for |\n|---|---|")
    for instrument in INSTRUMENTS:
        print(f"| {instrument} | {', '.join(each.instrument for piece, each in zip(pieces, found) if piece.instrument == instrument)} |")
    print(json.dumps([{**dataclasses.asdict(each), "truth": [piece.tonic, piece.mode, piece.tempo_bpm, piece.drums]} for piece, each in zip(pieces, found)]))


if __name__ == "__main__":
    main(*(kind(value) for kind, value in zip((str, int, str), sys.argv[1:])))
