"""Drum kits: percussion of General MIDI soundfonts, and recorded single strokes, which Debian's package sonic-pi-samples contains.

Of that package only recordings are used that its copyright file, and the README beside them, give as dedicated to the public domain (CC0). They are those
in `SHOTS`; NOTICE lists who made them.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from musiclm_jax.corpus.clip import SAMPLE_RATE_HZ, pick
from musiclm_jax.corpus.sampled import soundfonts
from musiclm_jax.corpus.sampled.soundfonts import PERCUSSION_BANK, Program, Tone, draw_soundfont
from musiclm_jax.errors import UserError

FOLDER = pathlib.Path("/usr/share/sonic-pi/samples")

# Keys of General MIDI's percussion map.
_KICKS, _SNARES, _CLAP = (35, 36), (38, 40), 39
_CLOSED_HATS, _OPEN_HAT = (42, 44), 46
_LOW_TOMS, _MID_TOMS, _HIGH_TOMS = (41, 43), (45, 47), (48, 50)
_CRASHES, _RIDES, _RIDE_BELL, _SPLASH, _COWBELL = (49, 57), (51, 59), 53, 55, 56

# key -> how loud a stroke with a peak of 1 is in a kit. 0.8 for all others.
_LEVELS = {
    **dict.fromkeys(_KICKS, 1.0),
    **dict.fromkeys(_SNARES, 0.9),
    _CLAP: 0.7,
    **dict.fromkeys((*_CLOSED_HATS, _RIDE_BELL), 0.35),
    **dict.fromkeys((_OPEN_HAT, *_RIDES, _COWBELL), 0.3),
    **dict.fromkeys((*_CRASHES, _SPLASH), 0.45),
}
# Strokes vary in level by so many dB, and an open hat is damped within so many seconds.
_VARIATION_DB, _DAMPING_SEC = 0.8, 0.012
# From this velocity on a stroke is hard.
_HARD_VELOCITY = 80


@dataclasses.dataclass(frozen=True)
class Kit:
    # Program of the bank of percussion that plays the keys which have no recordings.
    program: int = 0
    # key -> recordings of it, the soft one first; names of files without their suffix.
    shots: dict[int, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def _shots(kick: tuple[str, ...], snare: tuple[str, ...], closed: str, opened: str, **others: str) -> dict[int, tuple[str, ...]]:
    clap = {_CLAP: (others["clap"],)} if "clap" in others else {}
    return dict.fromkeys(_KICKS, kick) | dict.fromkeys(_SNARES, snare) | clap | {_CLOSED_HATS[0]: (closed,), _OPEN_HAT: (opened,)}


_ACOUSTIC = _shots(("drum_bass_soft", "drum_bass_hard"), ("drum_snare_soft", "drum_snare_hard"), "drum_cymbal_closed", "drum_cymbal_open") | {
    _CLOSED_HATS[1]: ("drum_cymbal_pedal",),
    **dict.fromkeys(_LOW_TOMS, ("drum_tom_lo_soft", "drum_tom_lo_hard")),
    **dict.fromkeys(_MID_TOMS, ("drum_tom_mid_soft", "drum_tom_mid_hard")),
    **dict.fromkeys(_HIGH_TOMS, ("drum_tom_hi_soft", "drum_tom_hi_hard")),
    **dict.fromkeys(_CRASHES, ("drum_splash_soft", "drum_splash_hard")),
    **dict.fromkeys(_RIDES, ("drum_cymbal_soft", "drum_cymbal_hard")),
    _RIDE_BELL: ("drum_cymbal_hard",),
    _SPLASH: ("drum_splash_soft",),
    _COWBELL: ("drum_cowbell",),
}
# A name in attributes.KITS -> kits of which one is drawn for each clip.
KITS = {
    "acoustic": (Kit(0), Kit(8), Kit(16), Kit(0, _ACOUSTIC)),
    "brushes": (Kit(40),),
    "electronic": (
        Kit(24),
        Kit(25),
        Kit(24, _shots(("bd_haus",), ("elec_hi_snare",), "drum_cymbal_closed", "elec_cymbal", clap="perc_snap")),
        Kit(24, _shots(("bd_tek",), ("sn_dub",), "drum_cymbal_pedal", "drum_cymbal_open", clap="perc_snap2")),
        Kit(25, _shots(("bd_klub",), ("elec_mid_snare",), "drum_cymbal_closed", "elec_cymbal", clap="perc_snap")),
    ),
    "hip hop": (
        Kit(25),
        Kit(25, _shots(("bd_boom",), ("sn_dolf",), "drum_cymbal_closed", "drum_cymbal_open", clap="perc_snap2")),
        Kit(25, _shots(("bd_fat",), ("sn_zome",), "drum_cymbal_pedal", "drum_cymbal_open", clap="perc_snap")),
        Kit(25, _shots(("drum_heavy_kick",), ("elec_snare",), "drum_cymbal_closed", "elec_cymbal", clap="perc_snap2")),
    ),
    "hand drums": (Kit(0),),
}
# Every recording that a kit uses.
SHOTS = tuple(sorted({name for kits in KITS.values() for kit in kits for names in kit.shots.values() for name in names}))
# For hand drums: the key of a drum kit -> that of a hand drum, which plays its strokes: congas, bongos, maracas, tambourine.
_BY_HAND = {
    **dict.fromkeys(_KICKS, 64),
    **dict.fromkeys(_SNARES, 63),
    37: 62,
    _CLAP: 39,
    **dict.fromkeys(_CLOSED_HATS, 70),
    **dict.fromkeys((_OPEN_HAT, *_RIDES, _RIDE_BELL, *_CRASHES, _SPLASH), 54),
    **dict.fromkeys((*_LOW_TOMS, *_MID_TOMS), 61),
    **dict.fromkeys(_HIGH_TOMS, 60),
}


def require() -> None:
    """Raises UserError if recordings of drums are missing."""
    for kit in (kit for kits in KITS.values() for kit in kits):
        for names in kit.shots.values():
            for name in names:
                _shot(name)


def render(tones: Sequence[Tone], name: str, *, num_samples: int, rng: np.random.Generator) -> Float[np.ndarray, " N"]:
    """Renders drums by one of KITS[name], float32 [num_samples] at 24 kHz. A soundfont plays the keys that have no recordings.

    Strokes are not ended; the next one of the same key ends them in a soundfont.

    Raises:
        UserError: a package is missing.
    """
    kit, soundfont = pick(KITS[name], rng), draw_soundfont(rng)
    if name == "hand drums":
        tones = [dataclasses.replace(tone, pitch=_BY_HAND.get(tone.pitch, tone.pitch)) for tone in tones]
    struck = [tone for tone in tones if tone.pitch in kit.shots]
    wave = _strike(struck, kit, num_samples=num_samples, rng=rng)
    if len(struck) < len(tones):
        others = [dataclasses.replace(tone, end_sec=np.inf) for tone in tones if tone.pitch not in kit.shots]
        wave += soundfonts.render(others, Program(soundfont, kit.program, PERCUSSION_BANK), num_samples=num_samples)
    return wave


def _strike(tones: Sequence[Tone], kit: Kit, *, num_samples: int, rng: np.random.Generator) -> Float[np.ndarray, " N"]:
    """Adds recordings of strokes. A closed hat, and the next open one, damp an open hat."""
    wave = np.zeros(num_samples, np.float32)
    tones = sorted(tones, key=lambda tone: tone.start_sec)
    hats = np.array([tone.start_sec for tone in tones if tone.pitch in (*_CLOSED_HATS, _OPEN_HAT)])
    for tone, variation_db in zip(tones, rng.normal(0.0, _VARIATION_DB, len(tones))):
        start = round(tone.start_sec * SAMPLE_RATE_HZ)
        names = kit.shots[tone.pitch]
        shot = _shot(names[-1] if tone.velocity >= _HARD_VELOCITY else names[0])
        if tone.pitch == _OPEN_HAT and (later := hats[hats > tone.start_sec]).size:
            shot = _damped(shot, round(later[0] * SAMPLE_RATE_HZ) - start)
        shot = shot[: max(0, num_samples - start)]
        # As in MIDI, the level in dB falls with 40 times the logarithm of the velocity.
        gain = _LEVELS.get(tone.pitch, 0.8) * (tone.velocity / 127) ** 2 * 10 ** (variation_db / 20)
        wave[start : start + len(shot)] += np.float32(gain) * shot
    return wave


def _damped(shot: Float[np.ndarray, " N"], num: int) -> Float[np.ndarray, " M"]:
    """The beginning of a stroke, which fades out from sample `num` on."""
    fade = np.linspace(1, 0, round(_DAMPING_SEC * SAMPLE_RATE_HZ), dtype=np.float32)
    shot = shot[: num + len(fade)].copy()
    rest = len(shot) - num
    if rest > 0:
        shot[num:] *= fade[:rest]
    return shot


@functools.cache
def _shot(name: str) -> Float[np.ndarray, " N"]:
    """A recorded stroke, float32 mono at 24 kHz, with a peak of 1."""
    path = FOLDER / f"{name}.flac"
    if not path.exists():
        raise UserError(f"{path} is missing, which drums of sampled instruments need; install it with: apt-get install sonic-pi-samples")
    wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    wave = soxr.resample(wave.mean(axis=1), rate, SAMPLE_RATE_HZ)
    return wave / np.abs(wave).max()
