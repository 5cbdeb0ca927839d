"""The clips that evaluations use: those of a folder as `data/folder.py` reads it, with the same splits as in `fit`; their waves, and pairs of two folders."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from musiclm_jax import audio
from musiclm_jax.arrays import Float
from musiclm_jax.data.folder import ClipFolder, Entry, name_of_part, read_folder
from musiclm_jax.data.prefetch import map_ahead
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.statements import named_attributes
from musiclm_jax.evaluation.tables import count
from musiclm_jax.files import AnyPath

Progress = Callable[[str], None]
Result = TypeVar("Result")
_SAY_EVERY = 100
# Above this ratio of their mean lengths, a report says that clips of two sets differ in length.
_OTHER_LENGTH = 1.5


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One caption of a held-out clip."""

    caption: str
    file_name: str
    # The clip's ground truth, from the metadata.
    attributes: dict[str, Any]
    # The attributes that the caption names.
    named: frozenset[str]
    # The part of the file that is the clip, as in `Entry`.
    start_sec: float | None = None
    end_sec: float | None = None


@dataclasses.dataclass(frozen=True)
class ClipFile:
    """The audio of a clip: a file, or a part of one."""

    path: AnyPath
    start_sec: float | None = None
    end_sec: float | None = None

    @classmethod
    def of(cls, folder: ClipFolder, clip: Entry | Prompt) -> ClipFile:
        return cls(folder.path / clip.file_name, clip.start_sec, clip.end_sec)

    def __str__(self) -> str:
        return f"{self.path}{name_of_part(self.start_sec, self.end_sec)}"

    def read(self, *, sample_rate_hz: int = audio.SAMPLE_RATE_HZ, min_samples: int = 960) -> Float[np.ndarray, "N"]:
        """The wave, as `audio.read` reads it."""
        return audio.read(self.path, sample_rate_hz=sample_rate_hz, min_samples=min_samples, start_sec=self.start_sec or 0.0, end_sec=self.end_sec)


def stem(clip: Entry | Prompt) -> str:
    """The name of a clip without its suffix: "a/b" of a/b.flac, "a/b[10-20]" of a part of it."""
    return os.path.splitext(clip.file_name)[0] + name_of_part(clip.start_sec, clip.end_sec)


def check_seed(seed: int) -> None:
    """Raises UserError unless `seed` is from 0 to 2^32 - 1."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: choose a number from 0 to {2**32 - 1}")


def read_clips(data_dir: str | AnyPath, *, progress: Progress = lambda line: None) -> ClipFolder:
    """The clips of a folder, without hashes. Warnings go to `progress`, one line each.

    Raises UserError as `read_folder`.
    """
    folder = read_folder(data_dir, hash_files=False)
    for warning in folder.warnings:
        progress(warning)
    if folder.unusable:
        name, reason = folder.unusable[0]
        progress(f"{len(folder.unusable)} clips of {folder.path} cannot be used and are skipped, such as {name}: {reason}")
    return folder


def with_ground_truth(folder: ClipFolder, needed: Sequence[str] = ()) -> tuple[Entry, ...]:
    """The clips with captions and attributes. (Variants in a corpus have no captions.)

    Raises:
        UserError: there are no such clips, or one lacks an attribute of `needed`.
    """
    clips = tuple(entry for entry in folder.captioned if entry.attributes)
    if not clips:
        raise UserError(f"{folder.path}: no clip has both captions and attributes, which this evaluation needs; use a corpus of `musiclm corpus`")
    for clip in clips:
        if missing := [name for name in needed if name not in clip.attributes]:
            lacks = f"the attributes of {clip.file_name} lack {', '.join(missing)}"
            raise UserError(f"{folder.path}: {lacks}, which this evaluation needs; use a corpus of `musiclm corpus`")
    return clips


def draw_clips(clips: Sequence[Entry], count: int, *, name: str, kind: str = "held-out", least: int = 2, rng: np.random.Generator) -> list[Entry]:
    """Draws `count` of the clips at random, without repetition.

    Args:
        clips: the clips to draw from.
        count: from `least` to the number of clips.
        name: name of the caller's argument for `count`, for error messages.
        kind: "held-out" or "training", for error messages.
        least: the smallest number of clips that the caller can use.

    Raises:
        UserError: `count` is below `least`, or there are fewer clips.
    """
    if len(clips) < least:
        split = {"held-out": "test", "training": "train"}[kind]
        there = f"{len(clips)} {kind} clips that this evaluation can use"
        raise UserError(f"there are {there}, expected at least {least}: add clips, or give more of them the split {split!r} in metadata.jsonl")
    if not least <= count <= len(clips):
        raise UserError(f"{name}={count}, but there are {len(clips)} {kind} clips that this evaluation can use: choose {least} to {len(clips)}, or add clips")
    return [clips[int(i)] for i in rng.permutation(len(clips))[:count]]


def choose_prompts(clips: Sequence[Entry], *, num_captions: int | None, rng: np.random.Generator, name: str = "num_captions") -> list[Prompt]:
    """Draws `num_captions` held-out clips, and for each one of its captions that name the most attributes.

    Args:
        clips: clips with captions, of any split.
        num_captions: 2 or more. None: all held-out clips.
        name: name of the caller's argument for `num_captions`, for error messages.

    Raises:
        UserError: there are not so many held-out clips.
    """
    held_out = [clip for clip in clips if clip.split == "test"]
    prompts = []
    for clip in draw_clips(held_out, len(held_out) if num_captions is None else num_captions, name=name, rng=rng):
        names = named_by_captions(clip)
        most = max(len(named - {"tempo_bpm"}) for named in names)
        pick = int(rng.choice([i for i, named in enumerate(names) if len(named - {"tempo_bpm"}) == most]))
        prompts.append(Prompt(clip.captions[pick], clip.file_name, clip.attributes, names[pick], clip.start_sec, clip.end_sec))
    return prompts


def named_by_captions(clip: Entry) -> list[frozenset[str]]:
    """The attributes that each caption of a clip names: what the metadata say, as those of a sampled corpus do, or else what the grammar finds."""
    told = clip.attributes.get("named", [])
    if len(told) == len(clip.captions):
        return [frozenset(names) | ({"instrument"} if "family" in names else set()) for names in told]
    return [named_attributes(caption) for caption in clip.captions]


def read_waves(files: Sequence[ClipFile], num_samples: int) -> Float[np.ndarray, "B N"]:
    """The first `num_samples` samples of each clip at 24 kHz, float32. Raises UserError if one is shorter or cannot be read."""
    waves = [file.read()[:num_samples] for file in files]
    for file, wave in zip(files, waves, strict=True):
        if len(wave) < num_samples:
            seconds = [f"{length / audio.SAMPLE_RATE_HZ:g} s" for length in (len(wave), num_samples)]
            raise UserError(f"{file}: has {seconds[0]}, less than the {seconds[1]} of this evaluation; choose fewer seconds, or remove that clip")
    return np.stack(waves)


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """How the waves of clips are read for a judge."""

    sample_rate_hz: int
    # The shortest wave that the judge can read.
    min_samples: int
    # Length of the beginning of each clip that is used. None: clips are used whole.
    seconds: float | None = None

    def __post_init__(self):
        if self.seconds is not None and self.seconds * self.sample_rate_hz < self.min_samples:
            raise UserError(f"seconds={self.seconds:g}: choose at least {self.min_samples / self.sample_rate_hz:.3g} s, the least that this judge can read")

    def read(self, file: ClipFile) -> Float[np.ndarray, "N"]:
        """The wave of a clip. Raises UserError as `audio.read`: for damaged, silent and too short files, and for NaN."""
        wave = file.read(sample_rate_hz=self.sample_rate_hz, min_samples=self.min_samples)
        return wave if self.seconds is None else wave[: round(self.seconds * self.sample_rate_hz)]


def map_waves(
    fn: Callable[[np.ndarray], Result],
    files: Sequence[ClipFile],
    excerpt: Excerpt,
    *,
    what: str,
    least: int = 1,
    progress: Progress = lambda line: None,
) -> tuple[list[tuple[ClipFile, Result, float]], list[str]]:
    """Applies `fn` to the wave of each clip, in as many threads as there are processors.

    Args:
        fn: from a wave [N] to any result.
        files: the clips.
        excerpt: how they are read.
        what: name of the clips, such as "reference", for progress and errors.
        least: the smallest number of clips that the caller can use.
        progress: called with one line per 100 clips.

    Returns:
        ([(clip, result, seconds of the wave)] of the clips that can be used, the reasons why others cannot, "path: reason").

    Raises:
        UserError: fewer than `least` clips can be used.
    """

    def one(file: ClipFile) -> tuple[Result, float] | str:
        try:
            wave = excerpt.read(file)
        except UserError as error:
            return str(error)
        return fn(wave), len(wave) / excerpt.sample_rate_hz

    done, skipped = [], []
    for i, (file, result) in enumerate(map_ahead(one, files)):
        if i % _SAY_EVERY == 0:
            progress(f"embedding {what} clips {i + 1} to {min(i + _SAY_EVERY, len(files))} of {len(files)}")
        if isinstance(result, str):
            skipped.append(result)
        else:
            done.append((file, *result))
    if len(done) < least:
        few = "none" if not done else len(done)
        raise UserError(f"{few} of the {len(files)} {what} clips can be used, such as {skipped[0]}" + (f": expected {least}" if least > 1 else ""))
    return done, skipped


def map_groups(
    fn: Callable[[np.ndarray], Result], groups: Sequence[tuple[ClipFile, ...]], excerpt: Excerpt, *, columns: tuple[str, ...], progress: Progress
) -> tuple[list[tuple[int, tuple[Result, ...]]], list[str], tuple[float, ...]]:
    """`map_waves` of clips that belong together, such as the real and the generated clip of a caption.

    Args:
        groups: clips that belong together, one for each of `columns`.
        columns: names of the columns, such as ("reference", "generated"), for progress and errors.

    Returns:
        ([(number of a group, its results)] of the groups of which all clips can be used, the reasons why others cannot, the mean seconds of the clips of
        each column).

    Raises:
        UserError: fewer than 2 groups can be used.
    """
    found, skipped, seconds = [], [], []
    for what, files in zip(columns, zip(*groups), strict=True):
        done, left_out = map_waves(fn, files, excerpt, what=what, progress=progress)
        found.append({file: result for file, result, _ in done})
        seconds.append(float(np.mean([length for _, _, length in done])))
        skipped += left_out
    whole = [
        (i, tuple(results[file] for file, results in zip(group, found)))
        for i, group in enumerate(groups)
        if all(file in results for file, results in zip(group, found))
    ]
    if len(whole) < 2:
        raise UserError(f"{len(whole)} of the {len(groups)} {' and '.join(columns)} clips can be used, expected at least 2; the others: {skipped[0]}")
    return whole, skipped, tuple(seconds)


def left_out(reasons: Sequence[str]) -> list[str]:
    """The note of a report about clips that cannot be used; none if all can."""
    return [f"left out, since they cannot be used: {count(len(reasons), 'clip')}, such as {reasons[0]}"] if reasons else []


def other_lengths(reference_sec: float, generated_sec: float) -> list[str]:
    """The note of a report about two sets of clips of different mean lengths; none if they are similar."""
    if 1 / _OTHER_LENGTH < generated_sec / reference_sec < _OTHER_LENGTH:
        return []
    lengths = f"reference clips have {reference_sec:.3g} s on average, generated ones {generated_sec:.3g} s"
    return [f"{lengths}: cut both to one length with --seconds, or the figures are partly those of their lengths"]


def choose_clips(folder: ClipFolder, count: int | None, *, rng: np.random.Generator) -> list[Entry]:
    """At most `count` clips of a folder, of any split, drawn at random, in the order of their names. None: all."""
    entries = folder.entries
    if count is None or count >= len(entries):
        return list(entries)
    return [entries[i] for i in sorted(rng.permutation(len(entries))[:count])]


def pair_clips(reference: ClipFolder, generated: ClipFolder) -> list[tuple[Entry, Entry]]:
    """The pairs of clips of two folders that have the same name but for its suffix, such as a/b.flac and a/b.wav, in the order of names.

    Raises:
        UserError: a folder has two clips of one name, or fewer than 2 clips have a partner.
    """
    first, second = (_by_stem(folder) for folder in (reference, generated))
    names = [name for name in first if name in second]
    if len(names) < 2:
        some = [f"{folder.path} has {folder.entries[0].file_name}" for folder in (reference, generated)]
        raise UserError(
            f"{len(names)} clips have the same name in both folders ({some[0]}, {some[1]}), expected at least 2: "
            "name each generated clip as the real clip with its caption"
        )
    return [(first[name], second[name]) for name in names]


def unpaired(reference: ClipFolder, generated: ClipFolder, num_pairs: int) -> list[str]:
    """The notes of a report about clips that `pair_clips` leaves out; none if there are none."""
    alone = {what: len(folder.entries) - num_pairs for what, folder in (("reference", reference), ("generated", generated))}
    return [f"without a partner of the same name: {count(num, f'{what} clip')}" for what, num in alone.items() if num]


def _by_stem(folder: ClipFolder) -> dict[str, Entry]:
    stems: dict[str, Entry] = {}
    for entry in folder.entries:
        other = stems.setdefault(stem(entry), entry)
        if other is not entry:
            raise UserError(f"{folder.path}: {other.name} and {entry.name} have the same name but for the suffix; rename one of them")
    return stems
