"""T5 1.1 (transformers) and ours: relative-position biases, causal and bidirectional, and the whole decoder stack of the stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.nn.conformer import RelativeBias
from musiclm_jax.nn.transformer import CausalBias, Transformer, TransformerConfig

torch = pytest.importorskip("torch")
t5 = pytest.importorskip("transformers.models.t5.modeling_t5")

import torch_weights as weights  # noqa: E402

pytestmark = pytest.mark.parity

TINY = TransformerConfig(dim=16, num_layers=2, num_heads=3, head_dim=5, mlp_dim=23, dropout=0.0)
# Beyond max_distance, so that every bucket occurs.
LENGTH = 150


def t5_config(config, *, is_decoder=True):
    result = t5.T5Config(
        vocab_size=2,
        d_model=config.dim,
        d_kv=config.head_dim,
        d_ff=config.mlp_dim,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        relative_attention_num_buckets=config.num_buckets,
        relative_attention_max_distance=config.max_distance,
        feed_forward_proj="gated-gelu",
        is_decoder=is_decoder,
        is_encoder_decoder=False,
        use_cache=False,
    )
    result._attn_implementation = "eager"
    return result


def t5_attention(config, *, is_decoder):
    return weights.randomize(t5.T5Attention(t5_config(config, is_decoder=is_decoder), has_relative_attention_bias=True, layer_idx=0))


@pytest.mark.parametrize("num_buckets,max_distance", [(32, 128), (8, 11), (16, 300)])
@pytest.mark.parametrize("num_queries,num_keys,position", [(LENGTH, LENGTH, 0), (7, 331, 324), (1, 331, 200)])
def test_causal_bias(num_buckets, max_distance, num_queries, num_keys, position):
    config = TransformerConfig(**{**TINY.__dict__, "num_buckets": num_buckets, "max_distance": max_distance})
    reference = t5_attention(config, is_decoder=True)
    expected = reference.compute_bias(num_queries, num_keys, past_seen_tokens=position).numpy()
    params = {"table": jnp.asarray(reference.relative_attention_bias.weight.numpy().T)}
    ours = CausalBias(3, num_buckets, max_distance).apply({"params": params}, num_queries, num_keys, position)
    # Ours has the causal mask folded in; T5 adds its own later.
    seen = np.arange(num_keys) <= position + np.arange(num_queries)[:, None]
    np.testing.assert_array_equal(ours, np.where(seen, expected, np.finfo(np.float32).min))


@pytest.mark.parametrize("num_buckets,max_distance", [(32, 128), (8, 11), (16, 300)])
def test_bidirectional_bias_of_the_conformer(num_buckets, max_distance):
    config = TransformerConfig(**{**TINY.__dict__, "num_buckets": num_buckets, "max_distance": max_distance})
    reference = t5_attention(config, is_decoder=False)
    params = {"table": jnp.asarray(reference.relative_attention_bias.weight.numpy())}
    ours = RelativeBias(3, num_buckets, max_distance).apply({"params": params}, 331)
    np.testing.assert_array_equal(ours, reference.compute_bias(331, 331).numpy())


def test_decoder_stack_and_its_gradients():
    """Hidden states of the whole stack; gradients of a random projection of them by the inputs and by the table of biases."""
    reference = weights.randomize(t5.T5Stack(t5_config(TINY)))
    params = weights.to_jax(weights.t5_stack(reference))
    x, direction = np.random.default_rng(0).normal(size=(2, 2, LENGTH, TINY.dim)).astype(np.float32)

    inputs = torch.tensor(x, requires_grad=True)
    table = reference.block[0].layer[0].SelfAttention.relative_attention_bias.weight.requires_grad_()
    expected = reference(inputs_embeds=inputs).last_hidden_state
    (expected * torch.tensor(direction)).sum().backward()

    def run(params, x):
        out, _ = Transformer(TINY).apply({"params": params}, x)
        return jnp.sum(out * direction), out

    (grads, grad_x), ours = jax.jit(jax.grad(run, argnums=(0, 1), has_aux=True))(params, jnp.asarray(x))
    np.testing.assert_allclose(ours, expected.detach().numpy(), atol=1e-4, rtol=0)
    np.testing.assert_allclose(grad_x, inputs.grad.numpy(), atol=1e-4, rtol=0)
    # Sums over all pairs of positions, brought to order 1 as well.
    size = np.abs(table.grad.numpy()).max()
    np.testing.assert_allclose(grads["bias"]["table"] / size, table.grad.numpy().T / size, atol=1e-4, rtol=0)
    assert min(np.abs(expected.detach().numpy()).mean(), np.abs(inputs.grad.numpy()).mean()) > 0.1 and (table.grad.abs().amax(1) > 0).all()


def test_the_papers_size():
    config = TransformerConfig()
    with torch.device("meta"):
        reference = t5.T5Stack(t5_config(config))
    weights.assert_same_shapes(weights.t5_stack(reference), Transformer(config), jnp.zeros((1, 2, config.dim)))
