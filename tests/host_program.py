"""Trains tasks in one of several processes: host_program.py FOLDER NAMES OPTIONS COORDINATOR PROCESSES PROCESS.

NAMES: the tasks of tests/tasks, such as "mulan", or "tiny". OPTIONS, as JSON: num_steps, save_every, and the steps before which process 0 is killed
(kill_at) or process 1 gets SIGTERM (stop_at). FOLDER/NAME.npz gets the weights.
"""

import dataclasses
import importlib
import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

from musiclm_jax.training import hosts
from musiclm_jax.training.loop import TrainConfig, train
from musiclm_jax.training.sharding import MeshConfig

ROWS = 8
# Parameters and batches extend over both processes; pairs of devices have the same rows.
MESH = MeshConfig(data=1, fsdp=4, tensor=2)


def find_task(name: str):
    """A task, and the arrays of one of its batches."""
    if name == "tiny":
        module = importlib.import_module("tiny_task")
        return module.TinyTask(), module.source(0)
    module = importlib.import_module(f"test_{name}_task")
    return module.task() if name == "stage" else module.TASK, module.batch()


def draw(rng: np.random.Generator, like) -> np.ndarray:
    """Rows of random values of the kind that an array has."""
    like = np.asarray(like)
    shape = (ROWS, *like.shape[1:])
    if like.dtype == bool:
        return np.ones(shape, bool)
    if np.issubdtype(like.dtype, np.integer):
        return rng.integers(like.max() + 1, size=shape, dtype=np.int32)
    return 0.3 * rng.standard_normal(shape, np.float32)


def make_source(arrays, signals: dict[int, int]):
    """signals: {step: signal that this process gets when it makes that batch}."""

    def source(step: int, rows=np.arange):
        if step in signals:
            os.kill(os.getpid(), signals[step])
        rng, here = np.random.default_rng([7, step]), rows(ROWS)
        return {name: draw(rng, like)[here] for name, like in arrays.items()}

    return source


def main(folder: Path, names: list[str], *, process: int, num_steps: int = 8, save_every: int = 2, kill_at: int = -1, stop_at: int = -1) -> None:
    signals = {stop_at: signal.SIGTERM} if process else {kill_at: signal.SIGKILL}
    config = TrainConfig(log_every=1, save_every=save_every, eval_batches=1, mesh=MESH)
    for name in names:
        task, arrays = find_task(name)
        task = dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, num_steps=num_steps))
        source, eval_source = make_source(arrays, signals), make_source(arrays, {})
        trained = train(task, source, workdir=folder / name, config=config, identity=name, eval_source=eval_source)
        weights = hosts.gather(jax.tree.leaves((trained.state.params, trained.state.stats)))
        if hosts.is_first():
            np.savez(folder / f"{name}.npz", *weights)


if __name__ == "__main__":
    folder, names, options, coordinator, processes, process = sys.argv[1:]
    hosts.start(coordinator=coordinator, num_processes=int(processes), process_id=int(process), timeout=120)
    main(Path(folder), names.split(","), process=int(process), **json.loads(options))
