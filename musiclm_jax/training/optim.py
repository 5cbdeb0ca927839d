"""Optimizers and schedules, chosen by config."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from musiclm_jax.checks import NOT_NEGATIVE, SHARE, STEPS, check_choices, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.training.adafactor import dict_names, scale_by_adafactor


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    # "adamw", or "adafactor" (T5X's settings, arXiv 1804.04235; each of T5X's parameters apart, though ours are stacked and fused).
    name: str = "adamw"
    # Peak of the schedule. Under "rsqrt" T5X's base is 1.0, multiplied by the parameter scale.
    learning_rate: float = 3e-4
    # "constant", "cosine" (to 1 % at the end of the run), "transformer" (arXiv 1706.03762, section 5.3: as sqrt(warmup/step)), all three after a linear
    # warm-up; or "rsqrt" (1/sqrt(max(step, warmup)), then times learning_rate).
    schedule: str = "cosine"
    warmup_steps: int = 100
    betas: tuple[float, float] = (0.9, 0.99)
    # Times the learning rate. Applied to kernels and embeddings; not to scales, biases and position tables.
    weight_decay: float = 0.01
    # Largest global gradient norm. 0: no clipping.
    clip_norm: float = 1.0

    def __post_init__(self):
        check_choices(self, name=("adamw", "adafactor"), schedule=("constant", "cosine", "transformer", "rsqrt"))
        check_numbers(self, learning_rate=NOT_NEGATIVE, warmup_steps=STEPS, betas=SHARE, weight_decay=NOT_NEGATIVE, clip_norm=NOT_NEGATIVE)
        if len(self.betas) != 2 or 1 in self.betas:
            raise UserError(f"betas={self.betas}: choose two rates below 1")


def learning_rate(config: OptimizerConfig, step: jax.Array | int, num_steps: int) -> jax.Array:
    """The learning rate at `step` of a run of `num_steps`."""
    step = jnp.asarray(step, jnp.float32)
    warmup = max(config.warmup_steps, 1)
    if config.schedule == "rsqrt":
        return config.learning_rate * jax.lax.rsqrt(jnp.maximum(step, warmup))
    ramp = jnp.minimum(1.0, (step + 1) / warmup)
    if config.schedule == "cosine":
        progress = jnp.clip((step - warmup) / max(num_steps - warmup, 1), 0.0, 1.0)
        ramp = ramp * (0.01 + 0.99 * 0.5 * (1 + jnp.cos(jnp.pi * progress)))
    if config.schedule == "transformer":
        ramp = jnp.minimum(ramp, jax.lax.rsqrt((step + 1) / warmup))
    return config.learning_rate * ramp


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """The optax transformation of `config` for a run of `num_steps`."""
    schedule = lambda step: learning_rate(config, step, num_steps)  # noqa: E731
    if config.name == "adafactor":
        decay = optax.add_decayed_weights(config.weight_decay, mask=_decayed)
        update = optax.chain(scale_by_adafactor(), decay, optax.scale_by_learning_rate(schedule))
    else:
        update = optax.adamw(schedule, b1=config.betas[0], b2=config.betas[1], weight_decay=config.weight_decay, mask=_decayed)
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
    return update


def _decayed(params: Any) -> Any:
    """True at kernels, embeddings and the head table of a stage. By the name of the leaf: in a stack the scales of norms have two dimensions too."""
    return jax.tree_util.tree_map_with_path(lambda path, _: dict_names(path)[-1].endswith(("kernel", "embedding", "head")), params)
