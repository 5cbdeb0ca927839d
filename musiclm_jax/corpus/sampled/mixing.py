"""Mixes the parts of a clip as a record is: balance, room, equalization, the colour of a medium, compression, and a level by dynamics.

    parts, balanced -> lead and band -> room, equalizer and band of the medium (one filter) -> wow -> gain of the master -> hiss

All but the noise is linear for the two stems, also compression, saturation and limiter: the gain that these give the mix is the gain of each stem. Noise
belongs to the band, so the stems add up to the mix, but for a hiss of the lead's own.
"""

import dataclasses
import functools

import numpy as np
import scipy.fft
import scipy.ndimage
import scipy.signal
from jaxtyping import Complex, Float

from musiclm_jax.corpus.clip import HISS, SAMPLE_RATE_HZ

# Loudness of each part beside the lead, in dB (ITU-R BS.1770, with its gates: while it plays), and the share of it that is sent to the room.
LEVELS_DB = {"lead": 0.0, "counter": -6.0, "chords": -9.0, "pad": -11.0, "bass": -7.0, "drums": -3.0}
_SENDS = {"bass": 0.3, "drums": 0.5}
_BALANCE_DB = 1.5  # Standard deviation over clips.
# Loudness of a clip by dynamics, in LUFS, which the limiter may lower; and the highest sample.
LOUDNESS_LUFS = {"soft": -23.0, "medium": -19.0, "loud": -15.0}
PEAK = 0.95
_FADE_OUT_SEC = 0.02

# room -> the shortest and longest time in which its sound falls by 60 dB, of the time until it begins, and the lowest and highest level in dB.
_ROOMS = {"room": ((0.3, 0.7), (0.003, 0.012), (-15.0, -9.0)), "hall": ((1.2, 2.8), (0.012, 0.035), (-14.0, -8.0))}
# Bands of a room in Hz, and their decay times beside the whole's.
_ROOM_BANDS = ((120.0, 900.0, 1.15), (900.0, 3500.0, 1.0), (3500.0, 10000.0, 0.55))
# Equalizer: standard deviation of the tilt in dB per octave, and of a wide bell in dB.
_TILT_DB, _BELL_DB = 0.5, 1.5
# colour -> corner frequencies of its band in Hz, and orders of the filters.
_COLOUR_BANDS = {"tape": (35.0, 9000.0, 1, 3), "vinyl": (45.0, 10000.0, 2, 2), "phone": (300.0, 3400.0, 4, 6)}
# colour -> how far it drives its saturation, in peaks of tanh for the loudest; and the standard deviation of its noise.
_DRIVE = {"tape": 0.9, "vinyl": 0.3, "phone": 0.8}
_NOISE = {"tape": 2e-3, "vinyl": 1e-3, "phone": 2e-3}
# Compressor: how far above the mean loudness it begins, its ratio, and times in which its meters follow.
_THRESHOLD_DB, _RATIO, _FAST_SEC, _SLOW_SEC = 1.0, 2.0, 0.01, 0.15
_METER_SAMPLES = 120  # 5 ms.
_LIMIT_SAMPLES = 24  # 1 ms.


@dataclasses.dataclass(frozen=True)
class Stems:
    """float32 [N] each, which add up to the mix."""

    lead: Float[np.ndarray, " N"]
    band: Float[np.ndarray, " N"]

    @property
    def mix(self) -> Float[np.ndarray, " N"]:
        return self.lead + self.band


def balance(parts: dict[str, Float[np.ndarray, " N"]], *, rng: np.random.Generator) -> dict[str, Float[np.ndarray, " N"]]:
    """Brings each part to its level. Silent parts are left out."""
    balanced = {}
    for part, wave in parts.items():
        wanted = LEVELS_DB[part] + rng.normal(0.0, _BALANCE_DB) * (part != "lead")
        loudness = loudness_lufs(wave)
        if np.isfinite(loudness):
            balanced[part] = wave * np.float32(10 ** ((wanted - 20.0 - loudness) / 20))
    return balanced


def master(parts: dict[str, Float[np.ndarray, " N"]], *, num_samples: int, room: str, colour: str, dynamics: str, rng: np.random.Generator) -> dict:
    """Mixes balanced parts.

    Args:
        parts: a name in attributes.PARTS -> wave, float32 [num_samples] at 24 kHz; may be empty.
        room: a name in attributes.ROOMS.
        colour: a name in attributes.COLOURS.
        dynamics: a key of LOUDNESS_LUFS.

    Returns:
        {"mix", "lead", "band"}, float32 [num_samples] each in [-1, 1]. The mix is lead + band, but for the white noise of HISS that the lead alone has.
        Noise of the mix is in the band.
    """
    response = _impulse(room, rng)
    size = scipy.fft.next_fast_len(num_samples + len(response), real=True)
    filters = _equalizer(size, rng) * _medium(size, colour)
    room_filter = scipy.fft.rfft(response, size)
    stems = Stems(
        lead=_filtered({part: wave for part, wave in parts.items() if part == "lead"}, filters, room_filter, size, num_samples),
        band=_filtered({part: wave for part, wave in parts.items() if part != "lead"}, filters, room_filter, size, num_samples),
    )
    stems = _wow(stems, colour, rng)
    stems = _scaled(stems, _compression(stems.mix))
    stems = _scaled(stems, _saturation(stems.mix, colour))
    stems = _levelled(stems, LOUDNESS_LUFS[dynamics])
    hiss = lambda: HISS * rng.standard_normal(num_samples, np.float32)  # noqa: E731
    stems = dataclasses.replace(stems, band=stems.band + _noise(num_samples, colour, rng) + hiss())
    waves = {"mix": stems.mix, "lead": stems.lead + hiss(), "band": stems.band}
    return {name: np.clip(wave, -1.0, 1.0) for name, wave in waves.items()}


def loudness_lufs(wave: Float[np.ndarray, " N"]) -> float:
    """Integrated loudness by ITU-R BS.1770, in LUFS: of blocks of 0.4 s every 0.1 s above both gates. -inf: silence.

    As in `audio.loudness`, whose package imports JAX, which the processes that render do without.
    """
    hop = SAMPLE_RATE_HZ // 10
    weighted = scipy.signal.sosfilt(_weighting(), np.pad(wave, (0, -len(wave) % hop + 3 * hop)))
    hops = np.square(weighted).reshape(-1, hop).mean(axis=1)
    power = np.convolve(hops, np.full(4, 0.25), "valid")
    lufs = lambda mean: -0.691 + 10 * np.log10(mean)  # noqa: E731
    loud = power[power > 10 ** ((-70 + 0.691) / 10)]
    if not loud.size:
        return -np.inf
    return float(lufs(loud[loud > 0.1 * loud.mean()].mean()))


@functools.cache
def _weighting() -> Float[np.ndarray, "2 6"]:
    """BS.1770's K-weighting at 24 kHz: a shelf of 4 dB above 1.5 kHz, and a high pass at 38 Hz (bilinear transform of its analog filters)."""
    sections = []
    for f0, q, gains in ((1681.97, 0.7072, (10 ** (4 / 20), 10 ** (4 / 20 * 0.4997), 1.0)), (38.135, 0.5003, (1.0, 0.0, 0.0))):
        k = np.tan(np.pi * f0 / SAMPLE_RATE_HZ)
        high, band, low = gains
        denominator = np.array([1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k])
        numerator = np.array([high + band * k / q + low * k * k, 2 * (low * k * k - high), high - band * k / q + low * k * k])
        sections.append(np.concatenate([numerator, denominator]) / denominator[0])
    return np.array(sections)


def _impulse(room: str, rng: np.random.Generator) -> Float[np.ndarray, " N"]:
    """What a room adds to a sound, of noise that decays faster in the upper bands; for "dry" a single 0."""
    if room not in _ROOMS:
        return np.zeros(1, np.float32)
    decay_sec, begin_sec, level_db = (rng.uniform(*limits) for limits in _ROOMS[room])
    num = round(1.2 * decay_sec * SAMPLE_RATE_HZ)
    time = np.arange(num, dtype=np.float32) / SAMPLE_RATE_HZ
    size = scipy.fft.next_fast_len(num, real=True)
    spectrum, freq = scipy.fft.rfft(rng.standard_normal(num, np.float32), size), scipy.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ)
    tail = np.zeros(num, np.float32)
    for low, high, factor in _ROOM_BANDS:
        band = scipy.fft.irfft(spectrum * ((freq >= low) & (freq < high)), size)[:num]
        tail += band * np.exp(time * np.float32(-6.9 / (decay_sec * factor)))
    tail[-240:] *= np.linspace(1, 0, 240, dtype=np.float32)
    tail *= np.float32(10 ** (level_db / 20) / np.sqrt(np.sum(np.square(tail))))
    return np.concatenate([np.zeros(round(begin_sec * SAMPLE_RATE_HZ), np.float32), tail])


def _equalizer(size: int, rng: np.random.Generator) -> Float[np.ndarray, " F"]:
    """Gains of a tilt about 1 kHz and of a bell an octave and a half wide."""
    octaves = np.log2(np.maximum(scipy.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ), 20.0) / 1000).astype(np.float32)
    tilt_db, bell_db, center = rng.normal(0.0, _TILT_DB), rng.normal(0.0, _BELL_DB), rng.uniform(-3.0, 3.0)
    gain_db = tilt_db * np.clip(octaves, -3.5, 3.5) + bell_db * np.exp(-np.square((octaves - np.float32(center)) / 1.1))
    return np.exp(gain_db * np.float32(np.log(10) / 20)).astype(np.float32)


def _medium(size: int, colour: str) -> Float[np.ndarray, " F"] | np.float32:
    """Gains of the band of a colour, as of Butterworth filters."""
    if colour not in _COLOUR_BANDS:
        return np.float32(1.0)
    low, high, low_order, high_order = _COLOUR_BANDS[colour]
    freq = np.maximum(scipy.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ), 1.0)
    return (1 / np.sqrt((1 + (low / freq) ** (2 * low_order)) * (1 + (freq / high) ** (2 * high_order)))).astype(np.float32)


def _filtered(
    parts: dict[str, Float[np.ndarray, " N"]], filters: Float[np.ndarray, " F"], room: Complex[np.ndarray, " F"], size: int, num_samples: int
) -> Float[np.ndarray, " N"]:
    """The sum of parts and of what the room adds to each, filtered."""
    if not parts:
        return np.zeros(num_samples, np.float32)
    direct = scipy.fft.rfft(sum(parts.values()), size)
    sends = {_SENDS.get(part, 1.0) for part in parts}
    sent = direct if sends == {1.0} else scipy.fft.rfft(sum(np.float32(_SENDS.get(part, 1.0)) * wave for part, wave in parts.items()), size)
    return scipy.fft.irfft(filters * (direct + room * sent), size)[:num_samples]


def _scaled(stems: Stems, gain: Float[np.ndarray, " N"] | np.float32) -> Stems:
    return Stems(lead=stems.lead * gain, band=stems.band * gain)


def _wow(stems: Stems, colour: str, rng: np.random.Generator) -> Stems:
    """Lets the speed of a tape or a record waver, by some tenths of a percent."""
    if colour not in ("tape", "vinyl"):
        return stems
    num = len(stems.lead)
    time = np.arange(num) / SAMPLE_RATE_HZ
    late = np.zeros(num)
    for rate_hz, depth in ((rng.uniform(0.4, 0.9), rng.uniform(5e-4, 2e-3)), (rng.uniform(5.0, 9.0), rng.uniform(1e-4, 4e-4))):
        late += depth / (2 * np.pi * rate_hz) * (1 - np.cos(2 * np.pi * rate_hz * time + rng.uniform(0, 2 * np.pi)))
    at = np.clip(np.arange(num) - late * SAMPLE_RATE_HZ, 0, num - 1)
    return Stems(lead=_interpolated(stems.lead, at), band=_interpolated(stems.band, at))


def _interpolated(wave: Float[np.ndarray, " N"], at: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """The wave between its samples, by cubic polynomials through four of them (Catmull and Rom)."""
    index = at.astype(np.int64)
    part = (at - index).astype(np.float32)
    padded = np.pad(wave, (1, 2))
    before, here, after, later = (padded[index + shift] for shift in range(4))
    cubic = 1.5 * (here - after) + 0.5 * (later - before)
    square = before - 2.5 * here + 2 * after - 0.5 * later
    return ((cubic * part + square) * part + 0.5 * (after - before)) * part + here


def _compression(mix: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """The gain of a compressor: as its ratio says for what is louder than the mean by its threshold."""
    num = -(-len(mix) // _METER_SAMPLES)
    power = np.square(np.pad(mix, (0, num * _METER_SAMPLES - len(mix)))).reshape(num, _METER_SAMPLES).mean(axis=1)
    if not power.any():
        return np.ones(len(mix), np.float32)
    meters = []
    for follow_sec in (_FAST_SEC, _SLOW_SEC):
        keep = np.exp(-_METER_SAMPLES / SAMPLE_RATE_HZ / follow_sec)
        meters.append(scipy.signal.lfilter([1 - keep], [1, -keep], power))
    # Of what sounds at all.
    mean = power[power > 1e-3 * power.mean()].mean()
    over_db = 10 * np.log10(np.maximum(np.maximum(*meters), 1e-12) / mean) - _THRESHOLD_DB
    gain_db = np.minimum(0.0, -over_db * (1 - 1 / _RATIO))
    return _lines(10 ** (gain_db / 20), _METER_SAMPLES)[: len(mix)]


def _saturation(mix: Float[np.ndarray, " N"], colour: str) -> Float[np.ndarray, " N"] | np.float32:
    """The gain at each sample that makes of the mix its hyperbolic tangent."""
    if colour not in _DRIVE or not mix.any():
        return np.float32(1.0)
    driven = mix * np.float32(_DRIVE[colour] / np.quantile(np.abs(mix), 0.999))
    return (np.tanh(driven) / np.where(np.abs(driven) < 1e-4, 1.0, driven) + (np.abs(driven) < 1e-4)).astype(np.float32)


def _levelled(stems: Stems, target_lufs: float) -> Stems:
    """Brings the mix to a loudness, limits the peaks of all three waves to PEAK, and fades their ends out."""
    loudness = loudness_lufs(stems.mix)
    stems = _scaled(stems, np.float32(10 ** ((target_lufs - loudness) / 20) if np.isfinite(loudness) else 1.0))
    gain = _limit(np.maximum(np.abs(stems.mix), np.maximum(np.abs(stems.lead), np.abs(stems.band))))
    fade = round(_FADE_OUT_SEC * SAMPLE_RATE_HZ)
    gain[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)[-len(gain) :]
    return _scaled(stems, gain)


def _limit(magnitude: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Gains of at most 1 under which nothing is above PEAK. They turn within some ms, before and after a peak."""
    num = -(-len(magnitude) // _LIMIT_SAMPLES)
    peaks = np.pad(magnitude, (0, num * _LIMIT_SAMPLES - len(magnitude))).reshape(num, _LIMIT_SAMPLES).max(axis=1)
    # The hiss comes later, of which 4 deviations have room.
    allowed = np.minimum(1.0, (PEAK - 4 * HISS) / np.maximum(peaks, 1e-9))
    # A mean over 5 ms of minima over 13 ms; between steps the gain is a line, so that each end needs the minimum of its neighbours.
    smooth = scipy.ndimage.uniform_filter1d(scipy.ndimage.minimum_filter1d(allowed, 13, mode="nearest"), 5, mode="nearest")
    return _lines(smooth, _LIMIT_SAMPLES)[: len(magnitude)]


def _lines(points: Float[np.ndarray, " T"], step: int) -> Float[np.ndarray, " N"]:
    """Straight lines from point to point, float32, `step` samples each; the last point stays."""
    points = np.append(points, points[-1]).astype(np.float32)
    ramp = np.arange(step, dtype=np.float32) / step
    return (points[:-1, None] + np.diff(points)[:, None] * ramp).ravel()


def _noise(num_samples: int, colour: str, rng: np.random.Generator) -> Float[np.ndarray, " N"] | np.float32:
    """The noise of a medium: hiss, and the clicks of a record."""
    if colour not in _NOISE:
        return np.float32(0.0)
    noise = np.float32(_NOISE[colour] * rng.uniform(0.5, 1.5)) * rng.standard_normal(num_samples, np.float32)
    if colour == "vinyl":
        clicks = np.zeros(num_samples, np.float32)
        count = rng.poisson(rng.uniform(4, 20) * num_samples / SAMPLE_RATE_HZ)
        clicks[rng.integers(num_samples, size=count)] = rng.laplace(0.0, 0.015, count)
        noise += scipy.signal.lfilter([1.0, -0.4], [1.0, -0.55], clicks).astype(np.float32)
    if colour == "phone":
        sections = scipy.signal.butter(2, _COLOUR_BANDS[colour][:2], "bandpass", fs=SAMPLE_RATE_HZ, output="sos")
        noise = scipy.signal.sosfilt(sections, noise).astype(np.float32)
    return noise
