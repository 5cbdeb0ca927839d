"""Scaled dot-product attention, once for all models: text tower, conformer and stage Transformer differ in bias, mask and cache."""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.arrays import Array, Bool, Float, Int
from musiclm_jax.nn.layers import fan_in_init, partitioned


@flax.struct.dataclass
class KVCache:
    """Keys and values seen so far. Slots at or beyond the caller's position are garbage and must be masked.

    Fields: key, value: [B, H, S, K]. Heads come before positions because a batched product reads them so: in [B, S, H, K] the CPU
    backend would transpose the whole cache at every step. trunk: what came before these positions, [b, H, P, K], each row of which B / b rows
    that follow each other have in common (`branch`): it is kept, and read, once for all of them.
    """

    key: jax.Array
    value: jax.Array
    trunk: KVCache | None = None

    @classmethod
    def zeros(cls, *, batch: int, length: int, heads: int, head_dim: int, dtype=jnp.float32) -> KVCache:
        shape = (batch, heads, length, head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    @property
    def length(self) -> int:
        """P + S."""
        return self.start + self.key.shape[2]

    @property
    def start(self) -> int:
        """P, the first position that can be written."""
        return 0 if self.trunk is None else self.trunk.length

    def write(self, key: Float[Array, "B H T K"], value: Float[Array, "B H T K"], position: Int[Array, ""] | int) -> KVCache:
        """The cache with T new entries at positions [position, position + T)."""
        at = (0, 0, position - self.start, 0)
        return self.replace(
            key=jax.lax.dynamic_update_slice(self.key, key.astype(self.key.dtype), at),
            value=jax.lax.dynamic_update_slice(self.value, value.astype(self.value.dtype), at),
        )

    def grow(self, length: int) -> KVCache:
        """The cache with room for `length` positions."""
        more = ((0, 0), (0, 0), (0, length - self.length), (0, 0))
        return self.replace(key=jnp.pad(self.key, more), value=jnp.pad(self.value, more))

    def branch(self, batch: int) -> KVCache:
        """A cache of `batch` rows, a multiple of b, that all begin with this one, and have no room for more yet."""
        rows, heads, _, head_dim = self.key.shape
        if self.trunk is not None or batch % rows:
            raise ValueError(f"{rows} rows {'that branched before ' if self.trunk else ''}cannot branch into {batch}")
        empty = jnp.zeros((batch, heads, 0, head_dim), self.key.dtype)
        return KVCache(empty, empty, trunk=self)


def dot_product_attention(
    query: Float[Array, "B H T K"],
    key: Float[Array, "B H S K"],
    value: Float[Array, "B H S K"],
    *,
    bias: Float[Array, "#B #H T S"] | None = None,
    mask: Bool[Array, "#B #H #T S"] | None = None,
    scale: float,
    dropout: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> Float[Array, "B H T K"]:
    """softmax(scale q.k + bias) v, with the softmax in float32. mask: True = attend. dropout: applied to the weights [B, H, T, S]."""
    return _weighted(dropout(_attention_weights(_products(query, key), bias, mask, scale)), value)


def fused_causal_attention(
    query: Float[Array, "B H T K"], key: Float[Array, "B H T K"], value: Float[Array, "B H T K"], *, bias: Float[Array, "1 H T T"], scale: float
) -> Float[Array, "B H T K"]:
    """`dot_product_attention` under a causal mask by cuDNN's fused kernel (FlashAttention, arXiv 2205.14135), which never stores the weights [T, T].

    For bfloat16 on NVIDIA GPUs, with an even T. bias: in the dtype of the query, and finite also where the key lies ahead of the query.
    """
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    return jax.nn.dot_product_attention(query, key, value, bias=bias, scale=scale, is_causal=True, implementation="cudnn").swapaxes(1, 2)


def cached_attention(
    query: Float[Array, "B H T K"],
    key: Float[Array, "B H T K"],
    value: Float[Array, "B H T K"],
    cache: KVCache,
    position: Int[Array, ""],
    *,
    bias: Float[Array, "#B #H T S"] | None = None,
    mask: Bool[Array, "#B #H #T S"] | None = None,
    scale: float,
) -> Float[Array, "B H T K"]:
    """`dot_product_attention` over `cache.write(key, value, position)`, without writing first.

    The new entries' logits and values are put in by hand: a product that reads the freshly written cache makes XLA keep two versions
    of it, and copy the whole of it at every step.
    """
    start, at = cache.start, (0, 0, 0, position)
    products = _products(query, cache.key)
    if cache.trunk is not None:
        products = jnp.concatenate([_across_branches(_products, query, cache.trunk.key), products], axis=-1)
    products = jax.lax.dynamic_update_slice(products, _products(query, key), at)
    weights = _attention_weights(products, bias, mask, scale)
    new = jax.lax.dynamic_slice(weights, at, (*weights.shape[:3], key.shape[2]))
    old = jax.lax.dynamic_update_slice(weights, jnp.zeros_like(new), at)
    out = _weighted(old[..., start:], cache.value.astype(value.dtype)) + _weighted(new, value)
    if cache.trunk is not None:
        out = out + _across_branches(_weighted, old[..., :start], cache.trunk.value.astype(value.dtype))
    return out


def is_first(position: Int[Array, ""] | int) -> bool:
    """Whether it is known, when the program is traced, that nothing comes before."""
    return isinstance(position, int) and position == 0


def rotate(
    x: Float[Array, "B H T K"], position: Int[Array, ""] | int, longest: float, *, limit: float = math.inf, sign: int = 1
) -> Float[Array, "B H T K"]:
    """Rotary positions (RoFormer, arXiv 2104.09864, section 3.2) of queries or keys at [position, position + T): pairs of widths turn with the
    position, so that the product of a query and a key depends on the distance between them, in a way that their content decides.

    Periods: from 4 positions to `longest`, in geometric progression, where the paper's run from 6 to 60,000. Pairs whose period is above `limit`
    stay as they are. sign: -1 turns back.
    """
    half = x.shape[-1] // 2
    periods = np.geomspace(4.0, longest, half)
    turns = (position + jnp.arange(x.shape[2]))[:, None] * np.where(periods <= limit, sign / periods, 0).astype(np.float32)
    cos, sin = jnp.cos(2 * np.pi * turns).astype(x.dtype), jnp.sin(2 * np.pi * turns).astype(x.dtype)
    return jnp.concatenate([x[..., :half] * cos - x[..., half:] * sin, x[..., :half] * sin + x[..., half:] * cos], axis=-1)


def _after(x: jax.Array, position: jax.Array) -> jax.Array:
    """`position`, computed from `x`: what is written there is written after x was read.

    XLA updates the cache in place only where it can prove that its readers are done; otherwise it copies the cache at every step. On the
    CPU `optimization_barrier` is dropped before that decision, so the order is spelled out as data: min(position, something >= 2**30).
    """
    bits = jax.lax.bitcast_convert_type(x[0, 0, 0, 0].astype(jnp.float32), jnp.uint32) >> 2
    return jnp.minimum(position, (bits | jnp.uint32(1 << 30)).astype(jnp.int32))


def _products(query: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.einsum("bhtk,bhsk->bhts", query, key.astype(query.dtype), preferred_element_type=jnp.float32)


def _weighted(weights: jax.Array, value: jax.Array) -> jax.Array:
    return jnp.einsum("bhts,bhsk->bhtk", weights.astype(value.dtype), value)


def _across_branches(
    product: Callable[[jax.Array, jax.Array], jax.Array], x: Float[Array, "B H T X"], shared: Float[Array, "b H P K"]
) -> Float[Array, "B H T Y"]:
    """`product` of each row of x with that of its trunk, which is read once for its w = B / b branches: they lie one after the other along T."""
    (batch, heads, length, width), rows = x.shape, len(shared)
    x = x.reshape(rows, batch // rows, heads, length, width).swapaxes(1, 2).reshape(rows, heads, -1, width)
    return product(x, shared).reshape(rows, heads, batch // rows, length, -1).swapaxes(1, 2).reshape(batch, heads, length, -1)


def _attention_weights(products: jax.Array, bias: jax.Array | None, mask: jax.Array | None, scale: float) -> jax.Array:
    logits = products if scale == 1 else products * scale
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(logits, axis=-1)


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
    # Of the output kernel when it is drawn, relative to fan-in.
    out_init_scale: float = 1.0
    # Of the attention weights when `train`, one draw for all queries of a head, as in T5.
    dropout: float = 0.0
    # "xla", or "cudnn": `fused_causal_attention` where there is no cache; without mask and dropout.
    kernel: str = "xla"
    # Longest period of the rotary positions, in positions. 0: none.
    rotary: float = 0.0
    # Values turn too, in pairs of widths with a period up to this, and the output turns back: what a head reads then says how far away it was.
    rotary_values: float = 0.0
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
        train: bool = False,
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
        qkv = jnp.einsum("btd,dnhk->btnhk", x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            qkv_bias = self.param("qkv_bias", partitioned(nn.initializers.zeros, (None, "heads", "kv")), (3, heads, head_dim), jnp.float32)
            qkv = qkv + qkv_bias.astype(self.dtype)
        query, key, value = jnp.einsum("btnhk->nbhtk", qkv)
        if self.rotary:
            query, key = rotate(query, position, self.rotary), rotate(key, position, self.rotary)
        if self.rotary_values:
            value = rotate(value, position, self.rotary, limit=self.rotary_values)
        dropout = nn.Dropout(self.dropout, broadcast_dims=(-2,), deterministic=not train)
        if self.kernel == "cudnn" and cache is None:
            out = fused_causal_attention(query, key, value, bias=bias, scale=scale)
        elif cache is None or is_first(position):
            bias, mask = (x if x is None else x[..., : key.shape[2]] for x in (bias, mask))
            out = dot_product_attention(query, key, value, bias=bias, mask=mask, scale=scale, dropout=dropout)
            cache = cache and cache.write(key, value, position)
        else:
            position = jnp.asarray(position, jnp.int32)
            out = cached_attention(query, key, value, cache, position, bias=bias, mask=mask, scale=scale)
            cache = cache.write(key, value, _after(out, position))
        if self.rotary_values:
            out = rotate(out, position, self.rotary, limit=self.rotary_values, sign=-1)
        kernel = self.param("out_kernel", partitioned(_out_init(self.out_init_scale), ("heads", "kv", "embed")), (heads, head_dim, width), jnp.float32)
        out = jnp.einsum("bhtk,hkd->btd", out, kernel.astype(self.dtype))
        if self.use_bias:
            out = out + self.param("out_bias", partitioned(nn.initializers.zeros, ("embed",)), (width,), jnp.float32).astype(self.dtype)
        return out, cache


def _qkv_init(query_shrink: int):
    """Fan-in init of the fused kernel [D, 3, H, K]; the query third is divided by sqrt(query_shrink)."""

    def init(rng, shape, dtype=jnp.float32):
        kernel = jax.random.truncated_normal(rng, -2.0, 2.0, shape, dtype) * (shape[0] ** -0.5 / 0.87962566103423978)
        # Not `kernel.at[:, 0].divide(...)`: XLA evaluates that scatter while it compiles, for seconds.
        return jnp.concatenate([kernel[:, :1] / query_shrink**0.5, kernel[:, 1:]], axis=1)

    return init


def _out_init(scale: float):
    """`scale` times the fan-in init of [H, K, D]: the fan is H * K."""

    def init(rng, shape, dtype=jnp.float32):
        return scale * fan_in_init(rng, (shape[0] * shape[1], shape[2]), dtype).reshape(shape)

    return init
