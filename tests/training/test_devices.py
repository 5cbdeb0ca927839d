"""Checkpoints of a real stage and of the adversarial codec, written on 8 devices and restored on 4 and on 2 with other meshes."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# Trains one step after another on the mesh of its arguments, up to `steps`. Prints the hash of each array that it begins with and ends with.
PROGRAM = """
    import dataclasses, hashlib, json, sys, jax, numpy as np
    from musiclm_jax.training.loop import TrainConfig, train
    from musiclm_jax.training.sharding import MeshConfig

    name, workdir, mesh, steps = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
    if name == "semantic":
        from small_streams import make_streams, stage_layout
        from musiclm_jax.models.stage import StageConfig
        from musiclm_jax.tasks.stage import StageRecipe, StageTask
        from musiclm_jax.training.optim import OptimizerConfig
        model = StageConfig(dim=16, num_layers=2, num_heads=2, head_dim=8, mlp_dim=32)
        task = StageTask("semantic", model, stage_layout("semantic", make_streams(semantic=7)), StageRecipe(optimizer=OptimizerConfig(schedule="constant")))
        draw = lambda rng: {"mulan": rng.integers(5, size=(8, 3), dtype=np.int32), "semantic": rng.integers(7, size=(8, 5), dtype=np.int32)}
    else:
        from test_soundstream_task import TASK as task
        task = dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, discriminator_start_step=0))
        draw = lambda rng: {"wave": 0.3 * rng.standard_normal((8, 600)).astype(np.float32)}
    task = dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, num_steps=steps))
    source = lambda step: draw(np.random.default_rng([3, step]))

    def state_of(num_steps):
        shorter = dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, num_steps=num_steps))
        return train(shorter, source, workdir=workdir, config=TrainConfig(log_every=1, mesh=MeshConfig(**mesh)), identity=name).state

    def hashes(state):
        leaves = jax.tree_util.tree_leaves_with_path(state)
        return {jax.tree_util.keystr(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest() for path, leaf in leaves}

    begin = hashes(state_of(steps - 1)) if steps > 1 else {}  # Takes no step.
    state = state_of(steps)
    devices = max(len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state))
    split = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    print("RESULT", json.dumps({"begin": begin, "end": hashes(state), "devices": devices, "split": split}))
"""


def run(name, workdir, devices, mesh, steps):
    tests = Path(__file__).parents[1]
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    paths = [str(tests), str(tests / "tasks"), str(tests.parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
    arguments = [sys.executable, "-c", textwrap.dedent(PROGRAM), name, str(workdir), json.dumps(mesh), str(steps)]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.split("RESULT ")[1])


@pytest.mark.parametrize("name", ["semantic", "codec"])
def test_a_checkpoint_of_eight_devices_is_restored_on_four_and_two(tmp_path, name):
    eight = run(name, tmp_path / "moved", 8, {"data": 2, "fsdp": 2, "tensor": 2}, 1)
    four = run(name, tmp_path / "moved", 4, {"fsdp": 4, "data": 1}, 2)
    two = run(name, tmp_path / "moved", 2, {"tensor": 2}, 3)
    assert [found["devices"] for found in (eight, four, two)] == [8, 4, 2] and all(found["split"] > 3 for found in (eight, four, two))
    # To the bit: parameters, both optimizers, codebooks, the guard.
    assert four["begin"] == eight["end"] and two["begin"] == four["end"]
    assert any("opt_state" in path for path in two["end"]) and two["end"] != two["begin"]
    # The losses are those of a run that stayed where it was.
    run(name, tmp_path / "stayed", 1, {}, 3)
    ours, theirs = ([json.loads(line)["loss"] for line in (tmp_path / each / "metrics.jsonl").read_text().splitlines()] for each in ("moved", "stayed"))
    assert len(ours) == 3 and ours == pytest.approx(theirs, rel=1e-4)
