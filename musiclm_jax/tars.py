"""Reads files, also those inside of tar archives, which are named as if the archive were a folder: `clips/shard-000.tar/0001.flac`. Nothing is unpacked.

An archive is indexed by one pass over its headers, and its members are then read by offset and size: on an object store by requests for ranges. Of a damaged
archive the members that are whole can be read. Compressed archives have no offsets.
"""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
from collections.abc import Iterator, Mapping

from musiclm_jax import buckets, files
from musiclm_jax.files import AnyPath, fingerprint, is_bucket

SUFFIX = ".tar"
# Texts are read with the headers, up to this size, so that captions on an object store need no requests of their own.
TEXTS, _TEXT_BYTES = (".txt", ".json"), 2**16
_CUT_OFF = "is cut off where its tar ends; copy the tar again"
_NOT_A_FILE = "is a link or a sparse file in its tar; put the file itself there"
_OUTSIDE = "its name leads out of its tar; name it without .. and without / at the beginning"


@dataclasses.dataclass(frozen=True)
class Member:
    """A file in an archive: its place there in bytes, and its contents where it is a small text."""

    archive: AnyPath
    offset: int
    size: int
    text: bytes | None = None

    def open(self) -> io.IOBase:
        if is_bucket(self.archive):
            return io.BytesIO(buckets.read_bytes(self.archive, self.offset, self.offset + self.size) if self.size else b"")
        return io.BufferedReader(_Part(self.archive, self.offset, self.size))


@dataclasses.dataclass(frozen=True)
class Index:
    """What is in an archive."""

    # `fingerprint` of the archive.
    version: tuple[int, int]
    # By name, without "./" at its beginning. Of several members of one name the last counts, as where the archive is unpacked.
    members: Mapping[str, Member]
    # (name, reason) of members that cannot be read; the name is "" for damage of the archive itself.
    faults: tuple[tuple[str, str], ...]


# The last index of each archive that this process has read.
_indexes: dict[AnyPath, Index] = {}


def index(archive: AnyPath) -> Index:
    """Reads the headers of an archive. Raises OSError."""
    version, found, faults = fingerprint(archive), {}, []
    with buckets.open_blocks(archive) if is_bucket(archive) else archive.open("rb") as file:
        for name, reason, member in _read_headers(archive, file, version[0]):
            if member is None:
                faults.append((name, reason))
            else:
                found[name] = member
    _indexes[archive] = Index(version, found, tuple(faults))
    return _indexes[archive]


def find(path: AnyPath) -> Member | None:
    """The member of an archive that a path names. None: it is no path into an archive, or there is no such member. Raises OSError."""
    if f"{SUFFIX}/" not in path.as_posix().lower():
        return None
    for archive in reversed(path.parents):
        if archive.suffix.lower() == SUFFIX and (archive in _indexes or files.is_file(archive)):
            known = _indexes.get(archive)
            if known is None or not is_bucket(archive) and known.version != fingerprint(archive):
                known = index(archive)
            return known.members.get(path.relative_to(archive).as_posix())
    return None


def holder(path: AnyPath) -> AnyPath:
    """The file on the disk or the object store that has the contents of a path: an archive, or the path itself."""
    member = find(path)
    return path if member is None else member.archive


def is_file(path: AnyPath) -> bool:
    """`files.is_file`, also of members of archives."""
    return find(path) is not None or files.is_file(path)


def open_file(path: AnyPath) -> io.IOBase:
    """Opens a file to read it: on the local disk, on an object store, from where it is read into memory, or in an archive on either. Raises OSError."""
    if member := find(path):
        return member.open()
    return io.BytesIO(buckets.read_bytes(path)) if is_bucket(path) else path.open("rb")


def read_bytes(path: AnyPath) -> bytes:
    """The contents of a file, as `open_file` opens it. Raises OSError."""
    member = find(path)
    if member and member.text is not None:
        return member.text
    with open_file(path) as file:
        return file.read()


class _Part(io.RawIOBase):
    """A part of a local file, to be read as a file of its own."""

    def __init__(self, path: AnyPath, offset: int, size: int):
        self._file, self._offset, self._size, self._at = path.open("rb", buffering=0), offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer) -> int:
        view = memoryview(buffer)[: max(0, self._size - self._at)]
        self._file.seek(self._offset + self._at)
        read = self._file.readinto(view)
        self._at += read
        return read

    def close(self) -> None:
        self._file.close()
        super().close()


def _read_headers(archive: AnyPath, file: io.IOBase, size: int) -> Iterator[tuple[str, str, Member | None]]:
    """Yields (name, "", member) or (name, reason, None) for each file in an archive, and ("", reason, None) for damage between them.

    With `ignore_zeros`, tarfile looks for the next header after damage, and says nothing of it: then there is a gap between members.
    """
    end, damage = 0, []
    try:
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as headers:
            while (info := headers.next()) is not None and info.offset >= end:
                headers.members.clear()
                if not _is_blank(file, end, info.offset):
                    damage.append(end)
                end = info.offset_data + (-(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE if info.isreg() else 0)
                if not info.isdir():
                    yield _entry(archive, file, info, size)
    except (tarfile.TarError, ValueError):  # The last member is cut off, which `_entry` says, or a header is nonsense.
        pass
    if not _is_blank(file, end, size) or not size:
        damage.append(end)
    if damage:
        yield "", f"the tar is damaged from byte {damage[0]} on; copy it again, or repair it", None
    elif end == size:
        yield "", "the tar lacks its end, so that clips may be missing; copy it again", None


def _entry(archive: AnyPath, file: io.IOBase, info: tarfile.TarInfo, size: int) -> tuple[str, str, Member | None]:
    name = os.path.normpath(info.name)
    if os.path.isabs(name) or name.split("/")[0] == "..":
        return name, _OUTSIDE, None
    if not info.isreg() or info.issparse():
        return name, _NOT_A_FILE, None
    if info.offset_data + info.size > size:
        return name, _CUT_OFF, None
    text = None
    if name.lower().endswith(TEXTS) and info.size <= _TEXT_BYTES:
        file.seek(info.offset_data)
        text = file.read(info.size)
    return name, "", Member(archive, info.offset_data, info.size, text)


def _is_blank(file: io.IOBase, start: int, stop: int) -> bool:
    """Whether a part of a file is empty, or all zeros, as between archives that were joined. It is read as far as the zeros at the end of an archive go."""
    if start >= stop:
        return True
    file.seek(start)
    return not any(file.read(min(stop - start, tarfile.RECORDSIZE)))
