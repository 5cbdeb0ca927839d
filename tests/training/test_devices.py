"""Checkpoints of a real stage and of the adversarial codec, written on 8 devices and restored on 4 and on 2 with other meshes."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

# Continues the training of the stage to `steps` on a mesh, and that of the codec, which compiles long, to step 1. Prints hashes of all arrays before and
# after, and how they are placed.
PROGRAM = """
    import dataclasses, hashlib, json, sys, jax, numpy as np
    from small_streams import stage_layout
    from musiclm_jax.models.discriminators import DiscriminatorConfig
    from musiclm_jax.models.soundstream import SoundStreamConfig
    from musiclm_jax.models.stage import StageConfig
    from musiclm_jax.nn.quantize import RVQConfig
    from musiclm_jax.tasks.soundstream import SoundStreamRecipe, SoundStreamTask
    from musiclm_jax.tasks.stage import StageRecipe, StageTask
    from musiclm_jax.training.loop import TrainConfig, train
    from musiclm_jax.training.sharding import MeshConfig

    workdir, mesh, before, steps = sys.argv[1], json.loads(sys.argv[2]), *map(int, sys.argv[3:])
    discriminator = DiscriminatorConfig(wave_scales=0, stft_channels=2, stft_window_samples=128, stft_hop_samples=32)
    recipe = SoundStreamRecipe(quantizer=RVQConfig(kmeans_iters=1), discriminator=discriminator, loss_windows=(64,), loss_mels=(64,))
    codec = SoundStreamConfig(channels=2, decoder_channels=4, strides=(3, 4), dim=5, num_levels=3, num_codes=7, dilations=(1,))
    tasks = [
        StageTask("semantic", StageConfig(dim=16, num_layers=2, num_heads=2, head_dim=8, mlp_dim=32), stage_layout("semantic"), StageRecipe()),
        SoundStreamTask(codec, recipe, sample_rate_hz=24_000),
    ]

    def source(step):
        rng = np.random.default_rng([3, step])
        tokens = {"mulan": rng.integers(5, size=(8, 3), dtype=np.int32), "semantic": rng.integers(7, size=(8, 5), dtype=np.int32)}
        return tokens | {"wave": 0.3 * rng.standard_normal((8, 600)).astype(np.float32)}

    def state_at(task, num_steps):
        if not num_steps:
            return {}
        task = dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, num_steps=num_steps))
        config = TrainConfig(log_every=1, mesh=MeshConfig(**mesh))
        return train(task, source, workdir=f"{workdir}/{task.name}", config=config, identity=task.name).state

    def hashes(state):
        leaves = jax.tree_util.tree_leaves_with_path(state)
        return {jax.tree_util.keystr(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest() for path, leaf in leaves}

    found = {}
    for task in tasks:
        last = steps if task.name == "semantic" else 1
        begin, state = hashes(state_at(task, min(before, last))), state_at(task, last)
        shardings = [leaf.sharding for leaf in jax.tree.leaves(state)]
        devices, split = max(len(each.device_set) for each in shardings), sum(not each.is_fully_replicated for each in shardings)
        found[task.name] = {"begin": begin, "end": hashes(state), "devices": devices, "split": split}
    print("RESULT", json.dumps(found))
"""


def run(workdir, devices, mesh, before, steps):
    tests = Path(__file__).parents[1]
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    paths = [str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
    arguments = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(workdir), json.dumps(mesh), str(before), str(steps)]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.split("RESULT ")[1])


def test_checkpoints_of_eight_devices_are_restored_on_four_and_two(tmp_path):
    eight = run(tmp_path, 8, {"data": 2, "fsdp": 2, "tensor": 2}, 0, 1)
    four = run(tmp_path, 4, {"data": 1, "fsdp": 4}, 1, 2)
    two = run(tmp_path, 2, {"data": 1, "tensor": 2}, 2, 2)
    for name in ("semantic", "codec"):
        assert [each[name]["devices"] for each in (eight, four, two)] == [8, 4, 2]
        # To the bit: parameters, both optimizers of the codec, codebooks, the guard.
        assert four[name]["begin"] == eight[name]["end"] and two[name]["begin"] == two[name]["end"] == four[name]["end"]
    assert all(part in " ".join(eight["codec"]["end"]) for part in (".params['discriminator']", ".opt_state['generator']", ".stats['quantizer']", ".guard"))
    changed = " ".join(path for path, value in four["semantic"]["end"].items() if value != four["semantic"]["begin"][path])
    assert all(part in changed for part in (".params", ".opt_state", ".guard"))
    assert all(each["semantic"]["split"] > 9 for each in (eight, four, two))
