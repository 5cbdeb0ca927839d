"""The instruments as tables of numbers: what `synthesis.py` renders."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Layer:
    """Harmonics that share one envelope."""

    # Amplitudes of harmonics 1, 2, 3 ... of `ratio` times the pitch.
    harmonics: tuple[float, ...]
    # Seconds to fall by 1/e at 440 Hz (longer below, shorter above); inf sustains.
    decay_sec: float = math.inf
    # Multiplies the pitch: detuned strings, sub-octaves, inharmonic partials.
    ratio: float = 1.0


@dataclasses.dataclass(frozen=True)
class Voice:
    layers: tuple[Layer, ...]
    # Fade in, and fade out once the note is let go.
    attack_sec: float
    release_sec: float
    # Share of the written length that is held: blown and bowed notes are tongued apart.
    gate: float = 1.0
    # Rate in Hz and depth as a fraction of the pitch; depth 0 is none.
    vibrato: tuple[float, float] = (0.0, 0.0)
    # Rate in Hz and depth as a fraction of the amplitude; depth 0 is none.
    tremolo: tuple[float, float] = (0.0, 0.0)
    # Steady breath or bow noise beside the tone, as a fraction of it.
    breath: float = 0.0
    # Noise of the hammer or finger at the onset.
    knock: float = 0.0


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
        # Two desks, and the bite of the bow.
        layers=(Layer(_saw(16, 0.9)), Layer(_saw(16, 0.9), ratio=1.003), Layer(_saw(12, 0.3), decay_sec=0.06)),
        attack_sec=0.045,
        release_sec=0.1,
        gate=0.88,
        vibrato=(5.6, 0.003),
        breath=0.01,
        knock=0.8,
    ),
    "organ": Voice(
        # Drawbars: sixteen foot at half the pitch, then 8', 5 1/3', 4', 2 2/3', 2' and 1' as its harmonics.
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
        # The partials of a free bar; only the fundamental lasts, so the key stays clear.
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
    # Seconds until silence.
    length_sec: float
    # Pitch of the skin at the stroke and at rest in Hz, its level and its decay.
    skin_hz: tuple[float, float] = (0.0, 0.0)
    skin_level: float = 0.0
    skin_decay_sec: float = 0.1
    # Rattle and metal: band of the noise in Hz, its level and its decay.
    noise_hz: tuple[float, float] = (1000.0, 5000.0)
    noise_level: float = 0.0
    noise_decay_sec: float = 0.05


DRUMS = {
    "kick": Drum(0.28, (150.0, 48.0), 1.0, 0.09, (800.0, 3000.0), 0.1, 0.006),
    "snare": Drum(0.22, (230.0, 180.0), 0.5, 0.05, (1200.0, 5000.0), 0.8, 0.06),
    "hat": Drum(0.09, noise_hz=(6000.0, 9000.0), noise_level=1.0, noise_decay_sec=0.025),
}
