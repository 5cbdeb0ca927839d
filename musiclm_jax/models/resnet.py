"""A residual network over spectrograms (arXiv 1512.03385), by default ResNet-50 with the strides of its version 1.5."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Float
from musiclm_jax.checks import DEPTH, SIZE, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.nn.layers import partitioned
from musiclm_jax.nn.stack import recomputed

# He's initialization, for convolutions before a ReLU.
_kernel_init = partitioned(nn.initializers.variance_scaling(2.0, "fan_out", "normal"), (None, None, None, "conv"))
_scale_init = partitioned(nn.initializers.ones, ("conv",))
_bias_init = partitioned(nn.initializers.zeros, ("conv",))
# Output width of a bottleneck block, as a multiple of its inner width.
_EXPANSION = 4


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes of the residual network. The default is ResNet-50. Pairs are (time, frequency)."""

    # Identifies this class in JSON, where a field may have one of several classes.
    kind: ClassVar[str] = "resnet"
    # Residual blocks of each stage.
    depths: tuple[int, ...] = (3, 4, 6, 3)
    # Channels inside the blocks of each stage. The output of a bottleneck has 4 times as many.
    widths: tuple[int, ...] = (64, 128, 256, 512)
    # Convolutions of a block. True: 1x1, 3x3, 1x1 (ResNet-50). False: 3x3, 3x3 (ResNet-18).
    bottleneck: bool = True
    # Stride of the first block of each stage. With smaller frequency strides, later layers still resolve pitches and harmonics.
    strides: tuple[tuple[int, int], ...] = ((1, 1), (2, 2), (2, 2), (2, 2))
    # Channels of the stem, which is one convolution.
    stem_width: int = 64
    stem_kernel: tuple[int, int] = (7, 7)
    stem_stride: tuple[int, int] = (2, 2)
    # Whether 3x3 max-pooling with stride 2 follows the stem.
    stem_pool: bool = True
    # Channels per group of the norms; a layer with fewer channels is one group. Group norm (arXiv 1803.08494) replaces ResNet-50's batch norm: it has no
    # running statistics, and a clip's embedding does not depend on the other clips of its batch.
    norm_group_size: int = 16

    def __post_init__(self):
        check_numbers(self, depths=DEPTH, widths=SIZE, strides=SIZE, stem_width=SIZE, stem_kernel=SIZE, stem_stride=SIZE, norm_group_size=SIZE)
        if not len(self.depths) == len(self.widths) == len(self.strides):
            raise UserError(f"depths={self.depths}, widths={self.widths}, strides={self.strides}: give each the same number of stages")
        for width in (self.stem_width, *self.widths):
            if width > self.norm_group_size and width % self.norm_group_size:
                raise UserError(f"width {width} is not a multiple of norm_group_size={self.norm_group_size}: change one of them")


class ResNet(nn.Module):
    """The network: spectrogram [B, T, M] -> features [B, D] float32, the means over time and frequency. T and M are arbitrary."""

    config: ResNetConfig
    dtype: jnp.dtype = jnp.float32
    # What the backward pass recomputes of each block, one of `checks.REMATS`.
    remat: str = "none"
    # "group", or "affine": scale and bias only. A batch norm with fixed statistics is such a map, so that published weights can be loaded.
    norm: str = "group"

    @nn.compact
    def __call__(self, spectrogram: Float[Array, "B T M"]) -> Float[Array, "B D"]:
        config = self.config
        x = spectrogram.astype(self.dtype)[..., None]
        x = convolution(config.stem_width, config.stem_kernel, config.stem_stride, dtype=self.dtype, name="stem")(x)
        x = nn.relu(make_norm(self.norm, config, config.stem_width, dtype=self.dtype, name="stem_norm")(x))
        if config.stem_pool:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        block = recomputed(Block, self.remat)
        for stage, (depth, width, stride) in enumerate(zip(config.depths, config.widths, config.strides, strict=True)):
            for i in range(depth):
                x = block(config, width, stride if i == 0 else (1, 1), dtype=self.dtype, norm=self.norm, name=f"stage{stage}_block{i}")(x)
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


class Block(nn.Module):
    """A residual block: ReLU(x + convolutions(x)), with a norm after each convolution. The shortcut is a 1x1 convolution where the shape changes."""

    config: ResNetConfig
    width: int
    stride: tuple[int, int]
    dtype: jnp.dtype = jnp.float32
    norm: str = "group"

    @nn.compact
    def __call__(self, x: Float[Array, "B T M D"]) -> Float[Array, "B T2 M2 D2"]:
        conv = functools.partial(convolution, dtype=self.dtype)
        norm = functools.partial(make_norm, self.norm, self.config, dtype=self.dtype)
        if self.config.bottleneck:
            layers = [(self.width, (1, 1), (1, 1)), (self.width, (3, 3), self.stride), (self.width * _EXPANSION, (1, 1), (1, 1))]
        else:
            layers = [(self.width, (3, 3), self.stride), (self.width, (3, 3), (1, 1))]
        y = x
        for i, (width, kernel, stride) in enumerate(layers):
            y = conv(width, kernel, stride, name=f"conv{i}")(y)
            y = norm(width, name=f"norm{i}")(y)
            y = nn.relu(y) if i < len(layers) - 1 else y
        if self.stride != (1, 1) or x.shape[-1] != y.shape[-1]:
            x = conv(y.shape[-1], (1, 1), self.stride, name="shortcut")(x)
            x = norm(y.shape[-1], name="shortcut_norm")(x)
        return nn.relu(x + y)


def convolution(width: int, kernel: tuple[int, int], stride: tuple[int, int], *, dtype: jnp.typing.DTypeLike, name: str) -> nn.Conv:
    """A convolution without bias, padded so that a length n becomes ceil(n / stride). Odd kernels are padded equally on both sides."""
    padding = tuple(((k - 1) // 2, k // 2) for k in kernel)
    return nn.Conv(width, kernel, stride, padding=padding, use_bias=False, dtype=dtype, kernel_init=_kernel_init, name=name)


class Affine(nn.Module):
    """x * scale + bias, with one scale and bias per channel."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T M D"]) -> Float[Array, "B T M D"]:
        scale = self.param("scale", _scale_init, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", _bias_init, (x.shape[-1],), jnp.float32)
        return x * scale.astype(self.dtype) + bias.astype(self.dtype)


def make_norm(kind: str, config: ResNetConfig, width: int, *, dtype: jnp.typing.DTypeLike, name: str) -> nn.Module:
    """The norm of a layer with `width` channels. kind: "group" or "affine", else ValueError."""
    if kind == "affine":
        return Affine(dtype=dtype, name=name)
    if kind != "group":
        raise ValueError(f"norm={kind!r}: choose 'group' or 'affine'")
    groups = max(1, width // config.norm_group_size)
    return nn.GroupNorm(groups, epsilon=1e-5, dtype=dtype, scale_init=_scale_init, bias_init=_bias_init, name=name)
