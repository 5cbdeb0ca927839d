"""A training step as XLA compiles it for a mesh: on CPU devices that need not exist, from shapes alone, so that nothing is allocated."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from musiclm_jax.errors import UserError
from musiclm_jax.training import sharding
from musiclm_jax.training.task import Task

_FEW_OPTIMIZATIONS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def compile_step(task: Task, batch: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh) -> jax.stages.Compiled:
    """The program of `task.train_step` over a mesh of this process's devices, as the training loop runs it."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed = jax.eval_shape(task.init_state, key)
    shardings, split = sharding.state_shardings(boxed, mesh), NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
    place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)  # noqa: E731
    state = jax.tree.map(place, sharding.unbox(boxed), shardings)
    with sharding.activate(mesh):
        step = jax.jit(task.train_step, donate_argnums=0, out_shardings=(shardings, None))
        return step.lower(state, {name: place(shape, split) for name, shape in batch.items()}, key).compile()


def temporaries(task: Task, batch: Mapping[str, jax.ShapeDtypeStruct], mesh: sharding.MeshConfig) -> int:
    """Bytes of a device that XLA plans for the temporaries of a step: activations, gradients, and gathered weights.

    Another process compiles the step, for as many virtual CPU devices as the mesh has. That takes some ten seconds. XLA's plans for TPUs and GPUs may
    differ: they store bfloat16 as such, where a CPU computes some of it in float32, and fuse otherwise.

    Raises:
        UserError: the step cannot be compiled.
    """
    devices = math.prod((mesh.data, mesh.fsdp, mesh.tensor))
    flags = f"--xla_force_host_platform_device_count={devices} {_FEW_OPTIMIZATIONS}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-m", __name__], input=pickle.dumps((task, dict(batch), mesh)), env=env, capture_output=True)
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError(f"{task.name}: its step cannot be compiled for {devices} virtual devices ({last}): add --shapes for an estimate without compiling")
    return int(done.stdout.split()[-1])


if __name__ == "__main__":
    what, shapes, sizes = pickle.load(sys.stdin.buffer)
    print(compile_step(what, shapes, sharding.make_mesh(sizes)).memory_analysis().temp_size_in_bytes)
