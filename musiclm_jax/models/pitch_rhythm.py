"""A small audio tower for MuLan that has music's symmetries built in, where ResNet-50 would have to learn them from 44 million clips.

    log-mels by the octave -> stem, block -> autocorrelation over time -------------> rhythm
                                    |-> blocks, shortened in time alone -> mean and deviation over time
                                              |-> convolutions over the bands -> mean and maximum over the bands -> harmony, in any key
                                              |-> linear, band by band -----------------------------------------> pitch and timbre

The mode is which degrees above the tonic sound: the same shape wherever the tonic is, so a convolution along a log-frequency axis that spans
octaves finds it in all twelve keys from the examples of one. The tempo is at what lag onsets repeat. Ours, no paper's; it wants a front end
with scale="octave".
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Float
from musiclm_jax.models.resnet import Block, ResNetConfig, convolution, make_norm
from musiclm_jax.nn.layers import Dense, partitioned

_SHAPES = ResNetConfig(bottleneck=False)


@dataclasses.dataclass(frozen=True)
class PitchRhythmConfig:
    """0.6M parameters on 144 bands. Pairs are (time, frequency)."""

    # Channels of the stem and its block, then of each further block.
    widths: tuple[int, ...] = (16, 32, 64)
    stem_kernel: tuple[int, int] = (5, 5)
    # What the stem leaves of the bands stays to the end: two per semitone before it should be one after it.
    stem_stride: tuple[int, int] = (2, 2)
    # By how much each further block shortens time.
    time_strides: tuple[int, ...] = (2, 4)
    # Lags of the autocorrelation, in steps of the stem's output: 64 of 80 ms are two bars of a slow tune.
    num_lags: int = 64
    rhythm_width: int = 64
    # Of the convolutions over bands: 25 reach an octave up and down.
    pitch_kernel: int = 25
    pitch_width: int = 64
    # Channels that each band keeps.
    band_width: int = 16

    def __post_init__(self):
        if len(self.widths) != len(self.time_strides) + 1:
            raise ValueError(f"widths={self.widths}, time_strides={self.time_strides}: give one width more than strides")
        if self.num_lags < 1:
            raise ValueError(f"num_lags={self.num_lags}: choose 1 or more")


class PitchRhythmTower(nn.Module):
    """Spectrogram [B, T, M] -> features [B, D], D fixed by the config and by M. Any T will do."""

    config: PitchRhythmConfig
    dtype: jnp.dtype = jnp.float32
    # Recompute each block in the backward pass, for memory.
    remat: bool = False

    @nn.compact
    def __call__(self, spectrogram: Float[Array, "B T M"]) -> Float[Array, "B D"]:
        config, block = self.config, nn.remat(Block) if self.remat else Block
        x = spectrogram.astype(self.dtype)[..., None]
        x = convolution(config.widths[0], config.stem_kernel, config.stem_stride, dtype=self.dtype, name="stem")(x)
        x = nn.relu(make_norm("group", _SHAPES, config.widths[0], dtype=self.dtype, name="stem_norm")(x))
        x = block(_SHAPES, config.widths[0], (1, 1), dtype=self.dtype, name="block0")(x)
        repeats = autocorrelation(jnp.mean(x.astype(jnp.float32), axis=2), num_lags=config.num_lags)
        rhythm = nn.relu(Dense(config.rhythm_width, axes=(None, "conv"), name="rhythm")(jnp.mean(repeats, axis=-1)))
        for i, (width, stride) in enumerate(zip(config.widths[1:], config.time_strides, strict=True), start=1):
            x = block(_SHAPES, width, (stride, 1), dtype=self.dtype, name=f"block{i}")(x)
        x = x.astype(jnp.float32)
        mean = jnp.mean(x, axis=1)
        deviation = jnp.sqrt(jnp.mean(jnp.square(x - mean[:, None]), axis=1) + 1e-6)
        bands = jnp.concatenate([mean, deviation], axis=-1)  # [B, M, 2 D]
        timbre = Dense(config.band_width, axes=("conv", None), name="bands")(bands)
        harmony = bands
        for i in range(2):
            harmony = nn.relu(_band_conv(config, name=f"pitch{i}")(harmony))
        return jnp.concatenate([rhythm, jnp.mean(harmony, axis=1), jnp.max(harmony, axis=1), timbre.reshape(len(timbre), -1)], axis=-1)


def autocorrelation(x: Float[Array, "B T D"], *, num_lags: int) -> Float[Array, "B L D"]:
    """How much each channel, less its mean, is like itself 0, 1, ... num_lags - 1 steps later; at lag 0 it is 1, or 0 for a constant. Float32.

    A sum over the T - lag pairs there are, by Fourier transform; lags of T and more are 0.
    """
    x = x - jnp.mean(x, axis=1, keepdims=True)
    length = x.shape[1] + max(x.shape[1], num_lags)  # Long enough not to wrap around.
    power = jnp.square(jnp.abs(jnp.fft.rfft(x, length, axis=1)))
    products = jnp.fft.irfft(power, length, axis=1)[:, :num_lags] / x.shape[1]
    return products / (products[:, :1] + 1e-3)


def _band_conv(config: PitchRhythmConfig, *, name: str) -> nn.Conv:
    kernel_init = partitioned(nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal"), (None, None, "conv"))
    bias_init = partitioned(nn.initializers.zeros, ("conv",))
    return nn.Conv(config.pitch_width, (config.pitch_kernel,), kernel_init=kernel_init, bias_init=bias_init, name=name)
