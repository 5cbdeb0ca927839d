"""The Audio Spectrogram Transformer (arXiv 2104.01778), a Vision Transformer over mel patches. It is MuLan's second audio tower (arXiv 2208.12415)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Float
from musiclm_jax.checks import DEPTH, SIZE, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.nn.encoder import NORM_EPSILON, encoder_layers
from musiclm_jax.nn.layers import LayerNorm, fan_in_init, partitioned

_embedding_init = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class ASTConfig:
    """Sizes of the AST. The defaults are the paper's base size, 86M parameters (section 2.1). It expects 128 mel bins: set num_mels=128 in MuLan's `mel`."""

    # Identifies this class in JSON, where a field may have one of several classes.
    kind: ClassVar[str] = "ast"
    # The longest input, in mel frames. A shorter one uses the first positions. 1000 frames are MuLan's 10 s.
    max_frames: int = 1000
    # Side of the square patches, in frames and mel bins.
    patch_size: int = 16
    # Step from one patch to the next, in frames and mel bins. Patches overlap if it is below patch_size.
    patch_stride: int = 10
    dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072

    def __post_init__(self):
        check_numbers(self, max_frames=SIZE, patch_size=SIZE, patch_stride=SIZE, dim=SIZE, num_layers=DEPTH, num_heads=SIZE, mlp_dim=SIZE)
        if self.dim % self.num_heads:
            raise UserError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}: choose widths that divide")
        if self.patch_size > self.max_frames:
            raise UserError(f"patch_size={self.patch_size}, max_frames={self.max_frames}: choose a patch_size of at most max_frames")

    def num_patches(self, size: int) -> int:
        """Whole patches along `size` frames or mel bins. A remainder after the last patch is ignored."""
        return (size - self.patch_size) // self.patch_stride + 1


class AST(nn.Module):
    """The AST: spectrogram [B, T, M] -> features [B, D] float32, the mean of the class and the distillation token (DeiT) after all layers.

    There is no dropout. The tokens include their position vectors, since only the sums matter: to load published weights, add the two.

    Raises:
        ValueError: more than `max_frames` frames, or fewer frames or mel bins than one patch.
    """

    config: ASTConfig
    dtype: jnp.dtype = jnp.float32
    # What the backward pass recomputes of each layer, one of `checks.REMATS`.
    remat: str = "none"

    @nn.compact
    def __call__(self, spectrogram: Float[Array, "B T M"]) -> Float[Array, "B D"]:
        config = self.config
        batch, frames, mels = spectrogram.shape
        patch, dim = (config.patch_size, config.patch_size), config.dim
        if not config.patch_size <= frames <= config.max_frames or mels < config.patch_size:
            raise ValueError(f"expected {patch[0]} to max_frames={config.max_frames} frames and at least {patch[0]} mel bins, got {frames} and {mels}")
        patches = nn.Conv(
            dim,
            patch,
            strides=(config.patch_stride, config.patch_stride),
            padding="VALID",
            dtype=self.dtype,
            kernel_init=partitioned(fan_in_init, (None, None, None, "embed")),
            bias_init=partitioned(nn.initializers.zeros, ("embed",)),
            name="patches",
        )
        x = patches(jnp.swapaxes(spectrogram, 1, 2)[..., None].astype(self.dtype))  # [B, T, M] -> [B, M', T', D]
        grid = (config.num_patches(mels), config.num_patches(config.max_frames))
        positions = self.param("positions", partitioned(_embedding_init, (None, None, "embed")), (*grid, dim), jnp.float32)
        x = x + positions[:, : x.shape[2]].astype(self.dtype)
        tokens = self.param("tokens", partitioned(_embedding_init, (None, "embed")), (2, dim), jnp.float32).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(tokens, (batch, 2, dim)), x.reshape(batch, -1, dim)], axis=1)
        layers = encoder_layers(
            config.num_layers, remat=self.remat, num_heads=config.num_heads, mlp_dim=config.mlp_dim, pre_norm=True, dtype=self.dtype, name="layers"
        )
        x, _ = layers(x)
        x = LayerNorm(epsilon=NORM_EPSILON, dtype=self.dtype, name="final_norm")(x[:, :2])
        return jnp.mean(x.astype(jnp.float32), axis=1)
