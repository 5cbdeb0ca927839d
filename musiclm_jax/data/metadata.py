"""What is said of a folder's clips: a table, or a text file beside each clip. Audio is not read here.

A table is `metadata.jsonl`, `metadata.csv` or `metadata.parquet` (the layouts of Hugging Face's audiofolder), one clip a row:

    {"file_name": "audio/0001.flac", "captions": ["a calm piano melody"], "split": "train", "attributes": {"tempo_bpm": 80}}

Only `file_name` is required. `caption` or `text` (one string) may replace `captions`. Captions may be grouped by kind, with arbitrary names of kinds, so
that MuLan's training can mix the kinds by weight; the rest of the package ignores kinds:

    "captions": {"short": ["calm piano"], "long": ["a calm piano melody in a minor key"], "playlist": ["music to read by"], "label": ["piano"]}

`start_sec` and `end_sec` (or `start_time` and `end_time`) select a part of the file, so that a long file may be listed as several clips. Clips of one
`group`, such as a song or an album, are in one split. Clips with the same `"melody": "name"` are renderings of one melody, aligned in time, on which the
melody embedder is trained. `"voice": "audio/0001-lead.flac"` names another clip that this one accompanies, aligned in time.

Without a table each audio file may have a text file of the same stem, with one caption per line, or a JSON file with an object as above.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
from typing import Any

from musiclm_jax.data.tables import Row, read_rows
from musiclm_jax.data.text_files import read_text
from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath, parse_json

METADATA = "metadata.jsonl"
TABLES = (METADATA, "metadata.csv", "metadata.parquet")
# Names of splits in data sets -> ours.
SPLITS = {"train": "train", "training": "train"} | dict.fromkeys(("test", "validation", "valid", "val", "dev", "eval"), "test")
# Names of columns -> ours. Of several for one value the first that a row has is read.
_COLUMNS = {
    "file_name": ("file_name",),
    "captions": ("captions", "caption", "text", "description"),
    "split": ("split",),
    "attributes": ("attributes",),
    "melody": ("melody",),
    "voice": ("voice",),
    "group": ("group",),
    "licence": ("licence", "license"),
    "start_sec": ("start_sec", "start_time"),
    "end_sec": ("end_sec", "end_time"),
}


@dataclasses.dataclass(frozen=True)
class Line:
    """One row of a table. `file_name` is normalized; the file may not exist."""

    number: int
    file_name: str
    captions: tuple[str, ...] = ()
    # The kind of each caption. None: not given.
    kinds: tuple[str, ...] | None = None
    # "train" or "test". None: not given.
    split: str | None = None
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    # Name of the melody that it renders. None: not given.
    melody: str | None = None
    # What must not be in both splits, such as a song or an album. None: not given.
    group: str | None = None
    licence: str | None = None
    # The part of the file, in seconds. None: from its beginning, to its end.
    start_sec: float | None = None
    end_sec: float | None = None
    # Name of the clip that it accompanies. None: not given.
    voice: str | None = None


def read_sidecar(path: AnyPath) -> tuple[tuple[str, ...], bool]:
    """Reads a text file of captions. Returns (the lines that are not empty, whether it was read as Windows-1252). Raises UserError as `read_text`."""
    text, windows = read_text(path)
    return tuple(line.strip() for line in text.split("\n") if line.strip()), windows


def read_json_sidecar(path: AnyPath, audio: str) -> Line:
    """Reads the JSON file beside the audio file `audio`: an object with the fields of a row, `file_name` left out. Raises UserError where it is not one."""
    try:
        row = parse_json(read_text(path)[0])
        if not isinstance(row, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        raise UserError(f"{path} is not a JSON object with captions ({error}): correct it, or move it away") from None
    try:
        return _read_row({**row, "file_name": audio}, 0)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_lines(path: AnyPath) -> tuple[list[Line], list[str]]:
    """Reads a table of clips. Returns (its rows, warnings, such as of unknown columns).

    Raises:
        UserError: a row does not have the format in this module's docstring. The message has the file and the number of the row.
    """
    rows, warnings = read_rows(path)
    where = "row" if path.suffix == ".parquet" else "line"
    lines, unread = [], collections.Counter()
    if rows and path.suffix != ".jsonl" and not any("file_name" in row for _, row in rows):
        known = ", ".join(sorted({name for _, row in rows for name in row}))
        raise UserError(f"{path} has no column file_name, but {known}: name the columns file_name, text, ..., in CSV in the first line, with commas")
    for number, row in rows:
        if not isinstance(row.get("file_name"), str):
            what = "is not a JSON object with" if path.suffix == ".jsonl" else "lacks"
            raise UserError(f'{path} {where} {number} {what} "file_name" and "captions": correct that {where}')
        try:
            lines.append(_read_row(row, number))
        except UserError as error:
            raise UserError(f"{path} {where} {number}: {error}") from None
        read = {next((name for name in names if name in row), None) for names in _COLUMNS.values()}
        unread.update(key for key in row if key not in read)
    if unread:
        keys = ", ".join(f"{key!r} ({count})" for key, count in unread.most_common())
        known = ", ".join(name for names in _COLUMNS.values() for name in names)
        warnings.append(f"{path} has unknown keys, which are ignored (number of lines in brackets): {keys}; the known ones are {known}")
    return lines, warnings


def _read_row(row: Row, number: int) -> Line:
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise UserError(r"it has half a surrogate pair, such as \ud83d alone, which is not a character: write the whole character") from None
    name, split, attributes = row["file_name"], row.get("split"), row.get("attributes")
    if not name.strip() or "\0" in name:
        raise UserError(f"file_name is {name!r}, expected the name of an audio file in the folder")
    captions, kinds = read_captions(row)
    if split is not None and (not isinstance(split, str) or split not in SPLITS):
        raise UserError(f"split is {split!r}, expected 'train' or 'test', or another name of a split: {', '.join(SPLITS)}")
    if not isinstance(attributes, dict | None):
        raise UserError(f"attributes is {attributes!r}, expected an object from names to values")
    start, end = _seconds(row, "start_sec"), _seconds(row, "end_sec")
    if end is not None and end <= (start or 0.0):
        raise UserError(f"its part from {start or 0.0:g} s to {end:g} s is empty: end_sec must be after start_sec")
    return Line(
        number, os.path.normpath(name), captions, kinds, split and SPLITS[split], attributes or {}, _text(row, "melody"), _text(row, "group"),
        _text(row, "licence"), start, end, _text(row, "voice"),
    )  # fmt: skip


def _value(row: Row, column: str) -> tuple[str, Any]:
    """(the name under which a row has a column, its value); (the column, None) where it has none."""
    return next(((name, row[name]) for name in _COLUMNS[column] if name in row), (column, None))


def _text(row: Row, column: str) -> str | None:
    name, value = _value(row, column)
    if not isinstance(value, str | None) or value == "":
        raise UserError(f"{name} is {value!r}, expected a string{', the name of the melody' if column == 'melody' else ''}")
    return value


def _seconds(row: Row, column: str) -> float | None:
    name, value = _value(row, column)
    try:
        seconds = None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if value is not None and (seconds is None or not 0 <= seconds < math.inf):
        raise UserError(f"{name} is {value!r}, expected seconds from the beginning of the file, 0 or more")
    return seconds


def read_captions(row: Row) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Returns (the captions of a row that are not empty, the kind of each, or None if the row has no kinds).

    Raises:
        UserError: the captions are neither a string, nor a list of strings, nor an object from kinds to such lists.
    """
    name, given = _value(row, "captions")
    given = () if name not in row else given
    by_kind = given if isinstance(given, dict) else {None: [given] if isinstance(given, str) else given}
    for texts in by_kind.values():
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{name} is {given!r}, expected a list of strings, or an object from kinds to lists of strings")
    found = [(text.strip(), kind) for kind, texts in by_kind.items() for text in texts if text.strip()]
    return tuple(text for text, _ in found), tuple(kind for _, kind in found) if found and isinstance(given, dict) else None
