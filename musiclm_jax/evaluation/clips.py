"""The clips that evaluations use: those of a folder as `data/folder.py` reads it, with the same splits as in `fit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from musiclm_jax import audio
from musiclm_jax.arrays import Float
from musiclm_jax.data.folder import ClipFolder, Entry, read_folder
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.statements import named_attributes
from musiclm_jax.files import AnyPath

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One caption of a held-out clip."""

    caption: str
    file_name: str
    # The clip's ground truth, from the metadata.
    attributes: dict[str, Any]
    # The attributes that the caption names.
    named: frozenset[str]


def check_seed(seed: int) -> None:
    """Raises UserError unless `seed` is from 0 to 2^32 - 1."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: choose a number from 0 to {2**32 - 1}")


def read_clips(data_dir: str | AnyPath, *, progress: Progress = lambda line: None) -> ClipFolder:
    """The clips of a folder, without hashes. Warnings go to `progress`, one line each. Raises UserError as `read_folder`."""
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
        names = [named_attributes(caption) for caption in clip.captions]
        most = max(len(named - {"tempo_bpm"}) for named in names)
        pick = int(rng.choice([i for i, named in enumerate(names) if len(named - {"tempo_bpm"}) == most]))
        prompts.append(Prompt(clip.captions[pick], clip.file_name, clip.attributes, names[pick]))
    return prompts


def read_waves(paths: Sequence[AnyPath], num_samples: int) -> Float[np.ndarray, "B N"]:
    """The first `num_samples` samples of each file at 24 kHz, float32. Raises UserError if a file is shorter or cannot be read."""
    waves = [audio.read(path)[:num_samples] for path in paths]
    for path, wave in zip(paths, waves, strict=True):
        if len(wave) < num_samples:
            seconds = [f"{length / audio.SAMPLE_RATE_HZ:g} s" for length in (len(wave), num_samples)]
            raise UserError(f"{path}: has {seconds[0]}, less than the {seconds[1]} of this evaluation; choose fewer seconds, or remove that clip")
    return np.stack(waves)
