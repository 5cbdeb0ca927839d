"""Small layers that all models share. Parameters are float32 and have logical axis names, which `training/sharding.py` maps to a mesh."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Float, Int
from musiclm_jax.partitioning import constrain

fan_in_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


def partitioned(init, axes: Sequence[str | None]):
    """The initializer `init` with logical axis names attached, one per dimension of the parameter. None: the dimension is not sharded."""
    return nn.with_logical_partitioning(init, tuple(axes))


class Dense(nn.Module):
    """y = x W (+ b), over the last axis."""

    # Output width, F.
    features: int
    # Logical names of the input and the output axis.
    axes: tuple[str | None, str | None] = ("embed", "mlp")
    # T5 has no biases.
    use_bias: bool = True
    # Of the product. Parameters are float32.
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = fan_in_init

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B F"]:
        kernel = self.param("kernel", partitioned(self.kernel_init, self.axes), (x.shape[-1], self.features), jnp.float32)
        y = jnp.einsum("...d,df->...f", x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", partitioned(nn.initializers.zeros, self.axes[1:]), (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


class Embed(nn.Module):
    """A table of `num` vectors, looked up by id. The caller must keep ids in [0, num): larger ones give NaN."""

    num: int
    features: int
    dtype: jnp.dtype = jnp.float32
    embedding_init: nn.initializers.Initializer = nn.initializers.normal(1.0)

    @nn.compact
    def __call__(self, ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        table = self.param("embedding", partitioned(self.embedding_init, ("vocab", "embed")), (self.num, self.features), jnp.float32)
        vectors = jnp.take(constrain(table, None, None), ids, axis=0).astype(self.dtype)  # Gathered first: XLA cannot split a lookup over both dimensions.
        return constrain(vectors, "batch", *[None] * ids.ndim)


class RMSNorm(nn.Module):
    """Root-mean-square norm, as in T5 (arXiv 1910.10683, section 2.1): scale only, no mean and no bias; statistics in float32."""

    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = self.param("scale", partitioned(nn.initializers.ones, ("embed",)), (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * scale).astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer norm over the last axis: statistics in float32, then learned scale and bias."""

    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = self.param("scale", partitioned(nn.initializers.ones, ("embed",)), (x.shape[-1],), jnp.float32)
        bias = self.param("bias", partitioned(nn.initializers.zeros, ("embed",)), (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * scale + bias).astype(self.dtype)


def l2_normalize(x: Float[Array, "*B D"], *, epsilon: float = 1e-12) -> Float[Array, "*B D"]:
    """x divided by its L2 norm over the last axis, float32. A zero vector stays zero and has a finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + epsilon)
