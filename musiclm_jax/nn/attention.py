"""Scaled dot-product attention, once for all models: text tower, conformer and stage Transformer differ in bias, mask and cache."""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Bool, Float, Int
from musiclm_jax.nn.layers import fan_in_init, partitioned


@flax.struct.dataclass
class KVCache:
    """Keys and values seen so far. Slots at or beyond the caller's position are garbage and must be masked.

    Fields: key, value: [B, S, H, K]. A stack of layers adds a leading L.
    """

    key: jax.Array
    value: jax.Array

    @classmethod
    def zeros(cls, *, batch: int, length: int, heads: int, head_dim: int, dtype=jnp.float32) -> KVCache:
        shape = (batch, length, heads, head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def write(self, key: Float[Array, "B T H K"], value: Float[Array, "B T H K"], position: Int[Array, ""]) -> KVCache:
        """The cache with T new entries at slots [position, position + T)."""
        at = (0, position, 0, 0)
        return KVCache(
            jax.lax.dynamic_update_slice(self.key, key.astype(self.key.dtype), at),
            jax.lax.dynamic_update_slice(self.value, value.astype(self.value.dtype), at),
        )


def dot_product_attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    *,
    bias: Float[Array, "#B #H T S"] | None = None,
    mask: Bool[Array, "#B #H #T S"] | None = None,
    scale: float,
) -> Float[Array, "B T H K"]:
    """softmax(scale q.k + bias) v, with the softmax in float32. mask: True = attend."""
    logits = jnp.einsum("bthk,bshk->bhts", query, key, preferred_element_type=jnp.float32) * scale
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bhts,bshk->bthk", weights, value)


class SelfAttention(nn.Module):
    """Multi-head self-attention with optional bias, mask and cache.

    With `cache`, the T inputs sit at positions [position, position + T); their keys and values are written there and the queries
    see the whole cache, so `mask` and `bias` span the cache length S. Without it S = T. Returns (output, new cache or None).
    """

    num_heads: int
    head_dim: int
    use_bias: bool = True
    # T5 does not divide the logits by sqrt(K): it draws smaller query weights instead. None: divide by sqrt(K).
    logit_scale: float | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        bias: Float[Array, "#B #H T S"] | None = None,
        mask: Bool[Array, "#B #H #T S"] | None = None,
        cache: KVCache | None = None,
        position: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        width, heads, head_dim = x.shape[-1], self.num_heads, self.head_dim
        scale = head_dim**-0.5 if self.logit_scale is None else self.logit_scale
        # One fused product; "qkv" stays unsharded, heads are split over the tensor axis. Without the division by sqrt(K), T5 folds it into the draw.
        kernel = self.param(
            "qkv_kernel",
            partitioned(_qkv_init(head_dim if self.logit_scale is not None else 1), ("embed", None, "heads", "kv")),
            (width, 3, heads, head_dim),
            jnp.float32,
        )
        qkv = jnp.einsum("btd,dnhk->nbthk", x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            qkv_bias = self.param("qkv_bias", partitioned(nn.initializers.zeros, (None, "heads", "kv")), (3, heads, head_dim), jnp.float32)
            qkv = qkv + qkv_bias.astype(self.dtype)[:, None, None]
        query, key, value = qkv
        if cache is not None:
            cache = cache.write(key, value, jnp.asarray(position, jnp.int32))
            key, value = cache.key.astype(self.dtype), cache.value.astype(self.dtype)
        out = dot_product_attention(query, key, value, bias=bias, mask=mask, scale=scale)
        kernel = self.param("out_kernel", partitioned(_out_init, ("heads", "kv", "embed")), (heads, head_dim, width), jnp.float32)
        out = jnp.einsum("bthk,hkd->btd", out, kernel.astype(self.dtype))
        if self.use_bias:
            out = out + self.param("out_bias", partitioned(nn.initializers.zeros, ("embed",)), (width,), jnp.float32).astype(self.dtype)
        return out, cache


def _qkv_init(query_shrink: int):
    """Fan-in init of the fused kernel [D, 3, H, K]; the query third is divided by sqrt(query_shrink)."""

    def init(rng, shape, dtype=jnp.float32):
        kernel = jax.random.truncated_normal(rng, -2.0, 2.0, shape, dtype) * (shape[0] ** -0.5 / 0.87962566103423978)
        return kernel.at[:, 0].divide(query_shrink**0.5)

    return init


def _out_init(rng, shape, dtype=jnp.float32):
    """Fan-in init of [H, K, D]: the fan is H * K."""
    return fan_in_init(rng, (shape[0] * shape[1], shape[2]), dtype).reshape(shape)
