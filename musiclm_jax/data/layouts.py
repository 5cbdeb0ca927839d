"""Layouts of public data sets and of other projects, as lines of a table (`data/metadata.py`). Nothing is decoded here.

    musiccaps-public.csv                      MusicCaps (MusicLM, arXiv 2301.11325, section 4.3): the public table, beside audio that the user has
    fma_metadata/tracks.csv                   FMA (arXiv 1612.01840): its metadata, beside its folders of audio; genres become captions
    data.jsonl, data.jsonl.gz with "path"     the manifests of audiocraft, with a JSON file of captions beside each audio file

A layout finds the audio of a clip by its id. A clip whose audio is not there is *absent*, which is no fault of the folder: many clips of MusicCaps cannot be
had any more.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import math
import os
import re
from collections.abc import Callable, Sequence

import soundfile

from musiclm_jax.data.metadata import Line, read_json_sidecar
from musiclm_jax.data.tables import read_rows
from musiclm_jax.data.text_files import read_text
from musiclm_jax.errors import UserError, unreadable
from musiclm_jax.files import AnyPath
from musiclm_jax.tars import is_file, open_file

MUSICCAPS, FMA, MANIFESTS = "musiccaps-public.csv", "fma_metadata/tracks.csv", ("data.jsonl", "data.jsonl.gz")
# An audio file of MusicCaps may be the clip itself, or all of the video: then it is at least as long as the clip's end, but for this.
_SLACK_SEC = 0.5
# What a caption says of an FMA track.
_GENRE_CAPTIONS = ("{genre} music", "a {genre} track")

# Its columns, by two lines of names.
_FMA_COLUMNS = (("track", "genre_top"), ("set", "split"), ("artist", "id"), ("track", "license"))


@dataclasses.dataclass(frozen=True)
class Found:
    """The clips of a layout."""

    # The table, relative to the folder.
    table: str
    lines: tuple[Line, ...]
    # Ids of clips whose audio is not there.
    absent: tuple[str, ...] = ()


Layout = Callable[[AnyPath, Sequence[str]], Found]


def layout_of(folder: AnyPath, names: Sequence[str]) -> Layout | None:
    """The layout of a folder with files `names`, relative to it. None: that of `data/folder.py`. A layout is called with the folder and its audio files."""
    there = set(names)
    if MUSICCAPS in there:
        return read_musiccaps
    if FMA in there:
        return read_fma
    if manifest := next((name for name in MANIFESTS if name in there), None):
        return lambda folder, audio: read_manifest(folder, audio, manifest)
    return None


def read_musiccaps(folder: AnyPath, audio: Sequence[str], *, table: AnyPath | None = None) -> Found:
    """The clips of MusicCaps: captions, AudioSet's evaluation split as the held-out one, videos as groups, and the balanced subset as an attribute.

    Audio files are named by the id of the video, or by id and start, with or without brackets: `ID.wav`, `ID-30.wav`, `[ID]-[30-40].wav`. An `ID.wav` that
    reaches to the clip's end is taken for the whole video, and another for the clip.

    Args:
        table: the file of the table. None: `MUSICCAPS` in the folder.

    Raises:
        UserError: the table has no such columns.
    """
    path = folder / MUSICCAPS if table is None else table
    stems = {re.sub(r"[\[\]]", "", os.path.splitext(os.path.basename(name))[0]): name for name in audio}
    lines, absent = [], []
    for number, row in read_rows(path)[0]:
        try:
            video, start, end, caption = row["ytid"], float(row["start_s"]), float(row["end_s"]), row["caption"]
        except (KeyError, ValueError) as error:
            raise UserError(f"{path} line {number} lacks ytid, start_s, end_s or caption ({error}): take the table that was published") from None
        if not 0 <= start < end < math.inf:
            raise UserError(f"{path} line {number}: is from {start:g} to {end:g} s, expected numbers from 0 on, in order: take the table that was published")
        clip, part = next((stems[stem] for stem in _clip_stems(video, start, end) if stem in stems), None), (None, None)
        if clip is None and video in stems:
            clip = stems[video]
            if _length_sec(folder / clip) >= end - _SLACK_SEC:
                part = (start, end)
        if clip is None:
            absent.append(f"{video}-{start:g}")
            continue
        attributes = {"balanced": _is_true(row.get("is_balanced_subset")), "aspects": row.get("aspect_list", "")}
        split = "test" if _is_true(row.get("is_audioset_eval")) else "train"
        lines.append(Line(number, clip, (caption,), None, split, attributes, group=video, start_sec=part[0], end_sec=part[1]))
    return Found(MUSICCAPS, tuple(lines), tuple(absent))


def _clip_stems(video: str, start: float, end: float) -> list[str]:
    return [f"{video}{mark}{when}" for mark in ("-", "_") for when in (f"{start:g}", f"{start:g}-{end:g}", f"{start:g}_{end:g}")]


def _is_true(value) -> bool:
    return str(value).lower() in ("true", "1")


def _length_sec(path: AnyPath) -> float:
    """Seconds of an audio file, by its header. 0: it cannot be read, of which its decoding will say more."""
    try:
        with open_file(path) as file:
            return soundfile.info(file).duration
    except (soundfile.SoundFileError, OSError):
        return 0.0


def read_fma(folder: AnyPath, audio: Sequence[str]) -> Found:
    """The tracks of FMA, found by their number (`000/000002.mp3`): genres as captions, its splits (validation and test are held out), artists as groups.

    Raises:
        UserError: the table is not that of FMA.
    """
    path = folder / FMA
    reader = csv.reader(io.StringIO(read_text(path)[0], newline=""))
    try:
        columns = {pair: at for at, pair in enumerate(zip(next(reader), next(reader)))}
        genre_at, split_at, artist_at, licence_at = (
            columns[pair] for pair in (("track", "genre_top"), ("set", "split"), ("artist", "id"), ("track", "license"))
        )
    except (StopIteration, KeyError) as error:
        raise UserError(f"{path} is not the table of tracks of FMA ({error} is missing): take tracks.csv of fma_metadata.zip") from None
    stems = {os.path.splitext(os.path.basename(name))[0]: name for name in audio}
    lines, absent = [], []
    for number, row in enumerate(reader, start=3):
        if not row or not row[0].isdigit():
            continue
        track = f"{int(row[0]):06d}"
        if track not in stems:
            absent.append(track)
            continue
        genre = row[genre_at].strip().lower()
        captions = tuple(each.format(genre=genre) for each in _GENRE_CAPTIONS) if genre else ()
        split = "train" if row[split_at] == "training" else "test"
        lines.append(Line(number, stems[track], captions, None, split, {"genre": genre}, group=f"artist {row[artist_at]}", licence=row[licence_at] or None))
    return Found(FMA, tuple(lines), tuple(absent))


def read_manifest(folder: AnyPath, audio: Sequence[str], manifest: str) -> Found:
    """The files that a manifest of audiocraft names, with the fields of the JSON file beside each: "description" or "caption", and what our tables have.

    Raises:
        UserError: a line is not an object with "path", or a JSON file cannot be read.
    """
    path, lines, absent = folder / manifest, [], []
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if manifest.endswith(".gz") else data).decode()
    except (OSError, EOFError) as error:
        raise unreadable(path, error) from error
    there = set(audio)
    for number, text_line in enumerate(text.split("\n"), start=1):
        if not text_line.strip():
            continue
        try:
            listed = json.loads(text_line)["path"]
            name = os.path.relpath(listed, folder) if os.path.isabs(listed) else os.path.normpath(listed)
        except (ValueError, KeyError, TypeError):
            raise UserError(f'{path} line {number} is not a JSON object with "path": correct that line') from None
        if name not in there:
            absent.append(name)
            continue
        sidecar = folder / f"{os.path.splitext(name)[0]}.json"
        lines.append(dataclasses.replace(read_json_sidecar(sidecar, name), number=number) if is_file(sidecar) else Line(number, name))
    return Found(manifest, tuple(lines), tuple(absent))
