"""Folders written whole or not at all. No JAX here."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from musiclm_jax.errors import UserError, unwritable
from musiclm_jax.records import sync

# Stands in a folder that is being written, so that the next run knows what a killed one left.
_MARKER = ".musiclm_jax"


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike, *, check: Callable[[Path], None]) -> Iterator[Path]:
    """A new, empty folder beside `path` for the body to fill. It takes the place of `path` when the body is through, and is on the disk before that.

    Its name is `.NAME.tmp`, and `.NAME.old` is that of the old folder until the new one has taken its place: both are cleared away by the next run where
    one was killed. Two runs at the same time must not write the same folder.

    Args:
        check: raises UserError for a folder that may not be replaced, such as another program's. It is asked for `path` and for those two, so that
            nothing is deleted that is not ours; not for empty ones.

    Raises:
        UserError: `check`'s, or `path` is no folder, is the current one, or cannot be written. Nothing has changed then.
    """
    path = Path(os.path.realpath(path))  # Of a link, what it leads to.
    staging, old = path.with_name(f".{path.name}.tmp"), _old(path)
    try:
        for folder in (path, staging, old):
            _check_replaceable(folder, check)
        if not os.path.lexists(path) and os.path.lexists(old):
            old.rename(path)
        for folder in (staging, old):
            shutil.rmtree(folder, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            (staging / _MARKER).touch()
            yield staging
            (staging / _MARKER).unlink()
            for written in (*staging.iterdir(), staging):
                sync(written)
            _swap(staging, path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise unwritable(path, error) from error


def move_aside(path: Path, target: Path) -> Path:
    """Moves a file or folder to `target`, or to `target`-2, -3, ... where that name is taken. Returns the new place.

    Raises:
        UserError: it cannot be moved.
    """
    free, number = target, 1
    while os.path.lexists(free):
        number += 1
        free = target.with_name(f"{target.name}-{number}")
    try:
        free.parent.mkdir(parents=True, exist_ok=True)
        path.rename(free)
    except OSError as error:
        raise unwritable(free, error) from error
    return free


def readable_folder(path: str | os.PathLike) -> Path:
    """`path`, or where a run was killed just before the new folder took that name the old one, under the name that it has by then."""
    real = Path(os.path.realpath(path))
    return _old(real) if not os.path.lexists(real) and os.path.isdir(_old(real)) else Path(path)


def _swap(staging: Path, path: Path) -> None:
    # Two renames: Linux could exchange the two in one, other systems and network disks cannot, so what lies between must be recovered anyway.
    old = _old(path)
    if os.path.lexists(path):
        path.rename(old)
    try:
        staging.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            old.rename(path)
        raise
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _check_replaceable(path: Path, check: Callable[[Path], None]) -> None:
    if not os.path.lexists(path):
        return
    if not os.path.isdir(path) or os.path.islink(path):
        raise UserError(f"{path}: is a file where a folder is to be; name a new one")
    if os.path.samefile(path, os.curdir):
        raise UserError(f"{path}: is the current folder, which cannot be replaced; name a new one")
    if os.listdir(path) and not (path / _MARKER).is_file():
        check(path)
