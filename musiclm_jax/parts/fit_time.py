"""How long `fit` will take on this machine, roughly, before anything is trained."""

from __future__ import annotations

import statistics
import time

import jax
import jax.numpy as jnp

from musiclm_jax.parts.dry_run import dry_run
from musiclm_jax.parts.part import FitConfig
from musiclm_jax.parts.trained import TrainedPart

# What a training reaches of the FLOP/s of a large product of matrices. The packaged model's reached 0.2 to 0.35 on two cores, stages 0.28 to 0.33 on an H100
# (docs/speed.md); other parts reach less on a GPU, so that the result may be wrong by a factor of two.
_SHARE = 0.25
_SIZE, _REPEATS = 2048, 5


def fit_hours(config: FitConfig) -> dict[str, float]:
    """Hours that each training of the bundle takes on the devices of this process: its FLOPs over what the devices do in a product of matrices.

    Decoding, tokenizing and evaluations are not in it.
    """
    rate = _SHARE * jax.local_device_count() * _product_flops()
    wanted = {step.name for step in config.steps_to("export")} if "export" in config.steps else set(config.steps)
    parts = [part for part in config.parts if isinstance(part, TrainedPart) and part.name in wanted]
    return {part.name: dry_run(part.name, config).flops * part.task(config).num_steps / rate / 3600 for part in parts}


def _product_flops() -> float:
    """FLOP/s of one device in a product of two square matrices, float32 on CPUs and bfloat16 elsewhere."""
    matrix = jnp.ones((_SIZE, _SIZE), jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    product = jax.jit(jnp.dot)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(_REPEATS):
        clock = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - clock)
    return 2 * _SIZE**3 / statistics.median(seconds)
