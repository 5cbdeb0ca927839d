"""Clips that a model generates from captions, in a folder: one file each, so that a call that was stopped is continued."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Sequence

from musiclm_jax import audio
from musiclm_jax.data.metadata import METADATA
from musiclm_jax.errors import UserError, unwritable
from musiclm_jax.evaluation.clips import Progress
from musiclm_jax.evaluation.identity import model_name
from musiclm_jax.files import AnyPath, is_file, make_folder, read_json, write_json, write_text
from musiclm_jax.musiclm import MusicLM

# How the clips of a folder were made.
SETTINGS = "generated.json"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A clip to generate: its file, a WAV file relative to the folder, and its caption."""

    file_name: str
    caption: str


def generate_clips(
    musiclm: MusicLM,
    wanted: Sequence[Wanted],
    folder: AnyPath,
    *,
    seconds: float,
    seed: int = 0,
    batch_size: int = 10,
    progress: Progress = lambda line: None,
) -> None:
    """Generates the clips that are not yet in the folder, and writes their captions to metadata.jsonl.

    A clip depends on its caption, the seed, and how many clips before it have the same caption, for each of which the seed is raised by 1. It does not depend
    on the batch, nor on where an earlier call was stopped.

    Raises:
        UserError: the folder has clips of another model, length or seed, or cannot be written.
    """
    settings = {"model": model_name(musiclm), "seconds": seconds, "seed": seed}
    if is_file(folder / SETTINGS) and (found := read_json(folder / SETTINGS)) != settings:
        raise UserError(f"{folder}: has clips that were generated otherwise ({found}, not {settings}): name another folder, or move this one away")
    try:
        for parent in {(folder / each.file_name).parent for each in wanted} | {folder}:
            make_folder(parent)
    except OSError as error:
        raise unwritable(folder, error) from error
    write_json(folder / SETTINGS, settings)
    lines = [{"file_name": each.file_name, "captions": [each.caption]} for each in wanted]
    write_text(folder / METADATA, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    done, total = 0, sum(not is_file(folder / each.file_name) for each in wanted)
    for number, group in enumerate(_by_repetition(wanted)):
        missing = [each for each in group if not is_file(folder / each.file_name)]
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            progress(f"generating clips {done + 1} to {done + len(batch)} of {total}")
            music = musiclm.generate([each.caption for each in batch], seconds=seconds, seed=(seed + number) % 2**32)
            for each, wave in zip(batch, music.wave, strict=True):
                audio.write_wav(folder / each.file_name, wave, music.sample_rate_hz)
            done += len(batch)


def _by_repetition(wanted: Sequence[Wanted]) -> list[list[Wanted]]:
    """The clips in groups without two equal captions: first the first one of each caption, then the second ones, ..."""
    seen: collections.Counter[str] = collections.Counter()
    groups: list[list[Wanted]] = []
    for each in wanted:
        if seen[each.caption] == len(groups):
            groups.append([])
        groups[seen[each.caption]].append(each)
        seen[each.caption] += 1
    return groups
