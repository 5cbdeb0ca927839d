"""The ground truth of a clip of the sampled corpus."""

import dataclasses

# The names of styles. What each plays is in `styles`.
STYLES = (
    "ballad",
    "ambient",
    "lo-fi",
    "march",
    "folk",
    "waltz",
    "house",
    "techno",
    "rock",
    "pop",
    "jazz",
    "bossa nova",
    "reggae",
    "blues",
    "country",
    "classical",
    "hip hop",
    "funk",
    "cinematic",
    "celtic",
)
KITS = ("acoustic", "brushes", "electronic", "hip hop", "hand drums")
ROOMS = ("dry", "room", "hall")
COLOURS = ("clean", "tape", "vinyl", "phone")
# Parts of a clip. The lead is one stem and all the others are the band.
PARTS = ("lead", "counter", "chords", "pad", "bass", "drums")


@dataclasses.dataclass(frozen=True)
class Attributes:
    """What a clip is, as written to the metadata."""

    # Lead instrument, a name in instruments.LEADS, and its family.
    instrument: str
    family: str
    tempo_bpm: int
    # slow, mid or fast, as in the synthesized corpus.
    tempo: str
    # 4/4, 3/4 or 6/8. In 6/8 the tempo counts dotted quarters.
    meter: str
    # "A minor"; tonic: 0 is C; mode: major or minor.
    key: str
    tonic: int
    mode: str
    drums: bool
    # A name in KITS; empty without drums.
    kit: str
    style: str
    # soft, medium or loud.
    dynamics: str
    # Instruments of the other parts; empty where there is none.
    bass: str
    chords: str
    pad: str
    counter: str
    # straight or swing.
    feel: str
    # sustained, flowing or busy: how many notes the melody has in a second.
    density: str
    # legato or staccato.
    articulation: str
    room: str
    colour: str
    # The sections of the clip in order, of intro, verse, chorus, break and ending.
    form: tuple[str, ...]
    # The collection and title of a tune by people, "o'neill: The Open Window"; empty for a composed one.
    tune: str

    @property
    def ends(self) -> bool:
        """Whether the piece ends by itself."""
        return self.form[-1] == "ending"

    @property
    def solo(self) -> bool:
        """Whether the lead instrument alone plays."""
        return not (self.drums or self.bass or self.pad or self.counter) and self.chords in ("", self.instrument)
