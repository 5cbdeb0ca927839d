"""Chords: found for a tune, or drawn as a progression on which a melody is composed."""

import functools
import re

import numpy as np

from musiclm_jax.corpus.clip import pick
from musiclm_jax.corpus.sampled.bars import TICKS, Chord, Meter, Section

_DEGREES = {"I": 0, "II": 2, "III": 4, "IV": 5, "V": 7, "VI": 9, "VII": 11}
_TRIADS = {"major": (0, 4, 7), "minor": (0, 3, 7), "diminished": (0, 3, 6)}

# Progressions of four bars, by what they are for, mode and whether they close on the tonic. Two chords of a bar are joined by "-".
PROGRESSIONS = {
    "pop": {
        "major": (("I V vi IV", "I vi IV V", "I IV vi V", "I iii IV V"), ("I V IV I", "IV V vi-V I", "IV I V I", "I vi IV-V I", "vi IV V I")),
        "minor": (("i bVI bIII bVII", "i iv bVI V", "i bVII bVI V", "i bVI iv V", "i bIII bVII iv"), ("bVI bVII i i", "iv V i i", "i bVI V i", "bVI iv V i")),
    },
    "rock": {
        "major": (("I IV I V", "I V IV V", "I I IV V", "I vi IV V"), ("IV V I I", "I IV V I", "IV I V I")),
        "minor": (("i bVII bVI bVII", "i bIII bVII iv", "i i bVI bVII", "i bVI bVII V"), ("bVI bVII i i", "iv V i i", "i bVII V i")),
    },
    "loop": {
        "major": (("I vi IV V", "I IV I V", "I V vi IV", "I ii IV V"), ("I vi IV-V I", "IV V I I", "ii V I I")),
        "minor": (("i i bVI bVII", "i iv i V", "i bVI bVII v", "i i iv v", "i bIII iv bVI"), ("i bVI bVII i", "i iv V i", "bVI V i i")),
    },
    "folk": {
        "major": (("I IV I V", "I I V V", "I V I V", "I IV-I V V", "I vi IV V"), ("I IV V I", "I IV I-V I", "IV I V I", "I V-V7 I I")),
        "minor": (("i bVII i V", "i i bVII V", "i iv i V", "i bIII bVII V"), ("i bVII V i", "iv i V i", "i bVI-V i i", "i iv V i")),
    },
    "classical": {
        "major": (("I V I V", "I IV ii V", "I vi ii V", "I I-IV V V7", "I V vi iii-V"), ("I IV I-V7 I", "ii V7 I I", "vi ii V7 I", "IV ii-V7 I I")),
        "minor": (("i V i V", "i iv ii° V", "i bVI iv V", "i i-iv V V7"), ("i iv i-V7 i", "ii° V7 i i", "bVI iv V7 i", "iv V7 i i")),
    },
    "modal": {
        "major": (("I IV I V", "I iii IV V", "I V IV IV", "I ii vi V"), ("IV V I I", "IV ii I I", "I IV V I")),
        "minor": (("i bVI bIII bVII", "i i bVI bVI", "i bIII bVI v", "i iv bVI bVII"), ("bVI bVII i i", "iv bVI i i", "iv V i i")),
    },
    "jazz": {
        "major": (
            ("I vi ii V7", "I vi-ii V7 V7", "I iii ii V7", "I IV ii V7", "ii V7 I vi-V7"),
            ("ii V7 I I", "ii-V7 I-vi ii-V7 I", "IV ii V7 I", "vi ii V7 I"),
        ),
        "minor": (("i bVI ii° V7", "i iv ii° V7", "i bIII bVI V7", "i i-iv ii° V7"), ("ii° V7 i i", "iv V7 i i", "i bVI-V7 i i", "bVI ii°-V7 i i")),
    },
    "blues": {
        "major": (("I7 IV7 I7 I7", "I7 I7 I7 I7", "IV7 IV7 I7 I7", "I7 V7 IV7 IV7"), ("V7 IV7 I7 I7", "ii V7 I7 I7", "I7 V7 I7 I7")),
        "minor": (("i iv i i", "i i i i", "iv iv i i", "i bVI iv V7"), ("bVI V7 i i", "iv V7 i i", "i V7 i i")),
    },
}
# Chords that are tried for a tune, with the cost of each, in the cost of one beat that no chord tone has.
_CANDIDATES = {
    "major": {"I": 0.05, "V": 0.0, "IV": 0.0, "V7": 0.05, "ii": 0.15, "vi": 0.15, "iii": 0.6},
    "minor": {"i": 0.05, "V": 0.0, "iv": 0.0, "V7": 0.1, "bVI": 0.15, "bVII": 0.3, "bIII": 0.3, "ii°": 0.6},
}
_COMMON = frozenset(
    "I-IV I-V I-vi I-ii IV-V IV-I IV-V7 IV-ii V-I V-vi V7-I V7-vi ii-V ii-V7 vi-ii vi-IV vi-V iii-vi iii-IV I-V7 V-V7 "
    "i-iv i-V i-bVI i-bVII i-bIII iv-V iv-V7 iv-i V-i V-bVI V7-i bVI-bVII bVI-V bVI-iv bVII-i bVII-bIII bIII-bVI bIII-iv bIII-bVII ii°-V ii°-V7 i-V7".split()
)
_CHANGE, _RARE_CHANGE, _MID_BAR_CHANGE = 0.12, 0.5, 0.3
# Weight of notes at the start of a slot, on beats, and between them.
_FIRST, _ON_BEAT, _BETWEEN = 1.5, 1.0, 0.6
_FAR = 100.0


@functools.cache
def chord(name: str) -> Chord:
    """A chord by its Roman numeral: V7 is a dominant seventh, bVI a major triad on the lowered sixth, ii° a diminished triad."""
    flat, numeral, suffix = re.fullmatch(r"(b?)([IViv]+)(7|°)?", name).groups()
    quality = "diminished" if suffix == "°" else "major" if numeral.isupper() else "minor"
    tones = _TRIADS[quality] + ((10,) if suffix == "7" else ())
    return Chord(root=(_DEGREES[numeral.upper()] - len(flat)) % 12, tones=tones)


def add_seventh(triad: Chord) -> Chord:
    """A dominant seventh on the dominant, else the seventh of the scale, as far as the third says which that is."""
    if len(triad.tones) > 3:
        return triad
    major = triad.tones[1] == 4
    return Chord(root=triad.root, tones=(*triad.tones, 11 if major and triad.root not in (7, 10) else 10))


def find_chords(section: Section, meter: Meter, mode: str, *, calm: float = 1.0) -> tuple[Chord, ...]:
    """The chords that fit a melody best, one for each slot of the meter: the shortest path over chords, with a cadence at the end (Viterbi).

    calm: factor on the costs of changes. Less gives more chords.
    """
    names = list(_CANDIDATES[mode])
    costs = np.array([[_misfit(chord(name), weights) + _CANDIDATES[mode][name] for name in names] for weights in _slot_weights(section, meter)])
    tonic, dominants = 0, [names.index("V"), names.index("V7")]
    last = section.melody[-1].pitch % 12
    costs[0, tonic] -= 0.4
    if last in chord(names[tonic]).classes:
        costs[-1, 1:] += _FAR if last == 0 else 0.5
        costs[-2, dominants] -= 0.4
    else:
        costs[-1, dominants] -= 0.4
    change = np.array([[0.0 if a == b else _CHANGE if f"{a}-{b}" in _COMMON else _RARE_CHANGE for b in names] for a in names])
    change, slots = calm * change, meter.bar // meter.slot
    paths, total = [], costs[0]
    for slot, cost in enumerate(costs[1:], 1):
        steps = total[:, None] + change + (calm * _MID_BAR_CHANGE * (change > 0) if slot % slots else 0.0)
        paths.append(steps.argmin(axis=0))
        total = steps.min(axis=0) + cost
    path = [int(total.argmin())]
    for best in reversed(paths):
        path.append(int(best[path[-1]]))
    return tuple(chord(names[index]) for index in reversed(path))


def draw_chords(kind: str, mode: str, bars: int, meter: Meter, rng: np.random.Generator) -> tuple[Chord, ...]:
    """A progression of 4 or 8 bars, or more, that closes on the tonic."""
    openings, closings = PROGRESSIONS[kind][mode]
    parts = [*(pick(openings, rng) for _ in range(max(1, bars // 4 - 1))), pick(closings, rng)]
    slots = meter.bar // meter.slot
    chords = []
    for bar in " ".join(parts if bars > 4 else parts[-1:]).split():
        names = bar.split("-")
        chords += [chord(names[min(slot * len(names) // slots, len(names) - 1)]) for slot in range(slots)]
    return tuple(chords)


def _slot_weights(section: Section, meter: Meter) -> np.ndarray:
    """Weights in beats of the twelve pitch classes in each slot. Notes on beats weigh more."""
    weights = np.zeros((section.bars * meter.bar // meter.slot, 12))
    for tone in section.melody:
        accent = _FIRST if tone.tick % meter.slot == 0 else _ON_BEAT if tone.tick % TICKS == 0 else _BETWEEN
        for slot in range(max(0, tone.tick // meter.slot), min(len(weights), -(-tone.end // meter.slot))):
            shared = min(tone.end, (slot + 1) * meter.slot) - max(tone.tick, slot * meter.slot)
            weights[slot, tone.pitch % 12] += max(0, shared) / TICKS * accent
    return weights


def _misfit(candidate: Chord, weights: np.ndarray) -> float:
    inside = sum(weights[pitch] for pitch in candidate.classes)
    return float(weights.sum() - inside - 0.15 * weights[candidate.root])
