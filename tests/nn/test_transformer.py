import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.errors import UserError
from musiclm_jax.nn.attention import KVCache
from musiclm_jax.nn.relative import relative_buckets
from musiclm_jax.nn.transformer import CausalBias, Transformer, TransformerConfig, unstack_layers

TINY = TransformerConfig(dim=13, num_layers=3, num_heads=2, head_dim=5, mlp_dim=17, dropout=0.0, num_buckets=8, max_distance=11)


@functools.cache
def build(config=TINY, length=19, batch=2):
    x = jax.random.normal(jax.random.key(0), (batch, length, config.dim))
    model = Transformer(config)
    return model, nn.meta.unbox(jax.jit(model.init)(jax.random.key(1), x)["params"]), x


@pytest.mark.parametrize("num_queries,num_keys,position", [(1, 23, 0), (1, 23, 22), (7, 7, 0), (5, 23, 9), (1, 1, 0)])
def test_bias_of_each_pair(num_queries, num_keys, position):
    bias = CausalBias(num_heads=3, num_buckets=8, max_distance=11)
    params = bias.init(jax.random.key(0), 1, 1)
    table = np.asarray(params["params"]["table"].unbox())
    buckets = relative_buckets(-np.arange(num_keys), num_buckets=8, max_distance=11, bidirectional=False)
    out = np.asarray(bias.apply(params, num_queries, num_keys, jnp.int32(position)))
    assert out.shape == (1, 3, num_queries, num_keys)
    for t in range(num_queries):
        for s in range(num_keys):
            distance = position + t - s
            expected = table[:, buckets[distance]] if distance >= 0 else np.finfo(np.float32).min
            np.testing.assert_array_equal(out[0, :, t, s], np.broadcast_to(expected, 3))


def test_prefill_and_steps_are_the_full_pass():
    model, params, x = build()
    full, _ = model.apply({"params": params}, x)
    model, params = Transformer(TINY, unrolled=True), unstack_layers(params, TINY.num_layers)
    np.testing.assert_allclose(model.apply({"params": params}, x)[0], full, atol=1e-5)  # unrolled == scanned
    cache = tuple(KVCache.zeros(batch=2, length=7, heads=2, head_dim=5) for _ in range(3))
    first, cache = model.apply({"params": params}, x[:, :7], cache=cache)
    outs, step = [first], jax.jit(model.apply)
    for t in range(7, 19):
        if t in (7, 11):  # bucket boundaries; new slots hold garbage
            grown = [layer.grow({7: 11, 11: 19}[t]) for layer in cache]
            empty = jnp.arange(grown[0].length)[:, None] >= t
            cache = tuple(jax.tree.map(lambda a, empty=empty: jnp.where(empty, 1e4, a), layer) for layer in grown)
        out, cache = step({"params": params}, x[:, t : t + 1], cache=cache, position=jnp.int32(t))
        outs.append(out)
    np.testing.assert_allclose(jnp.concatenate(outs, axis=1), full, atol=1e-5)


def test_causal_by_gradient():
    model, params, x = build()
    grads = jax.jit(jax.jacrev(lambda x: model.apply({"params": params}, x)[0][0].sum(-1)))(x)[:, 0]  # [T, T, D]
    reach = np.abs(grads).max(-1) > 0
    np.testing.assert_array_equal(reach, np.tril(np.ones((19, 19), bool)))


def test_one_table_for_all_layers_and_stacked_axes():
    boxed = jax.eval_shape(lambda: Transformer(TINY).init(jax.random.key(0), jnp.zeros((1, 2, 13))))["params"]
    assert boxed["bias"]["table"].unbox().shape == (2, 8)
    for leaf in jax.tree.leaves(boxed["layers"], is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        assert leaf.names[0] == "layers" and leaf.unbox().shape[0] == 3
    assert not any("bias" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(boxed["layers"]))


@pytest.mark.parametrize("remat", ["full", "products"])
def test_remat_changes_nothing(remat):
    config = TransformerConfig(**{**TINY.__dict__, "remat": remat, "dropout": 0.5})
    plain = TransformerConfig(**{**TINY.__dict__, "dropout": 0.5})
    _, params, x = build()

    def loss(params, config):
        rngs = {"dropout": jax.random.key(3)}
        return Transformer(config).apply({"params": params}, x, train=True, rngs=rngs)[0].var()

    gradients = [jax.jit(jax.grad(functools.partial(loss, config=c)))(params) for c in (plain, config)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *gradients)


def test_dropout_is_shared_by_positions():
    config = TransformerConfig(**{**TINY.__dict__, "dropout": 0.5})
    _, params, x = build()
    out, _ = Transformer(config).apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(3)})
    zero = np.asarray(out) == 0
    assert 0 < zero[:, 0].mean() < 1
    np.testing.assert_array_equal(zero, np.broadcast_to(zero[:, :1], zero.shape))


def test_bfloat16_is_close_and_float32_inside():
    model, params, x = build()
    full, _ = model.apply({"params": params}, x)
    half, _ = Transformer(TransformerConfig(**{**TINY.__dict__, "dtype": "bfloat16"})).apply({"params": params}, x)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), full, atol=0.15)


@pytest.mark.parametrize(
    "field,value",
    [("dim", 0), ("dropout", 1.0), ("num_buckets", 7), ("max_distance", 4), ("rotary", 2.0), ("rotary_values", 9.0), ("dtype", "float64")],
)
def test_nonsense_is_refused(field, value):
    with pytest.raises(UserError, match=field):
        TransformerConfig(**{**TINY.__dict__, field: value})
