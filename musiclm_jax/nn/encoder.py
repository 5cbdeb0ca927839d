"""Layers of a bidirectional Transformer encoder, BERT's (arXiv 1810.04805) or a vision Transformer's, which differ in where the norms stand."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Bool, Float
from musiclm_jax.nn.attention import SelfAttention
from musiclm_jax.nn.layers import Dense, LayerNorm
from musiclm_jax.nn.stack import stacked

# Of every norm in such encoders.
NORM_EPSILON = 1e-12


class EncoderLayer(nn.Module):
    """Self-attention, then two dense layers with an exact GELU between them; dropout, sum and norm around each."""

    num_heads: int
    mlp_dim: int
    # False: norms after each sum, as in BERT. True: before each sublayer; the caller owes a norm at the end.
    pre_norm: bool
    # Of sublayer outputs, when `train`.
    dropout: float = 0.0
    train: bool = False
    # None: the width over num_heads.
    head_dim: int | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"] | None = None) -> tuple[Float[Array, "B T D"], None]:
        dim = x.shape[-1]
        attention = SelfAttention(self.num_heads, self.head_dim or dim // self.num_heads, dtype=self.dtype, name="attention")
        mask = None if mask is None else mask[:, None, None, :]
        x = self._residual(x, "attention_norm", lambda x: attention(x, mask=mask)[0])
        widen = Dense(self.mlp_dim, axes=("embed", "mlp"), dtype=self.dtype, name="widen")
        narrow = Dense(dim, axes=("mlp", "embed"), dtype=self.dtype, name="narrow")
        x = self._residual(x, "mlp_norm", lambda x: narrow(jax.nn.gelu(widen(x), approximate=False)))
        return x, None

    def _residual(self, x: Float[Array, "B T D"], name: str, sublayer: Callable[[Array], Array]) -> Float[Array, "B T D"]:
        norm = LayerNorm(epsilon=NORM_EPSILON, dtype=self.dtype, name=name)
        drop = nn.Dropout(self.dropout, deterministic=not self.train)
        return x + drop(sublayer(norm(x))) if self.pre_norm else norm(x + drop(sublayer(x)))


def encoder_layers(num_layers: int, *, name: str, remat: bool = False, **fields) -> nn.Module:
    """`num_layers` EncoderLayers, `stacked`: (x, mask) -> (x, None). `fields` are EncoderLayer's."""
    return stacked(EncoderLayer, num_layers, name=name, remat=remat, **fields)
