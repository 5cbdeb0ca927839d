"""The devices of one process, for rows of sampling that have nothing to do with each other."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_ROWS = "rows"


def use_all_cores() -> None:
    """Makes each CPU core a device, before JAX is used: of what a step of sampling does, XLA by itself splits only large products over cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if jax.config.jax_num_cpu_devices < 0 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # A program that has begun to use JAX keeps the devices that it has.
            jax.config.update("jax_num_cpu_devices", min(cores, 8))  # There are few rows for more.


def row_mesh(rows: int) -> Mesh:
    """A mesh of one axis for independent rows: as many of this process's devices as `rows` splits evenly over."""
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if rows % n == 0)
    return Mesh(np.array(devices[:count]), (_ROWS,))


class Weights:
    """Weights that are copied to each set of devices once, and kept there."""

    def __init__(self, tree: Any):
        self._tree = tree
        self._placed: dict[Mesh, Any] = {}

    def on(self, mesh: Mesh) -> Any:
        """All weights on each device of the mesh."""
        if mesh not in self._placed:
            self._placed[mesh] = jax.device_put(self._tree, NamedSharding(mesh, PartitionSpec()))
        return self._placed[mesh]


def put_rows(tree: Any, mesh: Mesh) -> Any:
    """The arrays on the devices of a `row_mesh`, their leading axes split over them."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(_ROWS)))
