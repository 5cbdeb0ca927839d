"""The model of one stage: token embedding, Transformer, and a head over the codes that are possible at each position.

The semantic, coarse and fine stages are this model with three `StageLayout`s (arXiv 2301.11325, section 3.2). A target token of level q can only be one
of its level's C codes, so logits are computed for the C rows of the head that belong to this level, and never for the rest of the vocabulary: the loss
is a softmax over C classes, a decoding step costs C * D products instead of V * D, and no id outside the level can be sampled.
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
from musiclm_jax.partitioning import constrain
from musiclm_jax.tokens import StageLayout


@dataclasses.dataclass(frozen=True)
class StageConfig(TransformerConfig):
    """Sizes of a stage. The vocabulary comes from its layout. With the defaults the semantic stage has the paper's 430M parameters."""

    # Whether attention also has a bias by the segment of the key and its distance in time (`TimeBias`). The paper has T5's relative positions only, which
    # count tokens: the number of tokens between a coarse frame and the semantic token of the same 40 ms differs from frame to frame.
    time_bias: bool = False


# All larger distances, in steps of the target, share TimeBias's outermost slots. The initial slopes, per step, of its first and last head.
_FARTHEST = 16
_SLOPES = (1.0, 0.05)
# Initial bonus of the first head for codes of the level to be written, and of the second head for the timed segments of the prefix.
_FAVOUR = 4.0


class TimeBias(nn.Module):
    """A learned attention bias, [1, H, T, S], by the key's segment and the time between query and key. All layers share one table.

    In a target of several levels, the codes of the level that the query predicts count as one more segment, the last.

    The bias is initialized to fall linearly with the distance in time, less steeply from head to head (ALiBi, arXiv 2108.12409, section 3), so that each
    head first attends to tokens near its own time: the first head to earlier codes of its level, the second, with the slope of the first, to the streams
    of the prefix. From a zero initialization a small model needs thousands of steps to learn this. Segments without time have one bias each, 0 at first.
    Not in the paper.
    """

    num_heads: int
    layout: StageLayout

    @nn.compact
    def __call__(self, num_steps: int, queries: Int[Array, "T"], num_keys: int) -> Float[Array, "1 H T S"]:
        """queries: the positions that they predict, in a sequence of `num_steps` target steps. The keys are the first `num_keys` positions."""
        segments, times, levels = self.layout.positions(num_steps)
        own_segment = self.layout.target.levels > 1
        rows, slots = len(self.layout.segments) + own_segment, 2 * _FARTHEST + 2  # The last slot is for a query or a key without time.
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
    """The decoder-only model of p(target codes | prefix) of a stage.

    Parameters: an input embedding [V + 1, D], whose last row is the layout's `mask_id`; the Transformer; and an untied head [V, D]. The rows of the head
    that belong to the prefix are never read; with them the parameter count is the published one. With `unrolled` the Transformer is an unrolled one, for
    `decode`.
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
        """Logits, float32, of every target code given all tokens before it (teacher forcing).

        Args:
            prefix_ids: from `StageLayout.prefix_ids`.
            codes: the target codes, in [0, C).
            hidden_steps: True at time steps whose codes are replaced by `mask_id` in the input. None: no such steps.
        """
        target = self.layout.target
        target_ids = self.layout.to_ids(len(self.layout.prefix), codes)
        if hidden_steps is not None:
            target_ids = jnp.where(jnp.repeat(hidden_steps, target.levels, axis=1), self.layout.mask_id, target_ids)
        ids = jnp.concatenate([prefix_ids, target_ids], axis=1)[:, :-1]
        hidden, _ = self.body(self.embed(ids), bias=self._bias(codes.shape[1], 0, ids.shape[1], ids.shape[1]), train=train)
        hidden = hidden[:, prefix_ids.shape[1] - 1 :].reshape(*codes.shape, -1)  # [B, T * Q, D] -> [B, T, Q, D]
        head = self.head[self.layout.target_offset :].reshape(target.levels, target.codes, -1)  # [Q, C, D]
        return constrain(jnp.einsum("btqd,qcd->btqc", hidden.astype(jnp.float32), head), "batch", None, None, None)

    def decode(
        self,
        ids: Int[Array, "B T"],
        cache: tuple[KVCache, ...],
        *,
        num_steps: int,
        position: Int[Array, ""] | int,
        level: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "B C"], tuple[KVCache, ...]]:
        """Processes the ids at positions [position, position + T) of a sequence with `num_steps` target steps.

        Returns (float32 logits of the next token, which has level `level`, the new cache).
        """
        target = self.layout.target
        bias = self._bias(num_steps, position, ids.shape[1], cache[0].length)
        hidden, cache = self.body(self.embed(ids), bias=bias, cache=cache, position=position)
        head = jax.lax.dynamic_slice_in_dim(self.head, self.layout.target_offset + level * target.codes, target.codes)
        return jnp.einsum("bd,cd->bc", hidden[:, -1].astype(jnp.float32), head), cache

    def _bias(self, num_steps: int, position: Int[Array, ""] | int, num_queries: int, num_keys: int) -> Float[Array, "1 H T S"] | None:
        """The TimeBias of queries at [position, position + T) and keys at [0, S). A query has the time of the token that it predicts, the next one."""
        if not self.config.time_bias:
            return None
        return self.time_bias(num_steps, position + 1 + jnp.arange(num_queries), num_keys)


def init(config: StageConfig, layout: StageLayout, rng: Key) -> dict[str, Any]:
    """Initial parameters, boxed with their logical axis names. Their shapes do not depend on the length of the input, here one second."""
    prefix_ids = jnp.zeros((1, layout.num_tokens(1) - layout.num_target_tokens(1)), jnp.int32)
    codes = jnp.zeros((1, layout.target.steps(1), layout.target.levels), jnp.int32)
    # They are the same for all kernels, of which a machine may lack some.
    return Stage(dataclasses.replace(config, attention_kernel="xla"), layout).init(rng, prefix_ids, codes)["params"]


def variable_shapes(config: StageConfig, layout: StageLayout) -> dict[str, Any]:
    """The shapes of a stage's variables, {"params": a nested dict of ShapeDtypeStructs}."""
    return {"params": nn.meta.unbox(jax.eval_shape(lambda: init(config, layout, jax.random.key(0))))}


# Shares of the mean square 1 of an input embedding that is initialized from a codebook: its code vector, a vector of its level, and its own noise.
_CODE, _LEVEL, _OWN = 0.65, 0.25, 0.1


def start_from_codebooks(
    params: dict[str, Any], layout: StageLayout, codebooks: Mapping[str, Float[Array, "Q C K"] | Float[np.ndarray, "Q C K"]], *, rng: Key
) -> dict[str, Any]:
    """Initializes embedding and head from the tokenizers' codebooks, so that codes with similar sounds have similar parameters. Not in the paper.

    Codes that are close in a codebook stand for similar sounds. The rows of a level in embedding and head become one random projection of its code
    vectors, so that what is learned about a code generalizes to similar codes.

    Args:
        params: initial parameters of `Stage`, without boxes.
        codebooks: {stream: codebooks [Q, C, K]}. Rows of other streams are left unchanged.

    Returns:
        The new parameters.

    Raises:
        ValueError: a codebook does not have as many codes as the layout.
    """
    embedding, head = params["embed"]["embedding"], params["head"]
    width = embedding.shape[1]
    for segment, offset in zip(layout.segments, layout.offsets, strict=True):
        for level in range(segment.levels) if segment.stream in codebooks else ():
            rng, project_rng, level_rng, own_rng = jax.random.split(rng, 4)
            vectors = jnp.asarray(codebooks[segment.stream][segment.first_level + level], jnp.float32)
            if vectors.shape[0] != segment.codes:
                raise ValueError(f"{segment.stream} has codebooks of {vectors.shape[0]} codes, its layout has {segment.codes}: take both from one tokenizer")
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
    """A stage as the pure functions that `generation/sampler.py` calls (its protocol `Decoder`). Hashable, so that it can be a static argument of jit."""

    config: StageConfig
    layout: StageLayout

    def prepare(self, params: dict[str, Any]) -> dict[str, Any]:
        """Converts the parameters of `Stage` to those of `__call__`, with unstacked layers (a copy). Converted ones are returned unchanged."""
        params = nn.meta.unbox(params)
        return _unstack(params, self.config.num_layers) if "layers" in params["body"] else params

    def init_cache(self, batch: int, length: int) -> tuple[KVCache, ...]:
        """An empty cache for `batch` sequences of `length` positions: one KVCache per layer."""
        cfg = self.config
        make = functools.partial(KVCache.zeros, batch=batch, length=length, heads=cfg.num_heads, head_dim=cfg.head_dim)
        return tuple(make(dtype=jnp.dtype(cfg.dtype)) for _ in range(cfg.num_layers))

    def grow_cache(self, cache: tuple[KVCache, ...], length: int) -> tuple[KVCache, ...]:
        """`KVCache.grow` of all layers."""
        return tuple(layer.grow(length) for layer in cache)

    def branch_cache(self, cache: tuple[KVCache, ...], batch: int) -> tuple[KVCache, ...]:
        """`KVCache.branch` of all layers."""
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
        """`Stage.decode` with parameters from `prepare`."""
        stage = Stage(self.config, self.layout, unrolled=True)
        return stage.apply({"params": params}, ids, cache, num_steps=num_steps, position=position, level=level, method="decode")


@functools.partial(jax.jit, static_argnums=1)
def _unstack(params: dict[str, Any], num_layers: int) -> dict[str, Any]:
    return {**params, "body": unstack_layers(params["body"], num_layers)}


def _time_bias_init(num_prefix: int, *, timed: list[int]):
    """Initializer of TimeBias's table. timed: the numbers of the prefix segments that have time."""

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
    """Fan-in initializer of the head [V, D], whose fan-in is D."""
    return nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=1, out_axis=0)(rng, shape, dtype)
