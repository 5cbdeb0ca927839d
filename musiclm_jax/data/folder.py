"""Finds the clips of a folder, with their captions, splits and melodies. Nothing is decoded here; NumPy and JAX are not needed.

With `metadata.jsonl` (see `data/metadata.py`) the clips are the files that it lists; without it, all audio files. A clip needs no caption: codec and
w2v-BERT are trained on all clips, MuLan on those with captions, the melody embedder on those with melodies.

Hidden files and folders, folders that file systems and archivers create, and the work folders of `musiclm` are ignored. Links to folders are followed;
each folder is read once. A folder on an object store is read by one listing, and its files are known by size and version.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from musiclm_jax.buckets import StoreError, read_bytes
from musiclm_jax.data.metadata import METADATA, Line, read_lines, read_sidecar
from musiclm_jax.data.prefetch import map_ahead
from musiclm_jax.errors import UserError, unreadable
from musiclm_jax.files import AnyPath, as_path, exists, fingerprint, is_bucket, is_dir, is_file, list_objects, write_text
from musiclm_jax.progress import OnProgress

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")
TEST_SHARE = 0.05
# A file in the folder of each step of `fit`. `superseded` and `.locks` are beside such folders.
STEP_FILE = "step.json"
_BESIDE_STEPS = ("superseded", ".locks")
_JUNK_FOLDERS = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
_SAVE_HASHES_SEC = 30.0


@dataclasses.dataclass(frozen=True)
class Entry:
    """One clip: an existing audio file and its metadata."""

    # The name in the file system, relative to the folder, with "/" between folders.
    file_name: str
    captions: tuple[str, ...]
    # The kind of each caption. None: not given.
    kinds: tuple[str, ...] | None
    # "train" or "test".
    split: str
    attributes: dict[str, Any]
    # Name of the melody that it renders. None: not given.
    melody: str | None
    # Hash of the file's bytes. None: `read_folder` was called without hash_files.
    sha256: str | None


# The data of each aspect of a folder, entry by entry. None: the entry has no such data.
_ASPECTS = {
    "waves": lambda entry: [entry.file_name, entry.sha256],
    "splits": lambda entry: [entry.file_name, entry.split],
    "captions": lambda entry: [entry.file_name, entry.captions, entry.kinds] if entry.captions else None,
    "melodies": lambda entry: [entry.file_name, entry.melody] if entry.melody is not None else None,
}


@dataclasses.dataclass(frozen=True)
class ClipFolder:
    """The clips of a folder in the order of their names, with clips that cannot be used, and warnings."""

    path: AnyPath
    entries: tuple[Entry, ...]
    # (name, reason) of clips that are listed but cannot be used, such as missing files.
    unusable: tuple[tuple[str, str], ...] = ()
    # Warnings for the user, of one line each.
    warnings: tuple[str, ...] = ()

    def digest(self, aspect: str) -> str:
        """A hash of one aspect of all entries: "waves" (names and contents), "splits", "captions" (texts and kinds) or "melodies".

        A step of `fit` depends only on the aspects that it reads. A corrected caption changes "captions" only.

        Raises:
            ValueError: `aspect` is unknown, or it is "waves" and the entries have no hashes.
        """
        if aspect not in _ASPECTS:
            raise ValueError(f"aspect {aspect!r}: expected one of {', '.join(_ASPECTS)}")
        if aspect == "waves" and any(entry.sha256 is None for entry in self.entries):
            raise ValueError("the digest of the waves needs read_folder(..., hash_files=True)")
        data = [each for each in map(_ASPECTS[aspect], self.entries) if each is not None]
        return hashlib.sha256(json.dumps(data).encode()).hexdigest()

    def split(self, name: str) -> tuple[Entry, ...]:
        """The entries of the split "train" or "test"."""
        return tuple(entry for entry in self.entries if entry.split == name)

    @property
    def captioned(self) -> tuple[Entry, ...]:
        """The entries with a caption, on which MuLan is trained."""
        return tuple(entry for entry in self.entries if entry.captions)

    @property
    def has_melodies(self) -> bool:
        return any(entry.melody is not None for entry in self.entries)


def check_captions(folder: ClipFolder) -> None:
    """Raises UserError if no clip has a caption, because MuLan and the steps that need it cannot be trained then."""
    if folder.captioned:
        return
    if folder.has_melodies:
        raise UserError(f"no clip of {folder.path} has a caption: add captions to {METADATA}; without any, only melody can be trained")
    raise UserError(
        f"{folder.path} has {len(folder.entries)} audio files but no captions: add {METADATA} with lines such as "
        f'{{"file_name": "{folder.entries[0].file_name}", "captions": ["a calm piano melody"]}}, or a text file beside each clip'
    )


def read_folder(path: AnyPath | str, *, hashes: AnyPath | None = None, hash_files: bool = True, on_progress: OnProgress | None = None) -> ClipFolder:
    """Finds the clips of a folder and reads their metadata.

    If the metadata give no clip a split, about 5% of the clips are held out, by the hash of their melody or else of their name. If they give some clips a
    split, the other clips are "train".

    Args:
        path: the folder.
        hashes: a JSON file that stores hashes by file name, size and time of change, so that only new and changed files are read again. None: no such file.
        hash_files: whether the files are hashed. Evaluations do not need hashes.
        on_progress: called with ("reading", files done, files in all) while files are read.

    Raises:
        UserError: `path` is not a folder or has no audio, its texts do not have the format in `data/metadata.py`, or a melody is in both splits.
    """
    folder = as_path(path)
    try:
        if not is_dir(folder):
            raise UserError(f"{folder} is not a folder: name the folder with the clips and {METADATA}")
    except OSError as error:
        raise unreadable(folder, error) from error
    metadata, unusable, warnings = _find_clips(folder)
    found: dict[str, str | None] = dict.fromkeys(metadata)
    if hash_files:
        found, unread = _hash(folder, list(metadata), hashes, on_progress)
        unusable = sorted([*unusable, *unread])
    splits = _splits(folder, {name: metadata[name] for name in found})
    entries = tuple(
        Entry(name, line.captions, line.kinds, splits[name], line.attributes, line.melody, found[name])
        for name, line in metadata.items() if name in found
    )  # fmt: skip
    if not entries:
        raise UserError(f"{folder} has no audio file that can be read, such as {unusable[0][0]}: {unusable[0][1]}")
    return ClipFolder(folder, entries, tuple(unusable), tuple(warnings))


# ---------------------------------------------------------------------------------------------------------------------- Which files


def _find_clips(folder: AnyPath) -> tuple[dict[str, Line], list[tuple[str, str]], list[str]]:
    """Returns (the metadata of each existing clip by its name on disk, in the order of names; (name, reason) of other clips; warnings)."""
    names, broken = (_listed(folder), []) if is_bucket(folder) else _walk(folder)
    audio = [name for name in names if _is_audio(name)]
    if exists(folder / METADATA):
        metadata, broken, warnings = _read_listed(folder, audio)
    else:
        metadata, warnings = _read_sidecars(folder, audio, [name for name in names if name.endswith(".txt")])
    if not metadata:
        suffixes = ", ".join(AUDIO_SUFFIXES)
        if audio:
            raise UserError(f"{folder / METADATA} lists no file that exists, such as {audio[0]}: write the names as they are in {folder}")
        what = "captions but no audio" if broken else "no audio"
        raise UserError(f"{folder} contains {what}: put the clips there ({suffixes}), with the names in {METADATA}")
    return {name: metadata[name] for name in sorted(metadata)}, sorted(broken), warnings


def _is_audio(name: str) -> bool:
    return name.lower().endswith(AUDIO_SUFFIXES)


def _listed(folder: AnyPath) -> list[str]:
    """As `_walk`, the names of the files that may be clips or texts, of a folder on an object store."""
    names = sorted(list_objects(folder))
    steps = {os.path.dirname(name) for name in names if os.path.basename(name) == STEP_FILE} - {""}
    passed = steps | {os.path.join(os.path.dirname(step), each) for step in steps for each in _BESIDE_STEPS}

    def is_passed(name: str) -> bool:
        parts = name.split("/")
        above = {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        return any(part.startswith(".") for part in parts) or bool({*parts[:-1]} & {*_JUNK_FOLDERS}) or bool(above & passed)

    return [name for name in names if not is_passed(name)]


def _walk(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Returns (the names of all files below a folder that may be clips or texts, (name, reason) of audio files that cannot be used).

    Links to folders are followed last, and each folder is read once, so that clips get the names that they have without links. Links to the folder
    itself or to one that contains it are ignored.

    Raises:
        UserError: a folder cannot be read.
    """
    root = os.path.realpath(folder)
    names, broken, seen = [], [], set()
    folders, links = [""], []
    while folders or links:
        at = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(folder / at)
        if real in seen or (at and os.path.commonpath([root, real]) == real):
            continue
        seen.add(real)
        try:
            found = sorted(os.scandir(folder / at), key=lambda item: item.name)
        except OSError as error:
            raise UserError(f"{folder / at} cannot be read ({error.strerror}): change its permissions, or move it out of {folder}") from None
        below = {item.name for item in found if item.is_dir()}
        steps = {name for name in below if os.path.exists(folder / at / name / STEP_FILE)}
        passed = steps | {*_JUNK_FOLDERS, *(_BESIDE_STEPS if steps else ())}
        for item in found:
            name = f"{at}/{item.name}" if at else item.name
            if item.name.startswith(".") or item.name in passed:
                continue
            if item.name in below:
                (links if item.is_symlink() else folders).append(name)
            elif item.is_file():
                names.append(name)
            elif item.is_symlink() and _is_audio(name):
                broken.append((name, "is a link to a file that is not there"))
    for name in [name for name in names if not _is_text(name)]:
        names.remove(name)
        if _is_audio(name):
            broken.append((os.fsencode(name).decode("utf-8", "backslashreplace"), "its name is not UTF-8; rename it"))
    return sorted(names), broken


def _is_text(name: str) -> bool:
    """Whether a name can be encoded as UTF-8. File systems also allow other names."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _by_form(names: Iterable[str]) -> dict[str, list[str]]:
    """Groups names by their NFC form: "é" may be one character or, as on macOS, an e and an accent."""
    forms: dict[str, list[str]] = {}
    for name in names:
        forms.setdefault(_nfc(name), []).append(name)
    return forms


def _read_listed(folder: AnyPath, audio: list[str]) -> tuple[dict[str, Line], list[tuple[str, str]], list[str]]:
    """The clips that metadata.jsonl lists, as in `_find_clips`. audio: the names of all audio files."""
    lines, warnings = read_lines(folder / METADATA)
    if not lines:
        raise UserError(f'{folder / METADATA} lists no clip: add lines such as {{"file_name": "{audio[0] if audio else "a.wav"}"}}, or remove it')
    there, forms = set(audio), _by_form(audio)
    metadata, missing, listed = {}, [], set()
    for line in lines:
        name, reason = _on_disk(folder, line.file_name, there, forms)
        if name in listed:
            raise UserError(f"{folder / METADATA} line {line.number}: {line.file_name} is listed twice: put all its captions into one line")
        listed.add(name)
        if reason:
            missing.append((name, reason))
        else:
            metadata[name] = line
    if unlisted := [name for name in audio if name not in metadata]:
        what = "1 audio file is" if len(unlisted) == 1 else f"{len(unlisted)} audio files are"
        warnings.append(f"{what} not listed in {folder / METADATA} and therefore ignored, such as {unlisted[0]}")
    return metadata, missing, warnings


def _on_disk(folder: AnyPath, name: str, there: set[str], forms: dict[str, list[str]]) -> tuple[str, str]:
    """Finds a listed file. Returns (its name on disk, ""), or (its listed name, the reason why it cannot be used)."""
    if os.path.isabs(name) or name.split("/")[0] == "..":
        return name, f"is outside of {folder}; put it there, or link it"
    alike = [name] if name in there else forms.get(_nfc(name), [])
    if len(alike) > 1:
        return name, f"may be any of {len(alike)} files whose names differ only in how accents are written; rename them"
    if alike:
        return alike[0], ""
    if is_file(folder / name):  # A hidden file, or one with another suffix.
        return name, ""
    return name, "is a folder; name one audio file" if is_dir(folder / name) else "no such file"


def _read_sidecars(folder: AnyPath, audio: list[str], texts: list[str]) -> tuple[dict[str, Line], list[str]]:
    """Returns (the metadata of all audio files from their text files, warnings)."""
    forms, metadata, windows, unused = _by_form(texts), {}, set(), {*texts}
    for name in audio:
        captions: tuple[str, ...] = ()
        stem = os.path.splitext(name)[0]
        for text in forms.get(_nfc(f"{stem}.txt"), [])[:1]:
            captions, is_windows = read_sidecar(folder / text)
            windows |= {text} if is_windows else set()
            unused.discard(text)
        metadata[name] = Line(0, name, captions)
    warnings = []
    if windows:
        warnings.append(f"{len(windows)} text files are not UTF-8 and were read as Windows-1252, such as {min(windows)}")
    if unused and len(unused) < len(texts):  # Some texts are captions, so the others may be misspelled.
        warnings.append(f"{len(unused)} text files have no audio file of the same name and are ignored, such as {min(unused)}")
    return metadata, warnings


# ---------------------------------------------------------------------------------------------------------------------- Contents


def _hash(folder: AnyPath, names: list[str], cache: AnyPath | None, on_progress: OnProgress | None) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Returns ({name: SHA-256 of the file's bytes}, (name, reason) of files that cannot be read)."""
    old, listing = _read_cache(cache), list_objects(folder) if is_bucket(folder) else {}
    stats, known, unread = {}, {}, []

    def read(name: str) -> str | OSError:
        try:
            if is_bucket(folder):
                return hashlib.sha256(read_bytes(folder / name)).hexdigest()
            with (folder / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except StoreError:  # Of the store, not of this file.
            raise
        except OSError as error:
            return error

    for name in names:
        try:
            found = listing.get(name) or fingerprint(folder / name)
        except OSError as error:
            unread.append((name, f"cannot be read ({error.strerror or error})"))
            continue
        stats[name] = list(found)  # Taken before the file is read, so that a file that changes meanwhile is read again next time.
        if name in old and old[name][:2] == stats[name]:
            known[name] = old[name][2]
    wanted = [name for name in stats if name not in known]
    save = lambda: write_text(cache, json.dumps({"files": {name: [*stats[name], known[name]] for name in stats if name in known}}) + "\n")  # noqa: E731
    saved = time.monotonic()
    for done, (name, found) in enumerate(map_ahead(read, wanted), start=1):
        if isinstance(found, OSError):
            unread.append((name, f"cannot be read ({found.strerror or found})"))
        else:
            known[name] = found
        if on_progress:
            on_progress("reading", done, len(wanted))
        if cache and time.monotonic() - saved > _SAVE_HASHES_SEC:
            save()
            saved = time.monotonic()
    if cache and (wanted or old.keys() != known.keys()):
        save()
    return {name: known[name] for name in names if name in known}, unread


def _read_cache(path: AnyPath | None) -> dict[str, list]:
    """{name: [*`fingerprint`, sha256]}. Empty if the file is missing or damaged; all files are hashed again then."""
    try:
        files = json.loads(path.read_bytes())["files"] if path else {}
        return {name: [int(size), int(version), str(sha256)] for name, (size, version, sha256) in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


# ---------------------------------------------------------------------------------------------------------------------- Splits


def _splits(folder: AnyPath, metadata: dict[str, Line]) -> dict[str, str]:
    """The split of each clip: see `read_folder`."""
    if any(line.split for line in metadata.values()):
        splits = {name: line.split or "train" for name, line in metadata.items()}
        train, test = ({metadata[name].melody for name, split in splits.items() if split == each} - {None} for each in ("train", "test"))
        if train & test:
            raise UserError(f"{folder / METADATA} has melody {min(train & test)!r} in both splits: give all of its renderings the same split")
        return splits
    tunes = {name: name if line.melody is None else line.melody for name, line in metadata.items()}
    held_out = set(_held_out(sorted(set(tunes.values()))))
    return {name: "test" if tune in held_out else "train" for name, tune in tunes.items()}


def _held_out(names: list[str]) -> list[str]:
    """About TEST_SHARE of the names, at least one of two or more. They are chosen by hash, so that new clips do not change the split of others."""
    hashes = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64 for name in names}
    chosen = [name for name in names if hashes[name] < TEST_SHARE]
    if not chosen and len(names) > 1:
        chosen = [min(names, key=hashes.__getitem__)]
    return chosen if len(chosen) < len(names) else chosen[1:]
