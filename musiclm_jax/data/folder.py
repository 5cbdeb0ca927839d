"""The clips of a folder, with their captions, splits and melodies: `read_folder`. Nothing is decoded here; NumPy and JAX are not needed.

`data/walk.py` finds the files, `data/listing.py` which of them are clips and what is said of them, `data/splits.py` which are held out, `data/hashing.py`
the hashes of their contents. A clip needs no caption: codec and w2v-BERT are trained on all clips, MuLan on those with captions, the melody embedder on
those with melodies.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from typing import Any

from musiclm_jax.data.hashing import hash_files as hash_contents
from musiclm_jax.data.listing import find_clips
from musiclm_jax.data.metadata import METADATA
from musiclm_jax.data.splits import assign_splits, group_of
from musiclm_jax.errors import UserError, unreadable
from musiclm_jax.files import AnyPath, as_path, is_dir, is_file
from musiclm_jax.progress import OnProgress


@dataclasses.dataclass(frozen=True)
class Entry:
    """One clip: an existing audio file, or a part of one, and its metadata."""

    # The name in the file system, relative to the folder, with "/" between folders.
    file_name: str
    captions: tuple[str, ...] = ()
    # The kind of each caption. None: not given.
    kinds: tuple[str, ...] | None = None
    # "train" or "test".
    split: str = "train"
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    # Name of the melody that it renders. None: not given.
    melody: str | None = None
    # Hash of the file's bytes. None: `read_folder` was called without hash_files.
    sha256: str | None = None
    # The part of the file, in seconds. None: from its beginning, to its end.
    start_sec: float | None = None
    end_sec: float | None = None
    group: str | None = None
    licence: str | None = None
    # Name of the clip that it accompanies. None: not given.
    voice: str | None = None

    @property
    def name(self) -> str:
        """A name that no other clip of the folder has: that of the file, with the part."""
        return self.file_name + name_of_part(self.start_sec, self.end_sec)


def name_of_part(start_sec: float | None, end_sec: float | None) -> str:
    """What the name of a part of a file ends with, such as "[10-20]"; "" for a whole file."""
    if start_sec is None and end_sec is None:
        return ""
    return f"[{start_sec or 0:g}-{'' if end_sec is None else format(end_sec, 'g')}]"


_PART = re.compile(r"(.*)\[([\d.e+-]+)-([\d.e+-]*)\]", re.DOTALL)


def part_of_name(name: str) -> tuple[str, float | None, float | None]:
    """(the name of the file, start_sec, end_sec) of a clip's name: the inverse of adding `name_of_part`. Names of audio files do not end with a bracket."""
    found = _PART.fullmatch(name)
    return (name, None, None) if found is None else (found[1], float(found[2]), float(found[3]) if found[3] else None)


# The data of each aspect of a folder, entry by entry. None: the entry has no such data.
_ASPECTS = {
    "waves": lambda entry: [entry.name, entry.sha256],
    "splits": lambda entry: [entry.name, entry.split],
    "captions": lambda entry: [entry.name, entry.captions, entry.kinds] if entry.captions else None,
    "melodies": lambda entry: [entry.name, entry.melody] if entry.melody is not None else None,
    "voices": lambda entry: [entry.name, entry.voice] if entry.voice is not None else None,
}


@dataclasses.dataclass(frozen=True)
class ClipFolder:
    """The clips of a folder in the order of their names, with clips that cannot be used, and warnings."""

    path: AnyPath
    entries: tuple[Entry, ...]
    # (name, reason) of clips that are listed but cannot be used, such as missing files.
    unusable: tuple[tuple[str, str], ...] = ()
    # Names of clips of a public data set whose audio is not there, which is no fault.
    absent: tuple[str, ...] = ()
    # Warnings for the user, of one line each.
    warnings: tuple[str, ...] = ()

    def digest(self, aspect: str) -> str:
        """A hash of one aspect of all entries: "waves" (names and contents), "splits", "captions" (texts and kinds), "melodies" or "voices".

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


def _other_kind(folder: AnyPath) -> str:
    """What a folder is that has no clips but data made of clips, with the command that reads it. "": a folder of clips."""
    if is_file(folder / "tokens.json"):
        return "a token set: train the stages on it with `musiclm fit`; this command reads folders of clips"
    if is_file(folder / "plan" / "settings.json"):
        return "a token set that is not complete: run the same `musiclm tokenize` again, which continues it"
    if is_file(folder / "dataset_info.json"):
        return "a data set of TFDS, which `musiclm fit` and `musiclm train` read; this command reads folders of clips"
    return ""


def read_folder(
    path: AnyPath | str, *, hashes: AnyPath | None = None, hash_files: bool = True, group_by: str = "listed", on_progress: OnProgress | None = None
) -> ClipFolder:
    """Finds the clips of a folder and reads their metadata.

    Args:
        path: the folder.
        hashes: a JSON file that stores hashes by file name, size and time of change, so that only new and changed files are read again. None: no such file.
        hash_files: whether the files are hashed. Evaluations do not need hashes.
        group_by: how clips without a group get one, see `data/splits.py`.
        on_progress: called with ("reading", files done, files in all) while files are read.

    Raises:
        UserError: `path` is not a folder or has no audio, its texts do not have the format in `data/metadata.py`, or a melody or group is in both splits.
    """
    folder = as_path(path)
    try:
        if not is_dir(folder):
            raise UserError(f"{folder} is not a folder: name the folder with the clips and {METADATA}")
    except OSError as error:
        raise unreadable(folder, error) from error
    if other := _other_kind(folder):
        raise UserError(f"{folder} is {other}")
    found = find_clips(folder)
    known: dict[str, str | None] = {name: None for name, _ in found.clips}
    unusable = found.unusable
    if hash_files:
        known, unread = hash_contents(folder, list(known), cache=hashes, on_progress=on_progress)
        unusable = sorted([*unusable, *unread])
    clips = [(name, line) for name, line in found.clips if name in known]
    if not clips:
        raise UserError(f"{folder} has no audio file that can be read, such as {unusable[0][0]}: {unusable[0][1]}")
    splits = assign_splits(clips, group_by=group_by, where=str(folder / found.source))
    entries = tuple(
        Entry(
            name, line.captions, line.kinds, split, line.attributes, line.melody, known[name],
            line.start_sec, line.end_sec, group_of(name, line, group_by), line.licence, line.voice,
        )
        for (name, line), split in zip(clips, splits, strict=True)
    )  # fmt: skip
    return ClipFolder(folder, entries, tuple(unusable), tuple(found.absent), tuple(found.warnings))
