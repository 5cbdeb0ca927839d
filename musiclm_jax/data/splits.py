"""Which clips are held out, and what must be held out together."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence

from musiclm_jax.data.metadata import SPLITS, Line
from musiclm_jax.errors import UserError

TEST_SHARE = 0.05
# What makes a group of clips for which none is given: nothing, the folder, or the name without a number at its end ("song_part2", "song-2").
GROUPINGS = ("listed", "folder", "name")
_NUMBERED = re.compile(r"(?:[ _.-]*(?:part|pt|segment|seg|chunk|clip|take))?[ _.-]*\d+$", re.IGNORECASE)


def split_of_folder(name: str) -> str | None:
    """The split that the outermost folder of a file's name says, as "train/a.wav" does. None: none."""
    first, _, rest = name.partition("/")
    return SPLITS.get(first.lower()) if rest else None


def assign_splits(lines: Sequence[tuple[str, Line]], *, group_by: str = "listed", where: str) -> list[str]:
    """The split, "train" or "test", of each clip.

    If some lines have a split, or some files are in a folder that is named after a held-out split, the other clips are "train". Else about 5% of the clips
    are held out, by the hash of what they share: melody, group, or else the name of the file.

    Args:
        lines: (name of the file on disk, line).
        group_by: one of GROUPINGS.
        where: the table, for errors.

    Raises:
        UserError: a melody, a group or the parts of one file are in both splits.
    """
    shared = [_shared(name, line, group_by) for name, line in lines]
    given = [line.split for _, line in lines]
    if not any(given):
        given = [split_of_folder(name) for name, _ in lines]
        if "test" not in given:
            given = [None] * len(lines)
    if any(given):
        splits = [split or "train" for split in given]
        _check_crossing(lines, shared, splits, where)
        return splits
    units = _components(shared)
    chosen = set(held_out(sorted(set(units))))
    return ["test" if unit in chosen else "train" for unit in units]


def group_of(name: str, line: Line, group_by: str) -> str | None:
    """The group of a clip: that of its line, or what `group_by` finds. None: none."""
    if line.group is not None or group_by == "listed":
        return line.group
    if group_by == "folder":
        return os.path.dirname(name) or None
    stem = os.path.splitext(name)[0]
    return _NUMBERED.sub("", stem) or stem


def _shared(name: str, line: Line, group_by: str) -> dict[str, str]:
    """What a clip may share with others that are then in its split, by kind."""
    found = {"melody": line.melody, "group": group_of(name, line, group_by), "file": name if line.start_sec is not None or line.end_sec is not None else None}
    return {kind: value for kind, value in found.items() if value is not None} or {"file": name}


def _check_crossing(lines: Sequence[tuple[str, Line]], shared: Sequence[dict[str, str]], splits: Sequence[str], where: str) -> None:
    of: dict[tuple[str, str], set[str]] = {}
    for each, split in zip(shared, splits, strict=True):
        for pair in each.items():
            of.setdefault(pair, set()).add(split)
    if crossing := sorted(pair for pair, found in of.items() if len(found) > 1):
        kind, value = crossing[0]
        what = "all of its renderings" if kind == "melody" else "all of its clips"
        raise UserError(f"{where} has {kind} {value!r} in both splits: give {what} the same split")


def _components(shared: Sequence[dict[str, str]]) -> list[str]:
    """A name for each clip that is the same for all clips which share anything, directly or through others: the first name that they share."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(pair: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(pair, pair) != pair:
            parent[pair] = pair = parent[parent[pair]]
        return pair

    for each in shared:
        first, *others = (root(pair) for pair in each.items())
        for other in others:
            first, other = sorted((root(first), root(other)))
            parent[other] = first
    return [root(next(iter(each.items())))[1] for each in shared]


def held_out(names: list[str]) -> list[str]:
    """About TEST_SHARE of the names, at least one of two or more. They are chosen by hash, so that new clips do not change the split of others."""
    hashes = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64 for name in names}
    chosen = [name for name in names if hashes[name] < TEST_SHARE]
    if not chosen and len(names) > 1:
        chosen = [min(names, key=hashes.__getitem__)]
    return chosen if len(chosen) < len(names) else chosen[1:]
