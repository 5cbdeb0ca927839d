"""One stage of MusicLM: token embedding, Transformer, and a head over the codes that are legal at each position.

Semantic, coarse and fine are this model under three `StageLayout`s (arXiv 2301.11325, section 3.2). A target of level q can only be one of
its level's C codes, so logits are computed for those C rows of the head and never for the rest of the vocabulary: the loss is a softmax
over C classes, a step costs C * D products instead of V * D, and no id outside the block can be sampled.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.arrays import Array, Bool, Float, Int, Key
from musiclm_jax.nn.attention import KVCache
from musiclm_jax.nn.layers import Embed, partitioned
from musiclm_jax.nn.transformer import Transformer, TransformerConfig, unstack_layers
from musiclm_jax.tokens import StageLayout


@dataclasses.dataclass(frozen=True)
class StageConfig(TransformerConfig):
    """Size of a stage; the vocabulary comes from its layout. The defaults make the semantic stage 430.0M parameters, as published."""

    # Whether attention also has a bias by what a key is and how far it is in time (`TimeBias`). The paper has T5's relative positions alone,
    # which count tokens: how many lie between a coarse frame and the semantic token of the same 40 ms differs from frame to frame.
    time_bias: bool = False


# Steps of the target beyond which TimeBias tells distances no more apart, and how fast its first and last head forget at the start, per step.
_FARTHEST = 16
_SLOPES = (1.0, 0.05)
# What the first head adds at the start for codes of the level that is to be written, and the second for what the prefix says of their time.
_FAVOUR = 4.0


class TimeBias(nn.Module):
    """A learned bias of attention, [1, H, T, S], by the key's segment and the time between query and key; one table serves all layers.

    In a target of several levels, codes of the level that the query is to write are a segment of their own, the last.

    It starts as a slope that falls off on both sides, from head to head less steep (ALiBi, arXiv 2108.12409, section 3): each head begins
    by looking at what sounds near its own time, the first at what its level said just before, the second, as steep as the first, at what the
    streams of the prefix say of this moment. Found by gradient from a flat start, that takes a small model thousands of steps. Segments without
    time have one bias each, at first 0.
    """

    num_heads: int
    layout: StageLayout

    @nn.compact
    def __call__(self, num_steps: int, queries: Int[Array, "T"], num_keys: int) -> Float[Array, "1 H T S"]:
        """queries: the positions that are predicted, in a sequence of `num_steps` target steps. Keys: the first `num_keys` positions."""
        segments, times, levels = self.layout.positions(num_steps)
        own_segment = self.layout.target.levels > 1
        rows, slots = len(self.layout.segments) + own_segment, 2 * _FARTHEST + 2  # the last slot: query or key has no time
        num_prefix = len(self.layout.prefix)
        init = _time_bias_init(num_prefix, timed=[i for i, segment in enumerate(self.layout.prefix) if segment.rate_hz])
        table = self.param("table", partitioned(init, ("heads", None, None)), (self.num_heads, rows, slots), jnp.float32)
        query_times, key_times = jnp.asarray(times)[queries][:, None], times[:num_keys]
        slot = jnp.clip(key_times - query_times, -_FARTHEST, _FARTHEST) + _FARTHEST
        slot = jnp.where((key_times < 0) | (query_times < 0), slots - 1, slot)
        row = segments[:num_keys]
        if own_segment:
            of_target = row == num_prefix
            row = row + (of_target & (levels[:num_keys] == jnp.asarray(levels)[queries][:, None]))
        return jnp.take(table.reshape(self.num_heads, -1), row * slots + slot, axis=1)[None]


class Stage(nn.Module):
    """Decoder-only model of p(target codes | prefix).

    Parameters: an input embedding [V + 1, D] (the last row is the layout's `mask_id`), the Transformer, and an untied head [V, D]. The head
    has rows for the prefix too, as a single vocabulary has; they are never read, and are there to be the published parameter count.
    """

    config: StageConfig
    layout: StageLayout
    unrolled: bool = False

    def setup(self):
        cfg, vocab_size = self.config, self.layout.vocab_size
        self.embed = Embed(vocab_size + 1, cfg.dim, dtype=jnp.dtype(cfg.dtype))
        self.body = Transformer(cfg, self.unrolled)
        if cfg.time_bias:
            self.time_bias = TimeBias(cfg.num_heads, self.layout)
        self.head = self.param("head", partitioned(_head_init, ("vocab", "embed")), (vocab_size, cfg.dim), jnp.float32)

    def __call__(
        self, prefix_ids: Int[Array, "B P"], codes: Int[Array, "B T Q"], *, hidden_steps: Bool[Array, "B T"] | None = None, train: bool = False
    ) -> Float[Array, "B T Q C"]:
        """Float32 logits of every target code given all before it (teacher forcing). codes: the target's, in [0, C).

        hidden_steps: True at time steps whose codes the stage is not shown: it reads `mask_id` in their place.
        """
        target = self.layout.target
        target_ids = self.layout.to_ids(len(self.layout.prefix), codes)
        if hidden_steps is not None:
            target_ids = jnp.where(jnp.repeat(hidden_steps, target.levels, axis=1), self.layout.mask_id, target_ids)
        ids = jnp.concatenate([prefix_ids, target_ids], axis=1)[:, :-1]
        length = ids.shape[1]
        if self.config.attention_kernel == "cudnn":  # Tiles of 64 positions. What is added lies after all that is predicted.
            ids = jnp.pad(ids, ((0, 0), (0, -length % 64)))
        hidden, _ = self.body(self.embed(ids), bias=self._bias(codes.shape[1], 0, ids.shape[1], ids.shape[1]), train=train)
        hidden = hidden[:, prefix_ids.shape[1] - 1 : length].reshape(*codes.shape, -1)  # [B, T * Q, D] -> [B, T, Q, D]
        head = self.head[self.layout.target_offset :].reshape(target.levels, target.codes, -1)  # [Q, C, D]
        return jnp.einsum("btqd,qcd->btqc", hidden.astype(jnp.float32), head)

    def decode(
        self,
        ids: Int[Array, "B T"],
        cache: tuple[KVCache, ...],
        *,
        num_steps: int,
        position: Int[Array, ""] | int,
        level: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "B C"], tuple[KVCache, ...]]:
        """Ids at [position, position + T), of a sequence with `num_steps` target steps, into the cache; float32 logits of the code that
        follows, which has level `level`."""
        target = self.layout.target
        bias = self._bias(num_steps, position, ids.shape[1], cache[0].length)
        hidden, cache = self.body(self.embed(ids), bias=bias, cache=cache, position=position)
        head = jax.lax.dynamic_slice_in_dim(self.head, self.layout.target_offset + level * target.codes, target.codes)
        return jnp.einsum("bd,cd->bc", hidden[:, -1].astype(jnp.float32), head), cache

    def _bias(self, num_steps: int, position: Int[Array, ""] | int, num_queries: int, num_keys: int) -> Float[Array, "1 H T S"] | None:
        """Of queries at [position, position + T) and keys at [0, S). A query's time is that of the token it predicts, the next one."""
        if not self.config.time_bias:
            return None
        return self.time_bias(num_steps, position + 1 + jnp.arange(num_queries), num_keys)


def init(config: StageConfig, layout: StageLayout, rng: Key) -> dict[str, Any]:
    """Fresh parameters, in their logical-partitioning boxes. Their shapes do not depend on the length of a window: a second of zeros does."""
    prefix_ids = jnp.zeros((1, layout.num_tokens(1) - layout.num_target_tokens(1)), jnp.int32)
    codes = jnp.zeros((1, layout.target.steps(1), layout.target.levels), jnp.int32)
    return Stage(config, layout).init(rng, prefix_ids, codes)["params"]


def variable_shapes(config: StageConfig, layout: StageLayout) -> dict[str, Any]:
    """The shapes of a stage's variables, {"params"}."""
    return {"params": nn.meta.unbox(jax.eval_shape(lambda: init(config, layout, jax.random.key(0))))}


# Of an input embedding that starts from a codebook, in parts of its mean square 1: what its code stands for, its level, and what is its own.
_CODE, _LEVEL, _OWN = 0.65, 0.25, 0.1


def start_from_codebooks(
    params: dict[str, Any], layout: StageLayout, codebooks: Mapping[str, Float[Array, "Q C K"] | Float[np.ndarray, "Q C K"]], *, rng: Key
) -> dict[str, Any]:
    """Fresh parameters of `Stage` in which codes that sound alike start alike.

    A code is a vector of its tokenizer's codebook, and near vectors are near sounds. Embedding and head start as one random projection of these
    vectors, level by level, where independent rows would have to meet every code in every context to find out. params: not boxed. codebooks:
    of the streams for which it is to be done.
    """
    embedding, head = params["embed"]["embedding"], params["head"]
    width = embedding.shape[1]
    for segment, offset in zip(layout.segments, layout.offsets, strict=True):
        for level in range(segment.levels) if segment.stream in codebooks else ():
            rng, project_rng, level_rng, own_rng = jax.random.split(rng, 4)
            vectors = jnp.asarray(codebooks[segment.stream][segment.first_level + level], jnp.float32)
            if vectors.shape[0] != segment.codes:
                raise ValueError(f"{segment.stream} has a codebook of {vectors.shape[0]}, its layout {segment.codes} codes")
            vectors = vectors - jnp.mean(vectors, axis=0)
            vectors = vectors @ jax.random.normal(project_rng, (vectors.shape[1], width))
            vectors = vectors / jnp.sqrt(jnp.mean(jnp.square(vectors)) + 1e-12)
            own = jax.random.normal(own_rng, vectors.shape)
            rows = slice(offset + level * segment.codes, offset + (level + 1) * segment.codes)
            mixed = _CODE**0.5 * vectors + _LEVEL**0.5 * jax.random.normal(level_rng, (width,)) + _OWN**0.5 * own
            embedding, head = embedding.at[rows].set(mixed), head.at[rows].set(vectors / width**0.5)
    return {**params, "embed": {"embedding": embedding}, "head": head}


@dataclasses.dataclass(frozen=True)
class StageDecoder:
    """A stage as the pure functions that `sampling.py` calls. Hashable, hence a static argument of jit."""

    config: StageConfig
    layout: StageLayout

    def prepare(self, params: dict[str, Any]) -> dict[str, Any]:
        """Parameters of `Stage` -> parameters for `__call__`, with the layers unstacked: a copy. Prepared ones come back as they are."""
        params = nn.meta.unbox(params)
        return _unstack(params, self.config.num_layers) if "layers" in params["body"] else params

    def init_cache(self, batch: int, length: int) -> tuple[KVCache, ...]:
        cfg = self.config
        make = functools.partial(KVCache.zeros, batch=batch, length=length, heads=cfg.num_heads, head_dim=cfg.head_dim)
        return tuple(make(dtype=jnp.dtype(cfg.dtype)) for _ in range(cfg.num_layers))

    def grow_cache(self, cache: tuple[KVCache, ...], length: int) -> tuple[KVCache, ...]:
        return tuple(layer.grow(length) for layer in cache)

    def branch_cache(self, cache: tuple[KVCache, ...], batch: int) -> tuple[KVCache, ...]:
        return tuple(layer.branch(batch) for layer in cache)

    def __call__(
        self,
        params: dict[str, Any],
        ids: Int[Array, "B T"],
        cache: Any,
        *,
        num_steps: int,
        position: Int[Array, ""] | int,
        level: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "B C"], Any]:
        stage = Stage(self.config, self.layout, unrolled=True)
        return stage.apply({"params": params}, ids, cache, num_steps=num_steps, position=position, level=level, method="decode")


@functools.partial(jax.jit, static_argnums=1)
def _unstack(params: dict[str, Any], num_layers: int) -> dict[str, Any]:
    return {**params, "body": unstack_layers(params["body"], num_layers)}


def _time_bias_init(num_prefix: int, *, timed: list[int]):
    """timed: the segments of the prefix that have time."""

    def init(rng, shape, dtype=jnp.float32):
        del rng
        heads, _, slots = shape
        slopes = np.geomspace(*_SLOPES, heads)
        if timed:
            slopes[1:2] = slopes[0]
        table = np.zeros(shape)
        table[..., :-1] = -slopes[:, None, None] * np.abs(np.arange(slots - 1) - _FARTHEST)
        table[:1, num_prefix + 1 :] += _FAVOUR
        table[1:2, timed] += _FAVOUR
        return jnp.asarray(table, dtype)

    return init


def _head_init(rng, shape, dtype=jnp.float32):
    """Fan-in init of [V, D]: the fan is D."""
    return nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=1, out_axis=0)(rng, shape, dtype)
