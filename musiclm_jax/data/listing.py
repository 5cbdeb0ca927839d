"""Which files of a folder are clips, and what is said of them: by a table, by the layout of a public data set, or by a text file beside each clip."""

from __future__ import annotations

import dataclasses
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from musiclm_jax.data.layouts import layout_of
from musiclm_jax.data.metadata import METADATA, TABLES, Line, read_json_sidecar, read_lines, read_sidecar
from musiclm_jax.data.splits import split_of_folder
from musiclm_jax.data.tars import read_shards
from musiclm_jax.data.walk import AUDIO_SUFFIXES, FOREIGN_SUFFIXES, is_audio, walk
from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath, exists, is_dir
from musiclm_jax.tars import is_file


@dataclasses.dataclass
class Listing:
    """The clips of a folder, before their contents are looked at."""

    # (name on disk, line), in the order of names and parts.
    clips: list[tuple[str, Line]]
    # (name, reason) of clips that are listed but cannot be used.
    unusable: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    # Clips of a public data set whose audio is not there, which is no fault.
    absent: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    # The table, for messages.
    source: str = METADATA


def find_clips(folder: AnyPath) -> Listing:
    """The clips of a folder.

    Raises:
        UserError: there are none, or a table does not have its format.
    """
    names, broken = walk(folder)
    tables, layout = _tables(folder, names), layout_of(folder, names)
    shards = read_shards(folder, names, listed=bool(tables or layout))
    names, broken = sorted([*names, *shards.names]), [*broken, *shards.unusable]
    audio = [name for name in names if is_audio(name)]
    if tables:
        found = _read_tables(folder, tables, audio, dict(broken))
    elif layout:
        read = layout(folder, audio)
        found = Listing([(line.file_name, line) for line in read.lines], absent=list(read.absent), source=read.table)
        if read.absent:
            found.warnings.append(f"{len(read.absent)} of {len(read.lines) + len(read.absent)} clips have no audio in {folder}, such as {read.absent[0]}")
    else:
        found = _read_sidecars(folder, audio, names)
        found.unusable += broken
    found.warnings += shards.warnings
    if foreign := [name for name in names if name.lower().endswith(FOREIGN_SUFFIXES)]:
        found.warnings.append(
            f"{len(foreign)} files are of formats that cannot be read, such as {foreign[0]}; to convert one: ffmpeg -i {foreign[0]!r} "
            f"{os.path.splitext(foreign[0])[0] + '.flac'!r}"
        )
    if not found.clips:
        raise _no_clips(folder, found, audio)
    found.clips.sort(key=lambda clip: (clip[0], clip[1].start_sec or 0.0, clip[1].end_sec or 0.0))
    found.unusable.sort()
    return found


def _no_clips(folder: AnyPath, found: Listing, audio: Sequence[str]) -> UserError:
    if found.absent:
        advice = "put it there, named as docs/data.md says"
        return UserError(f"{folder / found.source} lists {len(found.absent)} clips, such as {found.absent[0]}, and none has its audio in {folder}: {advice}")
    if audio:
        return UserError(f"{folder / found.source} lists no file that exists, such as {audio[0]}: write the names as they are in {folder}")
    if found.unusable:
        name, reason = found.unusable[0]
        return UserError(f"{folder} contains {len(found.unusable)} clips that cannot be used and no other, such as {name}: {reason}")
    advice = f"put the clips there ({', '.join(AUDIO_SUFFIXES)}), with the names in {METADATA}"
    return UserError(f"{folder} contains no audio: {'; '.join([advice, *found.warnings])}")


# ---------------------------------------------------------------------------------------------------------------------- Tables


def _tables(folder: AnyPath, names: Sequence[str]) -> list[str]:
    """The table at the top of a folder, or those of the folders that are named after splits."""
    there = set(names)
    if top := [table for table in TABLES if exists(folder / table)]:
        return top[:1]
    folders = {name.partition("/")[0] for name in names if split_of_folder(name)}
    return [found[0] for at in sorted(folders) if (found := [f"{at}/{table}" for table in TABLES if f"{at}/{table}" in there])]


def _read_tables(folder: AnyPath, tables: Sequence[str], audio: Sequence[str], broken: dict[str, str]) -> Listing:
    """The clips that tables list. audio: the names of all audio files. broken: {name: reason} of those that cannot be used, and of such tars."""
    there, forms = set(audio), _by_form(audio)
    found, parts, used = Listing([], source=tables[0]), set(), set()
    for table in tables:
        lines, warnings = read_lines(folder / table)
        found.warnings += warnings
        below = f"{os.path.dirname(table)}/" if "/" in table else ""
        for line in lines:
            name, reason = _on_disk(folder, os.path.normpath(below + line.file_name), there, forms, broken)
            part = (name, line.start_sec, line.end_sec)
            if part in parts:
                raise UserError(f"{folder / table} line {line.number}: {line.file_name} is listed twice: put all its captions into one line")
            parts.add(part)
            if reason:
                found.unusable.append((name, reason))
            else:
                used.add(name)
                found.clips.append((name, line if line.split or not below else dataclasses.replace(line, split=split_of_folder(table))))
    if not found.clips and not found.unusable:
        example = audio[0] if audio else "a.wav"
        raise UserError(f'{folder / tables[0]} lists no clip: add lines such as {{"file_name": "{example}"}}, or remove it')
    if unlisted := [name for name in audio if name not in used]:
        what = "1 audio file is" if len(unlisted) == 1 else f"{len(unlisted)} audio files are"
        found.warnings.append(f"{what} not listed in {folder / tables[0]} and therefore ignored, such as {unlisted[0]}")
    return found


def _on_disk(folder: AnyPath, name: str, there: set[str], forms: dict[str, list[str]], broken: dict[str, str]) -> tuple[str, str]:
    """Finds a listed file. Returns (its name on disk, ""), or (its listed name, the reason why it cannot be used)."""
    if os.path.isabs(name) or name.split("/")[0] == "..":
        return name, f"is outside of {folder}; put it there, or link it"
    alike = [name] if name in there else forms.get(_nfc(name), [])
    if len(alike) > 1:
        return name, f"may be any of {len(alike)} files whose names differ only in how accents are written; rename them"
    if alike:
        return alike[0], ""
    for part in (name, *map(str, PurePosixPath(name).parents)):
        if part in broken:
            return name, broken[part]
    if is_file(folder / name):  # A hidden file, or one with another suffix.
        return name, ""
    return name, "is a folder; name one audio file" if is_dir(folder / name) else "no such file; put it there, or correct its name"


# ---------------------------------------------------------------------------------------------------------------------- A text beside each clip


def _read_sidecars(folder: AnyPath, audio: Sequence[str], names: Sequence[str]) -> Listing:
    """All audio files, each with the captions of its .txt or the fields of its .json. names: of all files."""
    texts = [name for name in names if name.endswith((".txt", ".json"))]
    forms, windows, unused, found = _by_form(texts), set(), {*texts}, Listing([])
    for name in audio:
        line, stem = Line(0, name), os.path.splitext(name)[0]
        for text in forms.get(_nfc(f"{stem}.json"), [])[:1]:
            line = read_json_sidecar(folder / text, name)
            unused.discard(text)
        for text in forms.get(_nfc(f"{stem}.txt"), [])[:1]:
            captions, is_windows = read_sidecar(folder / text)
            line = dataclasses.replace(line, captions=captions, kinds=None) if captions else line
            windows |= {text} if is_windows else set()
            unused.discard(text)
        found.clips.append((name, line))
    if windows:
        found.warnings.append(f"{len(windows)} text files are not UTF-8 and were read as Windows-1252, such as {min(windows)}")
    if unused and len(unused) < len(texts):  # Some texts are captions, so the others may be misspelled.
        found.warnings.append(f"{len(unused)} text files have no audio file of the same name and are ignored, such as {min(unused)}")
    return found


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _by_form(names: Iterable[str]) -> dict[str, list[str]]:
    """Groups names by their NFC form: "é" may be one character or, as on macOS, an e and an accent."""
    forms: dict[str, list[str]] = {}
    for name in names:
        forms.setdefault(_nfc(name), []).append(name)
    return forms
