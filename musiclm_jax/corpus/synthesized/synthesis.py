"""Renders notes to 24 kHz audio, with wavetables, envelopes, noise, and the reverberation of a small room.

Each distinct note of a clip is rendered once and reused. All cached values are pure functions of their keys, so a clip does not depend on what was
rendered before it.
"""

import functools

import numpy as np
import scipy.fft
from jaxtyping import Float

from musiclm_jax.corpus.clip import CLIP_SAMPLES, HISS, SAMPLE_RATE_HZ
from musiclm_jax.corpus.synthesized.attributes import Attributes
from musiclm_jax.corpus.synthesized.compose import Note, onset_sec
from musiclm_jax.corpus.synthesized.voices import DRUMS, VOICES, Layer

# By dynamics: RMS of the clip in dB of full scale, and the exponent with which harmonic n is scaled, since loud playing is brighter.
_DYNAMICS_DB = {"soft": -27.0, "medium": -21.5, "loud": -16.0}
_DYNAMICS_SLOPE = {"soft": -0.35, "medium": 0.0, "loud": 0.25}
_PEAK = 0.95

_TABLE_SIZE = 8192
# Harmonics fade out over the octave below this frequency; there are none above it.
_BAND_HZ = 7000.0
# Time from the onset over which the RMS of each note is normalized.
_LEVEL_SEC = 0.25
_FADE_OUT_SEC = 0.02

_ROOM_SEC = 0.35
_ROOM_DECAY_SEC = 0.07
_ROOM_LEVEL = 0.18


def render(notes: list[Note], *, attributes: Attributes, rng: np.random.Generator, num_samples: int = CLIP_SAMPLES) -> Float[np.ndarray, " N"]:
    """Renders a clip, float32 [num_samples] in [-1, 1], at most CLIP_SAMPLES. `rng` draws the white noise alone."""
    sounds: dict[tuple[str, int, int, int], np.ndarray] = {}
    dry = np.zeros(CLIP_SAMPLES, np.float32)
    slope = _DYNAMICS_SLOPE[attributes.dynamics]
    for note, before in zip(notes, _pitches_before(notes), strict=True):
        key = (note.voice, note.pitch, note.length, before)
        if key not in sounds:
            if note.voice in DRUMS:
                sounds[key] = render_drum(note.voice)
            else:
                length_sec = note.length * 30 / attributes.tempo_bpm
                sounds[key] = render_note(note.voice, pitch=note.pitch, length_sec=length_sec, slope=slope, glide_from=before)
        start = round(onset_sec(note, tempo_bpm=attributes.tempo_bpm) * SAMPLE_RATE_HZ)
        sound = sounds[key][: CLIP_SAMPLES - start]
        dry[start : start + len(sound)] += np.float32(note.gain) * sound
    wave = _master(_reverberate(dry)[:num_samples], target_db=_DYNAMICS_DB[attributes.dynamics])
    return np.clip(wave + HISS * rng.standard_normal(len(wave), np.float32), -1.0, 1.0)


def _pitches_before(notes: list[Note]) -> list[int]:
    """The pitch from which each note begins: that of the note before, for voices that glide; its own for all others."""
    last: dict[str, int] = {}
    before = {}
    for i in sorted(range(len(notes)), key=lambda i: notes[i].step):
        note = notes[i]
        glides = note.voice in VOICES and VOICES[note.voice].glide_sec > 0
        before[i] = last.get(note.voice, note.pitch) if glides else note.pitch
        last[note.voice] = note.pitch
    return [before[i] for i in range(len(notes))]


def render_note(voice_name: str, *, pitch: int, length_sec: float, slope: float = 0.0, glide_from: int | None = None) -> Float[np.ndarray, " N"]:
    """Renders one note, float32, with an RMS of 1 over its first quarter second.

    Args:
        voice_name: a name in VOICES.
        pitch: MIDI pitch.
        length_sec: notated length. The note sounds for `gate` times this length, followed by its release.
        slope: harmonic n is scaled by n**slope.
        glide_from: MIDI pitch from which voices that glide begin. None: the pitch itself.
    """
    voice = VOICES[voice_name]
    pitch_hz = 440.0 * 2.0 ** ((pitch - 69) / 12)
    num = round((length_sec * voice.gate + voice.release_sec) * SAMPLE_RATE_HZ)
    time = np.arange(num) / SAMPLE_RATE_HZ

    phase = pitch_hz * time  # In cycles.
    rate, depth = voice.vibrato
    if depth:
        # The vibrato begins 0.15 s after the onset.
        swell = np.clip((time - 0.15) / 0.2, 0.0, 1.0)
        phase += swell * (pitch_hz * depth / (2 * np.pi * rate)) * np.sin(2 * np.pi * rate * time)

    if voice.glide_sec and glide_from is not None:
        # The pitch is glide_from at first and nears its own exponentially; this is the integral of the difference, in cycles.
        off_hz = 440.0 * 2.0 ** ((glide_from - 69) / 12) - pitch_hz
        phase += off_hz * voice.glide_sec * (1 - np.exp(-time / voice.glide_sec))

    wave = np.zeros(num, np.float32)
    for layer in voice.layers:
        table = _wavetable(layer, pitch_hz, slope, voice.formants)
        tone = table[(phase * (layer.ratio * _TABLE_SIZE)).astype(np.int64) & (_TABLE_SIZE - 1)]
        if np.isfinite(layer.decay_sec):
            tone *= _decay(num, layer.decay_sec * (440.0 / pitch_hz) ** 0.5)
        wave += tone

    if voice.breath:
        wave += np.float32(voice.breath) * _noise(300.0, 2500.0)[pitch * 997 :][:num]
    rate, depth = voice.tremolo
    if depth:
        wave *= (1.0 - depth * (0.5 - 0.5 * np.cos(2 * np.pi * rate * time))).astype(np.float32)
    if voice.knock:
        size = min(num, round(0.03 * SAMPLE_RATE_HZ))
        wave[:size] += np.float32(voice.knock) * (_noise(150.0, 3000.0)[pitch * 991 :][:size] * _decay(size, 0.006))
    _shape(wave, voice.attack_sec, voice.release_sec)
    level = np.sqrt(np.mean(np.square(wave[: round(_LEVEL_SEC * SAMPLE_RATE_HZ)])))
    return wave / level


@functools.cache
def render_drum(name: str) -> Float[np.ndarray, " N"]:
    """Renders one stroke of a drum, a name in DRUMS; float32, with a peak of about 3."""
    drum = DRUMS[name]
    num = round(drum.length_sec * SAMPLE_RATE_HZ)
    time = np.arange(num) / SAMPLE_RATE_HZ
    wave = np.float32(drum.noise_level / 3) * _noise(*drum.noise_hz)[:num] * _decay(num, drum.noise_decay_sec)
    if drum.skin_level:
        struck_hz, rest_hz = drum.skin_hz
        fall_sec = 0.03
        cycles = rest_hz * time + (struck_hz - rest_hz) * fall_sec * (1 - np.exp(-time / fall_sec))
        wave += (drum.skin_level * np.sin(2 * np.pi * cycles)).astype(np.float32) * _decay(num, drum.skin_decay_sec)
    _shape(wave, 0.001, 0.02)
    return wave * 3.0


def _wavetable(layer: Layer, pitch_hz: float, slope: float, formants: tuple[tuple[float, float, float], ...]) -> Float[np.ndarray, " N"]:
    """One cycle of the layer, [_TABLE_SIZE], without harmonics above _BAND_HZ."""
    order = np.arange(1, len(layer.harmonics) + 1)
    fade = np.clip(2.0 - order * layer.ratio * pitch_hz / (_BAND_HZ / 2), 0.0, 1.0)
    spectrum = np.zeros(_TABLE_SIZE // 2 + 1, np.complex128)
    # These phases keep the crest factor low.
    spectrum[order] = np.asarray(layer.harmonics) * fade * order**slope * np.exp(1j * order**2)
    if formants:
        spectrum[order] *= _resonance(order * layer.ratio * pitch_hz, formants)
    return (np.fft.irfft(spectrum) * (_TABLE_SIZE / 2)).astype(np.float32)


def _resonance(freq_hz: Float[np.ndarray, " H"], formants: tuple[tuple[float, float, float], ...]) -> Float[np.ndarray, " H"]:
    """The gain of the vocal tract at some frequencies: a sum of resonances."""
    return sum(gain / (1 + ((freq_hz - center_hz) / (width_hz / 2)) ** 2) for center_hz, width_hz, gain in formants)


def _decay(num: int, decay_sec: float) -> Float[np.ndarray, " N"]:
    return np.exp(np.arange(num, dtype=np.float32) * np.float32(-1.0 / (decay_sec * SAMPLE_RATE_HZ)))


def _shape(wave: Float[np.ndarray, " N"], attack_sec: float, release_sec: float) -> None:
    """Fades the wave in and out. Changes it in place."""
    attack = min(len(wave), max(1, round(attack_sec * SAMPLE_RATE_HZ)))
    release = min(len(wave), max(1, round(release_sec * SAMPLE_RATE_HZ)))
    wave[:attack] *= np.linspace(0, 1, attack, endpoint=False, dtype=np.float32)
    wave[-release:] *= np.square(np.linspace(1, 0, release, dtype=np.float32))


@functools.cache
def _noise(low_hz: float, high_hz: float) -> Float[np.ndarray, " N"]:
    """Twelve seconds of band-limited noise with an RMS of 1. It is the same in every process."""
    num = 12 * SAMPLE_RATE_HZ
    rng = np.random.Generator(np.random.PCG64(20230126))
    spectrum = scipy.fft.rfft(rng.standard_normal(num))
    freq_hz = scipy.fft.rfftfreq(num, 1 / SAMPLE_RATE_HZ)
    # Third-order Butterworth slopes on both sides.
    spectrum[1:] /= np.sqrt((1 + (low_hz / freq_hz[1:]) ** 6) * (1 + (freq_hz[1:] / high_hz) ** 6))
    spectrum[0] = 0
    noise = scipy.fft.irfft(spectrum, num)
    return (noise / noise.std()).astype(np.float32)


@functools.cache
def _room() -> tuple[int, np.ndarray]:
    """The FFT size, and the spectrum of the room's impulse response: the direct sound and a short, dull, decaying tail."""
    num = round(_ROOM_SEC * SAMPLE_RATE_HZ)
    tail = _noise(150.0, 4000.0)[:num] * _decay(num, _ROOM_DECAY_SEC)
    _shape(tail, 0.012, 0.05)
    response = (_ROOM_LEVEL / np.sqrt(np.sum(np.square(tail)))) * tail
    response[0] += 1.0
    size = scipy.fft.next_fast_len(CLIP_SAMPLES + num, real=True)
    return size, scipy.fft.rfft(response.astype(np.float32), size)


def _reverberate(dry: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    size, room = _room()
    return scipy.fft.irfft(scipy.fft.rfft(dry, size) * room, size)[: len(dry)]


def _master(wave: Float[np.ndarray, " N"], *, target_db: float) -> Float[np.ndarray, " N"]:
    """Scales the wave to an RMS of target_db, or less so that the peak is at most _PEAK, and fades out its end."""
    wave = wave - wave.mean()
    fade = round(_FADE_OUT_SEC * SAMPLE_RATE_HZ)
    wave[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    rms, peak = np.sqrt(np.mean(np.square(wave), dtype=np.float64)), np.abs(wave).max()
    return (wave * np.float32(min(10 ** (target_db / 20) / rms, _PEAK / peak))).astype(np.float32)
