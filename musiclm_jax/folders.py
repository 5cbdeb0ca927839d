"""Writes and moves folders, on the local disk atomically, on an object store with one file written last. No JAX here."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from musiclm_jax import buckets
from musiclm_jax.errors import UserError, unwritable
from musiclm_jax.files import AnyPath, as_path, exists, is_bucket, list_files, remove, sync

# An empty file in a folder that is being written, by which the next run recognizes the folder of a killed run.
_MARKER = ".musiclm_jax"


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike, *, check: Callable[[AnyPath], None], last: str) -> Iterator[Path]:
    """Writes a folder atomically: yields a new, empty folder beside `path`, which replaces `path` when the body has filled it and it is on the disk.

    The new folder has the name `.NAME.tmp`, and the old one the name `.NAME.old` until it is replaced. After a killed run, the next run removes both. Two
    runs must not write the same folder at the same time.

    For a path on an object store the new folder is local. When the body has filled it, the old file `last` is deleted, the new files are uploaded, `last`
    as the last one, and other old files are deleted. The folder has no subfolders.

    Args:
        check: raises UserError for a folder that must not be replaced, such as another program's. It is called for `path`, `.NAME.tmp` and `.NAME.old`,
            unless they are empty, so that no other program's files are deleted.
        last: the file without which readers do not take the folder for complete.

    Raises:
        UserError: `check` raised it, or `path` is a file, is the current folder, or cannot be written. Nothing has changed then.
    """
    if is_bucket(path := as_path(path)):
        with _uploaded_folder(path, check, last) as folder:
            yield folder
        return
    path = Path(os.path.realpath(path))  # The target of a link.
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


@contextlib.contextmanager
def _uploaded_folder(path: AnyPath, check: Callable[[AnyPath], None], last: str) -> Iterator[Path]:
    try:
        old = list_files(path)
        if old and _MARKER not in old:
            check(path)
        with tempfile.TemporaryDirectory(dir=buckets.cache_folder()) as staging:
            yield (folder := Path(staging))
            new = sorted(os.listdir(folder), key=lambda name: (name == last, name))
            buckets.write_bytes(path / _MARKER, b"")
            remove(path / last)
            for name in new:
                buckets.upload(folder / name, path / name)
            for name in (*sorted(set(old) - {*new, _MARKER}), _MARKER):
                remove(path / name)
    except OSError as error:
        raise unwritable(path, error) from error


def move(path: AnyPath, target: AnyPath, *, last: str = "") -> None:
    """Moves a file or folder to the name `target`, which is free. Raises OSError.

    On an object store the files are copied, that named `last` after the others, and then deleted. A kill between leaves the original, the copy or both.
    """
    if is_bucket(path):
        return buckets.move(path, target, last=last)
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)


def move_aside(path: AnyPath, target: AnyPath) -> AnyPath:
    """Moves a file or folder to `target`, or to `target`-2, -3, ... where that name is taken. Returns the new place.

    Raises:
        UserError: it cannot be moved.
    """
    free, number = target, 1
    while exists(free):
        number += 1
        free = target.with_name(f"{target.name}-{number}")
    try:
        move(path, free)
    except OSError as error:
        raise unwritable(free, error) from error
    return free


def remove_folder(path: AnyPath) -> None:
    """Deletes a folder with all that is in it. Raises OSError."""
    if is_bucket(path):
        return buckets.remove_folder(path)
    shutil.rmtree(path)


def readable_folder(path: str | os.PathLike) -> AnyPath:
    """`path`, or the old folder `.NAME.old` if a run was killed after it had moved the old folder and before it renamed the new one."""
    if is_bucket(path := as_path(path)):
        return path
    real = Path(os.path.realpath(path))
    return _old(real) if not os.path.lexists(real) and os.path.isdir(_old(real)) else Path(path)


def _swap(staging: Path, path: Path) -> None:
    # Two renames. Linux can exchange folders in one step, but other systems and network disks cannot, so the state between them must be recoverable anyway.
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
        raise UserError(f"{path}: is a file, expected a folder; name a new folder")
    if os.path.samefile(path, os.curdir):
        raise UserError(f"{path}: is the current folder, which cannot be replaced; name a new folder")
    if os.listdir(path) and not (path / _MARKER).is_file():
        check(path)
