"""Weights of transformers' models as the parameter trees of ours.

Trees hold torch tensors until `to_jax`, and are made by torch's own functions alone, so that models on torch's "meta" device, which have
shapes and no numbers, convert as well: that is how the paper's sizes are checked.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import torch


def randomize(model, *, seed=0):
    """`model`, in evaluation mode and without gradients, with a random number in every parameter: fresh ones hold many zeros and ones."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(generator=rng)
            if weight.ndim > 1 and weight.shape[0] > 1:  # A product or a table; a leading 1 is a token or its position, which stays large.
                weight.mul_(weight[0].numel() ** -0.5)
            elif weight.ndim == 1:  # A bias, or the scale of a norm.
                weight.mul_(0.3).add_(1.0 if name.endswith("weight") else 0.0)
    return model.eval().requires_grad_(False)


def to_jax(tree):
    return jax.tree.map(lambda x: jnp.asarray(x.numpy()), tree)


def assert_same_shapes(tree, module, *args):
    """Every parameter of `module` has a tensor of its name and shape in `tree`, and there is no other."""
    ours = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *args)["params"])
    assert jax.tree.map(lambda x: tuple(x.shape), tree) == jax.tree.map(lambda x: x.shape, ours)


def stack(layers):
    """Trees of single layers as that of a scanned stack: a leading axis L."""
    return jax.tree.map(lambda *leaves: torch.stack(leaves), *layers)


def norm(state, name):
    return {ours: state[f"{name}.{theirs}"] for ours, theirs in (("scale", "weight"), ("bias", "bias")) if f"{name}.{theirs}" in state}


def dense(state, name):
    """A Linear, [out, in] -> [D, F]."""
    return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}


def attention(state, query, key, value, out, *, num_heads):
    """Four Linears -> one fused kernel [D, 3, H, K] and [H, K, D], with or without biases."""
    inputs = (query, key, value)
    tree = {
        "qkv_kernel": torch.stack([state[f"{name}.weight"].T for name in inputs], dim=1).unflatten(2, (num_heads, -1)),
        "out_kernel": state[f"{out}.weight"].T.unflatten(0, (num_heads, -1)),
    }
    if f"{out}.bias" in state:
        tree["qkv_bias"] = torch.stack([state[f"{name}.bias"] for name in inputs]).unflatten(1, (num_heads, -1))
        tree["out_bias"] = state[f"{out}.bias"]
    return tree


def t5_stack(model):
    """T5Stack -> nn.transformer.Transformer. Its cross-attention and its embeddings, which are not ours, stay behind."""
    state, config = model.state_dict(), model.config

    def block(i):
        attend, mlp = f"block.{i}.layer.0", f"block.{i}.layer.2"
        names = [f"{attend}.SelfAttention.{name}" for name in "qkvo"]
        gate = [state[f"{mlp}.DenseReluDense.wi_{n}.weight"].T for n in (0, 1)]
        return {
            "attention_norm": norm(state, f"{attend}.layer_norm"),
            "attention": attention(state, *names, num_heads=config.num_heads),
            "mlp_norm": norm(state, f"{mlp}.layer_norm"),
            "mlp": {"in_kernel": torch.stack(gate, dim=1), "out": {"kernel": state[f"{mlp}.DenseReluDense.wo.weight"].T}},
        }

    return {
        "bias": {"table": state["block.0.layer.0.SelfAttention.relative_attention_bias.weight"].T},
        "layers": stack([block(i) for i in range(config.num_layers)]),
        "final_norm": norm(state, "final_layer_norm"),
    }


def bert(model):
    """BertModel -> models.text_tower.TextTower, whose positions contain the vector of the first sentence type. The pooler stays behind."""
    state, config = model.state_dict(), model.config

    def layer(i):
        name = f"encoder.layer.{i}"
        inputs = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        return {
            "attention": attention(state, *inputs, f"{name}.attention.output.dense", num_heads=config.num_attention_heads),
            "attention_norm": norm(state, f"{name}.attention.output.LayerNorm"),
            "widen": dense(state, f"{name}.intermediate.dense"),
            "narrow": dense(state, f"{name}.output.dense"),
            "mlp_norm": norm(state, f"{name}.output.LayerNorm"),
        }

    return {
        "tokens": {"embedding": state["embeddings.word_embeddings.weight"]},
        "positions": state["embeddings.position_embeddings.weight"] + state["embeddings.token_type_embeddings.weight"][0],
        "embedding_norm": norm(state, "embeddings.LayerNorm"),
        "layers": stack([layer(i) for i in range(config.num_hidden_layers)]),
    }


def ast(model):
    """ASTModel -> models.ast.AST, whose two tokens contain their positions' vectors. Positions: [1, 2 + M' * T', D] -> [M', T', D]."""
    state, config = model.state_dict(), model.config
    bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    positions = state["embeddings.position_embeddings"][0]

    def layer(i):
        name = f"layers.{i}"
        names = [f"{name}.attention.{part}_proj" for part in "qkvo"]
        return {
            "attention_norm": norm(state, f"{name}.layernorm_before"),
            "attention": attention(state, *names, num_heads=config.num_attention_heads),
            "mlp_norm": norm(state, f"{name}.layernorm_after"),
            "widen": dense(state, f"{name}.mlp.fc1"),
            "narrow": dense(state, f"{name}.mlp.fc2"),
        }

    patches = "embeddings.patch_embeddings.projection"
    return {
        "patches": {"kernel": state[f"{patches}.weight"].permute(2, 3, 1, 0), "bias": state[f"{patches}.bias"]},
        "positions": positions[2:].unflatten(0, (bands, -1)),
        "tokens": torch.cat([state["embeddings.cls_token"][0], state["embeddings.distillation_token"][0]]) + positions[:2],
        "layers": stack([layer(i) for i in range(config.num_hidden_layers)]),
        "final_norm": norm(state, "layernorm"),
    }


def conformer_block(layer, *, num_heads, depthwise_norm, future_taps=0):
    """Wav2Vec2ConformerEncoderLayer or Wav2Vec2BertEncoderLayer -> nn.conformer.ConformerBlock.

    depthwise_norm: name of the norm after the depthwise convolution. future_taps: zeros to append to the filters of that convolution, which
    make the symmetric filter that does what a causal one does.
    """
    state = layer.state_dict()

    def feed_forward(name):
        return {
            "norm": norm(state, f"{name}_layer_norm"),
            "up": dense(state, f"{name}.intermediate_dense"),
            "down": dense(state, f"{name}.output_dense"),
        }

    def pointwise(name):
        """A convolution of width 1, [out, in, 1]; where it has no bias ours is zero."""
        kernel = state[f"{name}.weight"][:, :, 0].T
        return {"kernel": kernel, "bias": state.get(f"{name}.bias", torch.zeros_like(kernel[0]))}

    names = [f"self_attn.linear_{part}" for part in ("q", "k", "v", "out")]
    filters = state["conv_module.depthwise_conv.weight"][:, 0]  # [D, 1, taps] -> [D, taps]
    return {
        "mlp_in": feed_forward("ffn1"),
        "attention_norm": norm(state, "self_attn_layer_norm"),
        "attention": attention(state, *names, num_heads=num_heads),
        "conv": {
            "norm": norm(state, "conv_module.layer_norm"),
            "expand": pointwise("conv_module.pointwise_conv1"),
            "depthwise": {"kernel": torch.nn.functional.pad(filters, (0, future_taps)).T},
            "depthwise_norm": norm(state, f"conv_module.{depthwise_norm}"),
            "project": pointwise("conv_module.pointwise_conv2"),
        },
        "mlp_out": feed_forward("ffn2"),
        "norm": norm(state, "final_layer_norm"),
    }
