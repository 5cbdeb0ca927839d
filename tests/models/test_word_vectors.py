"""Packaged vectors of words: what they are, and how the text tower reads them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.errors import UserError
from musiclm_jax.models import word_vectors
from musiclm_jax.models.text import SPECIAL_TOKENS, TextTokenizer
from musiclm_jax.models.text_tower import TextTower, TextTowerConfig

WORDS = word_vectors.load("minilm")
CONFIG = TextTowerConfig(
    vocab_size=len(WORDS.pieces), max_tokens=7, dim=6, num_layers=1, num_heads=2, mlp_dim=5, dropout=0.0, word_vectors="minilm", piece_dropout=0.999
)
TEXT = TextTokenizer(WORDS.pieces)


def cosine(one: str, other: str) -> float:
    a, b = (WORDS.vectors[WORDS.pieces.index(word)] for word in (one, other))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_pieces_are_a_vocabulary_and_similar_words_have_similar_vectors():
    assert WORDS.pieces[:4] == SPECIAL_TOKENS and not WORDS.vectors[:4].any() and WORDS.vectors.shape == (len(WORDS.pieces), 128)
    assert TEXT.vocab_size == len(WORDS.pieces)
    for word, near, far in (("cello", "violin", "engine"), ("sad", "sorrow", "kitchen"), ("quick", "rapid", "purple")):
        assert cosine(word, near) > cosine(word, far) + 0.2
    with pytest.raises(UserError, match="word_vectors='bert': choose one of minilm, or none"):
        word_vectors.load("bert")


def test_the_tower_reads_words_that_it_has_no_learned_vectors_of():
    ids, mask = map(jnp.asarray, TEXT.encode(["a sad cello", "a sad engine"], max_tokens=7))
    tower = TextTower(CONFIG)
    params = tower.init(jax.random.key(0), ids, mask)["params"]
    assert params["words"]["kernel"].value.shape == (128, 6)
    others = jax.tree.map(lambda leaf: leaf, params) | {"tokens": jax.tree.map(lambda leaf: 9.0 * leaf, params["tokens"])}

    def embed(params):
        return np.asarray(tower.apply({"params": params}, ids, mask, train=True, rngs={"dropout": jax.random.key(1)}))

    # Nearly all learned vectors are left out in this training, so they do not matter; the packaged ones do.
    np.testing.assert_array_equal(embed(params), embed(others))
    assert np.abs(embed(params)[0] - embed(params)[1]).max() > 1e-4
    in_use = np.asarray(tower.apply({"params": params}, ids, mask)), np.asarray(tower.apply({"params": others}, ids, mask))
    assert np.abs(in_use[0] - in_use[1]).max() > 1e-4


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=f"vocab_size=11, but word_vectors='minilm' has {len(WORDS.pieces)} pieces"):
        TextTowerConfig(vocab_size=11, word_vectors="minilm")
    with pytest.raises(UserError, match="piece_dropout=1.0: choose a rate below 1"):
        TextTowerConfig(piece_dropout=1.0)
    with pytest.raises(UserError, match="piece_dropout=0.5, but there are no word_vectors"):
        TextTowerConfig(piece_dropout=0.5)
