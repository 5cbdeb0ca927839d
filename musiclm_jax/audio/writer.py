"""Writes audio files piece by piece: at any time what has been written can be played, also where the program is killed."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Protocol, runtime_checkable

import numpy as np
import soundfile

from musiclm_jax.arrays import Float
from musiclm_jax.errors import UserError, unwritable

SUFFIXES = (".wav", ".flac")
# Sizes in a header have 32 bits. Larger files have the header of EBU Tech 3306, RF64, whose sizes are in a chunk that is reserved for them.
_LARGEST = 2**32 - 1
_SIZES = 28


@runtime_checkable
class Writer(Protocol):
    """A file that is being written. Mono, 16 bits."""

    def write(self, wave: Float[np.ndarray, "N"]) -> None:
        """Appends samples in [-1, 1]. Raises UserError where they cannot be written, such as on a full disk."""
        ...

    def __enter__(self) -> Writer: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def open_writer(path: Path, *, sample_rate_hz: int, comment: str = "", suffix: str | None = None) -> Writer:
    """Creates, or replaces, a file of the format that a suffix names. comment: a text that the file keeps. suffix: None: that of the file."""
    writer = {".wav": _WavWriter, ".flac": _FlacWriter}[(suffix or path.suffix).lower()]
    try:
        return writer(path, sample_rate_hz, comment)
    except OSError as error:
        raise unwritable(path, error) from error


def read_comment(path: Path) -> str:
    """The comment of an audio file, or "". Raises UserError if it is no audio file."""
    try:
        with soundfile.SoundFile(path) as file:
            return file.comment
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"{path}: cannot be read as audio; name a WAV or FLAC file that `musiclm generate` wrote") from error


def to_int16(wave: Float[np.ndarray, "N"]) -> np.ndarray:
    """As libsndfile reads them: 1 is 32768, of which samples are at most 32767."""
    return np.clip(np.round(np.asarray(wave, np.float64) * 32768), -32768, 32767).astype("<i2")


class _WavWriter:
    def __init__(self, path: Path, sample_rate_hz: int, comment: str):
        self._path, self._bytes = path, 0
        # libsndfile reads the comment from the list, a text that ends in a zero and fills an even number of bytes.
        text = comment.encode() + b"\0"
        text += b"\0" * (len(text) % 2)
        info = b"LIST" + struct.pack("<I", 12 + len(text)) + b"INFOICMT" + struct.pack("<I", len(text)) + text if comment else b""
        form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, sample_rate_hz, 2 * sample_rate_hz, 2, 16)
        self._head = b"RIFF\0\0\0\0WAVEJUNK" + struct.pack("<I", _SIZES) + bytes(_SIZES) + form + info + b"data\0\0\0\0"
        self._file = path.open("w+b", buffering=0)
        self._write(self._head)
        self._update()

    def write(self, wave: Float[np.ndarray, "N"]) -> None:
        data = to_int16(wave).tobytes()
        self._write(data)
        self._bytes += len(data)
        self._update()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise unwritable(self._path, error) from error

    def _update(self) -> None:
        """Writes the sizes into the header."""
        whole = len(self._head) - 8 + self._bytes
        if whole <= _LARGEST:
            self._write_at(4, struct.pack("<I", whole))
            self._write_at(len(self._head) - 4, struct.pack("<I", self._bytes))
            return
        self._write_at(16, struct.pack("<IQQQI", _SIZES, whole, self._bytes, self._bytes // 2, 0))
        self._write_at(len(self._head) - 4, struct.pack("<I", _LARGEST))
        self._write_at(12, b"ds64")
        self._write_at(0, b"RF64" + struct.pack("<I", _LARGEST))

    def _write_at(self, place: int, data: bytes) -> None:
        self._file.seek(place)
        self._write(data)
        self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> _WavWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


class _FlacWriter:
    """The length in the header is written when the file is closed. Players read a file that was never closed to its end."""

    def __init__(self, path: Path, sample_rate_hz: int, comment: str):
        self._path = path
        try:
            self._file = soundfile.SoundFile(path, "w", sample_rate_hz, 1, "PCM_16", format="FLAC")
            self._file.comment = comment
        except soundfile.SoundFileError as error:
            raise UserError(f"{path}: cannot be written ({error}); check the path and its permissions") from error

    def write(self, wave: Float[np.ndarray, "N"]) -> None:
        try:
            self._file.write(to_int16(wave))
            self._file.flush()
        except soundfile.SoundFileError as error:
            raise UserError(f"{self._path}: cannot be written ({error}); free some space, or write elsewhere") from error

    def __enter__(self) -> _FlacWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
