"""Schedules are those of their papers; weight decay goes to the parameters that it is meant for."""

import jax
import jax.numpy as jnp
import pytest

from musiclm_jax.models.stage import StageConfig
from musiclm_jax.specs import TokenSpec
from musiclm_jax.tasks.stage import StageTask
from musiclm_jax.tokens import stage_layout
from musiclm_jax.training.optim import OptimizerConfig, learning_rate, make_optimizer


def test_kernels_and_embeddings_decay_and_nothing_else():
    task = StageTask("semantic", StageConfig(num_layers=2, dim=8, num_heads=2, mlp_dim=16), stage_layout("semantic", TokenSpec()))
    params = task.init_state(jax.random.key(0)).params
    optimizer = make_optimizer(OptimizerConfig(schedule="constant", warmup_steps=1, weight_decay=0.1, clip_norm=0.0), 1000)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    moved = {jax.tree_util.keystr(path): bool(jnp.any(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(updates)}
    assert {name for name, moves in moved.items() if not moves} == {name for name in moved if "norm" in name or "bias" in name}
    assert any("kernel" in name for name in moved) and any("embedding" in name for name in moved) and any("head" in name for name in moved)


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
