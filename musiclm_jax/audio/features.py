"""Differentiable STFT and log-mel spectrograms in JAX. The tests compare them with librosa."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.arrays import Array, Float
from musiclm_jax.checks import NOT_NEGATIVE, POSITIVE, SIZE, check_choices, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.partitioning import by_example


@dataclasses.dataclass(frozen=True)
class LogMelConfig:
    """A log-mel front end. Frame t covers samples [t hop, t hop + window) of the wave, zero-padded on the right: T = ceil(N / hop).

    With max_hz 8000 it covers the band of the usual 16 kHz front end at 24 kHz, without a resampler, and 30 s have exactly 3,000 frames.
    """

    sample_rate_hz: int = 24_000
    # Length of the window: 25 ms, which is usual for speech. Music needs longer windows to resolve its low notes.
    window_samples: int = 600
    # Step from one frame to the next: 10 ms.
    hop_samples: int = 240
    num_fft: int = 1024
    num_mels: int = 80
    min_hz: float = 0.0
    max_hz: float = 8000.0
    # Spacing of the bands: "mel" (Slaney's, linear below 1 kHz), or "octave": the same number per octave at all frequencies, so that an interval is the same
    # number of bands from every note, and a convolution recognizes a chord in all keys.
    scale: str = "mel"
    # Added to the mel spectrogram before the logarithm.
    floor: float = 1e-5

    def __post_init__(self):
        # With longer windows, the filterbank would need gigabytes.
        length = (1, 2**15)
        check_numbers(self, sample_rate_hz=SIZE, window_samples=length, hop_samples=length, num_fft=length, num_mels=length, floor=POSITIVE)
        check_numbers(self, min_hz=NOT_NEGATIVE, max_hz=POSITIVE)
        check_choices(self, scale=("mel", "octave"))
        if self.num_fft < self.window_samples:
            raise UserError(f"num_fft={self.num_fft} is shorter than window_samples={self.window_samples}: raise num_fft")
        if not 0 <= self.min_hz < self.max_hz <= self.sample_rate_hz / 2:
            raise UserError(
                f"min_hz={self.min_hz}, max_hz={self.max_hz}, sample_rate_hz / 2={self.sample_rate_hz / 2}: choose 0 <= min_hz < max_hz <= sample_rate_hz / 2"
            )
        if self.scale == "octave" and not self.min_hz:
            raise UserError("scale='octave', min_hz=0: choose a min_hz above 0, because there are infinitely many octaves above 0 Hz")


def frame(wave: Float[Array, "B N"], *, window: int, hop: int) -> Float[Array, "B T W"]:
    """Cuts waves into overlapping windows, T = ceil(N / hop), zero-padded on the right. window, hop: in samples."""
    num_frames = -(-wave.shape[-1] // hop)
    chunks = -(-window // hop)  # A window spans this many hops.
    wave = jnp.pad(wave, ((0, 0), (0, (num_frames + chunks) * hop - wave.shape[-1])))
    wave = wave.reshape(wave.shape[0], num_frames + chunks, hop)
    # Concatenated slices of whole hops, which XLA compiles to copies. Indexing by frame would be a slow gather.
    frames = jnp.concatenate([wave[:, i : i + num_frames] for i in range(chunks)], axis=-1)
    return frames[..., :window]


def stft(wave: Float[Array, "B N"], *, window: int, hop: int, num_fft: int | None = None) -> Array:
    """STFT with a periodic Hann window and the frames of `frame`: complex64 [B, T, num_fft // 2 + 1]. num_fft: None means `window`."""
    hann = jnp.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window), jnp.float32)
    frames = frame(wave.astype(jnp.float32), window=window, hop=hop) * hann
    return by_example(lambda frames: jnp.fft.rfft(frames, n=num_fft or window, axis=-1), frames)


def magnitude(spectrum: Array, *, epsilon: float = 1e-12) -> Array:
    """The magnitude of a complex spectrum, with a finite gradient at 0."""
    return jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + epsilon)


@functools.lru_cache(maxsize=32)
def mel_filterbank(*, sample_rate_hz: int, num_fft: int, num_mels: int, min_hz: float, max_hz: float) -> np.ndarray:
    """Slaney's triangular mel filters of unit area, float32 [num_fft // 2 + 1, M]: the transpose of librosa.filters.mel."""
    hz = np.linspace(0, sample_rate_hz / 2, num_fft // 2 + 1)
    edges = _mel_to_hz(np.linspace(_hz_to_mel(min_hz), _hz_to_mel(max_hz), num_mels + 2))
    rising = (hz[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - hz[:, None]) / np.diff(edges)[1:]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * (2.0 / (edges[2:] - edges[:-2]))).astype(np.float32)


@functools.lru_cache(maxsize=32)
def htk_filterbank(*, sample_rate_hz: int, num_fft: int, num_mels: int, min_hz: float, max_hz: float) -> np.ndarray:
    """HTK's and Kaldi's mel filters, float32 [num_fft // 2 + 1, M]: triangles of height 1 over the mel scale."""
    mel = lambda hz: 1127 * np.log(1 + np.asarray(hz) / 700)  # noqa: E731
    bins = mel(np.linspace(0, sample_rate_hz / 2, num_fft // 2 + 1))[:, None]
    edges = np.linspace(mel(min_hz), mel(max_hz), num_mels + 2)
    rising, falling = (bins - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - bins) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


@functools.lru_cache(maxsize=32)
def octave_filterbank(*, sample_rate_hz: int, num_fft: int, num_bands: int, min_hz: float, max_hz: float) -> np.ndarray:
    """Triangular filters of unit area, float32 [num_fft // 2 + 1, num_bands], with centers in geometric progression from `min_hz` to `max_hz`.

    Each filter ends at the centers of its neighbours, or at the next bins of the spectrum if these are farther away.
    """
    hz = np.linspace(0, sample_rate_hz / 2, num_fft // 2 + 1)
    centers = np.geomspace(min_hz, max_hz, num_bands)
    reach = np.maximum(centers * ((max_hz / min_hz) ** (1 / max(1, num_bands - 1)) - 1), sample_rate_hz / num_fft)
    return (np.maximum(0, 1 - np.abs(hz[:, None] - centers) / reach) / reach).astype(np.float32)


def _hz_to_mel(hz):
    # Slaney's Auditory Toolbox: linear to 1 kHz, logarithmic above.
    hz = np.asarray(hz, np.float64)
    return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4))


def _mel_to_hz(mel):
    mel = np.asarray(mel, np.float64)
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


def mel_spectrogram(wave: Float[Array, "B N"], config: LogMelConfig) -> Float[Array, "B T M"]:
    """Mel spectrogram: magnitudes summed into bands by the filterbank, float32."""
    spectrum = magnitude(stft(wave, window=config.window_samples, hop=config.hop_samples, num_fft=config.num_fft))
    band = {"sample_rate_hz": config.sample_rate_hz, "num_fft": config.num_fft, "min_hz": config.min_hz, "max_hz": config.max_hz}
    filters = mel_filterbank(num_mels=config.num_mels, **band) if config.scale == "mel" else octave_filterbank(num_bands=config.num_mels, **band)
    return jnp.einsum("btf,fm->btm", spectrum, filters, precision=jax.lax.Precision.HIGHEST)


def log_mel(wave: Float[Array, "B N"], config: LogMelConfig) -> Float[Array, "B T M"]:
    """Log-mel spectrogram: the natural logarithm of the mel spectrogram plus `config.floor`, float32."""
    return jnp.log(mel_spectrogram(wave, config) + config.floor)
