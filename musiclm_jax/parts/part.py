"""What a part of MusicLM is to `fit`: one object that says all there is to say about one trained thing.

A part is a frozen dataclass in a file of its own: the codec, w2v-BERT with its k-means, MuLan with its quantizer, the rerankers, each stage, the
melody embedder. It yields *steps*, each of which works in a folder of its own and is done once. Nothing else knows parts by name: adding one is adding a
file, and naming it in `FitConfig.parts`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from musiclm_jax import bundle
from musiclm_jax.configs import MusicLMConfig
from musiclm_jax.data.clips import ClipStore, refresh_index
from musiclm_jax.data.folder import ClipFolder, read_folder
from musiclm_jax.data.token_store import ClipTokens
from musiclm_jax.errors import UserError
from musiclm_jax.records import atomic_path, to_dict
from musiclm_jax.specs import Stream

WEIGHTS = "variables.safetensors"
PREPARE = "prepare"
# What a step may read of the data, each with a digest of its own: a change of captions is none to a step that reads waves and splits.
WAVES, SPLITS, CAPTIONS, MELODIES = "waves", "splits", "captions", "melodies"


@dataclasses.dataclass
class Work:
    """A step at work: its folder, and the identity of its training, under which checkpoints are kept."""

    folder: Path
    key: str
    # How long a training was to be, from which step on: `training.loop.Trained.lengths`. None: no training.
    lengths: list[list[int]] | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """Something that is made once, in a folder of its own."""

    # Also of its folder in the work folder, and on the command line.
    name: str
    title: str
    # Writes the outputs into the folder and returns numbers worth knowing.
    run: Callable[[Run, Work], dict[str, Any]]
    # Files that it leaves in its folder.
    outputs: tuple[str, ...]
    # All of the config that decides the outputs, as JSON; not the length of a training.
    settings: Any = None
    # Steps whose outputs it reads.
    needs: tuple[str, ...] = (PREPARE,)
    # What it reads of the data.
    reads: tuple[str, ...] = ()
    # Length of a training, which may be raised to train on. None: no training.
    num_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class TokenStream:
    """A stream of tokens as the part that writes it offers it to the stages."""

    stream: Stream
    # Steps that make its tokens.
    needs: tuple[str, ...]
    # The tokens of the clips, once those steps are done.
    tokens: Callable[[Run], ClipTokens]
    # The vectors that its codes stand for, [Q, C, K]. None: there are none.
    codebooks: Callable[[Run], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Part:
    """The base of all parts."""

    @property
    def name(self) -> str:
        raise NotImplementedError

    def steps(self, fit: FitConfig) -> tuple[Step, ...]:
        """What is to be made, in order."""
        raise NotImplementedError

    def streams(self, fit: FitConfig) -> tuple[TokenStream, ...]:
        """The token streams that this part writes."""
        return ()

    def check(self, run: Run) -> None:
        """Raises UserError where the data, once decoded, cannot train this part: before anything is trained."""


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Everything that decides what `fit` and `run_step` make of the data."""

    # What is made, in this order. Parts of your own may stand among those of MusicLM.
    parts: tuple[Part, ...]
    # The models that a bundle holds.
    model: MusicLMConfig = MusicLMConfig()
    # Windows in which clips are tokenized, seconds, each with so much of the one before as context; windows per batch.
    encode_sec: float | int = 30.0
    encode_context_sec: float | int = 5.0
    encode_batch_size: int = 4
    # Of the clustering and of the quantizers.
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.encode_context_sec < self.encode_sec:
            raise UserError(f"encode_context_sec={self.encode_context_sec}, encode_sec={self.encode_sec}: the context must be shorter")
        if self.encode_batch_size < 1:
            raise UserError(f"encode_batch_size={self.encode_batch_size}: choose 1 or more")
        names = [part.name for part in self.parts]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"the part {min(twice)!r} is there twice: give each a name of its own")
        done: set[str] = set()
        for step in self.steps.values():
            if missing := [need for need in step.needs if need not in done]:
                raise UserError(f"{step.name} needs {missing[0]}, which no part before it makes: put the part that makes it before")
            done.add(step.name)

    def part(self, name: str) -> Part:
        for part in self.parts:
            if part.name == name:
                return part
        raise UserError(f"part {name!r}: choose one of {', '.join(part.name for part in self.parts)}")

    @functools.cached_property
    def steps(self) -> dict[str, Step]:
        """All steps by name, in order."""
        return {step.name: step for part in self.parts for step in part.steps(self)}

    @functools.cached_property
    def streams(self) -> dict[str, TokenStream]:
        """The token streams by name, each as the part that writes it offers it."""
        return {each.stream.name: each for part in self.parts for each in part.streams(self)}

    def steps_to(self, name: str) -> tuple[Step, ...]:
        """A step and all that it needs, in order."""
        wanted = {name}
        for step in reversed(self.steps.values()):
            if step.name in wanted:
                wanted |= set(step.needs)
        return tuple(step for step in self.steps.values() if step.name in wanted)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of `fit`: where things are, and the results of earlier steps."""

    config: FitConfig
    data: Path
    workdir: Path

    def folder(self, step: str) -> Path:
        return self.workdir / step

    @functools.cached_property
    def clip_folder(self) -> ClipFolder:
        """What the data folder says of its clips."""
        return read_folder(self.data, hashes=self.workdir / "hashes.json")

    @functools.cached_property
    def clips(self) -> ClipStore:
        """All decoded clips, with today's captions and splits."""
        refresh_index(self.clip_folder, self.folder(PREPARE))
        return ClipStore.open(self.folder(PREPARE))

    def weights(self, step: str) -> dict[str, Any]:
        """The weights that a step made, on the device."""
        return jax.device_put(bundle.read_arrays(self.folder(step) / WEIGHTS)[0])


def deciding(value: Any) -> Any:
    """A tree of dataclasses as JSON, without what changes no number: whether activations are computed again (`remat`)."""

    def without(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {name: without(item) for name, item in tree.items() if name != "remat"}
        return [without(item) for item in tree] if isinstance(tree, list) else tree

    return without(to_dict(value))


def save_weights(folder: Path, variables: Mapping[str, Any]) -> None:
    bundle.write_arrays(folder / WEIGHTS, jax.device_get(variables))


def save_array(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)
