"""A small audio tower for MuLan that has music's symmetries built in, where ResNet-50 would have to learn them from 44 million clips.

    log-mels by the octave -> stem, block -> autocorrelation over time -------------------------> rhythm
                                    |-> octaves laid over each other -> chords -> keys ----------> harmony, in any key
                                    |-> blocks, shortened in time -> mean and deviation over time -> linear, band by band -> pitch and timbre

A chord is which intervals sound above its root, a mode which chords sound above the tonic: the same shapes wherever root and tonic lie on the circle
of the twelve pitch classes, so convolutions around it find them in all keys from the examples of one. The tempo is at what lag onsets repeat. Ours, no
paper's; it wants a front end with scale="octave".
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Float
from musiclm_jax.checks import SIZE, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.models.resnet import Block, ResNetConfig, convolution, make_norm
from musiclm_jax.nn.layers import Dense, LayerNorm, partitioned

_SHAPES = ResNetConfig(bottleneck=False)


@dataclasses.dataclass(frozen=True)
class PitchRhythmConfig:
    """0.6M parameters on 144 bands. Pairs are (time, frequency)."""

    # The name of this class in files, where a field may be one of several.
    kind: ClassVar[str] = "pitch_rhythm"
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
    # Pitch classes of the octave: what the stem leaves of its bands.
    num_classes: int = 12
    # Steps of the stem's output in which one chord sounds: 5 of 80 ms.
    chord_steps: int = 5
    chord_width: int = 24
    key_width: int = 48
    # Channels that each band keeps.
    band_width: int = 16

    def __post_init__(self):
        check_numbers(self, widths=SIZE, stem_kernel=SIZE, stem_stride=SIZE, time_strides=SIZE, num_lags=SIZE, rhythm_width=SIZE, num_classes=SIZE)
        check_numbers(self, chord_steps=SIZE, chord_width=SIZE, key_width=SIZE, band_width=SIZE)
        if len(self.widths) != len(self.time_strides) + 1:
            raise UserError(f"widths={self.widths}, time_strides={self.time_strides}: give one width more than strides")


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
        harmony = self._harmony(x.astype(jnp.float32))
        for i, (width, stride) in enumerate(zip(config.widths[1:], config.time_strides, strict=True), start=1):
            x = block(_SHAPES, width, (stride, 1), dtype=self.dtype, name=f"block{i}")(x)
        timbre = Dense(config.band_width, axes=("conv", None), name="bands")(_over_time(x.astype(jnp.float32)))
        return jnp.concatenate([rhythm, harmony, timbre.reshape(len(timbre), -1)], axis=-1)

    def _harmony(self, x: Float[Array, "B T M D"]) -> Float[Array, "B D2"]:
        config = self.config
        batch, time, bands, width = x.shape
        if bands % config.num_classes:
            raise ValueError(f"{bands} bands after the stem are no whole number of octaves of num_classes={config.num_classes}: change num_mels or stem_stride")
        steps = min(config.chord_steps, time)
        x = jnp.mean(x[:, : time // steps * steps].reshape(batch, -1, steps, bands, width), axis=2)
        x = x.reshape(batch, -1, bands // config.num_classes, config.num_classes, width)
        x = jnp.moveaxis(x, 2, 3).reshape(batch, -1, config.num_classes, bands // config.num_classes * width)
        x = Dense(config.chord_width, axes=("conv", None), name="octaves")(x)
        chords = nn.relu(around(nn.relu(LayerNorm(name="octaves_norm")(x)), config.chord_width, name="chords"))
        # What share of a chord's strength each root has: loud passages count no more than soft ones.
        chords = chords / (jnp.sum(chords, axis=2, keepdims=True) + 1e-3)
        keys = nn.relu(around(LayerNorm(name="chords_norm")(_over_time(chords)), config.key_width, name="keys"))
        return jnp.concatenate([jnp.mean(keys, axis=1), jnp.max(keys, axis=1)], axis=-1)


def autocorrelation(x: Float[Array, "B T D"], *, num_lags: int) -> Float[Array, "B L D"]:
    """How much each channel, less its mean, is like itself 0, 1, ... num_lags - 1 steps later; at lag 0 it is 1, or 0 for a constant. Float32.

    A sum over the T - lag pairs there are, by Fourier transform; lags of T and more are 0.
    """
    x = x - jnp.mean(x, axis=1, keepdims=True)
    length = x.shape[1] + max(x.shape[1], num_lags)  # Long enough not to wrap around.
    power = jnp.square(jnp.abs(jnp.fft.rfft(x, length, axis=1)))
    products = jnp.fft.irfft(power, length, axis=1)[:, :num_lags] / x.shape[1]
    return products / (products[:, :1] + 1e-3)


def around(x: Float[Array, "... C D"], features: int, *, name: str) -> Float[Array, "... C F"]:
    """A convolution around a circle of C places, each of which sees all of it: turn the input, and the output turns along."""
    places = x.shape[-2]
    kernel_init = partitioned(nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal"), (None, None, "conv"))
    bias_init = partitioned(nn.initializers.zeros, ("conv",))
    x = jnp.concatenate([x, x[..., : places - 1, :]], axis=-2)
    return nn.Conv(features, (places,), padding="VALID", kernel_init=kernel_init, bias_init=bias_init, name=name)(x)


def _over_time(x: Float[Array, "B T M D"]) -> Float[Array, "B M D2"]:
    """Mean and deviation over time, beside each other."""
    mean = jnp.mean(x, axis=1)
    deviation = jnp.sqrt(jnp.mean(jnp.square(x - mean[:, None]), axis=1) + 1e-6)
    return jnp.concatenate([mean, deviation], axis=-1)
