"""Files on object stores, "gs://BUCKET/FOLDER" and "s3://BUCKET/FOLDER", through etils.epath and fsspec. They are imported when a path needs them.

An object is written whole or not at all: it is there once its upload is complete. There are no folders, only names with "/"; a folder cannot be renamed in
one step, and nothing can be appended or locked. Large files are memory-mapped from *local copies*, in a cache folder that may be deleted at any time.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import hashlib
import io
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any

from musiclm_jax.errors import UserError

# A local path (pathlib), or one on an object store (etils.epath), which has pathlib's methods and is no `pathlib.Path`.
AnyPath = PurePath
# pathlib makes "gs:/b" of "gs://b".
SHORTENED = re.compile(r"^(gs|s3):/(?!/)")
# The extra of this package with the client of each scheme.
_EXTRAS = {"gs": "gcs", "s3": "s3"}
# Bytes of a request by `open_blocks`.
_BLOCK_BYTES = 2**18
# Modules of the clients, whose errors are no bugs of this package.
_CLIENTS = ("fsspec", "gcsfs", "s3fs", "aiohttp", "aiobotocore", "botocore", "google.auth", "etils.epath")


# epath works without TensorFlow also where it is installed, so that the same client reads and writes everywhere. It reads the variable when it is first used,
# which may be by TFDS.
os.environ.setdefault("EPATH_USE_TF", "false")


class StoreError(OSError):
    """An object store refused or did not answer. `filename` is the path, `strerror` the reason in one line. FileNotFoundError is apart."""


def is_bucket(path: AnyPath) -> bool:
    """Whether a path of `files.as_path` is on an object store."""
    return isinstance(path, PurePath) and not isinstance(path, Path)


def open_path(text: str) -> AnyPath:
    """The epath of "scheme://bucket/...". Connects to nothing. Raises UserError for another scheme, no bucket, or a missing package."""
    scheme, _, rest = text.partition("://")
    if scheme not in _EXTRAS:
        raise UserError(f"{text}: {scheme}:// is not supported; name a local folder, or one on an object store, such as gs://BUCKET/FOLDER")
    if not rest.strip("/"):
        raise UserError(f"{text}: has no bucket; name one, as in {scheme}://BUCKET/FOLDER")
    try:
        import fsspec
        from etils import epath

        # Listings would be remembered, while other hosts write and delete. To be set before the first client is made.
        for protocol in {scheme, _EXTRAS[scheme]}:
            fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
        fsspec.get_filesystem_class(scheme)
        logging.getLogger(f"{_EXTRAS[scheme]}fs").setLevel(logging.CRITICAL)  # gcsfs logs each attempt with a stack trace; its error is raised as well.
    except ImportError as error:
        raise UserError(f"{text}: {scheme}:// needs more packages; install them with: pip install 'musiclm-jax[{_EXTRAS[scheme]}]' ({error})") from error
    return epath.Path(text)


def explain(error: BaseException) -> str | None:
    """The message for a StoreError, or for another error that the client of an object store raised; None for all others."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    if not isinstance(error, StoreError) and not f"{raised_in}.".startswith(tuple(f"{name}." for name in _CLIENTS)):
        return None
    where = getattr(error, "filename", None) or "an object store"
    return f"{where}: the store refused or did not answer ({_line(error)}): check rights and network, and run the same command again"


def _line(error: BaseException) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def _at(path: AnyPath) -> Iterator[Any]:
    """Yields the client for a path. Turns its errors, of which each client has its own, into StoreError or FileNotFoundError."""
    import fsspec

    try:
        yield fsspec.filesystem(str(path).partition("://")[0])
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path)) from error
    except Exception as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):  # Of the disk with the local copies.
            raise
        raise StoreError(None, _line(error), str(path)) from error


# ---------------------------------------------------------------------------------------------------------------------- Objects


def kind(path: AnyPath) -> str | None:
    """ "file", "directory" or None. Raises StoreError."""
    with contextlib.suppress(FileNotFoundError), _at(path) as client:
        return client.info(str(path))["type"]
    return None


def list_objects(folder: AnyPath) -> dict[str, tuple[int, int]]:
    """{name relative to the folder: `fingerprint`} of all objects below it. Raises StoreError."""
    root = str(folder).partition("://")[2].rstrip("/") + "/"
    with _at(folder) as client:
        found = client.find(str(folder), detail=True)
    return {name.removeprefix(root): _fingerprint(info) for name, info in found.items() if name.startswith(root) and not name.endswith("/")}


def fingerprint(path: AnyPath) -> tuple[int, int]:
    """(size in bytes, a number that identifies the version of the object). Raises OSError."""
    with _at(path) as client:
        return _fingerprint(client.info(str(path)))


def _fingerprint(info: dict[str, Any]) -> tuple[int, int]:
    """Of an entry of a listing: Google numbers versions, S3 has the ETag of the contents; other clients have a time."""
    version = next((str(info[name]) for name in ("generation", "ETag", "mtime", "created") if info.get(name)), "")
    return int(info["size"]), int(hashlib.sha256(version.encode()).hexdigest()[:15], 16)


def read_bytes(path: AnyPath, start: int | None = None, stop: int | None = None) -> bytes:
    """Reads an object, or its bytes from `start` to `stop`. Raises OSError."""
    with _at(path) as client:
        return client.cat_file(str(path), start=start, end=stop)


@contextlib.contextmanager
def open_blocks(path: AnyPath) -> Iterator[io.IOBase]:
    """Yields an object as a file that requests blocks of it as they are read. Raises OSError."""
    with _at(path) as client, client.open(str(path), "rb", block_size=_BLOCK_BYTES, cache_type="readahead") as file:
        yield file


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Writes an object. Raises OSError."""
    with _at(path) as client:
        client.pipe_file(str(path), data)


@contextlib.contextmanager
def staged(path: AnyPath) -> Iterator[Path]:
    """Yields a local path. The file that the body has written there is uploaded to `path`, unless it raises. Raises OSError."""
    handle, name = tempfile.mkstemp(prefix=".staged-", dir=cache_folder())
    os.close(handle)
    try:
        yield Path(name)
        upload(Path(name), path)
    finally:
        Path(name).unlink(missing_ok=True)


def upload(local: Path, path: AnyPath) -> None:
    """Uploads a file of the cache folder, and keeps it there as the local copy of `path`. Raises OSError."""
    with _at(path) as client:
        client.put_file(str(local), str(path))
    _keep(local, path, fingerprint(path))


def move(folder: AnyPath, target: AnyPath, *, first: str) -> None:
    """Moves an object, or all objects of a folder. Raises OSError.

    It copies them, that named `first` before the others, and then deletes the originals, that one last. So after a kill in between the original or the copy
    is complete, and what there is of the other one has the file `first`.
    """
    names = sorted(list_objects(folder), key=lambda name: name != first) or [""]  # "": `folder` is an object itself.
    with _at(folder) as client:
        for name in names:
            client.cp_file(str(folder / name), str(target / name))
        for some in (names[1:], names[:1]):
            if some:
                client.rm([str(folder / name) for name in some])


def remove_folder(folder: AnyPath) -> None:
    """Deletes all objects of a folder. Raises OSError."""
    if names := list_objects(folder):
        with _at(folder) as client:
            client.rm([str(folder / name) for name in names])


def check_writable(probe: AnyPath) -> None:
    """Writes and deletes the object `probe`. Raises UserError if that cannot be done."""
    bucket = str(probe).split("/")[2]
    try:
        write_bytes(probe, b"musiclm")
        with _at(probe) as client:
            client.rm_file(str(probe))
    except FileNotFoundError:
        raise UserError(f"{probe.parent} cannot be written, there is no bucket {bucket}: create it, or name another") from None
    except StoreError as error:
        remedy = f"give this account the right to write, read and delete objects of the bucket {bucket}, or name another"
        raise UserError(f"{probe.parent} cannot be written, {_line(error)}: {remedy}") from error


# ---------------------------------------------------------------------------------------------------------------------- Local copies


@functools.cache
def cache_folder() -> Path:
    """The folder of the local copies: MUSICLM_CACHE_DIR/buckets, by default in the user's cache folder; a temporary one where that cannot be written."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    chosen = os.environ.get("MUSICLM_CACHE_DIR", os.path.join(base, "musiclm_jax"))
    if chosen:
        folder = Path(chosen).absolute() / "buckets"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    folder = Path(tempfile.mkdtemp(prefix="musiclm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def local_copy(path: AnyPath) -> Path:
    """The local copy of an object's present version, which is downloaded if there is none. Copies of older versions are deleted. Raises OSError."""
    found = fingerprint(path)
    copy = _copy_of(path, found)
    if copy.exists():
        return copy
    handle, name = tempfile.mkstemp(prefix=".download-", dir=copy.parent)
    os.close(handle)
    try:
        with _at(path) as client:
            client.get_file(str(path), name)
        return _keep(Path(name), path, found)
    finally:
        Path(name).unlink(missing_ok=True)


def _keep(local: Path, path: AnyPath, found: tuple[int, int]) -> Path:
    """Makes a file of the cache folder, which is on the disk from then on, the only local copy of an object with the fingerprint `found`."""
    if (size := local.stat().st_size) != found[0]:
        raise StoreError(None, f"{size} bytes here, {found[0]} there", str(path))
    with local.open("rb+") as file:
        os.fsync(file.fileno())
    copy = _copy_of(path, found)
    os.replace(local, copy)
    forget(path, keep=copy)
    return copy


def forget(path: AnyPath, *, keep: Path | None = None) -> None:
    """Deletes the local copies of an object, except `keep`. Arrays that are mapped from them stay usable."""
    for copy in cache_folder().glob(f"{_digest(path)}-*"):
        if copy != keep:
            copy.unlink(missing_ok=True)


def workspace(folder: AnyPath) -> Path:
    """A local folder for files of `folder` that are not complete, the same one in each run on this machine."""
    place = cache_folder() / f"{_digest(folder)}.work"
    place.mkdir(exist_ok=True)
    return place


def _copy_of(path: AnyPath, found: tuple[int, int]) -> Path:
    return cache_folder() / f"{_digest(path)}-{found[0]:x}-{found[1]:015x}{path.suffix}"


def _digest(path: AnyPath) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:32]
