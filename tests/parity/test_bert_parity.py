"""BERT (transformers) and MuLan's text tower."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.models.text_tower import TextTower, TextTowerConfig

torch = pytest.importorskip("torch")
bert = pytest.importorskip("transformers.models.bert.modeling_bert")

import torch_weights as weights  # noqa: E402

pytestmark = pytest.mark.parity

TINY = TextTowerConfig(vocab_size=29, max_tokens=17, dim=18, num_layers=2, num_heads=3, mlp_dim=31)


def bert_config(config):
    return bert.BertConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_tokens,
        hidden_size=config.dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
    )


def test_vector_of_the_first_token():
    """All that the tower returns; after two layers every parameter has a part in it. Row 1 is padded."""
    reference = weights.randomize(bert.BertModel(bert_config(TINY), add_pooling_layer=False))
    params = weights.to_jax(weights.bert(reference))
    ids = np.random.default_rng(0).integers(1, TINY.vocab_size, (3, 13))
    mask = np.ones((3, 13), bool)
    mask[1, 7:] = False
    expected = reference(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long()).last_hidden_state[:, 0].numpy()
    tower = TextTower(TINY, jnp.dtype("float32"))
    ours = jax.jit(tower.apply)({"params": params}, jnp.asarray(ids, jnp.int32), jnp.asarray(mask))
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)
    assert np.abs(expected).mean() > 0.3


def test_bert_base():
    with torch.device("meta"):
        reference = bert.BertModel(bert.BertConfig(), add_pooling_layer=False)
    ids = jnp.zeros((1, 3), jnp.int32)
    weights.assert_same_shapes(weights.bert(reference), TextTower(TextTowerConfig(), jnp.dtype("float32")), ids, ids == 0)
