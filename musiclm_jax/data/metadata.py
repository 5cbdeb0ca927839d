"""What a folder's texts say of its clips: `metadata.jsonl`, or a text file beside each clip. Audio is not touched here.

`metadata.jsonl` has one object per line:

    {"file_name": "audio/0001.flac", "captions": ["a calm piano melody"], "split": "train", "attributes": {"tempo_bpm": 80}}

`caption` (one string) may replace `captions`; all but `file_name` may be left out. Captions may be sorted by kind, under names of one's choice, so that
MuLan's training can mix the kinds by weight; all else takes them alike:

    "captions": {"short": ["calm piano"], "long": ["a calm piano melody in a minor key"], "playlist": ["music to read by"], "label": ["piano"]}

Clips with the same `"melody": "name"` are renderings of one tune, second for second, from which the melody embedder learns. Without `metadata.jsonl`
each audio file may have a text file of the same stem, one caption per line.
"""

from __future__ import annotations

import codecs
import collections
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from musiclm_jax.errors import UserError

METADATA = "metadata.jsonl"
SPLITS = ("train", "test")
_KEYS = ("file_name", "captions", "caption", "split", "attributes", "melody")
# UTF-32 before UTF-16, whose little-endian mark is the beginning of its own.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclasses.dataclass(frozen=True)
class Line:
    """What one line of metadata.jsonl says of a clip. `file_name` is normalized, but may name no file."""

    number: int
    file_name: str
    captions: tuple[str, ...] = ()
    # The kind of each caption. None: not said.
    kinds: tuple[str, ...] | None = None
    # "train" or "test". None: not said.
    split: str | None = None
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    # Of what tune it is a rendering. None: not said.
    melody: str | None = None


def read_text(path: Path) -> tuple[str, bool]:
    """A text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark, or else in Windows-1252, and whether it was the last. No mark is left in it.

    Raises:
        UserError: it cannot be read, or is in none of these.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path} is not a file, where a text was expected: {'move that folder away' if os.path.isdir(path) else 'put one there'}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): change its permissions, or move it away") from None
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)
    for each in [encoding] if encoding else ["utf-8", "cp1252"]:
        try:
            text = data.decode(each)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:  # As in a binary file, and in UTF-16 without its mark.
            return text, each == "cp1252"
    raise UserError(f"{path} is not a text in UTF-8, nor in UTF-16 with a byte order mark, nor in Windows-1252: save it as UTF-8")


def read_sidecar(path: Path) -> tuple[tuple[str, ...], bool]:
    """The captions of a text file, one per line, without empty ones, and whether it was in Windows-1252."""
    text, windows = read_text(path)
    return tuple(line.strip() for line in text.split("\n") if line.strip()), windows


def read_lines(path: Path) -> tuple[list[Line], list[str]]:
    """All lines of metadata.jsonl that are not empty, and what is worth a warning, such as keys that nothing reads.

    Lines end at "\\n" alone: U+2028 and U+0085 may stand in a JSON string.

    Raises:
        UserError: a line is not what the module's docstring says. The message names file and line.
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
            raise UserError(f'{path} line {number} is not an object with "file_name" and "captions": mend that line') from None
        try:
            lines.append(_read_line(entry, number))
        except UserError as error:
            raise UserError(f"{path} line {number}: {error}") from None
        unread.update(key for key in entry if key not in _KEYS or (key == "caption" and "captions" in entry))
    warnings = [f"{path} is read as Windows-1252, for it is not UTF-8: save it as UTF-8 where letters are wrong"] if windows else []
    if unread:
        keys = ", ".join(f"{key!r} ({count})" for key, count in unread.most_common())
        warnings.append(f"{path} has keys that are not read, each in so many lines: {keys}; those that are read: {', '.join(_KEYS)}")
    return lines, warnings


def _read_line(entry: dict[str, Any], number: int) -> Line:
    try:
        json.dumps(entry, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(r"it has half a surrogate pair, such as \ud83d alone, which is no letter: write the whole letter") from None
    name, split, attributes, melody = (entry.get(key) for key in ("file_name", "split", "attributes", "melody"))
    if not name.strip() or "\0" in name:
        raise UserError(f"file_name is {name!r}, expected the name of an audio file in the folder")
    captions, kinds = read_captions(entry)
    if split not in (None, *SPLITS):
        raise UserError(f"split is {split!r}, expected 'train' or 'test'")
    if not isinstance(attributes, dict | None):
        raise UserError(f"attributes is {attributes!r}, expected an object from names to values")
    if not isinstance(melody, str | None) or melody == "":
        raise UserError(f"melody is {melody!r}, expected a string, the name of the tune")
    return Line(number, os.path.normpath(name), captions, kinds, split, attributes or {}, melody)


def read_captions(entry: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """The captions that a line of metadata.jsonl gives, without empty ones, and the kind of each; None for the kinds where it names none.

    Raises:
        UserError: they are neither a list of strings nor an object from kinds to such lists.
    """
    given = entry.get("captions", entry.get("caption", ()))
    by_kind = given if isinstance(given, dict) else {None: [given] if isinstance(given, str) else given}
    for texts in by_kind.values():
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"captions is {given!r}, expected a list of strings, or an object from kinds to lists of strings")
    found = [(text.strip(), kind) for kind, texts in by_kind.items() for text in texts if text.strip()]
    return tuple(text for text, _ in found), tuple(kind for _, kind in found) if found and isinstance(given, dict) else None
