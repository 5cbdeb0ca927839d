"""The most likely continuations of clips by the semantic stage, in a file that grows with them, so that a call that was stopped is continued."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile

import numpy as np

from musiclm_jax.arrays import Int
from musiclm_jax.errors import UserError, unreadable
from musiclm_jax.evaluation.clips import Progress
from musiclm_jax.evaluation.identity import model_name
from musiclm_jax.evaluation.token_index import PASSAGE_TOKENS
from musiclm_jax.files import AnyPath, atomic_path, is_file, local_copy
from musiclm_jax.generation.request import clip_keys
from musiclm_jax.generation.sampler import SamplingConfig
from musiclm_jax.generation.stages import StageSpec
from musiclm_jax.musiclm import MusicLM

_GREEDY = SamplingConfig(temperature=0.0)


@dataclasses.dataclass(frozen=True)
class Given:
    """What the stage gets of some clips: their MuLan tokens [n, Q], and the first semantic tokens of each [n, prompt]."""

    # For progress, such as "training".
    what: str
    mulan: np.ndarray
    tokens: np.ndarray

    def key(self, model: str) -> str:
        """A name that changes with all that decides the continuations."""
        digest = hashlib.sha256(f"{model} {PASSAGE_TOKENS} {self.mulan.shape} {self.tokens.shape}".encode())
        for array in (self.mulan, self.tokens):
            digest.update(array.astype(np.int64).tobytes())
        return digest.hexdigest()


def continue_clips(
    musiclm: MusicLM, stage: StageSpec, given: list[Given], *, batch_size: int, file: AnyPath | None, progress: Progress
) -> list[Int[np.ndarray, "n T"]]:
    """The most likely tokens after what is given, for each of some sets of clips.

    Args:
        given: the sets.
        batch_size: clips that are continued at once.
        file: a .npz file that gets the tokens after each batch. What it has of the same model and the same tokens is not made again; the rest of it is
            dropped. None: none.
        progress: called with one line per set.

    Raises:
        UserError: `file` cannot be read or written, or is another one.
    """
    model, kept = model_name(musiclm), {} if file is None or not is_file(file) else read_continuations(file)
    keys = [each.key(model) for each in given]
    kept = {key: kept.get(key, np.zeros((0, PASSAGE_TOKENS), np.int32)) for key in keys}
    for key, each in zip(keys, given):
        count, size = len(each.tokens), min(batch_size, len(each.tokens))
        if len(kept[key]) < count:
            progress(f"continuing {count - len(kept[key])} {each.what} clips after {each.tokens.shape[1]} tokens")
        while (start := len(kept[key])) < count:
            # The last batch repeats clips, so that one program serves all.
            rows = np.minimum(np.arange(start, start + size), count - 1)
            kept[key] = np.concatenate([kept[key], _continue(musiclm, stage, each, rows)[: count - start]])
            if file is not None:
                save_continuations(file, kept)
    return [kept[key] for key in keys]


def _continue(musiclm: MusicLM, stage: StageSpec, given: Given, rows: Int[np.ndarray, "B"]) -> Int[np.ndarray, "B T"]:
    prompt = given.tokens.shape[1]
    known = given.tokens[rows, :, None].astype(np.int32) if prompt else None
    conditions, keys = {"mulan": given.mulan[rows]} if stage.prefix else {}, clip_keys(["greedy"] * len(rows), seed=0)
    return musiclm.draw_stage(stage, conditions, steps=prompt + PASSAGE_TOKENS, keys=keys, sampling=_GREEDY, prompt=known)[:, prompt:, 0]


def save_continuations(file: AnyPath, kept: dict[str, np.ndarray]) -> None:
    """Writes continuations to a .npz file, atomically. Raises UserError if it cannot be written."""
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **kept)


def read_continuations(file: AnyPath) -> dict[str, np.ndarray]:
    """Reads what `save_continuations` wrote. Raises UserError if it cannot be read, or is another file."""
    try:
        with np.load(local_copy(file), allow_pickle=False) as arrays:
            kept = dict(arrays)
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: is not a file of continuations; move it away, or write the report elsewhere") from error
    if any(each.ndim != 2 or each.shape[1] != PASSAGE_TOKENS for each in kept.values()):
        raise UserError(f"{file}: is not a file of continuations; move it away, or write the report elsewhere")
    return kept
