"""The instruments of the sampled corpus: families, General MIDI programs and ranges."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Instrument:
    # A name in FAMILIES.
    family: str
    # General MIDI programs, counted from 0, of which one is drawn for each clip.
    programs: tuple[int, ...]
    # Lowest and highest MIDI pitch of a melody.
    low: int
    high: int
    # Relative frequency as a lead; 0 for instruments that never lead.
    weight: float = 1.0
    # Whether it can play chords.
    chords: bool = False


FAMILIES = ("piano", "electric piano", "organ", "mallets", "guitar", "plucked", "strings", "brass", "woodwind", "voice", "synth", "bass")

INSTRUMENTS = {
    "piano": Instrument("piano", (0, 1), 55, 88, 5.0, chords=True),
    "honky-tonk piano": Instrument("piano", (3,), 55, 86, 0.5, chords=True),
    "harpsichord": Instrument("piano", (6,), 53, 84, 0.7, chords=True),
    "electric piano": Instrument("electric piano", (4, 5), 52, 84, 3.0, chords=True),
    "organ": Instrument("organ", (16, 17), 52, 84, 1.5, chords=True),
    "church organ": Instrument("organ", (19,), 48, 84, 1.0, chords=True),
    "accordion": Instrument("organ", (21,), 55, 84, 1.0, chords=True),
    "harmonica": Instrument("organ", (22,), 60, 86, 0.7),
    "glockenspiel": Instrument("mallets", (9,), 72, 96, 0.8),
    "music box": Instrument("mallets", (10, 8), 65, 93, 0.8),
    "vibraphone": Instrument("mallets", (11,), 55, 86, 1.0, chords=True),
    "marimba": Instrument("mallets", (12,), 50, 86, 1.0),
    "xylophone": Instrument("mallets", (13,), 65, 96, 0.5),
    "tubular bells": Instrument("mallets", (14,), 60, 79, 0.4),
    "acoustic guitar": Instrument("guitar", (24, 25), 47, 79, 4.0, chords=True),
    "electric guitar": Instrument("guitar", (26, 27), 47, 81, 2.0, chords=True),
    "distorted guitar": Instrument("guitar", (29, 30), 45, 81, 1.2, chords=True),
    "banjo": Instrument("plucked", (105,), 50, 79, 0.8, chords=True),
    "harp": Instrument("plucked", (46,), 50, 84, 1.2, chords=True),
    "sitar": Instrument("plucked", (104,), 48, 76, 0.6),
    "koto": Instrument("plucked", (107,), 52, 82, 0.6),
    "kalimba": Instrument("plucked", (108,), 55, 84, 0.6),
    "violin": Instrument("strings", (40,), 57, 91, 1.5),
    "cello": Instrument("strings", (42,), 41, 69, 1.2),
    "strings": Instrument("strings", (48, 49), 52, 86, 2.5, chords=True),
    "pizzicato strings": Instrument("strings", (45,), 48, 84, 0.7, chords=True),
    "trumpet": Instrument("brass", (56,), 55, 82, 1.2),
    "trombone": Instrument("brass", (57,), 43, 69, 0.7),
    "french horn": Instrument("brass", (60,), 46, 74, 0.7),
    "brass section": Instrument("brass", (61,), 50, 79, 1.0, chords=True),
    "flute": Instrument("woodwind", (73,), 62, 91, 2.5),
    "pan flute": Instrument("woodwind", (75,), 60, 86, 0.5),
    "recorder": Instrument("woodwind", (74,), 62, 88, 0.5),
    "clarinet": Instrument("woodwind", (71,), 52, 84, 1.0),
    "oboe": Instrument("woodwind", (68,), 60, 86, 0.8),
    "saxophone": Instrument("woodwind", (65, 66), 48, 79, 1.5),
    "bagpipe": Instrument("woodwind", (109,), 57, 74, 0.3),
    "choir": Instrument("voice", (52,), 48, 77, 1.0, chords=True),
    "voice": Instrument("voice", (53,), 52, 79, 1.0),
    "synth lead": Instrument("synth", (80, 81, 87), 52, 84, 2.0),
    "synth pad": Instrument("synth", (88, 89, 90, 94), 48, 79, 0.7, chords=True),
    "acoustic bass": Instrument("bass", (32,), 28, 52, 0.0),
    "electric bass": Instrument("bass", (33, 34, 35), 28, 52, 0.0),
    "synth bass": Instrument("bass", (38, 39), 28, 52, 0.0),
    "tuba": Instrument("brass", (58,), 28, 55, 0.2),
}
LEADS = tuple(name for name, instrument in INSTRUMENTS.items() if instrument.weight)
