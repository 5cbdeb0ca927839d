"""What goes wrong with a disk, as one line for the user; and files that a power cut does not take back."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from musiclm_jax.errors import UserError


@contextlib.contextmanager
def writing(path: Path, *, resume: str = "the newest checkpoint") -> Iterator[None]:
    """Around the writing of `path`: where the disk is the reason that it fails, raises `UserError`, which says that training continues from `resume`."""
    try:
        yield
    except Exception as error:
        reason = _disk_reason(error)
        if reason is None:
            raise
        raise UserError(f"{path} cannot be written: {reason}: the same command continues from {resume}") from error


@contextlib.contextmanager
def reading(path: Path, *, remedy: str) -> Iterator[None]:
    """Around the reading of `path`: where the disk does not give it, raises `UserError`. A file that is not there is left to the caller."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): {remedy}") from error


def sync(path: Path) -> None:
    """Returns when a file, or the list of names of a folder, is on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _disk_reason(error: BaseException | None) -> str | None:
    """What is wrong with the disk and what to do about it; None where `error` has another cause."""
    while error is not None:
        # TensorStore, which writes the arrays, raises ValueError with the number of the system's error in its text.
        number = error.errno if isinstance(error, OSError) else next(map(int, re.findall(r"os_error_code='(\d+)'", str(error))), None)
        if number in (errno.ENOSPC, errno.EDQUOT):
            return "the disk is full; free some space"
        if number is not None:
            return f"{os.strerror(number)}; mend that"
        error = error.__cause__
    return None
