"""Finds the files of a folder that may be clips or texts. Nothing is read here.

Hidden files and folders, folders that file systems and archivers create, and the work folders of `musiclm` are ignored. Links to folders are followed;
each folder is read once. A folder on an object store is read by one listing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath, is_bucket, list_objects

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")
# Audio, or video with sound, that libsndfile does not read.
FOREIGN_SUFFIXES = (".m4a", ".aac", ".wma", ".mp4", ".webm", ".mka", ".ape", ".wv")
# A file in the folder of each step of `fit`. `superseded` and `.locks` are beside such folders.
STEP_FILE = "step.json"
_BESIDE_STEPS = ("superseded", ".locks")
_DANGLING = "is a link to a file that is not there; put the file itself there, or remove the link"
_DEVICE = "is a device, a pipe or a socket; put an audio file there, or remove it"
_JUNK_FOLDERS = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")


def is_audio(name: str) -> bool:
    return name.lower().endswith(AUDIO_SUFFIXES)


def is_hidden(name: str) -> bool:
    """Whether a file is hidden, is in a hidden folder, or in one that file systems and archivers create."""
    parts = name.split("/")
    return any(part.startswith(".") for part in parts) or bool({*parts[:-1]} & {*_JUNK_FOLDERS})


def split_names(names: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Returns (the names that are UTF-8, (name, reason) of audio files with other names)."""
    found, broken = [], []
    for name in names:
        if _is_text(name):
            found.append(name)
        elif is_audio(name):
            broken.append((printable(name), "its name is not UTF-8; rename it"))
    return found, broken


def printable(name: str) -> str:
    r"""A name on one line, with what cannot be printed written as \n and \xe9."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def walk(folder: AnyPath) -> tuple[list[str], list[tuple[str, str]]]:
    """Returns (the names of all files below a folder that may be clips or texts, sorted; (name, reason) of audio files that cannot be used).

    Raises:
        UserError: a folder cannot be read.
    """
    return (_listed(folder), []) if is_bucket(folder) else _walk(folder)


def _listed(folder: AnyPath) -> list[str]:
    """The names of the files that may be clips or texts, of a folder on an object store."""
    names = sorted(list_objects(folder))
    steps = {os.path.dirname(name) for name in names if os.path.basename(name) == STEP_FILE} - {""}
    passed = steps | {os.path.join(os.path.dirname(step), each) for step in steps for each in _BESIDE_STEPS}

    def is_passed(name: str) -> bool:
        parts = name.split("/")
        return is_hidden(name) or any("/".join(parts[:depth]) in passed for depth in range(1, len(parts)))

    return [name for name in names if not is_passed(name)]


def _walk(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """`walk` on the local disk.

    Links to folders are followed last, and each folder is read once, so that clips get the names that they have without links. Links to the folder
    itself or to one that contains it are ignored.
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
        below = {item.name for item in found if os.path.isdir(item.path)}  # Unlike `DirEntry.is_dir`, False for a link to itself.
        steps = {name for name in below if os.path.exists(folder / at / name / STEP_FILE)}
        passed = steps | {*_JUNK_FOLDERS, *(_BESIDE_STEPS if steps else ())}
        for item in found:
            name = f"{at}/{item.name}" if at else item.name
            if item.name.startswith(".") or item.name in passed:
                continue
            if item.name in below:
                (links if item.is_symlink() else folders).append(name)
            elif os.path.isfile(item.path):
                names.append(name)
            elif is_audio(name):
                there = os.path.exists(item.path)
                broken.append((printable(name), _DEVICE if there else _DANGLING))
    found, unreadable = split_names(names)
    return sorted(found), [*broken, *unreadable]


def _is_text(name: str) -> bool:
    """Whether a name can be encoded as UTF-8. File systems also allow other names."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
