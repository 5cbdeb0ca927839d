"""How fast does a stage draw its codes? `python benchmarks/decode_stage.py [STAGE:BATCH]... [--steps N]`, at the size `base`, bfloat16, random weights.

Each STAGE (semantic, coarse, fine) reads random conditions and draws the codes of N steps of its target, by the sampler that generation uses. Times are
wall-clock seconds, the median of three runs after one that compiles. A step of the decoder reads all weights once, whatever the batch: `bandwidth` is the
bytes of the weights by the steps per second, the least that the device must have read per second, keys and values not counted.
"""

import argparse
import dataclasses
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.generation.devices import Weights
from musiclm_jax.generation.sampler import sample_codes
from musiclm_jax.models.stage import StageDecoder, init
from musiclm_jax.training.sharding import unbox


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stages", nargs="*", default=["semantic:1", "semantic:8", "semantic:64", "coarse:1", "coarse:8"])
    parser.add_argument("--steps", type=int, default=100, help="steps of the target, each of as many codes as the stage has levels")
    args = parser.parse_args()
    for each in args.stages:
        name, _, batch = each.partition(":")
        print(json.dumps(measure(name, int(batch or 1), args.steps)), flush=True)


def measure(name: str, batch: int, steps: int) -> dict:
    spec, layout = (config := load_config("base").model).stage(name), config.layout(name)
    decoder = StageDecoder(dataclasses.replace(spec.model, dtype="bfloat16"), layout)
    half = jax.jit(lambda key: jax.tree.map(lambda x: x.astype(jnp.bfloat16), decoder.prepare(unbox(init(spec.model, layout, key)))))
    params = half(jax.random.key(0))
    seconds = steps / layout.target.rate_hz
    prefix = layout.num_tokens(seconds) - layout.num_target_tokens(seconds)
    prefix_ids = np.random.default_rng(0).integers(0, layout.target_offset, (batch, prefix)).astype(np.int32)
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(1), batch)))
    weights, times = Weights(params), []
    for _ in range(4):
        began = time.perf_counter()
        sample_codes(decoder, weights, prefix_ids, num_steps=steps, keys=keys)
        times.append(time.perf_counter() - began)
    seconds, codes = statistics.median(times[1:]), steps * layout.target.levels
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    row = {"stage": name, "batch": batch, "device": jax.devices()[0].device_kind, "first_sec": times[0], "sec": seconds, "ms_per_code": 1e3 * seconds / codes}
    return row | {"codes_per_sec": batch * codes / seconds, "bandwidth_gb_per_sec": size * codes / seconds / 1e9}


if __name__ == "__main__":
    main()
