"""The paper's sizes, as shapes only: every part initializes, shards over eight devices and takes a step that keeps its state's shape."""

import math

import jax
import pytest

from musiclm_jax import sharding
from musiclm_jax.dry_run import abstract_batch
from musiclm_jax.main import load_config
from musiclm_jax.steps import TRAINED


@pytest.mark.parametrize("name", TRAINED)
def test_shapes_shardings_and_one_step(name):
    config = load_config("base")
    task = config.task(name)
    boxed = jax.eval_shape(task.init_state, jax.random.key(0))
    state = sharding.unbox(boxed)
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    shardings = sharding.state_shardings(boxed, mesh)
    jax.tree.map(lambda leaf, where: where.shard_shape(leaf.shape), state, shardings)  # Raises where an axis does not divide.
    after, metrics = jax.eval_shape(task.train_step, state, abstract_batch(config, name), jax.random.key(0))
    same = lambda a, b: a.shape == b.shape and a.dtype == b.dtype  # noqa: E731
    assert jax.tree.all(jax.tree.map(same, state, after)) and metrics["loss"].shape == ()
    if name in ("semantic", "coarse", "fine", "w2v_bert"):
        size = lambda shape: sum(x.size for x in jax.tree.leaves(shape))  # noqa: E731
        sharded = sum(math.prod(w.shard_shape(x.shape)) for x, w in zip(jax.tree.leaves(state.params), jax.tree.leaves(shardings.params)))
        assert sharded < 0.3 * size(state.params)  # A quarter, and what is too small to split.


def test_the_semantic_stage_has_the_published_size():
    params = sharding.unbox(jax.eval_shape(load_config("base").task("semantic").init_state, jax.random.key(0))).params
    assert sum(x.size for x in jax.tree.leaves(params)) == pytest.approx(430e6, rel=1e-3)
