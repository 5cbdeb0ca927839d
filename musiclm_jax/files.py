"""Reads and writes the files of a user: atomic writes, JSON, hashes."""

from __future__ import annotations

import collections
import contextlib
import glob
import hashlib
import json
import os
import platform
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from musiclm_jax.checks import shown
from musiclm_jax.errors import UserError, unreadable, unwritable

_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Writes a file atomically: yields a temporary path beside `path`, which replaces `path` when the body has written it and its data are on the disk.

    After a killed process or a loss of power there is the old file or the new one. The next write of the same path removes temporary files of killed
    processes. Several processes may write a path at the same time; the last one wins. Missing folders are created. (Pass `np.save` an open file, because it
    appends .npy to other names.)

    Raises:
        UserError: the file cannot be written. The message has `path` and the reason.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # It was renamed, or never created.
            temporary.unlink()


def check_writable(path: str | os.PathLike) -> None:
    """Raises UserError if `atomic_path(path)` could not create its temporary file. The folder must exist."""
    temporary = _temporary(Path(path))
    try:
        temporary.touch()
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _temporary(path: Path) -> Path:
    """A temporary path that no other process uses, `.NAME.MACHINE-PROCESS.tmp`."""
    return path.with_name(f".{path.name}.{_MACHINE}-{os.getpid()}.tmp")


def _remove_abandoned(path: Path) -> None:
    """Removes the temporary files of `path` from ended processes of this machine, and from this process."""
    for abandoned in path.parent.glob(f".{glob.escape(path.name)}.{_MACHINE}-*.tmp"):
        number = abandoned.name.removesuffix(".tmp").rpartition("-")[2]
        if number.isdigit() and (int(number) == os.getpid() or not _runs(int(number))):
            abandoned.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether the process with this id exists."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # The process belongs to another user.
        return True
    return True


def sync(path: Path) -> None:
    """Waits until a file, or the list of names in a folder, is on the disk."""
    if path.is_dir():
        with contextlib.suppress(OSError):  # Not all file systems support it for folders.
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        return
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file atomically. Raises UserError if it cannot be written."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """`write_bytes` of a text in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value: Any) -> None:
    """`write_bytes` of JSON types, indented."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file. Raises UserError if it cannot be read or is not valid JSON."""
    try:
        return parse_json(Path(path).read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): delete it and make it again") from error


def parse_json(data: bytes | str) -> Any:
    """Parses JSON in UTF-8, with or without a byte order mark. Raises ValueError for invalid JSON, a duplicate name in an object, or too deep nesting."""
    text = data if isinstance(data, str) else data.decode("utf-8-sig")
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None


def _without_doubles(pairs: Sequence[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = collections.Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{shown(name)} occurs twice in one object")
    return found


def sha256_file(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's contents, in hexadecimal. Raises UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error
