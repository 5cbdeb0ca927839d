"""The decoder-only Transformer of all three stages: T5 1.1's block under a causal mask.

MusicLM (arXiv 2301.11325, section 4.2) gives 24 layers, 16 heads, width 1024, feed-forward 4096, dropout 0.1, the relative positions of
Raffel et al. (arXiv 1910.10683) and 430M parameters. Those numbers meet in T5 1.1: RMSNorm before each sublayer, no biases, GEGLU
(arXiv 2002.05202), head width 64, logits not divided by sqrt(K) and an untied output table.

Training scans over the layers, whose parameters are stacked, so that compile time and sharding do not depend on the depth. Decoding loops
over them in Python: under a scan each step would copy every layer's weights out of the stack (2.5x slower on a CPU) and the whole cache
back into one. `unstack_layers` turns the one set of parameters into the other; the block is the same.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.arrays import Array, Float, Int
from musiclm_jax.checks import DEPTH, DTYPES, NOT_NEGATIVE, SHARE, SIZE, check_choices, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.nn.attention import KVCache, SelfAttention, is_first
from musiclm_jax.nn.layers import Dense, RMSNorm, fan_in_init, partitioned
from musiclm_jax.nn.relative import relative_buckets
from musiclm_jax.nn.stack import stacked


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Size of the stack. The defaults are MusicLM's."""

    dim: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    # T5's head width; num_heads * head_dim need not equal dim.
    head_dim: int = 64
    mlp_dim: int = 4096
    # Of embeddings, attention weights, sublayer outputs and the final norm; one draw per sequence, shared by its positions. 0: none.
    dropout: float = 0.1
    # Relative positions: half the buckets hold one distance each, the others grow to max_distance; beyond, all distances share the last.
    num_buckets: int = 32
    max_distance: int = 128
    # Longest period of rotary positions, in tokens, beside T5's. T5's bias cannot depend on what is played: a query that looks one beat back has to
    # know how long a beat is. The paper's: 0, none.
    rotary: float = 0.0
    # Rotary periods, in tokens, up to which the values turn too: a head that adds up what it finds is told when that was, as a phase, and several
    # events at equal distances add up to a beat. The paper's: 0, none.
    rotary_values: float = 0.0
    # How attention is computed in training: "xla", or "cudnn", a fused kernel for bfloat16 on NVIDIA GPUs that does not store the weights of attention,
    # and so cannot drop any (`attention_dropout`).
    attention_kernel: str = "xla"
    # Of attention weights. None: as `dropout`.
    attention_dropout: float | None = None
    # Recompute each layer in the backward pass: memory for about a third more time.
    remat: bool = False
    # Of activations and cache: "float32" or "bfloat16". Parameters, softmax, norms and logits stay float32.
    dtype: str = "float32"

    def __post_init__(self):
        check_numbers(self, dim=SIZE, num_layers=DEPTH, num_heads=SIZE, head_dim=SIZE, mlp_dim=SIZE, num_buckets=SIZE, max_distance=SIZE)
        check_numbers(self, dropout=SHARE, rotary=NOT_NEGATIVE, rotary_values=NOT_NEGATIVE)
        check_choices(self, dtype=DTYPES)
        if self.dropout == 1:
            raise UserError(f"dropout={self.dropout}: choose a rate below 1")
        if self.num_buckets % 2 or self.num_buckets < 2 or self.max_distance <= self.num_buckets // 2:
            raise UserError(
                f"num_buckets={self.num_buckets}, max_distance={self.max_distance}: choose an even number of buckets, "
                "and a distance above half of it"
            )
        if self.rotary and (self.rotary < 4 or self.head_dim % 2):
            raise UserError(f"rotary={self.rotary}, head_dim={self.head_dim}: choose 4 or more with an even head_dim, or 0 for none")
        if self.rotary_values and not self.rotary:
            raise UserError(f"rotary_values={self.rotary_values}: only with rotary, whose periods it reads")


class CausalBias(nn.Module):
    """T5's relative-position bias with the causal mask folded in; one table serves all layers.

    Returns [1, H, T, S] for queries at positions [position, position + T) and keys at [0, S): the bias of the distance, or the most
    negative float32 where the key lies ahead of the query. Biases are looked up for the T + S - 1 distinct distances and then laid out
    along the diagonals by reshaping: a T x S lookup would make the backward pass a scatter of that size.
    """

    num_heads: int
    num_buckets: int
    max_distance: int

    @nn.compact
    def __call__(self, num_queries: int, num_keys: int, position: Int[Array, ""] | int = 0) -> Float[Array, "1 H T S"]:
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        table = self.param("table", partitioned(init, ("heads", None)), (self.num_heads, self.num_buckets), jnp.float32)
        distances = np.arange(self.max_distance + 1)  # larger ones share the last bucket
        by_distance = table[:, relative_buckets(-distances, num_buckets=self.num_buckets, max_distance=self.max_distance, bidirectional=False)]
        # Every distance that occurs, from the last query to key 0 down to the first query to key S - 1, and a spare entry.
        width = num_queries + num_keys
        distance = position + num_queries - 1 - jnp.arange(width)
        bias = jnp.take(by_distance, jnp.clip(distance, 0, self.max_distance), axis=1)
        bias = jnp.where(distance >= 0, bias, jnp.finfo(jnp.float32).min)
        if num_queries == 1:
            return bias[None, :, None, :num_keys]
        # Row t of the result is bias[T-1-t : T-1-t+S]: in T copies laid end to end these rows start every width - 1 entries.
        rows = jnp.tile(bias, (1, num_queries))[:, num_queries - 1 : num_queries - 1 + num_queries * (width - 1)]
        return rows.reshape(1, self.num_heads, num_queries, width - 1)[..., :num_keys]


class GatedMlp(nn.Module):
    """GEGLU: (gelu(x W_0) * x W_1) W_out, with W_0 and W_1 in one product."""

    config: TransformerConfig
    train: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        kernel = self.param("in_kernel", partitioned(_gated_init, ("embed", None, "mlp")), (x.shape[-1], 2, cfg.mlp_dim), jnp.float32)
        pair = jnp.einsum("btd,dnf->btnf", x, kernel.astype(dtype))
        hidden = jax.nn.gelu(pair[:, :, 0]) * pair[:, :, 1]
        hidden = nn.Dropout(cfg.dropout, broadcast_dims=(-2,), deterministic=not self.train)(hidden)
        return Dense(x.shape[-1], axes=("mlp", "embed"), use_bias=False, dtype=dtype, name="out")(hidden)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). Also returns the layer's cache."""

    config: TransformerConfig
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        bias: Float[Array, "1 H T S"],
        cache: KVCache | None = None,
        position: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        dropout = nn.Dropout(cfg.dropout, broadcast_dims=(-2,), deterministic=not self.train)
        attention = SelfAttention(
            cfg.num_heads,
            cfg.head_dim,
            use_bias=False,
            logit_scale=1.0,
            dropout=cfg.dropout if cfg.attention_dropout is None else cfg.attention_dropout,
            kernel=cfg.attention_kernel,
            rotary=cfg.rotary,
            rotary_values=cfg.rotary_values,
            dtype=dtype,
            name="attention",
        )
        y, cache = attention(RMSNorm(dtype=dtype, name="attention_norm")(x), bias=bias, cache=cache, position=position, train=self.train)
        x = x + dropout(y)
        x = x + dropout(GatedMlp(cfg, self.train, name="mlp")(RMSNorm(dtype=dtype, name="mlp_norm")(x)))
        return x, cache


class Transformer(nn.Module):
    """Embedded tokens to hidden states, causally.

    Without `cache` the T inputs are the whole sequence. With `cache` (one KVCache per layer, length S) they are positions
    [position, position + T), and see what was written before them; prefill and decoding differ only in T. Returns (hidden, new cache).
    `bias`: of the caller's, added in all layers to that of the relative positions (S = T without a cache).
    `unrolled`: parameters are those of `unstack_layers`; needed with a cache, and not for training.
    """

    config: TransformerConfig
    unrolled: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        bias: Float[Array, "1 H T S"] | None = None,
        cache: tuple[KVCache, ...] | None = None,
        position: Int[Array, ""] | int = 0,
        train: bool = False,
    ) -> tuple[Float[Array, "B T D"], tuple[KVCache, ...] | None]:
        cfg = self.config
        if self.unrolled and train or cache is not None and not self.unrolled:
            raise ValueError("a cache needs unrolled=True and the parameters of unstack_layers(params), training unrolled=False")
        dropout = nn.Dropout(cfg.dropout, broadcast_dims=(-2,), deterministic=not train)
        num_keys = x.shape[1] if cache is None else cache[0].length
        causal = CausalBias(cfg.num_heads, cfg.num_buckets, cfg.max_distance, name="bias")(x.shape[1], num_keys, position)
        bias = causal if bias is None else causal + bias
        if cfg.attention_kernel == "cudnn" and cache is None:  # The most negative float32 is -inf in bfloat16.
            bias = jnp.maximum(bias, -1e30).astype(jnp.dtype(cfg.dtype))
        x = dropout(x)
        if self.unrolled:
            caches = [None] * cfg.num_layers if cache is None else list(cache)
            for i in range(cfg.num_layers):
                x, caches[i] = _block(cfg, self.variables["params"][f"layer_{i}"], x, bias, caches[i], position, is_first(position))
            cache = None if cache is None else tuple(caches)
        else:
            x, _ = stacked(Block, cfg.num_layers, name="layers", remat=cfg.remat, config=cfg, train=train)(x, bias)
        x = RMSNorm(dtype=jnp.dtype(cfg.dtype), name="final_norm")(x)
        return dropout(x), cache


@functools.partial(jax.jit, static_argnames=("config", "first"))
def _block(config: TransformerConfig, params: Any, x: jax.Array, bias: jax.Array, cache: KVCache | None, position: jax.Array | int, first: bool):
    """A layer of an unrolled Transformer: a program of its own, so that one is traced and lowered for all layers."""
    return Block(config).apply({"params": params}, x, bias, cache, 0 if first else position)


def unstack_layers(params: dict[str, Any], num_layers: int) -> dict[str, Any]:
    """Parameters of a scanned `Transformer` as those of an unrolled one: {"layers": [L, ...]} -> {"layer_0": [...], ...}."""
    rest = {name: value for name, value in params.items() if name != "layers"}
    layers = {f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(num_layers)}
    return {**rest, **layers}


def _gated_init(rng, shape, dtype=jnp.float32):
    """Fan-in init of [D, 2, F]: the fan is D."""
    return fan_in_init(rng, (shape[0], shape[1] * shape[2]), dtype).reshape(shape)
