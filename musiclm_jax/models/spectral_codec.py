"""A codec of magnitudes: what SoundStream is for, where there is no time to train SoundStream.

    wave -> log-magnitude spectrum, 50 Hz -> causal convolutions -> latents [RVQ] -> causal convolutions -> log-magnitudes -> phases -> wave

SoundStream's codes must say the phase of every partial, anew in each frame. A large codec and large stages learn that; small ones draw phases
that do not fit together, which is heard as noise. Here the codes say magnitudes only, which change slowly, and the decoder makes phases that go
on from frame to frame: single-pass spectrogram inversion (Beauregard, Harish and Wyse, DAFx 2015). Each peak of the spectrum is a partial; its
frequency comes from a parabola through the peak, its phase from that frequency and the frame before, and its neighbours follow the peak.

Nor can codes say how noise wavers: the decoder's guess of it is smooth, and bowed strings without their noise are flutes. So it says beside each
magnitude how noisy the bin is, and the wavering of white noise is added in that measure.

Everything after the spectrum is causal in the codes, so that a wave can be decoded in chunks; a frame looks `window_samples` ahead of its start.
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

# Log-magnitudes above it cannot be: a full-scale sine under a window of 1536 samples has 6. exp() of what an untrained decoder says is finite.
_LOUDEST = 10.0
# Of a window's energy where all windows overlap: where less of it is left, at the very start, the wave fades in.
_LEAST_OVERLAP = 0.1
# Where noisiness starts: sigmoid(-2) = 0.12.
_TONAL = 2.0


@dataclasses.dataclass(frozen=True)
class SpectralCodecConfig:
    """Sizes. The defaults suit two CPU cores: a second of music costs a hundredth of what SoundStream's default costs."""

    # The name of this class in files, where a field may be one of several.
    kind: ClassVar[str] = "spectral"
    # Between two frames: 20 ms, 50 Hz.
    frame_samples: int = 480
    # 64 ms: partials 60 Hz apart are two, and a drum stroke is still short.
    window_samples: int = 1536
    # Added to magnitudes before the logarithm (a sine of amplitude 1 has 384), and the constants that bring the logarithms near 0 and 1.
    floor: float = 2e-2
    log_mean: float = -2.7
    log_std: float = 1.5
    encoder_width: int = 256
    decoder_width: int = 384
    # Of the convolutions over frames.
    kernel_size: int = 3
    # One residual unit each, in the encoder and in the decoder.
    encoder_dilations: tuple[int, ...] = (1, 1)
    decoder_dilations: tuple[int, ...] = (1, 1, 2, 4)
    # Width of the latent vectors, and so of the codes.
    dim: int = 32
    num_levels: int = 8
    num_codes: int = 256

    def __post_init__(self):
        check_numbers(self, frame_samples=SIZE, window_samples=SIZE, floor=POSITIVE, log_mean=FINITE, log_std=POSITIVE, kernel_size=SIZE)
        check_numbers(self, encoder_width=SIZE, decoder_width=SIZE, encoder_dilations=SIZE, decoder_dilations=SIZE, dim=SIZE, num_levels=DEPTH, num_codes=SIZE)
        if self.window_samples % 2 or not 2 * self.frame_samples <= self.window_samples:
            raise UserError(f"window_samples={self.window_samples}, frame_samples={self.frame_samples}: choose an even window of two frames or more")
        if self.encoder_width % 2 or self.decoder_width % 2:
            raise UserError(f"encoder_width={self.encoder_width}, decoder_width={self.decoder_width}: choose even numbers, as residual units halve them")

    @property
    def num_bins(self) -> int:
        return self.window_samples // 2 + 1

    @property
    def window_frames(self) -> int:
        """Frames that sound together."""
        return -(-self.window_samples // self.frame_samples)


class SpectralCodec(nn.Module):
    """Encoder and decoder; the codebooks live outside, beside the parameters. The methods are those of `soundstream.SoundStream`."""

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
        """Latents of log-magnitudes."""
        return chain(self.encoder, (spectrum - self.config.log_mean) / self.config.log_std)[0]

    def decode(self, latents: Float[Array, "B T D"]) -> Float[Array, "B N"]:
        """The wave of T whole frames, N = T * frame_samples."""
        return self.decode_chunk(latents, None)[0]

    def decode_chunk(self, latents: Float[Array, "B T D"], past: Past) -> tuple[Float[Array, "B N"], Past]:
        """The next T frames of a wave, given the past of those before them."""
        convs, start, inversion = (None, 0, None) if past is None else past
        smooth, noisiness, convs = self.decode_spectrum(latents, convs)
        wave, inversion = invert(self.config, waver(self.config, smooth, noisiness, start), inversion)
        return wave, (convs, jnp.asarray(start + latents.shape[1], jnp.int32), inversion)

    def decode_spectrum(self, latents: Float[Array, "B T D"], past: Past = None) -> tuple[Float[Array, "B T F"], Float[Array, "B T F"], Past]:
        """Smooth log-magnitudes of T frames, and how noisy each bin is, from 0 (a partial) to 1 (noise)."""
        x, past = chain(self.decoder, latents, past)
        smooth, noisiness = jnp.split(x, 2, axis=-1)
        return jnp.minimum(smooth * self.config.log_std + self.config.log_mean, _LOUDEST), nn.sigmoid(noisiness - _TONAL), past

    def __call__(self, wave: Float[Array, "B N"]) -> Float[Array, "B T F"]:
        """Smooth log-magnitudes through encoder and decoder, not quantized."""
        return self.decode_spectrum(self.encode(wave))[0]


def waver(
    config: SpectralCodecConfig, smooth: Float[Array, "B T F"], noisiness: Float[Array, "B T F"], start: int | Int[Array, ""]
) -> Float[Array, "B T F"]:
    """Log-magnitudes that waver as those of noise do, as far as `noisiness` says. Frame i of the noise, the same in every clip, is frame start + i."""
    frames = start + jnp.arange(smooth.shape[1] + config.window_frames - 1)
    noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (config.frame_samples,)))(frames).reshape(1, -1)
    spectrum = stft(noise, window=config.window_samples, hop=config.frame_samples)[:, : smooth.shape[1]]
    power = 0.375 * config.window_samples  # Mean of the squared window times its length: the mean power of a bin.
    # The logarithm of a Rayleigh variable of mean square 1 is -gamma / 2 on average.
    return smooth + noisiness * (jnp.log(magnitude(spectrum) / power**0.5 + 1e-3) + np.euler_gamma / 2)


def log_magnitudes(config: SpectralCodecConfig, wave: Float[Array, "B N"]) -> Float[Array, "B T F"]:
    """log(magnitude + floor) under a Hann window; frame t covers samples [frame_samples t, frame_samples t + window_samples)."""
    return jnp.log(magnitude(stft(wave, window=config.window_samples, hop=config.frame_samples)) + config.floor)


def invert(config: SpectralCodecConfig, spectrum: Float[Array, "B T F"], past: Past = None) -> tuple[Float[Array, "B N"], Past]:
    """A wave with these log-magnitudes, N = T * frame_samples, and the past for the frames that follow."""
    hop, window, hops = config.frame_samples, config.window_samples, config.window_frames
    if past is None:
        past = (
            jnp.zeros((spectrum.shape[0], config.num_bins)),
            jnp.zeros((spectrum.shape[0], hops - 1, hops * hop)),
            jnp.zeros((1, hops - 1, hops * hop)),
        )
    phase, frames, weights = past
    phases, phase = _phases(config, jax.lax.stop_gradient(spectrum), phase)  # Peaks jump; gradients go through the magnitudes alone.
    magnitudes = jnp.maximum(jnp.exp(spectrum) - config.floor, 0.0)
    hann = np.pad(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window), (0, hops * hop - window)).astype(np.float32)
    new = jnp.fft.irfft(jax.lax.complex(magnitudes * jnp.cos(phases), magnitudes * jnp.sin(phases)), n=window)
    new = jnp.pad(new, ((0, 0), (0, 0), (0, hops * hop - window))) * hann
    frames = jnp.concatenate([frames, new], axis=1)
    weights = jnp.concatenate([weights, jnp.broadcast_to(jnp.square(hann), (1, *new.shape[1:]))], axis=1)
    least = _LEAST_OVERLAP * np.square(hann).sum() / hop
    wave = _overlap_add(frames, hops) / jnp.maximum(_overlap_add(weights, hops), least)
    return wave, (phase, frames[:, -(hops - 1) :], weights[:, -(hops - 1) :])


def _overlap_add(frames: Float[Array, "B T W"], hops: int) -> Float[Array, "B N"]:
    """Frames of `hops` hops each, laid one hop apart; the part from frame hops - 1 on, of which all frames are there."""
    batch, count, window = frames.shape
    parts = frames.reshape(batch, count, hops, window // hops)
    # The frame i hops ago lends its part i.
    return sum(parts[:, hops - 1 - i : count - i, i] for i in range(hops)).reshape(batch, -1)


def _phases(config: SpectralCodecConfig, spectrum: Float[Array, "B T F"], phase: Float[Array, "B F"]) -> tuple[Float[Array, "B T F"], Float[Array, "B F"]]:
    """Phases of all bins of all frames, and those of the last one, by single-pass spectrogram inversion. phase: of the frame before."""
    bins = jnp.arange(config.num_bins)
    left, here, right = spectrum[..., :-2], spectrum[..., 1:-1], spectrum[..., 2:]
    is_peak = (here > left) & (here >= right)
    # The parabola's summit, in bins from the peak.
    offset = jnp.where(is_peak, 0.5 * (left - right) / jnp.minimum(left - 2 * here + right, -1e-6), 0.0)
    edge = [(0, 0)] * (spectrum.ndim - 1) + [(1, 1)]
    is_peak, offset = jnp.pad(is_peak, edge), jnp.pad(offset, edge)
    advance = (2 * np.pi * config.frame_samples / config.window_samples) * (bins + offset)
    # Each bin belongs to the nearest peak, or to itself where there is none.
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
