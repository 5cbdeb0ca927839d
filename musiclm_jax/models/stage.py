"""One stage of MusicLM: token embedding, Transformer, and a head over the codes that are legal at each position.

Semantic, coarse and fine are this model under three `StageLayout`s (arXiv 2301.11325, section 3.2). A target of level q can only be one of
its level's C codes, so logits are computed for those C rows of the head and never for the rest of the vocabulary: the loss is a softmax
over C classes, a step costs C * D products instead of V * D, and no id outside the block can be sampled.
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
from musiclm_jax.nn.attention import KVCache
from musiclm_jax.nn.layers import Embed, partitioned
from musiclm_jax.nn.transformer import Transformer, TransformerConfig, unstack_layers
from musiclm_jax.tokens import StageLayout


@dataclasses.dataclass(frozen=True)
class StageConfig(TransformerConfig):
    """Size of a stage; the vocabulary comes from its layout. The defaults make the semantic stage 430.0M parameters, as published."""

    # Adds a sinusoid of the time at which a token sounds (`StageLayout.times`) to its embedding. The paper has T5's relative positions
    # alone, which beyond max_distance cannot tell which semantic token belongs to a coarse frame. The packaged bundle has it; in short
    # runs since, a small coarse stage learned faster without (docs/demo.md).
    time_embedding: bool = False


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
        self.head = self.param("head", partitioned(_head_init, ("vocab", "embed")), (vocab_size, cfg.dim), jnp.float32)

    def __call__(self, prefix_ids: Int[Array, "B P"], codes: Int[Array, "B T Q"], *, train: bool = False) -> Float[Array, "B T Q C"]:
        """Float32 logits of every target code given all before it (teacher forcing). codes: the target's, in [0, C)."""
        target = self.layout.target
        ids = jnp.concatenate([prefix_ids, self.layout.to_ids(len(self.layout.prefix), codes)], axis=1)
        hidden, _ = self.body(self._embed(ids[:, :-1], self.layout.times(codes.shape[1])[:-1]), train=train)
        hidden = hidden[:, prefix_ids.shape[1] - 1 :].reshape(*codes.shape, -1)  # [B, T * Q, D] -> [B, T, Q, D]
        head = self.head[self.layout.target_offset :].reshape(target.levels, target.codes, -1)  # [Q, C, D]
        return jnp.einsum("btqd,qcd->btqc", hidden.astype(jnp.float32), head)

    def decode(
        self,
        ids: Int[Array, "B T"],
        cache: tuple[KVCache, ...],
        *,
        times: Int[Array | np.ndarray, "T"],
        position: Int[Array, ""] | int,
        level: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "B C"], tuple[KVCache, ...]]:
        """Ids at [position, position + T) into the cache; float32 logits of the code that follows, which has level `level`."""
        target = self.layout.target
        hidden, cache = self.body(self._embed(ids, times), cache=cache, position=position)
        head = jax.lax.dynamic_slice_in_dim(self.head, self.layout.target_offset + level * target.codes, target.codes)
        return jnp.einsum("bd,cd->bc", hidden[:, -1].astype(jnp.float32), head), cache

    def _embed(self, ids: Int[Array, "B T"], times: Int[Array | np.ndarray, "_"]) -> Float[Array, "B T D"]:
        x = self.embed(ids)
        return x + _sinusoid(times, self.config.dim).astype(x.dtype) if self.config.time_embedding else x


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

    def __call__(
        self,
        params: dict[str, Any],
        ids: Int[Array, "B T"],
        cache: Any,
        *,
        times: Int[Array | np.ndarray, "T"],
        position: Int[Array, ""] | int,
        level: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "B C"], Any]:
        stage = Stage(self.config, self.layout, unrolled=True)
        return stage.apply({"params": params}, ids, cache, times=times, position=position, level=level, method="decode")


@functools.partial(jax.jit, static_argnums=1)
def _unstack(params: dict[str, Any], num_layers: int) -> dict[str, Any]:
    return {**params, "body": unstack_layers(params["body"], num_layers)}


def _sinusoid(times: Int[Array | np.ndarray, "T"], dim: int) -> Float[Array, "T D"]:
    """Sines, then cosines, of wavelengths from 2 pi to 10,000 * 2 pi steps (arXiv 1706.03762, section 3.5)."""
    angles = jnp.asarray(times, jnp.float32)[:, None] * 10_000.0 ** (-jnp.arange((dim + 1) // 2) / ((dim + 1) // 2))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[:, :dim]


def _head_init(rng, shape, dtype=jnp.float32):
    """Fan-in init of [V, D]: the fan is D."""
    return nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=1, out_axis=0)(rng, shape, dtype)
