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
    # "adamw", or "adafactor" (arXiv 1804.04235) with T5X's settings. Its statistics are per T5X parameter, also where our parameters are stacked or fused.
    name: str = "adamw"
    # Peak of the schedule; with "rsqrt" the factor before the root, 1.0 in T5X. "adafactor" also multiplies by the root mean square of each parameter.
    learning_rate: float = 3e-4
    # "constant", "cosine" (down to 1 % of the peak at the end of the run) or "transformer" (arXiv 1706.03762, section 5.3: sqrt(warmup / step)), all three
    # after a linear warm-up; or "rsqrt": learning_rate / sqrt(max(step, warmup)).
    schedule: str = "cosine"
    # Steps of the warm-up. With "rsqrt", steps at a constant rate.
    warmup_steps: int = 100
    # Decay rates of AdamW's first and second moments; "adafactor" does not use them.
    betas: tuple[float, float] = (0.9, 0.99)
    # Multiplied by the learning rate. Applied to kernels and embeddings, not to scales, biases and position tables.
    weight_decay: float = 0.01
    # Largest global gradient norm. 0: no clipping.
    clip_norm: float = 1.0

    def __post_init__(self):
        check_choices(self, name=("adamw", "adafactor"), schedule=("constant", "cosine", "transformer", "rsqrt"))
        check_numbers(self, learning_rate=NOT_NEGATIVE, warmup_steps=STEPS, betas=SHARE, weight_decay=NOT_NEGATIVE, clip_norm=NOT_NEGATIVE)
        if len(self.betas) != 2 or 1 in self.betas:
            raise UserError(f"betas={self.betas}: choose two rates below 1")


def learning_rate(config: OptimizerConfig, step: jax.Array | int, num_steps: int) -> jax.Array:
    """The learning rate, a float32 scalar, at `step` (from 0) of a run of `num_steps`."""
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
    """A tree of booleans: True at kernels, embeddings and the head table of a stage, by name. Rank does not decide: stacked norm scales have rank 2 too."""
    return jax.tree_util.tree_map_with_path(lambda path, _: dict_names(path)[-1].endswith(("kernel", "embedding", "head")), params)
