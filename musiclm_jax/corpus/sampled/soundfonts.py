"""Renders the notes of one part by FluidSynth with a General MIDI soundfont, to 24 kHz mono.

The soundfonts are loaded once in a process. Each part has a fresh synthesizer, which borrows them: a reset one would still have traces of what it played
before, and a clip would depend on them.
"""

import ctypes
import dataclasses
import functools
import itertools
import os
import types
from collections.abc import Sequence

import numpy as np
import soxr
from jaxtyping import Float

from musiclm_jax.corpus.clip import SAMPLE_RATE_HZ, pick
from musiclm_jax.errors import UserError

# FluidSynth's filters do not keep notes that are played above their recorded pitch from aliasing: at this rate, what aliases is above the band.
_SYNTH_RATE_HZ = 48000
# FluidSynth starts and stops notes at blocks of so many samples, 1.3 ms.
_BLOCK = 64
# Gain of the synthesizer, with which a stroke of a drum has a peak as high as recorded ones in `kits`. Samples are float: none clips.
_GAIN = 1.5
# Notes that sound at once. More would only let instruments that ring for many seconds do so below -50 dB, and take twice the time for a harp.
_VOICES = 32
_WARNING, _INFO = 2, 3  # FluidSynth's levels of logging.
PERCUSSION_BANK = 128


@dataclasses.dataclass(frozen=True)
class Soundfont:
    path: str
    # Debian's package of it.
    package: str


SOUNDFONTS = {
    "FluidR3": Soundfont("/usr/share/sounds/sf2/FluidR3_GM.sf2", "fluid-soundfont-gm"),
    "MuseScore": Soundfont("/usr/share/sounds/sf3/MuseScore_General_Full.sf3", "musescore-general-soundfont"),
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A sound: a program of a bank of one of SOUNDFONTS."""

    soundfont: str
    number: int
    bank: int = 0


@dataclasses.dataclass(frozen=True)
class Tone:
    """A note as MIDI knows it."""

    pitch: int
    start_sec: float
    end_sec: float
    # 1 to 127.
    velocity: int


def draw_soundfont(rng: np.random.Generator) -> str:
    """A name in SOUNDFONTS."""
    return pick(tuple(SOUNDFONTS), rng)


def render(tones: Sequence[Tone], program: Program, *, num_samples: int) -> Float[np.ndarray, " N"]:
    """Renders a part, float32 [num_samples] at 24 kHz: the mean of left and right, without reverberation and chorus.

    Notes start within 1.3 ms. The samples depend on the arguments alone.

    Raises:
        UserError: pyfluidsynth, FluidSynth or the soundfont is missing.
    """
    api, font = _api(), _load(program.soundfont)
    # [2, blocks * _BLOCK]
    stereo = np.zeros((2, -(-num_samples * _SYNTH_RATE_HZ // SAMPLE_RATE_HZ // _BLOCK) * _BLOCK), np.float32)
    synth = _synth(api)
    try:
        number = api.add_sfont(synth.synth, font)
        synth.program_select(0, number, program.bank, program.number)
        done = 0
        for block, events in itertools.groupby(_events(tones), key=lambda event: event[0]):
            done = _write(api, synth, stereo, done, min(block * _BLOCK, stereo.shape[1]))
            for _, velocity, pitch in events:
                synth.noteon(0, pitch, velocity) if velocity else synth.noteoff(0, pitch)
        _write(api, synth, stereo, done, stereo.shape[1])
    finally:
        api.remove_sfont(synth.synth, font)
        synth.delete()
    return soxr.resample(stereo.mean(axis=0), _SYNTH_RATE_HZ, SAMPLE_RATE_HZ)[:num_samples]


def _events(tones: Sequence[Tone]) -> list[tuple[int, int, int]]:
    """(block, velocity, pitch) of starts, and of ends with a velocity of 0, in order. A tone ends at the latest where the next one of its pitch starts."""
    block = lambda sec: round(sec * _SYNTH_RATE_HZ / _BLOCK)  # noqa: E731
    events, next_start = [], {}
    for tone in sorted(tones, key=lambda tone: (-tone.start_sec, -tone.velocity)):
        start = block(tone.start_sec)
        end = max(start + 1, block(tone.end_sec)) if np.isfinite(tone.end_sec) else None
        after = next_start.get(tone.pitch)
        if after == start:
            continue  # The louder of two equal strokes.
        if end is not None or after is not None:
            events.append((min(each for each in (end, after) if each is not None), 0, tone.pitch))
        events.append((start, tone.velocity, tone.pitch))
        next_start[tone.pitch] = start
    return sorted(events)


def _write(api: types.SimpleNamespace, synth, stereo: Float[np.ndarray, "2 N"], start: int, stop: int) -> int:
    """Renders samples `start` to `stop` of both channels. Returns `stop`."""
    if stop > start:
        left, right = (channel.ctypes.data_as(ctypes.c_void_p) for channel in stereo)
        api.write_float(synth.synth, stop - start, left, start, 1, right, start, 1)
    return max(start, stop)


def _synth(api: types.SimpleNamespace):
    synth = api.module.Synth(gain=_GAIN, samplerate=float(_SYNTH_RATE_HZ), channels=16)
    synth.setting("synth.polyphony", _VOICES)
    synth.setting("synth.reverb.active", 0)
    synth.setting("synth.chorus.active", 0)
    return synth


def require() -> None:
    """Raises UserError if FluidSynth or a soundfont is missing. Loads none, which takes seconds."""
    _api()
    for soundfont in SOUNDFONTS.values():
        _check_exists(soundfont)


def _check_exists(soundfont: Soundfont) -> None:
    if not os.path.exists(soundfont.path):
        raise UserError(f"{soundfont.path} is missing, which sampled instruments need; install it with: apt-get install {soundfont.package}")


@functools.cache
def _load(name: str) -> int:
    """The address of a soundfont in memory. The synthesizer that loaded it is never deleted, for it would delete the soundfont, too."""
    soundfont, api = SOUNDFONTS[name], _api()
    _check_exists(soundfont)
    synth = _synth(api)
    number = synth.sfload(soundfont.path)
    if number < 0:
        raise UserError(f"{soundfont.path} is no soundfont that FluidSynth reads; install it again with: apt-get install --reinstall {soundfont.package}")
    return api.module.fluid_synth_get_sfont_by_id(synth.synth, number)


@functools.cache
def _api() -> types.SimpleNamespace:
    """pyfluidsynth's module, and the functions of FluidSynth that it lacks: soundfonts that synthesizers share, and samples that are not dithered."""
    try:
        import fluidsynth
    except ModuleNotFoundError:
        raise UserError("sampled instruments need the package pyfluidsynth; install it with: pip install 'musiclm-jax[sampled]'") from None
    except ImportError:
        raise UserError("sampled instruments need FluidSynth's library; install it with: apt-get install libfluidsynth3") from None
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    arguments = lambda *kinds: [(f"argument{number}", kind, 1) for number, kind in enumerate(kinds)]  # noqa: E731
    log = fluidsynth.cfunc("fluid_set_log_function", pointer, *arguments(integer, pointer, pointer))
    for level in (_WARNING, _INFO):  # It warns that a synthesizer without a soundfont has no programs.
        log(level, None, None)
    return types.SimpleNamespace(
        module=fluidsynth,
        add_sfont=fluidsynth.cfunc("fluid_synth_add_sfont", integer, *arguments(pointer, pointer)),
        remove_sfont=fluidsynth.cfunc("fluid_synth_remove_sfont", integer, *arguments(pointer, pointer)),
        write_float=fluidsynth.cfunc("fluid_synth_write_float", integer, *arguments(pointer, integer, pointer, integer, integer, pointer, integer, integer)),
    )
