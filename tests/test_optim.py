"""Weight decay goes to the parameters that it is meant for."""

import jax
import jax.numpy as jnp

from musiclm_jax.models.stage import StageConfig
from musiclm_jax.optim import OptimizerConfig, make_optimizer
from musiclm_jax.specs import TokenSpec
from musiclm_jax.tasks.stage import StageTask


def test_kernels_and_embeddings_decay_and_nothing_else():
    task = StageTask(model=StageConfig(num_layers=2, dim=8, num_heads=2, mlp_dim=16), tokens=TokenSpec())
    params = task.init_state(jax.random.key(0)).params
    optimizer = make_optimizer(OptimizerConfig(schedule="constant", warmup_steps=1, weight_decay=0.1, clip_norm=0.0))
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    moved = {jax.tree_util.keystr(path): bool(jnp.any(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(updates)}
    assert {name for name, moves in moved.items() if not moves} == {name for name in moved if "norm" in name or "bias" in name}
    assert any("kernel" in name for name in moved) and any("embedding" in name for name in moved) and any("head" in name for name in moved)
