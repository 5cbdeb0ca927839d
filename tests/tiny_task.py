"""The smallest task that uses everything a task may: logical names, dropout-like noise, statistics, adam."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from musiclm_jax.training.optim import OptimizerConfig, make_optimizer
from musiclm_jax.training.task import Recipe, Task, TrainState, fresh_state


class Net(nn.Module):
    """x [B, 8] -> [B, 4], sharded over both kinds of axes."""

    @nn.compact
    def __call__(self, x):
        up = self.param("up", nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp")), (8, 12))
        down = self.param("down", nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("mlp", "embed")), (12, 4))
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)), (3,))
        return jnp.tanh(x @ up) @ down + bias.sum()


@dataclasses.dataclass(frozen=True)
class TinyTask(Task):
    name: ClassVar[str] = "tiny"
    recipe: Recipe = Recipe(optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1))
    noise: float = 0.1
    # The loss is not finite from this step on. -1: never.
    break_at: int = -1

    def init_state(self, rng):
        return fresh_state(Net().init(rng, jnp.zeros((1, 8)))["params"], self.recipe, stats={"mean": jnp.zeros(8)})

    def _loss(self, params, batch, rng):
        noise = self.noise * jax.random.normal(rng, batch["x"].shape)
        return jnp.mean((Net().apply({"params": params}, batch["x"] + noise) - batch["y"]) ** 2)

    def train_step(self, state, batch, rng):
        loss, grads = jax.value_and_grad(self._loss)(state.params, batch, rng)
        loss = jnp.where((self.break_at >= 0) & (state.step >= self.break_at), jnp.nan, loss)
        optimizer = make_optimizer(self.recipe.optimizer, self.num_steps)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        stats = {"mean": 0.9 * state.stats["mean"] + 0.1 * batch["x"].mean(0)}
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state, stats), {"loss": loss, "tokens": jnp.float32(5)}

    def eval_step(self, state, batch, rng):
        return {"loss": self._loss(state.params, batch, rng)}

    def variables(self, state):
        return {"params": state.params}


def tiny(num_steps: int, **changes) -> TinyTask:
    """A TinyTask of so many steps, with other fields of its optimizer or of itself."""
    optimizer = {name: changes.pop(name) for name in list(changes) if name in OptimizerConfig.__dataclass_fields__}
    recipe = TinyTask().recipe
    recipe = dataclasses.replace(recipe, num_steps=num_steps, optimizer=dataclasses.replace(recipe.optimizer, **optimizer))
    return TinyTask(recipe, **changes)


def source(step: int, rows=np.arange) -> dict[str, np.ndarray]:
    rng, here = np.random.default_rng([7, step]), rows(8)
    return {"x": rng.standard_normal((8, 8), np.float32)[here], "y": rng.standard_normal((8, 4), np.float32)[here]}
