"""Conformer blocks (arXiv 2005.08100) and a scanned stack of them.

The blocks differ from the paper's in two points, in the direction of w2v-BERT's successors:
  * The convolution module has LayerNorm instead of batch norm: there are no running statistics, and a clip's features do not depend on the other
    clips of its batch.
  * Positions enter as T5's bidirectional relative bias (arXiv 1910.10683, section 2.1), one table per stack, instead of Transformer-XL's relative
    encoding. The bias is only added to the logits, so that all models share one attention layer.

Every residual branch is initialized at a tenth of the usual scale, so that an untrained stack is close to the identity. At the usual scale, three
untrained blocks make the frames of a clip nearly equal to each other, and a short training does not recover their differences.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from musiclm_jax.arrays import Array, Float
from musiclm_jax.nn.attention import SelfAttention
from musiclm_jax.nn.layers import Dense, LayerNorm, fan_in_init, partitioned
from musiclm_jax.nn.relative import relative_buckets
from musiclm_jax.nn.stack import stacked
from musiclm_jax.partitioning import constrain

_BRANCH_SCALE = 0.1
_branch_init = nn.initializers.variance_scaling(_BRANCH_SCALE**2, "fan_in", "truncated_normal")


class FeedForward(nn.Module):
    """The feed-forward module (section 2.3): LayerNorm, expansion, swish, contraction. No dropout: w2v-BERT's masking regularizes already."""

    mlp_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        y = LayerNorm(dtype=self.dtype, name="norm")(x)
        y = nn.swish(Dense(self.mlp_dim, ("embed", "mlp"), dtype=self.dtype, name="up")(y))
        return Dense(x.shape[-1], ("mlp", "embed"), dtype=self.dtype, kernel_init=_branch_init, name="down")(y)


class DepthwiseConv(nn.Module):
    """A depthwise convolution: one centered filter of odd length per channel. Zero padding keeps the length T."""

    kernel_size: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        shape = (self.kernel_size, x.shape[-1])
        kernel = self.param("kernel", partitioned(fan_in_init, ("conv", "embed")), shape, jnp.float32).astype(self.dtype)
        half = self.kernel_size // 2
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (half, half), (0, 0)))
        # XLA fuses this sum of shifted copies into one pass; its grouped convolution is many times slower on CPU.
        return sum(padded[:, i : i + x.shape[1]] * kernel[i] for i in range(self.kernel_size))


class ConvModule(nn.Module):
    """The convolution module (section 2.2): LayerNorm, pointwise with GLU, depthwise, LayerNorm, swish, pointwise."""

    kernel_size: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        width = x.shape[-1]
        y = LayerNorm(dtype=self.dtype, name="norm")(x)
        y = nn.glu(Dense(2 * width, ("embed", "mlp"), dtype=self.dtype, name="expand")(y))
        y = DepthwiseConv(self.kernel_size, dtype=self.dtype, name="depthwise")(y)
        y = nn.swish(LayerNorm(dtype=self.dtype, name="depthwise_norm")(y))
        return Dense(width, ("mlp", "embed"), dtype=self.dtype, kernel_init=_branch_init, name="project")(y)


class ConformerBlock(nn.Module):
    """A Conformer block (section 2.4, equation 1): half-step feed-forward, self-attention, convolution, half-step feed-forward, LayerNorm."""

    num_heads: int
    mlp_dim: int
    conv_kernel: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], bias: Float[Array, "1 H T S"]) -> Float[Array, "B T D"]:
        x = constrain(x, "batch", None, None)
        x = x + 0.5 * FeedForward(self.mlp_dim, dtype=self.dtype, name="mlp_in")(x)
        head_dim = x.shape[-1] // self.num_heads
        attention = SelfAttention(self.num_heads, head_dim, out_init_scale=_BRANCH_SCALE, dtype=self.dtype, name="attention")
        x = x + attention(LayerNorm(dtype=self.dtype, name="attention_norm")(x), bias=bias)[0]
        x = x + ConvModule(self.conv_kernel, dtype=self.dtype, name="conv")(x)
        x = x + 0.5 * FeedForward(self.mlp_dim, dtype=self.dtype, name="mlp_out")(x)
        return LayerNorm(dtype=self.dtype, name="norm")(x)


class ConformerStack(nn.Module):
    """A scanned stack of `num_layers` Conformer blocks: the leaves of params["blocks"] have a leading axis L.

    So a stack of k layers with `jax.tree.map(lambda p: p[:k], params["blocks"])` computes the first k layers of a trained stack.
    """

    num_layers: int
    num_heads: int
    mlp_dim: int
    conv_kernel: int
    # What the backward pass recomputes of each block, one of `checks.REMATS`.
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        bias = RelativeBias(self.num_heads, name="relative_bias")(x.shape[1])
        fields = dict(num_heads=self.num_heads, mlp_dim=self.mlp_dim, conv_kernel=self.conv_kernel, dtype=self.dtype)
        return stacked(_Layer, self.num_layers, name="blocks", remat=self.remat, **fields)(x.astype(self.dtype), bias)[0]


class _Layer(nn.Module):
    """A block with the signature that `stacked` expects: (x, bias) -> (x, None)."""

    num_heads: int
    mlp_dim: int
    conv_kernel: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], bias: Float[Array, "1 H T S"]) -> tuple[Float[Array, "B T D"], None]:
        return ConformerBlock(self.num_heads, self.mlp_dim, self.conv_kernel, dtype=self.dtype, name="block")(x, bias), None


class RelativeBias(nn.Module):
    """T5's relative position bias: one learned number per head and bucket of the distance key - query, added to the attention logits."""

    num_heads: int
    # Half of them are for keys at or before the query, half for keys after it.
    num_buckets: int = 32
    # All distances from this one on, in positions, share the last bucket of their side.
    max_distance: int = 128

    @nn.compact
    def __call__(self, length: int) -> Float[Array, "1 H T S"]:
        init = partitioned(nn.initializers.normal(0.02), (None, "heads"))
        table = self.param("table", init, (self.num_buckets, self.num_heads), jnp.float32)
        positions = np.arange(length)
        buckets = relative_buckets(positions[None, :] - positions[:, None], num_buckets=self.num_buckets, max_distance=self.max_distance, bidirectional=True)
        return jnp.transpose(table[buckets], (2, 0, 1))[None]
