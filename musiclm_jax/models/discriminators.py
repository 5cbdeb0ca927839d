"""SoundStream's discriminators (arXiv 2107.03312, section III-D): three of the wave at decreasing rates, one of the complex STFT.

Each returns the activations of all its layers. The last ones are the logits, which are positive for real waves.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Float
from musiclm_jax.audio.features import stft
from musiclm_jax.checks import COUNT, DEPTH_OR_NONE, SIZE, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.nn.conv import Conv2d, elu

Activations = list[jax.Array]


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of the discriminators. The defaults are the paper's, with MelGAN's wave discriminators (arXiv 1910.06711, appendix A)."""

    # Number of wave discriminators, which see the wave at the full rate, half, a quarter, ... 0: none.
    wave_scales: int = 3
    # Width of their first layer. Each of the four strided layers multiplies it by 4, up to wave_max_channels.
    wave_channels: int = 16
    wave_max_channels: int = 1024
    # Width of the STFT discriminator's first layer. 0: no STFT discriminator.
    stft_channels: int = 32
    stft_window_samples: int = 1024
    stft_hop_samples: int = 256

    def __post_init__(self):
        check_numbers(self, wave_scales=DEPTH_OR_NONE, wave_channels=SIZE, wave_max_channels=SIZE, stft_channels=COUNT)
        check_numbers(self, stft_window_samples=SIZE, stft_hop_samples=SIZE)
        if self.wave_scales == 0 and self.stft_channels == 0:
            raise UserError("wave_scales=0, stft_channels=0: there is no discriminator; raise one of them, or train without an adversarial loss")
        if self.stft_window_samples % 128:
            raise UserError(f"stft_window_samples={self.stft_window_samples} must be a multiple of 128, because six blocks divide the bins by 64")


class WaveDiscriminator(nn.Module):
    """MelGAN's discriminator: a plain convolution, four grouped strided ones, two plain ones, all with weight normalization. One logit per 256 samples."""

    channels: int
    max_channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, wave: Float[Array, "B N"]) -> Activations:
        conv = functools.partial(Conv2d, weight_norm=True, dtype=self.dtype)
        width = self.channels
        layers = [conv(width, (1, 15))]
        for _ in range(4):
            # Each group has four input channels.
            groups = width // 4
            width = min(4 * width, self.max_channels)
            layers.append(conv(width, (1, 41), strides=(1, 4), groups=groups))
        layers.append(conv(width, (1, 5)))
        x, activations = wave[:, None, :, None], []
        for layer in layers:
            x = nn.leaky_relu(layer(x), 0.2)
            activations.append(x)
        return [*activations, conv(1, (1, 3), dtype=jnp.float32)(x)]


class SpectrumBlock(nn.Module):
    """A residual block of the STFT discriminator: a 3 x 3 convolution, a strided one, and a strided pointwise shortcut."""

    features: int
    strides: tuple[int, int]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T F D"]) -> Float[Array, "B T_ F_ D_"]:
        conv = functools.partial(Conv2d, dtype=self.dtype)
        h = conv(x.shape[-1], (3, 3))(elu(x))
        h = conv(self.features, (self.strides[0] + 2, self.strides[1] + 2), strides=self.strides)(elu(h))
        return h + conv(self.features, (1, 1), strides=self.strides)(x)


class SpectrumDiscriminator(nn.Module):
    """The STFT discriminator: real and imaginary parts as two channels, then six residual blocks with strides (1, 2), (2, 2), ... One logit per 8 hops.

    The widths of the blocks are those of the paper's figure 4: 2, 4, 4, 8, 8, 16 times the width of the first layer.
    """

    channels: int
    window: int
    hop: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, wave: Float[Array, "B N"]) -> Activations:
        # The root of the window's energy divides the spectrum, so that it has the scale of the wave. Without the Nyquist bin F = window / 2.
        spectrum = stft(wave, window=self.window, hop=self.hop)[..., :-1] * (3 / 8 * self.window) ** -0.5
        x = Conv2d(self.channels, (7, 7), dtype=self.dtype)(jnp.stack([spectrum.real, spectrum.imag], axis=-1))
        activations = [x]
        for i, multiple in enumerate((2, 4, 4, 8, 8, 16)):
            x = SpectrumBlock(multiple * self.channels, strides=(1 + i % 2, 2), dtype=self.dtype)(x)
            activations.append(x)
        # The kernel spans all remaining bins: one logit per time step.
        return [*activations, Conv2d(1, (1, x.shape[2]), padding="VALID")(elu(x))]


class Discriminators(nn.Module):
    """All discriminators of a config: wave [B, N] -> a list of activations for each, the wave discriminators first. Logits are float32."""

    config: DiscriminatorConfig
    # Of the other convolutions.
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, wave: Float[Array, "B N"]) -> list[Activations]:
        config, outputs, x = self.config, [], wave
        for scale in range(config.wave_scales):
            if scale:
                x = nn.avg_pool(x[..., None], (4,), strides=(2,), padding="SAME", count_include_pad=False)[..., 0]
            outputs.append(WaveDiscriminator(config.wave_channels, config.wave_max_channels, self.dtype, name=f"wave_{scale}")(x))
        if config.stft_channels:
            spectrum = SpectrumDiscriminator(config.stft_channels, config.stft_window_samples, config.stft_hop_samples, self.dtype, name="spectrum")
            outputs.append(spectrum(wave))
        return outputs
