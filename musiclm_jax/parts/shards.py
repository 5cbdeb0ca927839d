"""Work over many items that survives a kill: results are written in shards, and existing shards are not computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from musiclm_jax.data.clips import load_array
from musiclm_jax.files import AnyPath, atomic_path, remove
from musiclm_jax.parts.part import save_array
from musiclm_jax.progress import ProgressLine

Item = TypeVar("Item")


def in_shards(
    folder: AnyPath, items: Sequence[Item], make: Callable[[Sequence[Item]], np.ndarray], *, shard_items: int, what: str, unit: str
) -> list[np.ndarray]:
    """Applies `make` to `shard_items` items at a time. Returns the results, memory-mapped from files in `folder` that are written atomically.

    The caller removes the shards (`clear`) once the result is stored elsewhere.
    """
    progress, parts = ProgressLine(unit=unit), []
    for path, some in _shards(folder, items, shard_items):
        if not path.exists():
            save_array(path, make(some))
        parts.append(load_array(path))
        progress(what, min(len(parts) * shard_items, len(items)), len(items))
    return parts


def save_joined(path: AnyPath, parts: Sequence[np.ndarray]) -> None:
    """Writes the concatenation of arrays along the first axis as one .npy file, with one of them in memory at a time."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        header = {"descr": parts[0].dtype.str, "fortran_order": False, "shape": (sum(map(len, parts)), *parts[0].shape[1:])}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.tobytes())


def clear(folder: AnyPath) -> None:
    """Removes the shards of a finished step."""
    for path in sorted(folder.glob("*.npy")):
        remove(path)
    if folder.is_dir():
        folder.rmdir()


def _shards(folder: AnyPath, items: Sequence[Item], shard_items: int) -> Iterator[tuple[AnyPath, Sequence[Item]]]:
    for number, first in enumerate(range(0, len(items), shard_items)):
        yield folder / f"{number:06d}.npy", items[first : first + shard_items]
