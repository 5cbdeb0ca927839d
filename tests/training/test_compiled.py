"""Training steps compiled for 8 virtual devices: their memory, collectives and losses. `checks/meshes.py`, which this runs, has more tasks and meshes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[2] / "checks" / "meshes.py"
TASKS = ["w2v_bert", "mulan", "coarse", "melody"]


def run(*args):
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"PYTHONPATH": str(CHECK.parents[1])}
    return subprocess.run([sys.executable, str(CHECK), *args], env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("task", TASKS)
def test_a_mesh_trains_as_one_device_does_in_its_share_of_the_memory(task):
    done = run("--task", task, "--mesh", "1,8,1", "--mesh", "2,2,2")
    assert done.returncode == 0 and done.stdout.count(": right") == 2, done.stdout + done.stderr[-2000:]
