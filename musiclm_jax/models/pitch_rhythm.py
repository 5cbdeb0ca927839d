"""A small audio tower for MuLan whose layers are equivariant to transposition and measure periodicity, for training on little data.

    log-mels by the octave -> stem, block -> autocorrelation over time -------------------------> rhythm
                                    |-> octaves folded onto each other -> chords -> keys --------> harmony, in any key
                                    |-> blocks with strides in time -> mean and deviation over time -> linear, per band -> pitch and timbre

A chord is a set of intervals above its root, a mode a set of chords above its tonic. Both have the same shape wherever root and tonic lie on the circle
of the twelve pitch classes, so that circular convolutions recognize them in all keys from examples in one. The tempo shows in the lags at which onsets
repeat. This tower is not from a paper. It expects a front end with scale="octave".
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
from musiclm_jax.nn.stack import recomputed
from musiclm_jax.partitioning import by_example

_SHAPES = ResNetConfig(bottleneck=False)


@dataclasses.dataclass(frozen=True)
class PitchRhythmConfig:
    """Sizes of the tower: 0.6M parameters for 144 mel bands. Pairs are (time, frequency)."""

    # Identifies this class in JSON, where a field may have one of several classes.
    kind: ClassVar[str] = "pitch_rhythm"
    # Channels of the stem and the first block, then of each further block.
    widths: tuple[int, ...] = (16, 32, 64)
    stem_kernel: tuple[int, int] = (5, 5)
    # No later layer reduces the bands. With two bands per semitone, a frequency stride of 2 leaves one per semitone.
    stem_stride: tuple[int, int] = (2, 2)
    # Time stride of each further block.
    time_strides: tuple[int, ...] = (2, 4)
    # Lags of the autocorrelation, in steps of the stem's output: 64 steps of 80 ms are two bars at a slow tempo.
    num_lags: int = 64
    rhythm_width: int = 64
    # Pitch classes of an octave, which is the number of bands per octave after the stem.
    num_classes: int = 12
    # Steps of the stem's output that are averaged to one chord: 5 steps of 80 ms.
    chord_steps: int = 5
    chord_width: int = 24
    key_width: int = 48
    # Features per band in the output.
    band_width: int = 16

    def __post_init__(self):
        check_numbers(self, widths=SIZE, stem_kernel=SIZE, stem_stride=SIZE, time_strides=SIZE, num_lags=SIZE, rhythm_width=SIZE, num_classes=SIZE)
        check_numbers(self, chord_steps=SIZE, chord_width=SIZE, key_width=SIZE, band_width=SIZE)
        if len(self.widths) != len(self.time_strides) + 1:
            raise UserError(f"widths={self.widths}, time_strides={self.time_strides}: give one width more than strides")


class PitchRhythmTower(nn.Module):
    """The tower: spectrogram [B, T, M] -> features [B, D] float32. T is arbitrary; D depends on the config and on M.

    Raises:
        ValueError: the bands after the stem are not a whole number of octaves.
    """

    config: PitchRhythmConfig
    dtype: jnp.dtype = jnp.float32
    # What the backward pass recomputes of each block, one of `checks.REMATS`.
    remat: str = "none"

    @nn.compact
    def __call__(self, spectrogram: Float[Array, "B T M"]) -> Float[Array, "B D"]:
        config, block = self.config, recomputed(Block, self.remat)
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
            raise ValueError(
                f"{bands} bands after the stem are not a whole number of octaves of num_classes={config.num_classes} bands: change num_mels or stem_stride"
            )
        steps = min(config.chord_steps, time)
        x = jnp.mean(x[:, : time // steps * steps].reshape(batch, -1, steps, bands, width), axis=2)
        x = x.reshape(batch, -1, bands // config.num_classes, config.num_classes, width)
        x = jnp.moveaxis(x, 2, 3).reshape(batch, -1, config.num_classes, bands // config.num_classes * width)
        x = Dense(config.chord_width, axes=("conv", None), name="octaves")(x)
        chords = nn.relu(around(nn.relu(LayerNorm(name="octaves_norm")(x)), config.chord_width, name="chords"))
        # Each root's share of a chord's activation, so that loud passages do not count more than soft ones.
        chords = chords / (jnp.sum(chords, axis=2, keepdims=True) + 1e-3)
        keys = nn.relu(around(LayerNorm(name="chords_norm")(_over_time(chords)), config.key_width, name="keys"))
        return jnp.concatenate([jnp.mean(keys, axis=1), jnp.max(keys, axis=1)], axis=-1)


def autocorrelation(x: Float[Array, "B T D"], *, num_lags: int) -> Float[Array, "B L D"]:
    """Normalized autocorrelation of each channel, less its mean, at lags 0 to num_lags - 1. It is 1 at lag 0, or 0 for a constant channel.

    Each lag sums over its T - lag pairs, so that lags of T and more give 0. Computed by Fourier transform.
    """
    x = x - jnp.mean(x, axis=1, keepdims=True)
    length = x.shape[1] + max(x.shape[1], num_lags)  # Long enough that lags do not wrap around.

    def correlate(x: Array) -> Array:
        return jnp.fft.irfft(jnp.square(jnp.abs(jnp.fft.rfft(x, length, axis=1))), length, axis=1)

    products = by_example(correlate, x)[:, :num_lags] / x.shape[1]
    return products / (products[:, :1] + 1e-3)


def around(x: Float[Array, "... C D"], features: int, *, name: str) -> Float[Array, "... C F"]:
    """A circular convolution over C places with a kernel of C places: rotating the input rotates the output."""
    places = x.shape[-2]
    kernel_init = partitioned(nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal"), (None, None, "conv"))
    bias_init = partitioned(nn.initializers.zeros, ("conv",))
    x = jnp.concatenate([x, x[..., : places - 1, :]], axis=-2)
    return nn.Conv(features, (places,), padding="VALID", kernel_init=kernel_init, bias_init=bias_init, name=name)(x)


def _over_time(x: Float[Array, "B T M D"]) -> Float[Array, "B M D2"]:
    """Mean and standard deviation over time, concatenated."""
    mean = jnp.mean(x, axis=1)
    deviation = jnp.sqrt(jnp.mean(jnp.square(x - mean[:, None]), axis=1) + 1e-6)
    return jnp.concatenate([mean, deviation], axis=-1)
