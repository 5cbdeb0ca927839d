"""Scaled dot-product attention (arXiv 1706.03762, section 3.2) with bias, mask, key-value cache and rotary positions. All models use it."""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.arrays import Array, Bool, Float, Int
from musiclm_jax.errors import UserError
from musiclm_jax.nn.layers import fan_in_init, partitioned
from musiclm_jax.partitioning import constrain


@flax.struct.dataclass
class KVCache:
    """Keys and values of earlier positions. Entries at or beyond the next position to write are undefined, and the caller must mask them.

    Attributes:
        key, value: [B, H, S, K]. Heads come before positions because batched matrix products read this layout: with [B, S, H, K] the CPU backend
            would transpose the whole cache at every step.
        trunk: a cache of the P positions before these, with arrays [b, H, P, K]. Each of its rows is the common beginning of B / b consecutive rows
            (see `branch`), and is stored and read once for all of them. None: P = 0.
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
        """P + S, the number of positions."""
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
        """The cache, padded to `length` positions in all."""
        more = ((0, 0), (0, 0), (0, length - self.length), (0, 0))
        return self.replace(key=jnp.pad(self.key, more), value=jnp.pad(self.value, more))

    def branch(self, batch: int) -> KVCache:
        """A cache of `batch` rows that share this one as their trunk, b rows each of which is followed by batch / b branches. S = 0: call `grow` next.

        Raises:
            ValueError: this cache has a trunk already, or `batch` is not a multiple of b.
        """
        rows, heads, _, head_dim = self.key.shape
        if self.trunk is not None or batch % rows:
            raise ValueError(f"a cache of {rows} rows{' that branched before' if self.trunk else ''} cannot branch into {batch}: branch once, into a multiple")
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
    """softmax(scale q.k + bias) v, with the softmax in float32. mask: True = attend. dropout: a function applied to the weights [B, H, T, S]."""
    return _weighted(dropout(_attention_weights(_products(query, key), bias, mask, scale)), value)


def fused_causal_attention(
    query: Float[Array, "B H T K"], key: Float[Array, "B H T K"], value: Float[Array, "B H T K"], *, bias: Float[Array, "1 H T T"] | None, scale: float
) -> Float[Array, "B H T K"]:
    """`dot_product_attention` under a causal mask by cuDNN's fused kernel (FlashAttention, arXiv 2205.14135), which never stores the weights [T, T].

    For bfloat16 on NVIDIA GPUs, with an even T. bias: in the dtype of the query, and finite also where the key lies ahead of the query. None: no bias.

    Raises:
        UserError: this machine or JAX cannot run the kernel.
    """
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    try:
        out = jax.nn.dot_product_attention(query, key, value, bias=bias, scale=scale, is_causal=True, implementation="cudnn")
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise UserError(f"attention_kernel='cudnn' cannot be used here ({str(error).splitlines()[0]}): choose attention_kernel='xla'") from error
    return out.swapaxes(1, 2)


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
    """`dot_product_attention` over `cache.write(key, value, position)`, computed without writing first.

    The logits and values of the T new entries are inserted separately: if the products read the updated cache, XLA would keep two versions of it
    and copy all of it at every step.
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
    """Whether `position` is known to be 0 when the program is traced, so that there are no earlier positions to attend to."""
    return isinstance(position, int) and position == 0


def rotate(x: Float[Array, "B H T K"], position: Int[Array, ""] | int, longest: float, *, limit: float = math.inf, sign: int = 1) -> Float[Array, "B H T K"]:
    """Rotates queries or keys at positions [position, position + T) by their positions (RoFormer, arXiv 2104.09864, section 3.2).

    Each pair of components turns by an angle proportional to the position, so that the product of a query and a key depends on their distance, in a
    way that their contents decide.

    Args:
        longest: the longest period, in positions. Periods are a geometric progression from 4 to `longest`; the paper's run from 6 to 60,000.
        limit: pairs with a longer period are left unchanged.
        sign: 1, or -1 for the inverse rotation.
    """
    half = x.shape[-1] // 2
    periods = np.geomspace(4.0, longest, half)
    turns = (position + jnp.arange(x.shape[2]))[:, None] * np.where(periods <= limit, sign / periods, 0).astype(np.float32)
    cos, sin = jnp.cos(2 * np.pi * turns).astype(x.dtype), jnp.sin(2 * np.pi * turns).astype(x.dtype)
    return jnp.concatenate([x[..., :half] * cos - x[..., half:] * sin, x[..., :half] * sin + x[..., half:] * cos], axis=-1)


def _after(x: jax.Array, position: jax.Array) -> jax.Array:
    """Returns `position`, with a data dependency on `x`, so that a write at the result is ordered after the computation of `x`.

    XLA updates the cache in place only where it can prove that all reads of it are done; otherwise it copies the cache at every step. On CPU, XLA
    drops `optimization_barrier` before that decision, so the order is expressed as a data dependency: min(position, a number >= 2**30).
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
    """`product` of each row of `x` and its row of the trunk. The B / b branches of a trunk row are joined along T, so that the row is read once."""
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

    With `cache`, the T inputs are at positions [position, position + T); their keys and values are written there, and the queries attend to the
    whole cache, so that `mask` and `bias` have its length S. Without `cache` S = T. Returns (output [B, T, D], new cache or None).
    """

    num_heads: int
    head_dim: int
    use_bias: bool = True
    # Factor of the logits. None: 1 / sqrt(K). With a number, T5's way, 1 / sqrt(K) is folded into the initial query weights instead.
    logit_scale: float | None = None
    # Scale of the initial output kernel, relative to fan-in initialization.
    out_init_scale: float = 1.0
    # Dropout rate of the attention weights when `train`. All queries of a head share one mask, as in T5.
    dropout: float = 0.0
    # "xla", or "cudnn": `fused_causal_attention` where there is no cache, without mask and dropout.
    kernel: str = "xla"
    # Longest period of the rotary positions (`rotate`), in positions. 0: no rotary positions.
    rotary: float = 0.0
    # Values are rotated too, in pairs with a period up to this many positions, and the output is rotated back, so that what a head reads encodes its
    # distance. 0: values are not rotated.
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
        # One fused product. The axis of query, key and value is not sharded; heads are split over the tensor axis of the mesh.
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
        query, key, value = constrain(jnp.einsum("btnhk->nbhtk", qkv), None, "batch", "heads", None, None)
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
    """Fan-in initializer of the fused kernel [D, 3, H, K]; the part of the query is divided by sqrt(query_shrink)."""

    def init(rng, shape, dtype=jnp.float32):
        kernel = jax.random.truncated_normal(rng, -2.0, 2.0, shape, dtype) * (shape[0] ** -0.5 / 0.87962566103423978)
        # Not `kernel.at[:, 0].divide(...)`: XLA evaluates that scatter at compile time, which takes seconds.
        return jnp.concatenate([kernel[:, :1] / query_shrink**0.5, kernel[:, 1:]], axis=1)

    return init


def _out_init(scale: float):
    """`scale` times the fan-in initializer of a kernel [H, K, D], whose fan-in is H * K."""

    def init(rng, shape, dtype=jnp.float32):
        return scale * fan_in_init(rng, (shape[0] * shape[1], shape[2]), dtype).reshape(shape)

    return init
