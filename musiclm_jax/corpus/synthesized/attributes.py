"""The attributes and the split of a clip, and how both are drawn.

Clip `index` belongs to the test split if `index % 10 == 9`. Lead instrument (probability 1/8 each), mode (1/2) and drums (0.55) are drawn independently,
so that the chance levels of classifiers are known. Two kinds of combinations are reserved for the test split: every test clip has one of them, and no
training clip does.

* `RESERVED_STYLES`: one style for each lead instrument.
* `RESERVED_CELLS`: one combination of tempo band, drums and dynamics for each lead instrument.

No reserved combination includes the mode. If other attributes predicted the mode in the training split, even in a few combinations, a model would learn
it from them instead of from the key, and would fail on the test clips for that reason.
"""

import dataclasses

import numpy as np

from musiclm_jax.corpus.clip import Split
from musiclm_jax.corpus.terms import DYNAMICS, FAST_ABOVE_BPM, KEY_NAMES, MODES, SLOW_BELOW_BPM, tempo_band

INSTRUMENTS = ("piano", "guitar", "flute", "strings", "organ", "electric piano", "bell", "synth lead")
# Families of the sampled corpus that are not instruments here -> the nearest lead instrument.
NEAREST_INSTRUMENTS = {"mallets": "bell", "plucked": "guitar", "woodwind": "flute", "brass": "synth lead", "synth": "synth lead", "voice": "strings"}
DRUMS_RATE = 0.55

_BAND_BPM = {
    "slow": (0, SLOW_BELOW_BPM - 1),
    "mid": (SLOW_BELOW_BPM, FAST_ABOVE_BPM),
    "fast": (FAST_ABOVE_BPM + 1, 999),
}


@dataclasses.dataclass(frozen=True)
class Style:
    # Slowest and fastest tempo in beats per minute, both inclusive.
    tempo_bpm: tuple[int, int]
    # Probability of 3/4 time; all other clips are in 4/4.
    triple_rate: float
    # Accompaniment figures, keys of compose.FIGURES, of which one is drawn.
    figures: tuple[str, ...]


STYLES = {
    "ballad": Style(tempo_bpm=(62, 100), triple_rate=0.25, figures=("arpeggio", "halves")),
    "ambient": Style(tempo_bpm=(60, 90), triple_rate=0.0, figures=("sustained", "halves")),
    "lo-fi": Style(tempo_bpm=(68, 98), triple_rate=0.0, figures=("halves", "beats")),
    "march": Style(tempo_bpm=(90, 128), triple_rate=0.0, figures=("oompah", "beats")),
    "folk": Style(tempo_bpm=(90, 150), triple_rate=0.4, figures=("arpeggio", "oompah")),
    "waltz": Style(tempo_bpm=(84, 168), triple_rate=1.0, figures=("oompah",)),
    "dance": Style(tempo_bpm=(112, 152), triple_rate=0.0, figures=("offbeats", "beats")),
    "rock": Style(tempo_bpm=(116, 170), triple_rate=0.0, figures=("beats", "halves")),
}

RESERVED_STYLES = {
    "piano": "march",
    "guitar": "waltz",
    "flute": "dance",
    "strings": "lo-fi",
    "organ": "folk",
    "electric piano": "rock",
    "bell": "ballad",
    "synth lead": "ambient",
}

# instrument -> (tempo band, drums, dynamics).
RESERVED_CELLS = {
    "piano": ("fast", True, "soft"),
    "guitar": ("slow", False, "loud"),
    "flute": ("mid", True, "loud"),
    "strings": ("fast", False, "soft"),
    "organ": ("slow", True, "soft"),
    "electric piano": ("mid", False, "loud"),
    "bell": ("fast", True, "loud"),
    "synth lead": ("mid", False, "soft"),
}


@dataclasses.dataclass(frozen=True)
class Attributes:
    """The ground truth of one clip, as written to the metadata."""

    instrument: str
    tempo_bpm: int
    tempo: str
    meter: str
    key: str
    tonic: int
    mode: str
    drums: bool
    style: str
    dynamics: str
    bass: bool
    accompaniment: str

    @property
    def beats_per_bar(self) -> int:
        return int(self.meter[0])

    @property
    def solo(self) -> bool:
        """Whether the lead instrument alone plays."""
        return not self.drums and not self.bass and self.accompaniment == self.instrument


def is_reserved(*, instrument: str, style: str, tempo: str, drums: bool, dynamics: str) -> bool:
    """Whether this combination is reserved for the test split."""
    return style == RESERVED_STYLES[instrument] or (tempo, drums, dynamics) == RESERVED_CELLS[instrument]


def draw_attributes(*, split: Split, rng: np.random.Generator) -> Attributes:
    """Draws the attributes of one clip: a combination that is never reserved in the training split and always reserved in the test split."""
    instrument = str(rng.choice(INSTRUMENTS))
    cell = RESERVED_CELLS[instrument]
    by_style = split == "test" and rng.random() < 0.5
    by_cell = split == "test" and not by_style
    style = RESERVED_STYLES[instrument] if by_style else _draw_style(instrument, cell[0] if by_cell else None, rng)
    low, high = STYLES[style].tempo_bpm
    if by_cell:
        low, high = max(low, _BAND_BPM[cell[0]][0]), min(high, _BAND_BPM[cell[0]][1])
    tempo_bpm = int(rng.integers(low, high + 1))
    mode = str(rng.choice(MODES))
    drums = bool(rng.random() < DRUMS_RATE)
    dynamics = str(rng.choice(DYNAMICS))
    if by_cell:
        _, drums, dynamics = cell
    elif split == "train" and (tempo_band(tempo_bpm), drums, dynamics) == cell:
        dynamics = str(rng.choice([other for other in DYNAMICS if other != dynamics]))

    tonic = int(rng.integers(12))
    return Attributes(
        instrument=instrument,
        tempo_bpm=tempo_bpm,
        tempo=tempo_band(tempo_bpm),
        meter="3/4" if rng.random() < STYLES[style].triple_rate else "4/4",
        key=f"{KEY_NAMES[mode][tonic]} {mode}",
        tonic=tonic,
        mode=mode,
        drums=drums,
        style=style,
        dynamics=dynamics,
        bass=bool(rng.random() < 0.75),
        accompaniment=instrument if rng.random() < 0.6 else "pad",
    )


def _draw_style(instrument: str, band: str | None, rng: np.random.Generator) -> str:
    """Draws a style that is not reserved for the instrument and, if `band` is given, has tempi within that tempo band."""
    names = [name for name in STYLES if name != RESERVED_STYLES[instrument]]
    if band is not None:
        low, high = _BAND_BPM[band]
        names = [name for name in names if STYLES[name].tempo_bpm[0] <= high and STYLES[name].tempo_bpm[1] >= low]
    return str(rng.choice(names))
