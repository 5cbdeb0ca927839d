"""Layers of a bidirectional Transformer encoder: BERT's (arXiv 1810.04805), or with `pre_norm` a Vision Transformer's (arXiv 2010.11929)."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Bool, Float
from musiclm_jax.nn.attention import SelfAttention
from musiclm_jax.nn.layers import Dense, LayerNorm
from musiclm_jax.nn.stack import stacked
from musiclm_jax.partitioning import constrain

# Epsilon of all norms in these encoders.
NORM_EPSILON = 1e-12


class EncoderLayer(nn.Module):
    """One encoder layer: self-attention, then two dense layers with an exact GELU between them, each with dropout, residual connection and norm."""

    num_heads: int
    mlp_dim: int
    # False: a norm after each residual sum, as in BERT. True: a norm before each sublayer; the caller must add one after the last layer.
    pre_norm: bool
    # Dropout rate of the sublayers' outputs when `train`.
    dropout: float = 0.0
    train: bool = False
    # None: the width divided by num_heads.
    head_dim: int | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"] | None = None) -> tuple[Float[Array, "B T D"], None]:
        x, dim = constrain(x, "batch", None, None), x.shape[-1]
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


def encoder_layers(num_layers: int, *, name: str, remat: str = "none", **fields) -> nn.Module:
    """A scanned stack of `num_layers` EncoderLayers, called as (x, mask) -> (x, None). `fields` are EncoderLayer's. See `nn.stack.stacked`."""
    return stacked(EncoderLayer, num_layers, name=name, remat=remat, **fields)
