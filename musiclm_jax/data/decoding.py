"""Decodes the clips of a folder into one array. A later call continues an interrupted one. NumPy only.

    samples.npy            int16 samples of all clips, concatenated
    clips.json             for each clip its place in samples.npy, or the reason why it is skipped
    samples.npy.partial    during the decoding: the beginning of samples.npy
    samples.journal        during the decoding: a line of settings, then an entry of clips.json for each clip that is completely in the partial file

A line of the journal is written when its samples are on the disk. A restart cuts the partial file to the clips in the journal and continues there.

A store on an object store is decoded in a local folder, where a restart on the same machine finds it, and then uploaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musiclm_jax import audio, buckets
from musiclm_jax.data.folder import Entry
from musiclm_jax.data.prefetch import map_ahead
from musiclm_jax.errors import UserError, unreadable
from musiclm_jax.files import AnyPath, is_bucket, is_file, parse_json, sync, write_json, write_text

SAMPLES, CLIPS = "samples.npy", "clips.json"
MIN_SEC = 1.0
_PARTIAL, _JOURNAL = f"{SAMPLES}.partial", "samples.journal"
# To be incremented when the same files give other samples, so that a partial file is not continued with other rules.
_VERSION = 1
# Clips, or bytes of samples, after which lines are added to the journal.
_CHUNK_CLIPS, _CHUNK_BYTES = 64, 32 * 2**20
# Size above which a clip that is being decoded moves from memory to an unnamed temporary file.
_SPOOL_BYTES = 8 * 2**20
_COPY_SAMPLES = 2**20


@dataclasses.dataclass(frozen=True)
class DecodedClip:
    """A line of the journal and an entry of clips.json. `offset` and `length` are in samples of samples.npy. `reason`: why the clip is skipped, or None."""

    file_name: str
    sha256: str
    offset: int = 0
    length: int = 0
    reason: str | None = None


def read_decoded(directory: AnyPath) -> tuple[int, tuple[DecodedClip, ...]] | None:
    """Returns (sample rate in Hz, the clips) of a complete store, or None if there is no complete store. Raises UserError if it cannot be read."""
    if not is_file(directory / CLIPS) or not is_file(directory / SAMPLES):
        return None
    try:
        record = parse_json((directory / CLIPS).read_bytes())
        return (record["sample_rate_hz"], tuple(DecodedClip(**clip) for clip in record["clips"])) if record["version"] == _VERSION else None
    except OSError as error:
        raise unreadable(directory / CLIPS, error) from error
    except (ValueError, LookupError, TypeError):  # Damaged, so not complete.
        return None


def decode_clips(
    folder: AnyPath,
    entries: Sequence[Entry],
    directory: AnyPath,
    *,
    sample_rate_hz: int,
    workers: int | None = None,
    on_skip: Callable[[Sequence[DecodedClip]], None] = lambda skipped: None,
    on_clip: Callable[[int], None] = lambda done: None,
) -> None:
    """Decodes the files of `entries` to samples.npy and clips.json in `directory`, both or neither, and continues an interrupted call.

    Memory is bounded by the number of workers, however long a file is.

    Args:
        folder: the folder of the files.
        workers: number of decoding threads. None: the number of processors.
        on_skip: called with all clips that are skipped so far, whenever another one is. An exception from it ends the decoding; decoded clips are kept.
        on_clip: called with the number of clips that are done.

    Raises:
        OSError: `directory` cannot be written.
    """
    stop, place = threading.Event(), _workspace(directory)

    def decode(entry: Entry) -> tuple[_Spool, int] | UserError:
        try:
            return _decode_file(folder / entry.file_name, place, part=(entry.start_sec or 0.0, entry.end_sec), sample_rate_hz=sample_rate_hz, stop=stop)
        except UserError as error:
            return error

    with _Store(place, entries, sample_rate_hz=sample_rate_hz) as store:
        store.open()
        if store.skipped:
            on_skip(store.skipped)
        results = map_ahead(decode, entries[store.num_entries :], workers=workers)
        try:
            for entry, result in results:
                if isinstance(result, UserError):
                    store.skip(entry, str(result).removeprefix(f"{folder / entry.file_name}: "))
                    on_skip(store.skipped)
                else:
                    store.append(entry, *result)
                on_clip(store.num_entries)
        finally:
            stop.set()
            results.close()
        store.finish()
    if is_bucket(directory):
        for old in ("index.json", CLIPS):  # They describe the samples that are replaced now.
            (directory / old).unlink(missing_ok=True)
        for name in (SAMPLES, CLIPS):
            buckets.upload(place / name, directory / name)


def _workspace(directory: AnyPath) -> Path:
    """The local folder in which the store `directory` is decoded."""
    return buckets.workspace(directory) if is_bucket(directory) else directory


def _decode_file(path: AnyPath, directory: Path, *, part: tuple[float, float | None], sample_rate_hz: int, stop: threading.Event) -> tuple[_Spool, int]:
    """Decodes one file, or a part of it. Returns (an unnamed file of its int16 samples, at its beginning, and their number)."""
    with _Spool(directory, stop) as floats:
        decoded = audio.decode(path, floats, sample_rate_hz=sample_rate_hz, min_samples=round(MIN_SEC * sample_rate_hz), start_sec=part[0], end_sec=part[1])
        floats.seek(0)
        whole = _Spool(directory, stop)
        while data := floats.read(4 * _COPY_SAMPLES):
            whole.write(to_int16(np.frombuffer(data, np.float32), peak=decoded.peak).tobytes())
        whole.seek(0)
        return whole, decoded.num_samples


def to_int16(wave: np.ndarray, *, peak: float) -> np.ndarray:
    """Samples as int16, little-endian. peak: the largest magnitude of the file; beyond full scale, 1, it is scaled down to that."""
    scale = np.float32(32768 / max(peak, 1.0))
    return np.clip(np.rint(wave * scale), -32768, 32767).astype("<i2")


class _Spool(tempfile.SpooledTemporaryFile):
    """An unnamed file on the store's file system, in memory while it is small. After `stop` is set, writing raises, so that decoding threads end soon."""

    def __init__(self, directory: Path, stop: threading.Event):
        super().__init__(max_size=_SPOOL_BYTES, dir=directory)
        self._stop = stop

    def write(self, data: bytes) -> int:
        if self._stop.is_set():
            raise InterruptedError("the decoding was stopped")
        return super().write(data)


# ---------------------------------------------------------------------------------------------------------------------- On the disk


class _Store:
    """The partial file and its journal. The first `num_entries` entries are done."""

    def __init__(self, directory: Path, entries: Sequence[Entry], *, sample_rate_hz: int):
        self._directory, self._entries = directory, entries
        self._settings = {"version": _VERSION, "sample_rate_hz": sample_rate_hz, "min_sec": MIN_SEC}
        self._done: list[DecodedClip] = []
        self.skipped: list[DecodedClip] = []
        self._num_durable = 0  # Number of clips of `_done` that are in the journal.
        self._partial, self._journal = directory / _PARTIAL, directory / _JOURNAL
        self._file: io.FileIO | None = None

    @property
    def num_entries(self) -> int:
        return len(self._done)

    @property
    def _length(self) -> int:
        return self._done[-1].offset + self._done[-1].length if self._done else 0

    def open(self) -> None:
        """Opens the partial file and the journal of an interrupted call, or new ones."""
        if self._journal.exists() and not self._partial.exists() and (self._directory / SAMPLES).exists():
            os.replace(self._directory / SAMPLES, self._partial)  # The call was interrupted after the renaming, before clips.json was written.
        lines = _read_journal(self._journal) if self._partial.exists() else []
        size = self._partial.stat().st_size if self._partial.exists() else 0
        self._done = _still_true(lines[1:], self._entries, size=size) if lines[:1] == [self._settings] else []
        # The partial file is created before the journal: a journal without a partial file means that the latter was renamed.
        self._file = self._partial.open("r+b" if self._done else "w+b", buffering=0)
        if not self._done:
            _write_all(self._file, _header(0))
        self._file.truncate(_place(self._length))
        self._file.seek(0, os.SEEK_END)
        self._num_durable, self.skipped = len(self._done), [clip for clip in self._done if clip.reason is not None]
        write_text(self._journal, "".join(map(_line, [self._settings, *map(dataclasses.asdict, self._done)])))
        sync(self._directory)

    def append(self, entry: Entry, samples: _Spool, length: int) -> None:
        """Adds a decoded clip of `length` samples."""
        with samples:
            while data := samples.read(2 * _COPY_SAMPLES):
                _write_all(self._file, data)
        self._add(DecodedClip(entry.name, entry.sha256, self._length, length))

    def skip(self, entry: Entry, reason: str) -> None:
        """Adds a clip that cannot be used."""
        clip = DecodedClip(entry.name, entry.sha256, self._length, 0, reason)
        self.skipped.append(clip)
        self._add(clip)

    def _add(self, clip: DecodedClip) -> None:
        self._done.append(clip)
        new = self._done[self._num_durable :]
        if len(new) >= _CHUNK_CLIPS or 2 * sum(clip.length for clip in new) >= _CHUNK_BYTES:
            self._commit()

    def _commit(self) -> None:
        """Writes the new samples to the disk, and then their lines to the journal."""
        try:
            os.fsync(self._file.fileno())
        except OSError:  # It is unknown what is on the disk, and a second fsync would not report it.
            del self._done[self._num_durable :]
            raise
        with self._journal.open("ab", buffering=0) as journal:
            _write_all(journal, "".join(_line(dataclasses.asdict(clip)) for clip in self._done[self._num_durable :]).encode())
            os.fsync(journal.fileno())
        self._num_durable = len(self._done)

    def finish(self) -> None:
        """Completes the store: renames the partial file, writes clips.json and removes the journal."""
        self._commit()
        self._file.seek(0)
        _write_all(self._file, _header(self._length))
        os.fsync(self._file.fileno())
        for old in ("index.json", CLIPS):  # They describe the samples that are replaced now.
            (self._directory / old).unlink(missing_ok=True)
        os.replace(self._partial, self._directory / SAMPLES)
        sync(self._directory)
        clips = [dataclasses.asdict(clip) for clip in self._done]
        record = {"version": _VERSION, "sample_rate_hz": self._settings["sample_rate_hz"], "num_samples": self._length, "clips": clips}
        write_json(self._directory / CLIPS, record)
        sync(self._directory)
        self._journal.unlink()

    def __enter__(self) -> _Store:
        return self

    def __exit__(self, kind, *exception) -> None:
        if self._file is None:
            return
        with self._file:
            if kind is not None and self._partial.exists():  # Keeps complete clips. On a full disk, truncating makes room for the journal.
                with contextlib.suppress(OSError):
                    self._file.truncate(_place(self._length))
                    self._commit()


def forget_progress(directory: AnyPath) -> None:
    """Removes the files of an interrupted call from a complete store."""
    directory = _workspace(directory)
    for name in (_JOURNAL, _PARTIAL):  # In this order: a journal without a partial file means that the latter was renamed to samples.npy.
        (directory / name).unlink(missing_ok=True)


def _read_journal(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a journal."""
    lines = []
    with contextlib.suppress(OSError, ValueError, RecursionError):
        for line in path.read_bytes().split(b"\n")[:-1]:
            lines.append(json.loads(line))
    return lines


def _still_true(lines: list[dict[str, Any]], entries: Sequence[Entry], *, size: int) -> list[DecodedClip]:
    """The clips of the journal that match the first entries and whose samples exist. Skipped clips that are no longer in the folder are passed over."""
    done: list[DecodedClip] = []
    for line in lines:
        try:
            clip, entry = DecodedClip(**line), entries[len(done)] if len(done) < len(entries) else None
        except TypeError:  # The line is damaged.
            break
        if entry is not None and (clip.file_name, clip.sha256) == (entry.name, entry.sha256):
            if _place(clip.offset + clip.length) > size:
                break
            done.append(clip)
        elif clip.reason is None:
            break
    return done


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value) + "\n"


def _header(length: int) -> bytes:
    """The header of a .npy file of `length` int16 samples. NumPy leaves room for larger lengths, so that all headers have the same size."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<i2", "fortran_order": False, "shape": (length,)})
    return file.getvalue()


def _place(length: int) -> int:
    """Size in bytes of a .npy file of `length` samples."""
    return len(_header(length)) + 2 * length


def _write_all(file: io.FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
