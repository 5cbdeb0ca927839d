"""A BERT encoder (arXiv 1810.04805): BERT-base by default, a few small layers by config."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Bool, Float, Int
from musiclm_jax.checks import DEPTH, SHARE, SIZE, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.nn.encoder import NORM_EPSILON, encoder_layers
from musiclm_jax.nn.layers import Embed, LayerNorm, partitioned

_embedding_init = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class TextTowerConfig:
    """BERT-base by default, less two things that one-sentence inputs leave idle: the table of sentence types (add its first row to every
    row of the positions to load BERT's weights) and the pooler (MuLan's linear head takes its place)."""

    # At least the tokenizer's vocab_size.
    vocab_size: int = 30_522
    # The longest input, [CLS] and [SEP] included.
    max_tokens: int = 512
    dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    # False: norms after each sum, as in BERT. True: before each sublayer and once at the end; trains from scratch without care for warm-up.
    pre_norm: bool = False
    # Of embeddings and sublayer outputs, in training. BERT: 0.1.
    dropout: float = 0.1

    def __post_init__(self):
        # [CLS], a piece and [SEP] are the least that a text is.
        check_numbers(self, vocab_size=SIZE, max_tokens=(3, SIZE[1]), dim=SIZE, num_layers=DEPTH, num_heads=SIZE, mlp_dim=SIZE, dropout=SHARE)
        if self.dim % self.num_heads:
            raise UserError(f"dim={self.dim} does not divide into num_heads={self.num_heads}")
        if self.dropout == 1:
            raise UserError(f"dropout={self.dropout}: choose a rate below 1")


class TextTower(nn.Module):
    """Ids [B, T] and mask [B, T] -> the vector of the first token, [CLS]: [B, D]. What stands under a False mask has no influence."""

    config: TextTowerConfig
    dtype: jnp.dtype = jnp.float32
    # Recompute each layer in the backward pass, for memory.
    remat: bool = False

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"], mask: Bool[Array, "B T"], *, train: bool = False) -> Float[Array, "B D"]:
        config, length = self.config, ids.shape[1]
        if length > config.max_tokens:
            raise ValueError(f"expected at most max_tokens={config.max_tokens} tokens, got {length}: encode with that limit")
        positions = self.param("positions", partitioned(_embedding_init, (None, "embed")), (config.max_tokens, config.dim), jnp.float32)
        x = Embed(config.vocab_size, config.dim, dtype=self.dtype, embedding_init=_embedding_init, name="tokens")(ids)
        x = x + positions[:length].astype(self.dtype)
        x = LayerNorm(epsilon=NORM_EPSILON, dtype=self.dtype, name="embedding_norm")(x)
        x = nn.Dropout(config.dropout, deterministic=not train)(x)
        layers = encoder_layers(
            config.num_layers,
            remat=self.remat,
            num_heads=config.num_heads,
            mlp_dim=config.mlp_dim,
            pre_norm=config.pre_norm,
            dropout=config.dropout,
            train=train,
            dtype=self.dtype,
            name="layers",
        )
        x, _ = layers(x, mask)
        if config.pre_norm:
            x = LayerNorm(epsilon=NORM_EPSILON, dtype=self.dtype, name="final_norm")(x)
        return x[:, 0].astype(jnp.float32)
