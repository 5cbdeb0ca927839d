"""Work over many items that survives a kill: results are written in shards, and existing shards are not computed again."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np

from musiclm_jax.data.clips import load_array
from musiclm_jax.files import AnyPath, atomic_path, remove
from musiclm_jax.parts.part import save_array
from musiclm_jax.progress import ProgressLine
from musiclm_jax.training import hosts

Item = TypeVar("Item")


def in_shards(
    folder: AnyPath, items: Sequence[Item], make: Callable[[Sequence[Item]], np.ndarray], *, shard_items: int, what: str, unit: str
) -> list[np.ndarray]:
    """Applies `make` to `shard_items` items at a time. Returns the results, memory-mapped from files in `folder` that are written atomically.

    Several processes take turns, a shard each, and return all results. A stop signal to one of them stops all before the next turn. The caller removes the
    shards (`clear`) once the result is stored elsewhere.
    """
    shards, turn = list(_shards(folder, items, shard_items)), jax.process_count()
    progress = ProgressLine(unit=unit)
    for first in range(0, len(shards), turn):
        if hosts.stopping():
            hosts.say(f"{what}: stopped; the same command continues")
            raise SystemExit(128 + signal.SIGTERM)
        for path, some in shards[first : first + turn][jax.process_index() :][:1]:
            if not path.exists():
                save_array(path, make(some))
        if hosts.is_first():
            progress(what, min((first + turn) * shard_items, len(items)), len(items))
    hosts.wait()
    return [load_array(path) for path, _ in shards]


def save_joined(path: AnyPath, parts: Sequence[np.ndarray]) -> None:
    """Writes the concatenation of arrays along the first axis as one .npy file, with one of them in memory at a time."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        header = {"descr": parts[0].dtype.str, "fortran_order": False, "shape": (sum(map(len, parts)), *parts[0].shape[1:])}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.tobytes())


def clear(folder: AnyPath) -> None:
    """Removes the shards of a finished step, once all processes call it."""
    hosts.wait()
    if not hosts.is_first():
        return
    for path in sorted(folder.glob("*.npy")):
        remove(path)
    if folder.is_dir():
        folder.rmdir()


def _shards(folder: AnyPath, items: Sequence[Item], shard_items: int) -> Iterator[tuple[AnyPath, Sequence[Item]]]:
    for number, first in enumerate(range(0, len(items), shard_items)):
        yield folder / f"{number:06d}.npy", items[first : first + shard_items]
