"""Memory of a device under FSDP against theory: `python benchmarks/fsdp_memory.py [PART] [--gin.NAME=VALUE]...`.

Compiles the training step of a part at size "base" with remat for 8 virtual CPU devices, split by `data` and by `fsdp`. Nothing is allocated. In theory FSDP
keeps an eighth of parameters and optimizer, and needs beside the activations of the examples of a device, which are those of data parallelism, the gathered
weights and gradients of the layer at hand and an eighth of all gradients.
"""

import os
import sys

os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"}

import jax  # noqa: E402

from musiclm_jax.cli.gin_config import load_config  # noqa: E402
from musiclm_jax.nn.stack import STACKS  # noqa: E402
from musiclm_jax.training.compiled import compile_step  # noqa: E402
from musiclm_jax.training.sharding import MeshConfig, make_mesh, unbox  # noqa: E402


def mib(size: float) -> str:
    return f"{size / 2**20:,.0f}"


def main(name: str = "semantic", *bindings: str) -> None:
    config = load_config("base", bindings=["StageConfig.remat=True", *(each.removeprefix("--gin.") for each in bindings)])
    part = config.part(name)
    task, batch = part.task(config), part.batch_shapes(config)
    state = unbox(jax.eval_shape(task.init_state, jax.eval_shape(lambda: jax.random.key(0))))
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    weights = sum(leaf.size * 4 for _, leaf in leaves)
    # Of a stack one layer at a time; what is outside of stacks at once.
    stacked = lambda path: any(getattr(key, "key", None) in STACKS for key in path)  # noqa: E731
    gathered = sum(leaf.size * 4 // (leaf.shape[0] if stacked(path) else 1) for path, leaf in leaves)
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.params, state.opt_state)))
    plans = {sizes: compile_step(task, batch, make_mesh(MeshConfig(*sizes))).memory_analysis() for sizes in ((8, 1, 1), (1, 8, 1))}
    data, fsdp = plans.values()
    print(f"{name}, batch {part.batch_size}, 8 devices; MiB per device | data=8 | fsdp=8 | theory for fsdp=8")
    print(f"parameters, optimizer, batch | {mib(data.argument_size_in_bytes)} | {mib(fsdp.argument_size_in_bytes)} | {mib(kept / 8)}")
    theory = data.temp_size_in_bytes - weights + weights / 8 + 2 * gathered
    print(f"temporaries | {mib(data.temp_size_in_bytes)} | {mib(fsdp.temp_size_in_bytes)} | {mib(theory)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
