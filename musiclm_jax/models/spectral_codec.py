"""A codec of spectral magnitudes, a cheaper alternative to SoundStream for small models.

    wave -> log-magnitude spectrum, 50 Hz -> causal convolutions -> latents [RVQ] -> causal convolutions -> log-magnitudes -> phases -> wave

SoundStream's codes represent the phase of every partial in every frame. Large codecs and large stages learn this; small ones generate inconsistent
phases, which sound like noise. Here the codes represent magnitudes only, which change slowly, and the decoder computes phases that are continuous from
frame to frame, by single-pass spectrogram inversion (Beauregard, Harish and Wyse, DAFx 2015): each peak of the spectrum is a partial; its frequency
comes from a parabola through the peak, its phase from that frequency and the frame before, and the bins around the peak follow it.

Codes cannot represent the random fluctuation of noise either: the decoder predicts smooth magnitudes, and a noisy sound such as a bowed string would
sound tonal. So the decoder also predicts how noisy each bin is, and `add_noise` adds the fluctuation of white noise in that proportion.

The decoder is causal in the codes, so that a wave can be decoded in chunks. The spectrum of a frame covers `window_samples` from the frame's start.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.arrays import Array, Float, Int
from musiclm_jax.audio.features import magnitude, stft
from musiclm_jax.checks import DEPTH, FINITE, POSITIVE, SIZE, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.nn.conv import CausalConv, Past, ResidualUnit, chain
from musiclm_jax.partitioning import by_example

# Limit of log-magnitudes, above all real ones (a full-scale sine under a window of 1536 samples has 6). It keeps exp() of untrained outputs finite.
_LOUDEST = 10.0
# Least overlap of windows in the denominator of the inversion, as a share of the full overlap. At the very start there is less, and the wave fades in.
_LEAST_OVERLAP = 0.1
# Offset of the noisiness logits, so that the initial noisiness is sigmoid(-2) = 0.12.
_TONAL = 2.0


@dataclasses.dataclass(frozen=True)
class SpectralCodecConfig:
    """Sizes of the spectral codec. With the defaults, a second of music costs a hundredth of what it costs with SoundStream's defaults."""

    # Identifies this class in JSON, where a field may have one of several classes.
    kind: ClassVar[str] = "spectral"
    # Step from one frame to the next: 20 ms at 24 kHz, so 50 Hz.
    frame_samples: int = 480
    # Length of the window: 64 ms, which resolves partials 60 Hz apart and keeps drum strokes short.
    window_samples: int = 1536
    # Added to magnitudes before the logarithm. A sine of amplitude 1 has a magnitude of 384.
    floor: float = 2e-2
    # The encoder gets (log-magnitude - log_mean) / log_std, which has about mean 0 and deviation 1.
    log_mean: float = -2.7
    log_std: float = 1.5
    encoder_width: int = 256
    decoder_width: int = 384
    # Kernel size of the convolutions over frames.
    kernel_size: int = 3
    # Dilations of the encoder's residual units.
    encoder_dilations: tuple[int, ...] = (1, 1)
    # Dilations of the decoder's residual units.
    decoder_dilations: tuple[int, ...] = (1, 1, 2, 4)
    # Width of the latent vectors and of the code vectors.
    dim: int = 32
    num_levels: int = 8
    num_codes: int = 256

    def __post_init__(self):
        check_numbers(self, frame_samples=SIZE, window_samples=SIZE, floor=POSITIVE, log_mean=FINITE, log_std=POSITIVE, kernel_size=SIZE)
        check_numbers(self, encoder_width=SIZE, decoder_width=SIZE, encoder_dilations=SIZE, decoder_dilations=SIZE, dim=SIZE, num_levels=DEPTH, num_codes=SIZE)
        if self.window_samples % 2 or not 2 * self.frame_samples <= self.window_samples:
            raise UserError(f"window_samples={self.window_samples}, frame_samples={self.frame_samples}: choose an even window_samples of at least two frames")
        if self.encoder_width % 2 or self.decoder_width % 2:
            raise UserError(f"encoder_width={self.encoder_width}, decoder_width={self.decoder_width}: choose even numbers, because residual units halve them")

    @property
    def num_bins(self) -> int:
        return self.window_samples // 2 + 1

    @property
    def window_frames(self) -> int:
        """Number of frames that overlap, including partly."""
        return -(-self.window_samples // self.frame_samples)


class SpectralCodec(nn.Module):
    """Encoder and decoder of the spectral codec, with the methods of `soundstream.SoundStream`. The codebooks are not part of the module."""

    config: SpectralCodecConfig

    def setup(self):
        config = self.config
        units = lambda dilations: [ResidualUnit(dilation, config.kernel_size) for dilation in dilations]  # noqa: E731
        self.encoder = [CausalConv(config.encoder_width, 1), *units(config.encoder_dilations), CausalConv(config.dim, 1, activate=True)]
        self.decoder = [
            CausalConv(config.decoder_width, config.kernel_size),
            *units(config.decoder_dilations),
            CausalConv(2 * config.num_bins, 1, activate=True),
        ]

    def encode(self, wave: Float[Array, "B N"]) -> Float[Array, "B T D"]:
        """Latents, one per frame, T = ceil(N / frame_samples)."""
        return self.encode_spectrum(log_magnitudes(self.config, wave))

    def encode_spectrum(self, spectrum: Float[Array, "B T F"]) -> Float[Array, "B T D"]:
        """Latents of a log-magnitude spectrum."""
        return chain(self.encoder, (spectrum - self.config.log_mean) / self.config.log_std)[0]

    def decode(self, latents: Float[Array, "B T D"]) -> Float[Array, "B N"]:
        """The wave of T frames, N = T * frame_samples."""
        return self.decode_chunk(latents, None)[0]

    def decode_chunk(self, latents: Float[Array, "B T D"], past: Past) -> tuple[Float[Array, "B N"], Past]:
        """Decodes the next T frames. past: what the call for the frames before them returned, None at the start. Returns (wave, new past)."""
        convs, start, inversion = (None, 0, None) if past is None else past
        smooth, noisiness, convs = self.decode_spectrum(latents, convs)
        wave, inversion = invert(self.config, add_noise(self.config, smooth, noisiness, start), inversion)
        return wave, (convs, jnp.asarray(start + latents.shape[1], jnp.int32), inversion)

    def decode_spectrum(self, latents: Float[Array, "B T D"], past: Past = None) -> tuple[Float[Array, "B T F"], Float[Array, "B T F"], Past]:
        """Returns (smooth log-magnitudes, noisiness of each bin from 0, a partial, to 1, white noise, new past)."""
        x, past = chain(self.decoder, latents, past)
        smooth, noisiness = jnp.split(x, 2, axis=-1)
        return jnp.minimum(smooth * self.config.log_std + self.config.log_mean, _LOUDEST), nn.sigmoid(noisiness - _TONAL), past

    def __call__(self, wave: Float[Array, "B N"]) -> Float[Array, "B T F"]:
        """Reconstructs the smooth log-magnitudes of a wave without quantization."""
        return self.decode_spectrum(self.encode(wave))[0]


def add_noise(
    config: SpectralCodecConfig, smooth: Float[Array, "B T F"], noisiness: Float[Array, "B T F"], start: int | Int[Array, ""]
) -> Float[Array, "B T F"]:
    """Adds to log-magnitudes the fluctuation of those of white noise, in proportion to `noisiness`.

    The noise is the same for all clips. start: the number of the first frame, which selects the noise of each frame.
    """
    frames = start + jnp.arange(smooth.shape[1] + config.window_frames - 1)
    noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (config.frame_samples,)))(frames).reshape(1, -1)
    spectrum = stft(noise, window=config.window_samples, hop=config.frame_samples)[:, : smooth.shape[1]]
    power = 0.375 * config.window_samples  # The mean power of a bin: the sum of the squared Hann window.
    # The logarithm of a Rayleigh variable with mean square 1 has the mean -gamma / 2.
    return smooth + noisiness * (jnp.log(magnitude(spectrum) / power**0.5 + 1e-3) + np.euler_gamma / 2)


def log_magnitudes(config: SpectralCodecConfig, wave: Float[Array, "B N"]) -> Float[Array, "B T F"]:
    """log(magnitude + floor) of the STFT with a Hann window. Frame t covers samples [frame_samples t, frame_samples t + window_samples)."""
    return jnp.log(magnitude(stft(wave, window=config.window_samples, hop=config.frame_samples)) + config.floor)


def invert(config: SpectralCodecConfig, spectrum: Float[Array, "B T F"], past: Past = None) -> tuple[Float[Array, "B N"], Past]:
    """Inverts log-magnitudes to a wave, N = T * frame_samples. Returns (wave, the past for the frames that follow)."""
    hop, window, hops = config.frame_samples, config.window_samples, config.window_frames
    if past is None:
        past = (
            jnp.zeros((spectrum.shape[0], config.num_bins)),
            jnp.zeros((spectrum.shape[0], hops - 1, hops * hop)),
            jnp.zeros((1, hops - 1, hops * hop)),
        )
    phase, frames, weights = past
    phases, phase = _phases(config, jax.lax.stop_gradient(spectrum), phase)  # Gradients pass through the magnitudes only.
    magnitudes = jnp.maximum(jnp.exp(spectrum) - config.floor, 0.0)
    hann = np.pad(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window), (0, hops * hop - window)).astype(np.float32)
    new = by_example(lambda x: jnp.fft.irfft(x, n=window), jax.lax.complex(magnitudes * jnp.cos(phases), magnitudes * jnp.sin(phases)))
    new = jnp.pad(new, ((0, 0), (0, 0), (0, hops * hop - window))) * hann
    frames = jnp.concatenate([frames, new], axis=1)
    weights = jnp.concatenate([weights, jnp.broadcast_to(jnp.square(hann), (1, *new.shape[1:]))], axis=1)
    least = _LEAST_OVERLAP * np.square(hann).sum() / hop
    wave = _overlap_add(frames, hops) / jnp.maximum(_overlap_add(weights, hops), least)
    return wave, (phase, frames[:, -(hops - 1) :], weights[:, -(hops - 1) :])


def _overlap_add(frames: Float[Array, "B T W"], hops: int) -> Float[Array, "B N"]:
    """Overlap-add of frames of `hops` hops each, one hop apart. Returns the part from frame hops - 1 on, where all frames are present."""
    batch, count, window = frames.shape
    parts = frames.reshape(batch, count, hops, window // hops)
    # The frame that began i hops ago contributes its part i.
    return sum(parts[:, hops - 1 - i : count - i, i] for i in range(hops)).reshape(batch, -1)


def _phases(config: SpectralCodecConfig, spectrum: Float[Array, "B T F"], phase: Float[Array, "B F"]) -> tuple[Float[Array, "B T F"], Float[Array, "B F"]]:
    """Phases by single-pass spectrogram inversion. phase: the phases of the frame before. Returns (phases of all frames, those of the last one)."""
    bins = jnp.arange(config.num_bins)
    left, here, right = spectrum[..., :-2], spectrum[..., 1:-1], spectrum[..., 2:]
    is_peak = (here > left) & (here >= right)
    # Vertex of the parabola, in bins from the peak.
    offset = jnp.where(is_peak, 0.5 * (left - right) / jnp.minimum(left - 2 * here + right, -1e-6), 0.0)
    edge = [(0, 0)] * (spectrum.ndim - 1) + [(1, 1)]
    is_peak, offset = jnp.pad(is_peak, edge), jnp.pad(offset, edge)
    advance = (2 * np.pi * config.frame_samples / config.window_samples) * (bins + offset)
    # Each bin belongs to the nearest peak, or to itself if there is no peak.
    below = jax.lax.cummax(jnp.where(is_peak, bins, -config.num_bins), axis=spectrum.ndim - 1)
    above = jax.lax.cummin(jnp.where(is_peak, bins, 3 * config.num_bins), axis=spectrum.ndim - 1, reverse=True)
    peak = jnp.where(bins - below <= above - bins, below, above)
    peak = jnp.where((peak < 0) | (peak >= config.num_bins), bins, peak)
    # Under a Hann window the bins of one partial alternate in sign.
    turn = jnp.take_along_axis(advance, peak, axis=-1) + np.pi * (bins - peak)

    def step(phase, frame):
        peak, turn = frame
        phase = jnp.remainder(jnp.take_along_axis(phase, peak, axis=-1) + turn, 2 * np.pi)
        return phase, phase

    phase, phases = jax.lax.scan(step, phase, (jnp.moveaxis(peak, 1, 0), jnp.moveaxis(turn, 1, 0)))
    return jnp.moveaxis(phases, 0, 1), phase
