"""Reads and writes the files of a user, on the local disk or on an object store (`buckets.py`): paths, atomic writes, JSON, hashes."""

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

from musiclm_jax import buckets
from musiclm_jax.buckets import AnyPath, is_bucket, list_objects
from musiclm_jax.checks import shown
from musiclm_jax.errors import UserError, unreadable, unwritable

_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"


# ---------------------------------------------------------------------------------------------------------------------- Paths


def as_path(path: str | os.PathLike) -> AnyPath:
    """A path with pathlib's methods: pathlib's own on the local disk, an `etils.epath.Path` for "gs://BUCKET/FOLDER" and "s3://BUCKET/FOLDER".

    Raises:
        UserError: the path has another scheme, no bucket, or the packages of its object store are missing.
    """
    text = buckets.SHORTENED.sub(r"\1://", os.fspath(path))
    return buckets.open_path(text) if "://" in text else Path(text)


def exists(path: AnyPath) -> bool:
    """Whether there is a file, a folder or a link, even a broken one."""
    return buckets.kind(path) is not None if is_bucket(path) else os.path.lexists(path)


def is_file(path: AnyPath) -> bool:
    """Whether there is a file. Unlike `Path.is_file`, False for a name that is too long, and OSError where an object store refuses to say."""
    return buckets.kind(path) == "file" if is_bucket(path) else os.path.isfile(path)


def is_dir(path: AnyPath) -> bool:
    """As `is_file`, for folders. An object store has a folder as long as there is a file in it."""
    return buckets.kind(path) == "directory" if is_bucket(path) else os.path.isdir(path)


def make_folder(path: AnyPath) -> None:
    """Creates a folder with its parents, unless it exists. Object stores need none."""
    if not is_bucket(path):
        path.mkdir(parents=True, exist_ok=True)


def local_path(path: str | os.PathLike) -> Path:
    """`as_path` of a place that must be on the local disk. Raises UserError for an object store."""
    found = as_path(path)
    if is_bucket(found):
        raise UserError(f"{found}: is on an object store; name a path on this machine's disk")
    return found


def list_files(folder: AnyPath) -> list[str]:
    """The names of all files below a folder, relative to it, sorted."""
    if is_bucket(folder):
        return sorted(list_objects(folder))
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def fingerprint(path: AnyPath) -> tuple[int, int]:
    """(size in bytes, a number that changes when the file does): the time of change in ns, or on an object store the version. Raises OSError."""
    if is_bucket(path):
        return buckets.fingerprint(path)
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def remove(path: AnyPath) -> None:
    """Deletes a file, if it exists, with its local copies."""
    path.unlink(missing_ok=True)
    if is_bucket(path):
        buckets.forget(path)


# ---------------------------------------------------------------------------------------------------------------------- Writing


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Writes a file atomically: yields a temporary path beside `path`, which replaces `path` when the body has written it and its data are on the disk.

    After a killed process or a loss of power there is the old file or the new one. The next write of the same path removes temporary files of killed
    processes. Several processes may write a path at the same time; the last one wins. Missing folders are created. (Pass `np.save` an open file, because it
    appends .npy to other names.) For a path on an object store the temporary file is local, and is uploaded in the end.

    Raises:
        UserError: the file cannot be written. The message has `path` and the reason.
    """
    path = as_path(path)
    if is_bucket(path):
        try:
            with buckets.staged(path) as temporary:
                yield temporary
        except OSError as error:
            raise unwritable(path, error) from error
        return
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
    """Raises UserError if `atomic_path(path)` could not write. A local folder must exist. On an object store a small object is written and deleted."""
    path = as_path(path)
    temporary = _temporary(path)
    if is_bucket(path):
        return buckets.check_writable(temporary)
    try:
        temporary.touch()
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _temporary(path: AnyPath) -> AnyPath:
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


def sync(path: AnyPath) -> None:
    """Waits until a file, or the list of names in a folder, is on the disk. Does nothing on an object store."""
    if is_bucket(path):
        return
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
    if is_bucket(path := as_path(path)):
        try:
            return buckets.write_bytes(path, data)
        except OSError as error:
            raise unwritable(path, error) from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """`write_bytes` of a text in UTF-8. Bytes of names that are not UTF-8 are written as \\udcXX, which JSON reads as they are."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """`write_bytes` of JSON types, indented."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def append_line(path: AnyPath, line: str) -> None:
    """Appends a line to a text, and waits until it is on the disk. On an object store the text is written again as a whole. Raises UserError."""
    if is_bucket(path):
        return write_bytes(path, (buckets.read_bytes(path) if is_file(path) else b"") + f"{line}\n".encode())
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error) from error


# ---------------------------------------------------------------------------------------------------------------------- Reading


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file. Raises UserError if it cannot be read or is not valid JSON."""
    try:
        return parse_json(as_path(path).read_bytes())
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


def local_copy(path: str | os.PathLike) -> Path:
    """The file itself where it is local; of a file on an object store the local copy, which is made if there is none of its present version.

    Raises:
        OSError: the file cannot be read, or the cache folder not be written.
    """
    path = as_path(path)
    return buckets.local_copy(path) if is_bucket(path) else path


def sha256_file(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's contents, in hexadecimal. Raises UserError if it cannot be read."""
    try:
        with open(local_copy(path), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error
