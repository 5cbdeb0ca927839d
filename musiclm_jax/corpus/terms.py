"""Musical terms that all corpora share: modes, keys, dynamics and tempo words."""

MODES = ("major", "minor")
DYNAMICS = ("soft", "medium", "loud")
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}

# Names by tonic (0 = C), spelled with the fewer accidentals.
KEY_NAMES = {
    "major": ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B"),
    "minor": ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B"),
}

# Tempo words: slow below 90 beats per minute, mid from 90 to 125, fast above.
SLOW_BELOW_BPM = 90
FAST_ABOVE_BPM = 125
TEMPO_BANDS = ("slow", "mid", "fast")


def tempo_band(tempo_bpm: int) -> str:
    if tempo_bpm < SLOW_BELOW_BPM:
        return "slow"
    return "mid" if tempo_bpm <= FAST_ABOVE_BPM else "fast"
