"""Reads the metadata of a folder's clips: `metadata.jsonl`, or a text file beside each clip. Audio is not read here.

`metadata.jsonl` has one object per line:

    {"file_name": "audio/0001.flac", "captions": ["a calm piano melody"], "split": "train", "attributes": {"tempo_bpm": 80}}

`caption` (one string) may replace `captions`; only `file_name` is required. Captions may be grouped by kind, with arbitrary names of kinds, so that
MuLan's training can mix the kinds by weight; the rest of the package ignores kinds:

    "captions": {"short": ["calm piano"], "long": ["a calm piano melody in a minor key"], "playlist": ["music to read by"], "label": ["piano"]}

Clips with the same `"melody": "name"` are renderings of one melody, aligned in time, on which the melody embedder is trained. Without `metadata.jsonl`
each audio file may have a text file of the same stem, with one caption per line.
"""

from __future__ import annotations

import codecs
import collections
import dataclasses
import json
import os
from typing import Any

from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath, is_dir, is_file

METADATA = "metadata.jsonl"
SPLITS = ("train", "test")
_KEYS = ("file_name", "captions", "caption", "split", "attributes", "melody")
# Byte order marks. UTF-32 comes before UTF-16, because its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of metadata.jsonl. `file_name` is normalized; the file may not exist."""

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


def read_text(path: AnyPath) -> tuple[str, bool]:
    """Reads a text in UTF-8, in UTF-16 or UTF-32 with a byte order mark, or else in Windows-1252.

    Returns:
        (the text without a byte order mark, whether it was read as Windows-1252).

    Raises:
        UserError: the file cannot be read, or is in none of these encodings.
    """
    if not is_file(path):
        raise UserError(f"{path} is not a file, expected a text file: {'move that folder away' if is_dir(path) else 'create it'}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): change its permissions, or move it away") from None
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)
    for each in [encoding] if encoding else ["utf-8", "cp1252"]:
        try:
            text = data.decode(each)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:  # NUL characters occur in binary files and in UTF-16 without its mark.
            return text, each == "cp1252"
    raise UserError(f"{path} is not a text in UTF-8, nor in UTF-16 with a byte order mark, nor in Windows-1252: save it as UTF-8")


def read_sidecar(path: AnyPath) -> tuple[tuple[str, ...], bool]:
    """Reads a text file of captions. Returns (the lines that are not empty, whether it was read as Windows-1252). Raises UserError as `read_text`."""
    text, windows = read_text(path)
    return tuple(line.strip() for line in text.split("\n") if line.strip()), windows


def read_lines(path: AnyPath) -> tuple[list[Line], list[str]]:
    """Reads metadata.jsonl. Returns (its lines that are not empty, warnings, such as of unknown keys).

    Only "\\n" ends a line: U+2028 and U+0085 may occur in a JSON string.

    Raises:
        UserError: a line does not have the format in this module's docstring. The message has the file and the number of the line.
    """
    text, windows = read_text(path)
    lines, unread = [], collections.Counter()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not isinstance(entry["file_name"], str):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f'{path} line {number} is not a JSON object with "file_name" and "captions": correct that line') from None
        try:
            lines.append(_read_line(entry, number))
        except UserError as error:
            raise UserError(f"{path} line {number}: {error}") from None
        unread.update(key for key in entry if key not in _KEYS or (key == "caption" and "captions" in entry))
    warnings = [f"{path} is not UTF-8 and was read as Windows-1252: save it as UTF-8 if letters are wrong"] if windows else []
    if unread:
        keys = ", ".join(f"{key!r} ({count})" for key, count in unread.most_common())
        warnings.append(f"{path} has unknown keys, which are ignored (number of lines in brackets): {keys}; the known ones are {', '.join(_KEYS)}")
    return lines, warnings


def _read_line(entry: dict[str, Any], number: int) -> Line:
    try:
        json.dumps(entry, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(r"it has half a surrogate pair, such as \ud83d alone, which is not a character: write the whole character") from None
    name, split, attributes, melody = (entry.get(key) for key in ("file_name", "split", "attributes", "melody"))
    if not name.strip() or "\0" in name:
        raise UserError(f"file_name is {name!r}, expected the name of an audio file in the folder")
    captions, kinds = read_captions(entry)
    if split not in (None, *SPLITS):
        raise UserError(f"split is {split!r}, expected 'train' or 'test'")
    if not isinstance(attributes, dict | None):
        raise UserError(f"attributes is {attributes!r}, expected an object from names to values")
    if not isinstance(melody, str | None) or melody == "":
        raise UserError(f"melody is {melody!r}, expected a string, the name of the melody")
    return Line(number, os.path.normpath(name), captions, kinds, split, attributes or {}, melody)


def read_captions(entry: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Returns (the captions in a line of metadata.jsonl that are not empty, the kind of each, or None if the line has no kinds).

    Raises:
        UserError: the captions are neither a string, nor a list of strings, nor an object from kinds to such lists.
    """
    given = entry.get("captions", entry.get("caption", ()))
    by_kind = given if isinstance(given, dict) else {None: [given] if isinstance(given, str) else given}
    for texts in by_kind.values():
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"captions is {given!r}, expected a list of strings, or an object from kinds to lists of strings")
    found = [(text.strip(), kind) for kind, texts in by_kind.items() for text in texts if text.strip()]
    return tuple(text for text, _ in found), tuple(kind for _, kind in found) if found and isinstance(given, dict) else None
