"""Conformer blocks of transformers and of our w2v-BERT.

No model of transformers is this conformer to the letter, so it is compared with the two that are nearest, and both with all other parts:
  * Wav2Vec2BertEncoderLayer has our LayerNorm after the depthwise convolution, but that convolution is causal: its filters are given to
    ours with zeros for what lies ahead.
  * Wav2Vec2ConformerEncoderLayer has our symmetric convolution, but batch norm after it, which is exchanged for a LayerNorm over channels;
    its pointwise convolutions are given the biases that ours have.
Our T5 bias of relative positions goes into the references in the place of an attention mask, which they add to the logits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.models.w2v_bert import W2vBertConfig
from musiclm_jax.nn.conformer import ConformerBlock, ConformerStack

torch = pytest.importorskip("torch")
causal = pytest.importorskip("transformers.models.wav2vec2_bert.modeling_wav2vec2_bert")
symmetric = pytest.importorskip("transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer")
t5 = pytest.importorskip("transformers.models.t5.modeling_t5")

import torch_weights as weights  # noqa: E402

pytestmark = pytest.mark.parity

DIM, HEADS, MLP, TAPS, LENGTH = 18, 3, 29, 5, 41


class ChannelNorm(torch.nn.LayerNorm):
    """LayerNorm over the channels of [B, D, T], where the reference has batch norm."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def make_layer(module, config_class, dim=DIM, heads=HEADS, mlp=MLP, taps=TAPS):
    config = config_class(
        hidden_size=dim,
        num_attention_heads=heads,
        intermediate_size=mlp,
        conv_depthwise_kernel_size=taps,
        hidden_act="swish",
        position_embeddings_type=None,
    )
    config._attn_implementation = "eager"
    return module(config)


def causal_layer(seed=0):
    return weights.randomize(make_layer(causal.Wav2Vec2BertEncoderLayer, causal.Wav2Vec2BertConfig), seed=seed)


def raw_symmetric_layer(**sizes):
    layer = make_layer(symmetric.Wav2Vec2ConformerEncoderLayer, symmetric.Wav2Vec2ConformerConfig, **sizes)
    conv = layer.conv_module
    conv.batch_norm = ChannelNorm(conv.batch_norm.num_features)
    for pointwise in (conv.pointwise_conv1, conv.pointwise_conv2):
        pointwise.bias = torch.nn.Parameter(torch.zeros(pointwise.out_channels))
    return layer


def symmetric_layer(seed=0):
    return weights.randomize(raw_symmetric_layer(), seed=seed)


def inputs(seed=0):
    return np.random.default_rng(seed).normal(size=(2, LENGTH, DIM)).astype(np.float32)


@pytest.mark.parametrize("kind", ["causal", "symmetric"])
def test_block(kind):
    if kind == "causal":
        reference, taps = causal_layer(), 2 * TAPS - 1
        tree = weights.conformer_block(reference, num_heads=HEADS, depthwise_norm="depthwise_layer_norm", future_taps=TAPS - 1)
    else:
        reference, taps = symmetric_layer(), TAPS
        tree = weights.conformer_block(reference, num_heads=HEADS, depthwise_norm="batch_norm")
    bias = np.random.default_rng(1).normal(size=(1, HEADS, LENGTH, LENGTH)).astype(np.float32)
    expected = reference(torch.tensor(inputs()), attention_mask=torch.tensor(bias)).numpy()
    block = ConformerBlock(HEADS, MLP, taps)
    ours = jax.jit(block.apply)({"params": weights.to_jax(tree)}, jnp.asarray(inputs()), jnp.asarray(bias))
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)
    assert np.abs(expected).mean() > 0.3


def test_stack_with_relative_positions():
    """Two layers, one after the other, under the bias of T5's encoder."""
    config = t5.T5Config(d_model=DIM, d_kv=2, num_heads=HEADS, vocab_size=2)
    positions = weights.randomize(t5.T5Attention(config, has_relative_attention_bias=True, layer_idx=0))
    layers = [symmetric_layer(seed) for seed in (0, 1)]
    expected = torch.tensor(inputs())
    for layer in layers:
        expected = layer(expected, attention_mask=positions.compute_bias(LENGTH, LENGTH))
    blocks = [weights.conformer_block(layer, num_heads=HEADS, depthwise_norm="batch_norm") for layer in layers]
    tree = {"relative_bias": {"table": positions.relative_attention_bias.weight}, "blocks": {"block": weights.stack(blocks)}}
    ours = jax.jit(ConformerStack(2, HEADS, MLP, TAPS).apply)({"params": weights.to_jax(tree)}, jnp.asarray(inputs()))
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5, rtol=0)


def test_the_papers_size():
    config = W2vBertConfig()
    with torch.device("meta"):
        reference = raw_symmetric_layer(dim=config.dim, heads=config.num_heads, mlp=config.mlp_dim, taps=config.conv_kernel)
    tree = weights.conformer_block(reference, num_heads=config.num_heads, depthwise_norm="batch_norm")
    block = ConformerBlock(config.num_heads, config.mlp_dim, config.conv_kernel)
    x, bias = jnp.zeros((1, 2, config.dim)), jnp.zeros((1, config.num_heads, 2, 2))
    weights.assert_same_shapes(tree, block, x, bias)
