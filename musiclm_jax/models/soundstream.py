"""SoundStream (arXiv 2107.03312, sections III-A and III-B): the causal convolutional encoder and decoder of the codec."""

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
    """Sizes of SoundStream. The defaults are the codec of MusicLM (arXiv 2301.11325, section 3.1): 24 kHz, 50 Hz, 12 levels of 1024 codes."""

    # Identifies this class in JSON, where a field may have one of several classes.
    kind: ClassVar[str] = "soundstream"
    # Width of the encoder's first layer.
    channels: int = 32
    # Width of the decoder's last block. Table I of the paper compares widths of encoder and decoder.
    decoder_channels: int = 32
    # Each strided block of the encoder multiplies the width by this factor. A larger one adds capacity where it is cheap, in the layers at low rates.
    growth: int = 2
    # Strides of the encoder, from the wave on; the decoder has them in reverse order. Their product is the length of a frame, 480 samples. The paper does
    # not give those of 24 kHz and 50 Hz. With the large ones first the codec is much faster, since the layers at high rates take most of the time.
    strides: tuple[int, ...] = (3, 4, 5, 8)
    # Width of the latent vectors and of the code vectors.
    dim: int = 256
    num_levels: int = 12
    num_codes: int = 1024
    # Kernel size of the first, the last and the residual convolutions.
    kernel_size: int = 7
    # Dilations of the residual units of each block.
    dilations: tuple[int, ...] = (1, 3, 9)
    # Type of the convolutions, and of those of the discriminators: "float32" or "bfloat16". Parameters, latents, waves and logits are float32.
    dtype: str = "float32"

    def __post_init__(self):
        check_numbers(self, channels=SIZE, decoder_channels=SIZE, growth=SIZE, strides=SIZE, dim=SIZE, kernel_size=SIZE, dilations=SIZE)
        check_numbers(self, num_levels=DEPTH, num_codes=SIZE)
        check_choices(self, dtype=DTYPES)
        if self.channels % 2 or self.decoder_channels % 2:
            raise UserError(f"channels={self.channels}, decoder_channels={self.decoder_channels}: choose even numbers, because residual units halve them")
        if not self.strides:
            raise UserError("strides=(): give at least one stride")

    @property
    def frame_samples(self) -> int:
        return math.prod(self.strides)


class Encoder(nn.Module):
    """The encoder (section III-A): wave [B, N] -> latents [B, T, D] float32. N is a multiple of the frame length."""

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
    """The decoder (section III-B), which mirrors the encoder: latents [B, T, D] -> wave [B, N] float32. There is no tanh at the end."""

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
    """Encoder and decoder of SoundStream. The codebooks are not part of the module (see `models/codec.py`)."""

    config: SoundStreamConfig

    def setup(self):
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def encode(self, wave: Float[Array, "B N"]) -> Float[Array, "B T D"]:
        """Latents, one per frame, T = ceil(N / frame_samples). The wave is zero-padded on the right to whole frames."""
        return self.encoder(pad_to_frames(wave, self.config.frame_samples))[0]

    def decode(self, latents: Float[Array, "B T D"]) -> Float[Array, "B N"]:
        """The wave of T frames, N = T * frame_samples."""
        return self.decoder(latents)[0]

    def decode_chunk(self, latents: Float[Array, "B T D"], past: Past) -> tuple[Float[Array, "B N"], Past]:
        """Decodes the next T frames. past: what the call for the frames before them returned, None at the start. Returns (wave, new past)."""
        return self.decoder(latents, past)

    def __call__(self, wave: Float[Array, "B N"]) -> Float[Array, "B N_"]:
        """Reconstructs a wave without quantization. The output has whole frames."""
        return self.decode(self.encode(wave))


def pad_to_frames(wave: Float[Array, "B N"], frame_samples: int) -> Float[Array, "B N_"]:
    """Pads waves with zeros on the right to a multiple of `frame_samples`."""
    return jnp.pad(wave, ((0, 0), (0, -wave.shape[-1] % frame_samples)))
