"""The decoder-only Transformer of all three stages: T5 1.1's block under a causal mask.

MusicLM (arXiv 2301.11325, section 4.2) gives 24 layers, 16 heads, width 1024, feed-forward width 4096, dropout 0.1, the relative positions of
Raffel et al. (arXiv 1910.10683) and 430M parameters. T5 1.1's block has that number of parameters at these sizes: RMSNorm before each sublayer, no
biases, GEGLU (arXiv 2002.05202), head width 64, logits that are not divided by sqrt(K), and an output table that is not tied to the input's.

Training scans over the layers, whose parameters are stacked, so that compile time and sharding do not depend on the depth. Decoding loops over the
layers in Python: under a scan, each step would copy every layer's weights out of the stack (2.5x slower on CPU) and the whole cache back into one.
`unstack_layers` converts the parameters; the block is the same.
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
from musiclm_jax.checks import DEPTH, DTYPES, NOT_NEGATIVE, SHARE, SIZE, check_choices, check_numbers, name_remat
from musiclm_jax.errors import UserError
from musiclm_jax.nn.attention import KVCache, SelfAttention, is_first
from musiclm_jax.nn.layers import Dense, RMSNorm, fan_in_init, partitioned
from musiclm_jax.nn.relative import relative_buckets
from musiclm_jax.nn.stack import stacked
from musiclm_jax.partitioning import constrain


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the Transformer of a stage. The defaults are the paper's."""

    dim: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    # Width of a head, T5's. num_heads * head_dim need not equal dim.
    head_dim: int = 64
    mlp_dim: int = 4096
    # Dropout rate of embeddings, attention weights, sublayer outputs and the final norm. The positions of a sequence share one mask. 0: no dropout.
    dropout: float = 0.1
    # Buckets of T5's relative positions. Half of them have one distance each, the others grow logarithmically up to max_distance. 0: no such bias, which
    # needs rotary positions instead. On a GPU the gradient of the bias takes up to a quarter of a training step.
    num_buckets: int = 32
    # All distances from this one on, in tokens, share the last bucket.
    max_distance: int = 128
    # Longest period of rotary positions (arXiv 2104.09864), in tokens, in addition to T5's bias, if there is one. That bias cannot depend on the content,
    # but the distance of one beat does. 0: no rotary positions, as in the paper.
    rotary: float = 0.0
    # Values are rotated too, in pairs whose rotary period is at most this many tokens. The phase of a value then encodes its distance, so that a head
    # which sums over several events can represent the beat that they form. 0: values are not rotated, as in the paper.
    rotary_values: float = 0.0
    # How attention is computed in training: "xla", or "cudnn", a fused kernel for NVIDIA GPUs with dtype "bfloat16". It stores no attention weights, and
    # so drops none: `attention_dropout` must be 0.
    attention_kernel: str = "xla"
    # Dropout rate of attention weights. None: that of `dropout`.
    attention_dropout: float | int | None = None
    # What the backward pass recomputes of each layer: "none"; "products", all but matrix products; or "full", which takes the least memory and about a
    # third more time.
    remat: bool | str = "none"
    # Type of activations and cache: "float32" or "bfloat16". Parameters, softmax, statistics of norms, and logits are float32.
    dtype: str = "float32"

    def __post_init__(self):
        check_numbers(self, dim=SIZE, num_layers=DEPTH, num_heads=SIZE, head_dim=SIZE, mlp_dim=SIZE, num_buckets=(0, SIZE[1]), max_distance=SIZE)
        check_numbers(self, dropout=SHARE, rotary=NOT_NEGATIVE, rotary_values=NOT_NEGATIVE)
        check_choices(self, dtype=DTYPES, attention_kernel=("xla", "cudnn"))
        name_remat(self)
        if self.attention_dropout is not None:
            check_numbers(self, attention_dropout=SHARE)
        if self.attention_kernel == "cudnn" and (self.weights_dropout or self.dtype != "bfloat16"):
            found = f"attention_dropout={self.weights_dropout:g}, dtype={self.dtype!r}"
            raise UserError(f"attention_kernel='cudnn' with {found}: set attention_dropout=0 and dtype='bfloat16'")
        if self.dropout == 1:
            raise UserError(f"dropout={self.dropout}: choose a rate below 1")
        if not self.num_buckets and not self.rotary:
            raise UserError("num_buckets=0, rotary=0: attention would not know positions; set one of them")
        if self.num_buckets % 2 or self.num_buckets < 0 or self.max_distance <= self.num_buckets // 2:
            raise UserError(
                f"num_buckets={self.num_buckets}, max_distance={self.max_distance}: choose an even number of buckets, and a max_distance above half of it"
            )
        if self.rotary and (self.rotary < 4 or self.head_dim % 2):
            raise UserError(f"rotary={self.rotary}, head_dim={self.head_dim}: choose rotary=4 or more with an even head_dim, or rotary=0 for none")
        if self.rotary_values and not self.rotary:
            raise UserError(f"rotary_values={self.rotary_values}, rotary=0: set rotary, whose periods the values use, or choose rotary_values=0")

    @property
    def weights_dropout(self) -> float | int:
        """Dropout rate of attention weights."""
        return self.dropout if self.attention_dropout is None else self.attention_dropout


class CausalBias(nn.Module):
    """T5's relative position bias, with the causal mask included. All layers share one table.

    Returns [1, H, T, S] for queries at positions [position, position + T) and keys at [0, S): the bias of the distance, or the most negative float32
    where the key comes after the query. Biases are looked up for the T + S - 1 distinct distances and reshaped onto the diagonals, because the
    backward pass of a T x S lookup would be a scatter of that size.
    """

    num_heads: int
    num_buckets: int
    max_distance: int

    @nn.compact
    def __call__(self, num_queries: int, num_keys: int, position: Int[Array, ""] | int = 0) -> Float[Array, "1 H T S"]:
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        table = self.param("table", partitioned(init, ("heads", None)), (self.num_heads, self.num_buckets), jnp.float32)
        distances = np.arange(self.max_distance + 1)  # Larger ones share the last bucket.
        by_distance = table[:, relative_buckets(-distances, num_buckets=self.num_buckets, max_distance=self.max_distance, bidirectional=False)]
        # All distances that occur, from that of the last query to key 0 down to that of the first query to key S - 1, and one more.
        width = num_queries + num_keys
        distance = position + num_queries - 1 - jnp.arange(width)
        bias = jnp.take(by_distance, jnp.clip(distance, 0, self.max_distance), axis=1)
        bias = jnp.where(distance >= 0, bias, jnp.finfo(jnp.float32).min)
        if num_queries == 1:
            return bias[None, :, None, :num_keys]
        # Row t of the result is bias[T-1-t : T-1-t+S]. In T copies laid end to end, one such row begins every width - 1 entries.
        rows = jnp.tile(bias, (1, num_queries))[:, num_queries - 1 : num_queries - 1 + num_queries * (width - 1)]
        return rows.reshape(1, self.num_heads, num_queries, width - 1)[..., :num_keys]


class GatedMlp(nn.Module):
    """GEGLU (arXiv 2002.05202): (gelu(x W_0) * x W_1) W_out, with W_0 and W_1 in one product."""

    config: TransformerConfig
    train: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        kernel = self.param("in_kernel", partitioned(_gated_init, ("embed", None, "mlp")), (x.shape[-1], 2, cfg.mlp_dim), jnp.float32)
        pair = constrain(jnp.einsum("btd,dnf->btnf", x, kernel.astype(dtype)), "batch", None, None, "mlp")
        hidden = jax.nn.gelu(pair[:, :, 0]) * pair[:, :, 1]
        hidden = nn.Dropout(cfg.dropout, broadcast_dims=(-2,), deterministic=not self.train)(hidden)
        return Dense(x.shape[-1], axes=("mlp", "embed"), use_bias=False, dtype=dtype, name="out")(hidden)


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)). Returns (x, the layer's new cache or None)."""

    config: TransformerConfig
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        bias: Float[Array, "1 #H T S"] | None,
        cache: KVCache | None = None,
        position: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        x = constrain(x, "batch", None, None)
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        dropout = nn.Dropout(cfg.dropout, broadcast_dims=(-2,), deterministic=not self.train)
        attention = SelfAttention(
            cfg.num_heads,
            cfg.head_dim,
            use_bias=False,
            logit_scale=1.0,
            dropout=cfg.weights_dropout,
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
    """A causal Transformer, from embedded tokens [B, T, D] to hidden states [B, T, D]. Returns (hidden states, new cache or None).

    Without `cache` the T inputs are the whole sequence. With `cache`, one KVCache of length S per layer, they are positions [position, position + T)
    and attend to the entries before them as well; prefill and decoding differ only in T. `bias` is added to that of the relative positions in all
    layers (without a cache S = T).

    With `unrolled` the parameters are those that `unstack_layers` returns. A cache requires it, and training does not support it.

    Raises:
        ValueError: a cache without `unrolled`, or training with it.
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
            raise ValueError("expected unrolled=True and the parameters of unstack_layers(params) with a cache, and unrolled=False in training")
        dropout = nn.Dropout(cfg.dropout, broadcast_dims=(-2,), deterministic=not train)
        fused, length = cfg.attention_kernel == "cudnn" and cache is None, x.shape[1]
        if fused:  # Tiles of 64 positions. What is added lies after all other positions, which do not attend to it.
            pad = (0, -length % 64)
            x = jnp.pad(x, ((0, 0), pad, (0, 0)))
            bias = bias if bias is None else jnp.pad(bias, ((0, 0), (0, 0), pad, pad))
        num_keys = x.shape[1] if cache is None else cache[0].length
        if cfg.num_buckets:
            causal = CausalBias(cfg.num_heads, cfg.num_buckets, cfg.max_distance, name="bias")(x.shape[1], num_keys, position)
            bias = causal if bias is None else causal + bias
        elif not fused:  # The fused kernel is causal by itself.
            ahead = jnp.arange(num_keys) > position + jnp.arange(x.shape[1])[:, None]
            bias = jnp.where(ahead, jnp.finfo(jnp.float32).min, 0.0 if bias is None else bias)
            bias = bias.reshape(1, -1, *ahead.shape)
        if fused and bias is not None:  # The most negative float32 is -inf in bfloat16.
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
        return dropout(x)[:, :length], cache


@functools.partial(jax.jit, static_argnames=("config", "first"))
def _block(config: TransformerConfig, params: Any, x: jax.Array, bias: jax.Array | None, cache: KVCache | None, position: jax.Array | int, first: bool):
    """A layer of an unrolled Transformer. It is jitted by itself, so that all layers share one traced and lowered program."""
    return Block(config).apply({"params": params}, x, bias, cache, 0 if first else position)


def unstack_layers(params: dict[str, Any], num_layers: int) -> dict[str, Any]:
    """Converts the parameters of a scanned `Transformer` to those of an unrolled one: {"layers": [L, ...]} -> {"layer_0": [...], ...}."""
    rest = {name: value for name, value in params.items() if name != "layers"}
    layers = {f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(num_layers)}
    return {**rest, **layers}


def _gated_init(rng, shape, dtype=jnp.float32):
    """Fan-in initializer of a kernel [D, 2, F], whose fan-in is D."""
    return fan_in_init(rng, (shape[0], shape[1] * shape[2]), dtype).reshape(shape)
