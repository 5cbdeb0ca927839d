"""The clips that evaluations ask about: those of any folder that `data/folder.py` reads, with the splits that `fit` gives them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musiclm_jax import audio
from musiclm_jax.arrays import Float
from musiclm_jax.data.folder import ClipFolder, Entry, read_folder
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.statements import named_attributes

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
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: choose a number from 0 to {2**32 - 1}")


def read_clips(data_dir: str | Path, *, progress: Progress = lambda line: None) -> ClipFolder:
    """The clips of a folder, without their hashes; what there is to be said of it goes to `progress`.

    Raises:
        UserError: see `read_folder`.
    """
    folder = read_folder(data_dir, hash_files=False)
    for warning in folder.warnings:
        progress(warning)
    if folder.unusable:
        name, reason = folder.unusable[0]
        progress(f"{len(folder.unusable)} clips of {folder.path} are of no use and left out, such as {name}: {reason}")
    return folder


def with_ground_truth(folder: ClipFolder, needed: Sequence[str] = ()) -> tuple[Entry, ...]:
    """The clips that have captions and attributes; the variants of a corpus have no captions.

    Raises:
        UserError: there is none, or one lacks an attribute of `needed`.
    """
    clips = tuple(entry for entry in folder.captioned if entry.attributes)
    if not clips:
        raise UserError(f"{folder.path}: no clip has captions and attributes, the ground truth of this evaluation; use a corpus of `musiclm corpus`")
    for clip in clips:
        if missing := [name for name in needed if name not in clip.attributes]:
            lacks = f"the attributes of {clip.file_name} lack {', '.join(missing)}"
            raise UserError(f"{folder.path}: {lacks}, the ground truth of this evaluation; use a corpus of `musiclm corpus`")
    return clips


def draw_clips(clips: Sequence[Entry], count: int, *, name: str, kind: str = "held-out", least: int = 2, rng: np.random.Generator) -> list[Entry]:
    """`count` of the clips, at random.

    Args:
        clips: to draw from.
        count: how many, from `least` to all.
        name: of the argument that says so, for the message of an error.
        kind: "held-out" or "training", for the same.

    Raises:
        UserError: there are not so many clips.
    """
    if len(clips) < least:
        split = {"held-out": "test", "training": "train"}[kind]
        there = f"{len(clips)} {kind} clips that this evaluation can use"
        raise UserError(f"there are {there}, where {least} are the least: add clips, or give more of them the split {split!r} in metadata.jsonl")
    if not least <= count <= len(clips):
        raise UserError(f"{name}={count}, and there are {len(clips)} {kind} clips that this evaluation can use: ask for {least} to {len(clips)}, or add clips")
    return [clips[int(i)] for i in rng.permutation(len(clips))[:count]]


def choose_prompts(clips: Sequence[Entry], *, num_captions: int | None, rng: np.random.Generator, name: str = "num_captions") -> list[Prompt]:
    """One caption each of `num_captions` held-out clips, drawn among those captions of the clip that name the most attributes.

    Args:
        clips: of any split, with captions.
        num_captions: 2 or more; None takes all.
        name: of the argument that says so, for the message of an error.
    """
    held_out = [clip for clip in clips if clip.split == "test"]
    prompts = []
    for clip in draw_clips(held_out, len(held_out) if num_captions is None else num_captions, name=name, rng=rng):
        names = [named_attributes(caption) for caption in clip.captions]
        most = max(len(named - {"tempo_bpm"}) for named in names)
        pick = int(rng.choice([i for i, named in enumerate(names) if len(named - {"tempo_bpm"}) == most]))
        prompts.append(Prompt(clip.captions[pick], clip.file_name, clip.attributes, names[pick]))
    return prompts


def read_waves(paths: Sequence[Path], num_samples: int) -> Float[np.ndarray, "B N"]:
    """The first `num_samples` of each file, at 24 kHz. UserError if one is shorter."""
    waves = [audio.read(path)[:num_samples] for path in paths]
    for path, wave in zip(paths, waves, strict=True):
        if len(wave) < num_samples:
            seconds = [f"{length / audio.SAMPLE_RATE_HZ:g} s" for length in (len(wave), num_samples)]
            raise UserError(f"{path}: has {seconds[0]}, fewer than the {seconds[1]} of this evaluation; ask for fewer seconds, or leave that clip out")
    return np.stack(waves)
