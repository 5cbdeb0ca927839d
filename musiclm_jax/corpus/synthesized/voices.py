"""Parameters of the instruments and drums that `synthesis.py` renders."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Layer:
    """Harmonics that share one envelope."""

    # Amplitudes of harmonics 1, 2, 3 ... of `ratio` times the pitch.
    harmonics: tuple[float, ...]
    # Time constant of the decay at 440 Hz, in seconds; longer for lower and shorter for higher pitches. inf: no decay.
    decay_sec: float = math.inf
    # Factor of the pitch, for detuned strings, sub-octaves and inharmonic partials.
    ratio: float = 1.0


@dataclasses.dataclass(frozen=True)
class Voice:
    layers: tuple[Layer, ...]
    # Lengths of the fade-in, and of the fade-out after the note's end.
    attack_sec: float
    release_sec: float
    # Share of the notated length that sounds. Below 1, successive notes are separated, as with wind and bowed instruments.
    gate: float = 1.0
    # Rate in Hz and depth as a fraction of the pitch; depth 0 is none.
    vibrato: tuple[float, float] = (0.0, 0.0)
    # Rate in Hz and depth as a fraction of the amplitude; depth 0 is none.
    tremolo: tuple[float, float] = (0.0, 0.0)
    # Level of steady breath or bow noise, relative to the harmonics.
    breath: float = 0.0
    # Level of the noise of hammer or finger at the onset.
    knock: float = 0.0
    # Resonances of the vocal tract, each (frequency in Hz, bandwidth in Hz, gain), which multiply the harmonics. Empty: none.
    formants: tuple[tuple[float, float, float], ...] = ()
    # Time constant with which the pitch glides from that of the note before, in seconds; 0 is no glide.
    glide_sec: float = 0.0


def _saw(num: int, power: float = 1.0) -> tuple[float, ...]:
    return tuple(n**-power for n in range(1, num + 1))


def _square(num: int) -> tuple[float, ...]:
    return tuple(n**-0.9 if n % 2 else 0.0 for n in range(1, num + 1))


def _pluck(first: int, last: int) -> tuple[float, ...]:
    """Harmonics first..last of a string plucked at a sixth of its length."""
    return tuple(abs(math.sin(math.pi * n / 6)) * n**-0.7 if first <= n <= last else 0.0 for n in range(1, last + 1))


VOICES = {
    "piano": Voice(
        layers=(
            Layer((1.0, 0.45, 0.18, 0.10, 0.05), decay_sec=0.9),
            Layer((0.0, 0.25, 0.30, 0.22, 0.20, 0.14, 0.10, 0.08), decay_sec=0.22, ratio=1.0008),
        ),
        attack_sec=0.003,
        release_sec=0.09,
        knock=0.5,
    ),
    "guitar": Voice(
        layers=(
            Layer(_pluck(1, 2), decay_sec=0.45),
            Layer(_pluck(3, 6), decay_sec=0.28, ratio=1.0004),
            Layer(_pluck(7, 18), decay_sec=0.12, ratio=1.001),
        ),
        attack_sec=0.002,
        release_sec=0.05,
        knock=0.25,
    ),
    "flute": Voice(
        layers=(Layer((1.0, 0.28, 0.08, 0.02)),),
        attack_sec=0.035,
        release_sec=0.06,
        gate=0.9,
        vibrato=(5.0, 0.005),
        tremolo=(5.0, 0.1),
        breath=0.06,
        knock=0.5,
    ),
    "strings": Voice(
        # Two detuned groups of players, and the attack of the bow.
        layers=(Layer(_saw(16, 0.9)), Layer(_saw(16, 0.9), ratio=1.003), Layer(_saw(12, 0.3), decay_sec=0.06)),
        attack_sec=0.045,
        release_sec=0.1,
        gate=0.88,
        vibrato=(5.6, 0.003),
        breath=0.01,
        knock=0.8,
    ),
    "organ": Voice(
        # The drawbars 16', 8', 5 1/3', 4', 2 2/3', 2' and 1' are harmonics of half the pitch.
        layers=(Layer((0.7, 1.0, 0.45, 0.7, 0.0, 0.45, 0.0, 0.5, *[0.0] * 7, 0.25), ratio=0.5),),
        attack_sec=0.008,
        release_sec=0.04,
        gate=0.92,
        tremolo=(6.6, 0.2),
        knock=0.1,
    ),
    "electric piano": Voice(
        layers=(
            Layer((1.0, 0.12), decay_sec=1.3),
            Layer((0.0, 0.3, 0.1), decay_sec=0.35),
            Layer((0.0,) * 6 + (0.22, 0.1), decay_sec=0.07),
        ),
        attack_sec=0.004,
        release_sec=0.1,
        tremolo=(5.2, 0.35),
    ),
    "bell": Voice(
        # The partials of a bar with free ends. The others decay much faster than the fundamental, so that the key is clear.
        layers=(
            Layer((1.0,), decay_sec=1.0),
            Layer((0.7,), decay_sec=0.3, ratio=2.756),
            Layer((0.5,), decay_sec=0.15, ratio=5.404),
        ),
        attack_sec=0.001,
        release_sec=0.35,
        knock=0.2,
    ),
    "synth lead": Voice(
        layers=(Layer(_square(19), ratio=1.002), Layer(_square(7)), Layer(_saw(20, 0.8), decay_sec=0.12)),
        attack_sec=0.006,
        release_sec=0.05,
        gate=0.92,
        vibrato=(6.0, 0.003),
    ),
    # A hum with closed lips, an octave below the written pitch: the murmur of the nose, and little above 1 kHz.
    "hum": Voice(
        layers=(Layer(_saw(24, 0.9), ratio=0.5),),
        attack_sec=0.05,
        release_sec=0.09,
        gate=0.94,
        vibrato=(5.1, 0.006),
        tremolo=(4.3, 0.1),
        breath=0.05,
        formants=((260.0, 120.0, 1.0), (1050.0, 250.0, 0.15), (2300.0, 400.0, 0.05)),
        glide_sec=0.035,
    ),
    # A whistle, an octave above the written pitch: nearly a sine.
    "whistle": Voice(
        layers=(Layer((1.0, 0.03, 0.01), ratio=2.0),),
        attack_sec=0.03,
        release_sec=0.05,
        gate=0.93,
        vibrato=(5.6, 0.012),
        tremolo=(5.6, 0.15),
        breath=0.06,
        glide_sec=0.02,
    ),
    "pad": Voice(
        layers=(Layer((1.0, 0.3, 0.12, 0.05)), Layer((1.0, 0.2), ratio=1.003)),
        attack_sec=0.06,
        release_sec=0.25,
    ),
    "bass": Voice(
        layers=(Layer((1.0, 0.5, 0.2, 0.08), decay_sec=0.5), Layer((0.0, 0.4, 0.4, 0.3, 0.2, 0.1), decay_sec=0.07)),
        attack_sec=0.004,
        release_sec=0.06,
    ),
}


@dataclasses.dataclass(frozen=True)
class Drum:
    # Length of the sound.
    length_sec: float
    # Tone of the drumhead: its frequency at the stroke and after it, in Hz, its level and its time constant of decay.
    skin_hz: tuple[float, float] = (0.0, 0.0)
    skin_level: float = 0.0
    skin_decay_sec: float = 0.1
    # Noise of snares or metal: its band in Hz, its level and its time constant of decay.
    noise_hz: tuple[float, float] = (1000.0, 5000.0)
    noise_level: float = 0.0
    noise_decay_sec: float = 0.05


DRUMS = {
    "kick": Drum(0.28, (150.0, 48.0), 1.0, 0.09, (800.0, 3000.0), 0.1, 0.006),
    "snare": Drum(0.22, (230.0, 180.0), 0.5, 0.05, (1200.0, 5000.0), 0.8, 0.06),
    "hat": Drum(0.09, noise_hz=(6000.0, 9000.0), noise_level=1.0, noise_decay_sec=0.025),
}
