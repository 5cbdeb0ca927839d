"""Data sets of TFDS as folders of clips: their records with random access, in ArrayRecord or TFRecord files, and an index of them. No TensorFlow.

`data/tfds_builders.py` writes such data sets. Nothing is decoded to a store: `RecordSamples` reads a clip from its record when a training asks for it, and
memory does not grow with the hours of the data, but only with the number of clips.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from musiclm_jax.arrays import Int
from musiclm_jax.data.folder import ClipFolder, Entry
from musiclm_jax.data.prefetch import map_ahead
from musiclm_jax.errors import UserError, unreadable
from musiclm_jax.files import AnyPath, fingerprint, is_bucket, is_file, read_json, write_text

INFO, FEATURES = "dataset_info.json", "features.json"
EXTRA = "install it with: pip install 'musiclm-jax[data]'"
# What `data/tfds_builders.py` writes of each clip.
_KEYS = {"id", "audio", "captions", "kinds", "group", "melody", "licence"}
# Files whose readers, and clips whose samples, are kept: the windows of a clip are read one after the other.
_OPEN_SHARDS, _KEPT_CLIPS = 256, 8


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of records."""

    path: Path
    # "train" or "test".
    split: str
    num_records: int


class Records:
    """The records of a data set: its splits one after the other, each in the order of its files. May be read by several threads."""

    def __init__(self, path: AnyPath, *, name: str, file_format: str, shards: Sequence[Shard], parse: Callable[[bytes], Mapping[str, Any]]):
        """name: with the version. file_format: "array_record" or "tfrecord". parse: gives the features of a record."""
        self.path, self.name, self.file_format, self.shards = path, name, file_format, tuple(shards)
        self.ends = list(itertools.accumulate(shard.num_records for shard in shards))
        self._open = functools.lru_cache(maxsize=_OPEN_SHARDS)(_FORMATS[file_format])
        self._parse = parse

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, number: int) -> bytes:
        """A serialized tf.train.Example. Raises UserError if it cannot be read."""
        return self._in_file(number, lambda file, at: file[at])

    def place(self, number: int) -> tuple[Path, int, int, int]:
        """Of a record in a TFRecord file: the file, and the bytes before, of and after the record. Raises UserError if the file cannot be read."""
        return self._in_file(number, lambda file, at: file.place(at))

    def _in_file(self, number: int, read: Callable[[Any, int], Any]) -> Any:
        """read(the opened file of a record, the number of the record in it)"""
        index = bisect.bisect_right(self.ends, number)
        shard = self.shards[index]
        try:
            return read(self._open(shard.path), number - self.ends[index] + shard.num_records)
        except OSError as error:
            raise unreadable(shard.path, error) from error
        except (IndexError, RuntimeError, ValueError) as error:
            raise damaged(shard.path) from error

    def example(self, number: int) -> Mapping[str, Any]:
        """The features of a record: "audio" int16 [N], "captions" and "kinds" lists of bytes, "id", "group", "melody" and "licence" bytes."""
        record = self[number]
        try:
            return self._parse(record)
        except Exception as error:  # Of protobuf or TFDS.
            raise damaged(self.path) from error


def damaged(path: AnyPath) -> UserError:
    return UserError(f"{path} has a damaged record: copy it again, or build the data set again")


def is_record_folder(path: AnyPath) -> bool:
    """Whether a folder has a data set of TFDS."""
    return is_file(path / INFO) and is_file(path / FEATURES)


def open_records(path: AnyPath) -> Records:
    """Opens the data set in a folder with dataset_info.json. Raises UserError if it has no clips as ours, or a package is missing."""
    if is_bucket(path):
        raise UserError(f"{path} is a data set of TFDS on an object store: copy it to a disk, or mount the bucket")
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise UserError(f"{path} is a data set of TFDS, and reading it needs the package {error.name}; {EXTRA}") from error
    try:
        builder = tfds.builder_from_directory(str(path))
        splits, features, file_format = builder.info.splits, builder.info.features, builder.info.file_format.value
    except Exception as error:  # Any of TFDS, protobuf or JSON.
        raise UserError(f"{path} has a {INFO} or {FEATURES} that TFDS does not read ({str(error).splitlines()[0]}): build the data set again") from error
    if not _KEYS <= set(features):
        missing = ", ".join(sorted(_KEYS - set(features)))
        raise UserError(f"{path}: its records have no {missing}: build it with a builder of musiclm_jax.data.tfds_builders, such as captioned_folder")
    if file_format not in _FORMATS:
        raise UserError(f"{path} has files of {file_format}: build it with --file_format array_record, or tfrecord")
    shards = [
        Shard(Path(file), name, count)
        for name in ("train", "test") if name in splits
        for file, count in zip(splits[name].filepaths, splits[name].shard_lengths, strict=True)
    ]  # fmt: skip
    return Records(path, name=builder.info.full_name, file_format=file_format, shards=shards, parse=features.deserialize_example_np)


# ---------------------------------------------------------------------------------------------------------------------- Files of records


def _open_array_records(path: Path) -> Any:
    try:
        from array_record.python.array_record_data_source import ArrayRecordDataSource
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: ArrayRecord needs the package array-record; {EXTRA}") from error
    return ArrayRecordDataSource([str(path)])


class TfRecordFile:
    """Random access to the records of a TFRecord file: the length of each (8 bytes), its checksum (4), the record, its checksum (4). Checksums are not read.

    https://www.tensorflow.org/tutorials/load_data/tfrecord
    """

    def __init__(self, path: Path):
        """Reads all lengths. Raises UserError if the file ends within a record."""
        self._path, self._places, at = path, [], 0
        self._size = size = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            while at < size:
                file.seek(at)
                length = int.from_bytes(file.read(8), "little")
                self._places.append((at + 12, length))
                at += length + 16
        if at != size:
            raise damaged(path)

    def __len__(self) -> int:
        return len(self._places)

    def place(self, number: int) -> tuple[Path, int, int, int]:
        """The file, and the bytes before, of and after a record."""
        start, length = self._places[number]
        return self._path, start, length, self._size - start - length

    def __getitem__(self, number: int) -> bytes:
        start, length = self._places[number]
        with self._path.open("rb", buffering=0) as file:
            file.seek(start)
            return file.read(length)


_FORMATS: dict[str, Callable[[Path], Any]] = {"array_record": _open_array_records, "tfrecord": TfRecordFile}


# ---------------------------------------------------------------------------------------------------------------------- Clips


class RecordSamples:
    """The samples of all records, as if they were one int16 array: `samples[start:stop]`, of samples of one record, reads that record."""

    def __init__(self, records: Records, at: Int[np.ndarray, "n"]):
        """at: the first sample of each record, and the total at the end. Raises UserError if there are other records."""
        if len(at) != len(records) + 1:
            raise UserError(f"{records.path} has {len(records)} records where its index has {len(at) - 1}: run the training again, which reads them again")
        self.records, self.shape, self._at = records, (int(at[-1]),), at
        self._audio = functools.lru_cache(maxsize=_KEPT_CLIPS)(lambda number: records.example(number)["audio"])

    def number(self, sample: int) -> int:
        """The number of the record that has a sample."""
        return int(np.searchsorted(self._at, sample, side="right")) - 1

    def __getitem__(self, where: slice) -> Int[np.ndarray, "N"]:
        number = self.number(where.start)
        first = self._at[number]
        return self._audio(number)[where.start - first : where.stop - first]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordFolder(ClipFolder):
    """The clips of a data set of TFDS, in the order of their names, as those of a folder. `offsets` and `lengths` of entries are in samples."""

    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    # "array_record" or "tfrecord".
    file_format: str


class _Row(NamedTuple):
    """A record without its samples."""

    name: str
    length: int
    captions: list[str]
    kinds: list[str]
    group: str
    melody: str
    licence: str


def read_record_folder(path: AnyPath, *, cache: AnyPath) -> RecordFolder:
    """The clips of a data set of TFDS. Each of its files is read once, whole; a later call reads changed files alone.

    A clip is known by its name, the name and version of the data set, and the name and size of its file.

    Args:
        path: the folder with dataset_info.json.
        cache: a folder with a JSON file for each file that was read.

    Raises:
        UserError: the data set cannot be read.
    """
    records = open_records(path)
    rows, contents = [], []
    for end, shard in zip(records.ends, records.shards, strict=True):
        size, found = _read_shard(records, shard, range(end - shard.num_records, end), cache / f"{shard.path.name}.json")
        content = hashlib.sha256(f"{records.name} {shard.path.name} {size}".encode()).hexdigest()
        rows += found
        contents += [(content, shard.split)] * len(found)
    offsets = [0, *itertools.accumulate(row.length for row in rows)]
    order = sorted(range(len(rows)), key=lambda i: rows[i].name)
    entries = tuple(_entry(rows[i], *contents[i]) for i in order)
    places = {"offsets": tuple(offsets[i] for i in order), "lengths": tuple(rows[i].length for i in order)}
    return RecordFolder(path, entries, file_format=records.file_format, **places)


def _read_shard(records: Records, shard: Shard, numbers: range, file: AnyPath) -> tuple[int, list[_Row]]:
    """(size of the file of records, a row for each record), from the JSON `file` where that was written for the present file of records."""
    try:
        state = [records.name, *fingerprint(shard.path)]
    except OSError as error:
        raise unreadable(shard.path, error) from error
    try:
        known = read_json(file)
        if known["state"] == state:
            return state[1], [_Row(*row) for row in known["clips"]]
    except (UserError, LookupError, TypeError):  # Missing or damaged.
        pass
    rows = [row for _, row in map_ahead(lambda number: _row(records.example(number)), numbers)]
    write_text(file, json.dumps({"state": state, "clips": rows}, ensure_ascii=False) + "\n")
    return state[1], rows


def _row(example: Mapping[str, Any]) -> _Row:
    texts = {name: [text.decode() for text in example[name]] for name in ("captions", "kinds")}
    return _Row(example["id"].decode(), len(example["audio"]), **texts, **{name: example[name].decode() for name in ("group", "melody", "licence")})


def _entry(row: _Row, content: str, split: str) -> Entry:
    texts = {"captions": tuple(row.captions), "kinds": tuple(row.kinds) or None, "melody": row.melody or None}
    return Entry(row.name, **texts, split=split, sha256=content, group=row.group or None, licence=row.licence or None)
