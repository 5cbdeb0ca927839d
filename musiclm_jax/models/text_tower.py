"""MuLan's text tower: a BERT encoder (arXiv 1810.04805), BERT-base by default."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Bool, Float, Int
from musiclm_jax.checks import DEPTH, SHARE, SIZE, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.models import word_vectors
from musiclm_jax.nn.encoder import NORM_EPSILON, encoder_layers
from musiclm_jax.nn.layers import Dense, Embed, LayerNorm, partitioned

_embedding_init = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class TextTowerConfig:
    """Sizes of the text tower. The defaults are BERT-base, without the table of sentence types and the pooler.

    Inputs have one sentence: to load BERT's weights, add the first row of the table of sentence types to all position vectors. MuLan's linear head replaces
    the pooler.
    """

    # At least the tokenizer's vocab_size.
    vocab_size: int = 30_522
    # The longest input in tokens, including [CLS] and [SEP].
    max_tokens: int = 512
    dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    # False: a norm after each residual sum, as in BERT. True: a norm before each sublayer and one at the end, which trains from scratch without a warm-up.
    pre_norm: bool = False
    # Dropout rate of embeddings and sublayer outputs in training. BERT's: 0.1.
    dropout: float = 0.1
    # Packaged vectors of word pieces, a name in word_vectors.NAMES, which a linear layer adds to the learned ones, so that a word that no caption has is read
    # as words like it. Their pieces are the vocabulary, and vocab_size must be their number. Empty: none; the vocabulary is learned from the captions.
    word_vectors: str = ""
    # Rate at which the learned vector of a piece is left out in training, so that the tower also reads the packaged one alone.
    piece_dropout: float = 0.0

    def __post_init__(self):
        if self.word_vectors and self.vocab_size != (size := len(word_vectors.load(self.word_vectors).pieces)):
            raise UserError(f"vocab_size={self.vocab_size}, but word_vectors={self.word_vectors!r} has {size} pieces: make them equal")
        # A text has at least [CLS], one piece and [SEP].
        check_numbers(self, vocab_size=SIZE, max_tokens=(3, SIZE[1]), dim=SIZE, num_layers=DEPTH, num_heads=SIZE, mlp_dim=SIZE)
        check_numbers(self, dropout=SHARE, piece_dropout=SHARE)
        if self.dim % self.num_heads:
            raise UserError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}: choose widths that divide")
        for name in ("dropout", "piece_dropout"):
            if getattr(self, name) == 1:
                raise UserError(f"{name}={getattr(self, name)}: choose a rate below 1")
        if self.piece_dropout and not self.word_vectors:
            raise UserError(f"piece_dropout={self.piece_dropout}, but there are no word_vectors to read instead: choose 0, or name some")


class TextTower(nn.Module):
    """The text tower: ids [B, T] and mask [B, T] -> the output at the first token, [CLS], [B, D] float32. Ids where the mask is False have no effect.

    Raises:
        ValueError: more than `max_tokens` tokens.
    """

    config: TextTowerConfig
    dtype: jnp.dtype = jnp.float32
    # What the backward pass recomputes of each layer, one of `checks.REMATS`.
    remat: str = "none"

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"], mask: Bool[Array, "B T"], *, train: bool = False) -> Float[Array, "B D"]:
        config, length = self.config, ids.shape[1]
        if length > config.max_tokens:
            raise ValueError(f"expected at most max_tokens={config.max_tokens} tokens, got {length}: encode with that limit")
        positions = self.param("positions", partitioned(_embedding_init, (None, "embed")), (config.max_tokens, config.dim), jnp.float32)
        x = Embed(config.vocab_size, config.dim, dtype=self.dtype, embedding_init=_embedding_init, name="tokens")(ids)
        if config.word_vectors:
            x = nn.Dropout(config.piece_dropout, broadcast_dims=(2,), deterministic=not train)(x)
            vectors = jnp.asarray(word_vectors.load(config.word_vectors).vectors)
            x = x + Dense(config.dim, axes=(None, "embed"), dtype=self.dtype, name="words")(vectors[ids])
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
