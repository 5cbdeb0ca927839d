"""A bidirectional Transformer layer: BERT's (arXiv 1810.04805) or, with its norms first, ViT's (arXiv 2010.11929). And a scanned stack of them."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Bool, Float
from musiclm_jax.nn.attention import SelfAttention
from musiclm_jax.nn.layers import Dense, LayerNorm


class EncoderLayer(nn.Module):
    """Self-attention, then two dense layers with an exact GELU between them; dropout, sum and norm around each. For `nn.scan`."""

    num_heads: int
    # num_heads * head_dim need not equal the width.
    head_dim: int
    mlp_dim: int
    # False: norms after each sum, as in BERT. True: before each sublayer, as in ViT; the stack then wants one more norm at its end.
    pre_norm: bool
    # Of sublayer outputs, when `train`.
    dropout: float
    train: bool
    # Of the norms. BERT: 1e-12.
    epsilon: float = 1e-12
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"] | None = None) -> tuple[Float[Array, "B T D"], None]:
        attention = SelfAttention(self.num_heads, self.head_dim, dtype=self.dtype, name="attention")
        mask = None if mask is None else mask[:, None, None, :]
        x = self._residual(x, "attention_norm", lambda x: attention(x, mask=mask)[0])
        widen = Dense(self.mlp_dim, axes=("embed", "mlp"), dtype=self.dtype, name="widen")
        narrow = Dense(x.shape[-1], axes=("mlp", "embed"), dtype=self.dtype, name="narrow")
        x = self._residual(x, "mlp_norm", lambda x: narrow(jax.nn.gelu(widen(x), approximate=False)))
        return x, None

    def _residual(self, x: Float[Array, "B T D"], name: str, sublayer: Callable[[Array], Array]) -> Float[Array, "B T D"]:
        norm = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)
        drop = nn.Dropout(self.dropout, deterministic=not self.train)
        return x + drop(sublayer(norm(x))) if self.pre_norm else norm(x + drop(sublayer(x)))


def encoder_layers(num_layers: int, *, remat: bool, name: str, **fields) -> nn.Module:
    """`num_layers` of `EncoderLayer(**fields)` under one scan, for use in a compact method: called with x and the mask, it returns (x, None).

    Their parameters are stacked along a first axis "layers". remat: recompute each layer in the backward pass, for memory.
    """
    stack = nn.scan(
        nn.remat(EncoderLayer) if remat else EncoderLayer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return stack(**fields, name=name)
