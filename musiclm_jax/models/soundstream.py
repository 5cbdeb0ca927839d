"""SoundStream (arXiv 2107.03312): a causal convolutional codec with a residual vector quantizer between encoder and decoder."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Float
from musiclm_jax.checks import DEPTH, DTYPES, SIZE, check_choices, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.nn.conv import CausalConv, CausalConvTranspose, Past, ResidualUnit, chain


@dataclasses.dataclass(frozen=True)
class SoundStreamConfig:
    """Sizes. The defaults are the codec of MusicLM (arXiv 2301.11325, section 3.1): 24 kHz, 50 Hz, 12 levels of 1024 codes."""

    # The name of this class in files, where a field may be one of several.
    kind: ClassVar[str] = "soundstream"
    # Width C of the encoder's first layer.
    channels: int = 32
    # The decoder's. SoundStream, table I, trades it against the encoder's.
    decoder_channels: int = 32
    # Every strided block multiplies the width by it. More puts the work into the layers at low rates, which are cheap.
    growth: int = 2
    # Of the encoder, from the wave on; the decoder runs them backwards. Their product is the frame: 480 samples. Large strides first
    # are much cheaper, since most of the time goes into the layers at high rates.
    strides: tuple[int, ...] = (3, 4, 5, 8)
    # Width of the latent vectors, and so of the codes.
    dim: int = 256
    num_levels: int = 12
    num_codes: int = 1024
    # Of the first, the last and the residual convolutions.
    kernel_size: int = 7
    # One residual unit each, per block.
    dilations: tuple[int, ...] = (1, 3, 9)
    # Compute dtype of the convolutions: "float32" or "bfloat16". Parameters, codes and waves are float32.
    dtype: str = "float32"

    def __post_init__(self):
        check_numbers(self, channels=SIZE, decoder_channels=SIZE, growth=SIZE, strides=SIZE, dim=SIZE, kernel_size=SIZE, dilations=SIZE)
        check_numbers(self, num_levels=DEPTH, num_codes=SIZE)
        check_choices(self, dtype=DTYPES)
        if self.channels % 2 or self.decoder_channels % 2:
            raise UserError(f"channels={self.channels}, decoder_channels={self.decoder_channels}: choose even numbers, as residual units halve them")
        if not self.strides:
            raise UserError("strides=(): give at least one")

    @property
    def frame_samples(self) -> int:
        return math.prod(self.strides)


class Encoder(nn.Module):
    """wave [B, N] -> latents [B, T, D], N a multiple of the frame."""

    config: SoundStreamConfig

    @nn.compact
    def __call__(self, wave: Float[Array, "B N"], past: Past = None) -> tuple[Float[Array, "B T D"], Past]:
        config, width, dtype = self.config, self.config.channels, jnp.dtype(self.config.dtype)
        layers = [CausalConv(width, config.kernel_size, dtype=dtype)]
        for stride in config.strides:
            layers += [ResidualUnit(dilation, config.kernel_size, dtype=dtype) for dilation in config.dilations]
            width *= config.growth
            layers.append(CausalConv(width, 2 * stride, stride=stride, activate=True, dtype=dtype))
        layers.append(CausalConv(config.dim, 3, activate=True, dtype=dtype))
        x, past = chain(layers, wave[..., None], past)
        return x.astype(jnp.float32), past


class Decoder(nn.Module):
    """latents [B, T, D] -> wave [B, N]. The mirror of the encoder; no tanh at the end."""

    config: SoundStreamConfig

    @nn.compact
    def __call__(self, latents: Float[Array, "B T D"], past: Past = None) -> tuple[Float[Array, "B N"], Past]:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        width = config.decoder_channels * config.growth ** len(config.strides)
        layers = [CausalConv(width, config.kernel_size, dtype=dtype)]
        for stride in reversed(config.strides):
            width //= config.growth
            layers.append(CausalConvTranspose(width, stride, activate=True, dtype=dtype))
            layers += [ResidualUnit(dilation, config.kernel_size, dtype=dtype) for dilation in config.dilations]
        layers.append(CausalConv(1, config.kernel_size, activate=True, dtype=dtype))
        x, past = chain(layers, latents, past)
        return x[..., 0].astype(jnp.float32), past


class SoundStream(nn.Module):
    """Encoder and decoder; the codebooks live outside, beside the parameters."""

    config: SoundStreamConfig

    def setup(self):
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def encode(self, wave: Float[Array, "B N"]) -> Float[Array, "B T D"]:
        """Latents, one per frame; the wave is padded on the right with zeros to whole frames, T = ceil(N / frame_samples)."""
        return self.encoder(pad_to_frames(wave, self.config.frame_samples))[0]

    def decode(self, latents: Float[Array, "B T D"]) -> Float[Array, "B N"]:
        """The wave of T whole frames."""
        return self.decoder(latents)[0]

    def decode_chunk(self, latents: Float[Array, "B T D"], past: Past) -> tuple[Float[Array, "B N"], Past]:
        """The next T frames of a wave, given the past of those before them."""
        return self.decoder(latents, past)

    def __call__(self, wave: Float[Array, "B N"]) -> Float[Array, "B N_"]:
        """The wave through encoder and decoder, not quantized."""
        return self.decode(self.encode(wave))


def pad_to_frames(wave: Float[Array, "B N"], frame_samples: int) -> Float[Array, "B N_"]:
    """Zeros on the right, up to a multiple of `frame_samples`."""
    return jnp.pad(wave, ((0, 0), (0, -wave.shape[-1] % frame_samples)))
