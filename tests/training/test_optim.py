"""Schedules are those of their papers; weight decay goes to the parameters that it is meant for; Adafactor takes T5X's parameters apart."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from small_streams import make_streams, stage_layout

from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.models.stage import StageConfig
from musiclm_jax.tasks.stage import StageRecipe, StageTask
from musiclm_jax.training import sharding
from musiclm_jax.training.optim import OptimizerConfig, _decayed, learning_rate, make_optimizer

ADAFACTOR = OptimizerConfig(name="adafactor", learning_rate=1.0, schedule="rsqrt", warmup_steps=3, weight_decay=0.0, clip_norm=0.0)


def task_of(part):
    config = load_config("base")
    return config.part(part).task(config)


@pytest.mark.parametrize(
    "part,decayed,spared",
    [
        ("semantic", {"embedding", "head", "in_kernel", "kernel", "out_kernel", "qkv_kernel"}, {"scale", "table"}),
        (
            "mulan",  # whose heads are modules, with kernels and biases
            {"embedding", "kernel", "out_kernel", "qkv_kernel"},
            {"bias", "log_temperature", "out_bias", "positions", "qkv_bias", "scale"},
        ),
        ("w2v_bert", {"kernel", "out_kernel", "qkv_kernel"}, {"bias", "codes", "out_bias", "qkv_bias", "scale", "table"}),
    ],
)
def test_kernels_embeddings_and_the_head_table_decay_and_nothing_else(part, decayed, spared):
    params = nn.meta.unbox(jax.eval_shape(task_of(part).init_state, jax.random.key(0)).params)
    names = {True: set(), False: set()}
    for path, decays in jax.tree_util.tree_leaves_with_path(_decayed(params)):
        names[decays].add(path[-1].key)
    assert names == {True: decayed, False: spared}


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_decay_is_by_the_learning_rate_times_the_decay(optimizer):
    params = {"layers": {"attention": {"qkv_kernel": jnp.full((2, 3, 3, 5, 7), 4.0), "scale": jnp.ones((2, 3))}}, "audio_head": {"bias": jnp.ones(3)}}
    optimizer = make_optimizer(OptimizerConfig(name=optimizer, learning_rate=0.5, schedule="constant", warmup_steps=1, weight_decay=0.1, clip_norm=0.0), 1000)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["layers"]["attention"].pop("qkv_kernel"), -0.2, rtol=1e-6)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(updates))


def test_schedules_after_t5x_and_the_transformer():
    t5x = OptimizerConfig(schedule="rsqrt", learning_rate=1.0, warmup_steps=100)
    assert [float(learning_rate(t5x, step, 1000)) for step in (0, 100, 400)] == pytest.approx([0.1, 0.1, 0.05])
    transformer = OptimizerConfig(schedule="transformer", learning_rate=2e-3, warmup_steps=100)
    assert [float(learning_rate(transformer, step, 1000)) for step in (0, 49, 99, 399)] == pytest.approx([2e-5, 1e-3, 2e-3, 1e-3])


def test_a_cosine_falls_to_a_hundredth_at_the_end_of_the_run():
    cosine = OptimizerConfig(schedule="cosine", learning_rate=2e-3, warmup_steps=10)
    for num_steps in (110, 1010):
        halfway = 10 + (num_steps - 10) // 2
        found = [float(learning_rate(cosine, step, num_steps)) for step in (4, 10, halfway, num_steps, 2 * num_steps)]
        assert found == pytest.approx([1e-3, 2e-3, (2e-3 + 2e-5) / 2, 2e-5, 2e-5])


# Layers, width, heads, head width, feed-forward width, vocabulary: a stage of which every kernel is factored, and heads only together.
L, D, H, K, F, V = 2, 131, 3, 47, 137, 149


def fused_params():
    """As a stage's: the query third is small, and one layer is larger than the other."""
    shapes = {
        "body": {
            "layers": {
                "attention": {"qkv_kernel": (L, D, 3, H, K), "qkv_bias": (L, 3, H, K), "out_kernel": (L, H, K, D)},
                "mlp": {"in_kernel": (L, D, 2, F), "out": {"kernel": (L, F, D)}},
                "mlp_norm": {"scale": (L, D)},
            },
            "bias": {"table": (H, 8)},
            "final_norm": {"scale": (D,)},
        },
        "embed": {"embedding": (V, D)},
        "head": (V, D),
        "conv": {"kernel": (5, 131, 139)},
        "log_temperature": (),
    }
    draw = lambda shape: 0.05 * np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)  # noqa: E731
    params = jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))
    layers = params["body"]["layers"]
    layers["attention"]["qkv_kernel"][:, :, 0] /= 8
    layers["attention"]["qkv_bias"][:, 2] *= 5
    layers["mlp"]["in_kernel"][:, :, 1] *= 3
    return {**params, "body": {**params["body"], "layers": jax.tree.map(lambda x: x * np.array([1, 7], np.float32).reshape(L, *[1] * (x.ndim - 1)), layers)}}


def apart(tree):
    """The same, each leaf in T5X's shape."""

    def layer(i):
        attention, mlp = tree["body"]["layers"]["attention"], tree["body"]["layers"]["mlp"]
        return {
            "qkv": [attention["qkv_kernel"][i, :, n].reshape(D, H * K) for n in range(3)],
            "qkv_bias": [attention["qkv_bias"][i, n].reshape(H * K) for n in range(3)],
            "out": attention["out_kernel"][i].reshape(H * K, D),
            "wi": [mlp["in_kernel"][i, :, n] for n in range(2)],
            "wo": mlp["out"]["kernel"][i],
            "scale": tree["body"]["layers"]["mlp_norm"]["scale"][i],
        }

    rest = {name: leaf for name, leaf in tree.items() if name != "body"}
    return [layer(i) for i in range(L)], tree["body"]["bias"], tree["body"]["final_norm"], rest


def test_adafactor_takes_fused_and_stacked_parameters_apart():
    ours, theirs = make_optimizer(ADAFACTOR, 1000), optax.adafactor(functools.partial(learning_rate, ADAFACTOR, num_steps=1000), clipping_threshold=1.0)
    params = fused_params()
    separate, expected = ours.init(params), apart(params)
    state = theirs.init(expected)
    update_ours, update_theirs = jax.jit(ours.update), jax.jit(theirs.update)
    for step in range(5):
        rng = np.random.default_rng(step)
        # Of all sizes, so that some are clipped and some are not.
        draw = lambda x: (rng.standard_normal(x.shape) * 10.0 ** rng.integers(-3, 3, (*x.shape[:1], *[1] * (x.ndim - 1)))).astype(np.float32)  # noqa: B023,E731
        grads = jax.tree.map(draw, params)
        updates, separate = update_ours(grads, separate, params)
        expected_updates, state = update_theirs(apart(grads), state, expected)
        params, expected = optax.apply_updates(params, updates), optax.apply_updates(expected, expected_updates)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-9), apart(updates), expected_updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), apart(params), expected)


def test_a_moment_of_adafactor_lies_where_its_parameter_does():
    model = StageConfig(num_layers=2, dim=128, num_heads=4, head_dim=32, mlp_dim=256)
    task = StageTask("semantic", model, stage_layout("semantic", make_streams(mulan=(12, 1024), semantic=1024)), StageRecipe(optimizer=ADAFACTOR))
    state = jax.eval_shape(task.init_state, jax.random.key(0))
    mesh = AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"))
    moments, shapes = sharding.state_shardings(state, mesh).opt_state[0], sharding.unbox(state).opt_state[0]
    layers = lambda tree: tree["body"]["layers"]  # noqa: E731
    assert layers(shapes.rows)["attention"]["qkv_kernel"].shape == (2, 128, 3, 1, 1)
    assert layers(shapes.columns)["attention"]["qkv_kernel"].shape == (2, 1, 3, 4, 32)
    assert layers(moments.rows)["attention"]["qkv_kernel"].spec == P(None, "fsdp", None, None, None)
    assert layers(moments.columns)["attention"]["qkv_kernel"].spec == P(None, None, None, "tensor", None)
    assert layers(moments.rows)["mlp_norm"]["scale"].spec == P(None, "fsdp") and layers(shapes.rows)["mlp_norm"]["scale"].shape == (2, 128)
    assert moments.rows["head"].spec == P(None, "fsdp") and moments.columns["head"].spec == P("tensor", None) and moments.count.spec == P()
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 0.05 * sum(leaf.size for leaf in jax.tree.leaves(state.params))
