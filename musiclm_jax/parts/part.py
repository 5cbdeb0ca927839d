"""The interface between `fit` and the parts of MusicLM: the codec, w2v-BERT, MuLan, the rerankers, the stages, the melody embedder.

A part is a frozen dataclass in a file of its own. It yields *steps*; each step runs once and writes to a folder of its own. `fit` knows parts only
through this interface: to add one, write a file and list it in `FitConfig.parts`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from musiclm_jax import bundle
from musiclm_jax.checks import SECONDS, SEED, SIZE, check_choices, check_numbers
from musiclm_jax.configs import MusicLMConfig
from musiclm_jax.data.clips import ClipStore, refresh_index
from musiclm_jax.data.folder import ClipFolder, read_folder
from musiclm_jax.data.readers import READERS, STORE
from musiclm_jax.data.records import is_record_folder, read_record_folder
from musiclm_jax.data.splits import GROUPINGS
from musiclm_jax.data.token_set import TokenSet, is_token_set
from musiclm_jax.data.token_store import ClipTokens
from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath, atomic_path
from musiclm_jax.generation.devices import row_mesh
from musiclm_jax.records import to_dict
from musiclm_jax.specs import Stream
from musiclm_jax.training import hosts

WEIGHTS = "variables.safetensors"
PREPARE = "prepare"
# The aspects of the data that a step may read. Each has a digest, so that changed captions do not affect a step that reads waves and splits.
WAVES, SPLITS, CAPTIONS, MELODIES, VOICES = "waves", "splits", "captions", "melodies", "voices"


@dataclasses.dataclass
class Work:
    """A running step: its folder, and the key of its training, with which checkpoints are stored."""

    folder: AnyPath
    key: str
    # Set by a training: the lengths that it has had (`training.loop.Trained.lengths`).
    lengths: list[list[int]] | None = None
    # Set by a step that writes fewer files than its `Step.outputs`: those that it wrote.
    outputs: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """A unit of work, done once, whose outputs are files in a folder of its own."""

    # Names the folder in the work folder, too, and the step on the command line.
    name: str
    title: str
    # Writes the outputs into the folder and returns metrics. Several processes call it together (`training/hosts.py`); `save_weights` and its like write once.
    run: Callable[[Run, Work], dict[str, Any]]
    # Files, relative to its folder.
    outputs: tuple[str, ...]
    # All settings that decide the outputs, as JSON, except the length of a training.
    settings: Any = None
    # Steps whose outputs it reads.
    needs: tuple[str, ...] = (PREPARE,)
    # Aspects of the data that it reads.
    reads: tuple[str, ...] = ()
    # Length of a training; raising it continues the training. None: not a training.
    num_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class TokenStream:
    """A stream of tokens that a part provides to the stages."""

    stream: Stream
    # Steps that compute its tokens.
    needs: tuple[str, ...]
    # Returns the tokens of the clips, once those steps are done. None: they are in the token set that is the data (`Run.tokens`).
    tokens: Callable[[Run], ClipTokens] | None
    # Returns the codebooks, [Q, C, K]. None: the stream has no codebooks.
    codebooks: Callable[[Run], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Part:
    """The base of all parts."""

    @property
    def name(self) -> str:
        raise NotImplementedError

    def steps(self, fit: FitConfig) -> tuple[Step, ...]:
        """Its steps, in order."""
        raise NotImplementedError

    def streams(self, fit: FitConfig) -> tuple[TokenStream, ...]:
        """The token streams that the part provides."""
        return ()

    def models(self) -> Mapping[str, Callable[[], dict[str, Any]]]:
        """Models that the part has without training them: functions that return their weights, by name."""
        return {}

    def check(self, run: Run) -> None:
        """Raises UserError where the decoded data cannot train this part. Called before any training starts."""


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """All settings of `fit` and `run_step`."""

    # In the order in which they run. Parts from outside the package may be among them.
    parts: tuple[Part, ...]
    # The models of the bundle.
    model: MusicLMConfig = MusicLMConfig()
    # Clips are tokenized in windows of encode_sec seconds, of which the first encode_context_sec overlap the window before, as context.
    encode_sec: float | int = 30.0
    encode_context_sec: float | int = 5.0
    encode_batch_size: int = 4
    # Random seed of clustering and quantizers.
    seed: int = 0
    # What makes a group of clips for which none is listed; a group is in one split. "listed": nothing. "folder": their folder. "name": their name without a
    # number at its end, as in "song_part2" and "song-2".
    group_by: str = "listed"
    # What makes the batches of the trainings on waves. "store": crops drawn in proportion to the lengths of clips. "grain": every clip once an epoch.
    # "tf_data": the batches of "grain", from a data set of TFDS in TFRecord files, by a pipeline of tf.data.
    reader: str = STORE

    def __post_init__(self):
        check_choices(self, group_by=GROUPINGS, reader=READERS)
        check_numbers(self, encode_sec=SECONDS, encode_context_sec=(0.0, SECONDS[1]), encode_batch_size=SIZE, seed=SEED)
        if not self.encode_context_sec < self.encode_sec:
            raise UserError(f"encode_context_sec={self.encode_context_sec}, encode_sec={self.encode_sec}: the context must be shorter")
        names = [part.name for part in self.parts]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"two parts are named {min(twice)!r}: give each its own name")
        done: set[str] = set()
        for step in self.steps.values():
            if missing := [need for need in step.needs if need not in done]:
                raise UserError(f"{step.name} needs {missing[0]}, which no earlier part makes: list the part that makes it first")
            done.add(step.name)

    def part(self, name: str) -> Part:
        for part in self.parts:
            if part.name == name:
                return part
        raise UserError(f"part {name!r}: choose one of {', '.join(part.name for part in self.parts)}")

    @property
    def order(self) -> dict[str, str]:
        """The setting of a training on waves that says in which order clips come, as JSON. None for "store", as trainings of before have it."""
        return {} if self.reader == STORE else {"order": "epochs"}

    @functools.cached_property
    def steps(self) -> dict[str, Step]:
        """All steps by name, in order."""
        return {step.name: step for part in self.parts for step in part.steps(self)}

    @functools.cached_property
    def streams(self) -> dict[str, TokenStream]:
        """All token streams by name."""
        return {each.stream.name: each for part in self.parts for each in part.streams(self)}

    @functools.cached_property
    def given(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """The models that need no training (`Part.models`)."""
        return {name: load for part in self.parts for name, load in part.models().items()}

    def steps_to(self, name: str) -> tuple[Step, ...]:
        """A step and all steps that it depends on, in order. Raises UserError where there is no such step."""
        if name not in self.steps:
            raise UserError(f"step {name!r}: choose one of {', '.join(self.steps)}")
        wanted = {name}
        for step in reversed(self.steps.values()):
            if step.name in wanted:
                wanted |= set(step.needs)
        return tuple(step for step in self.steps.values() if step.name in wanted)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of `fit`: the config, the folders, and the outputs of earlier steps."""

    config: FitConfig
    data: AnyPath
    workdir: AnyPath
    # The config as the user wrote it, such as a gin file. Recorded in the folder of each step that runs.
    config_text: str = ""
    # Weights of earlier steps that are on the devices.
    _placed: dict[str, Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def folder(self, step: str) -> AnyPath:
        return self.workdir / step

    @functools.cached_property
    def clip_folder(self) -> ClipFolder:
        """The clips of the data folder, or of the data set of TFDS in it, with their metadata."""
        if is_record_folder(self.data):
            return read_record_folder(self.data, cache=self.workdir / "records")
        return read_folder(self.data, hashes=self.workdir / "hashes.json", group_by=self.config.group_by)

    def digest(self, aspect: str) -> str:
        """A hash of one aspect of the data (`ClipFolder.digest`). A token set has one for all."""
        return self.clip_folder.digest(aspect) if self.tokens is None else self.tokens.info.sha256

    @functools.cached_property
    def clips(self) -> ClipStore:
        """All clips, with the current captions and splits."""
        hosts.first(lambda: refresh_index(self.clip_folder, self.folder(PREPARE)) and None)
        return ClipStore.open(self.folder(PREPARE))

    @functools.cached_property
    def tokens(self) -> TokenSet | None:
        """The token set that is the data. None: the data are clips."""
        return TokenSet.open(self.data) if is_token_set(self.data) else None

    def music_tokens(self, split: str) -> np.ndarray:
        """The number of semantic tokens of each clip of a split, or of each record of a token set."""
        if self.tokens is not None:
            return self.tokens.lengths(split)
        return np.array([-(-clip.length // self.config.model.audio.semantic_samples) for clip in self.clips.split(split)], np.int64)

    def weights(self, step: str) -> dict[str, Any]:
        """The weights that a step saved, all of them on each device of this process. They are put there once and stay until `release`."""
        if step not in self._placed:
            self._placed[step] = on_each_device(self.saved(step))
        return self._placed[step]

    def saved(self, step: str) -> dict[str, Any]:
        """The weights that a step saved, or those of a model that needs no training, as NumPy arrays."""
        return self.config.given[step]() if step in self.config.given else bundle.read_arrays(self.folder(step) / WEIGHTS)[0]

    def release(self) -> None:
        """Forgets the weights on the devices."""
        self._placed.clear()


def on_each_device(tree: Any) -> Any:
    """All arrays of a tree on each device of this process."""
    return jax.device_put(tree, NamedSharding(row_mesh(jax.local_device_count()), PartitionSpec()))


# Settings that trainings of before did not have, with the values under which they are as before: such trainings stay.
_NEW_SETTINGS = {
    "accumulate": 1,
    "spike_factor": 0.0,
    "rollback_after": 10,
    "optional": False,
    "optional_dropout": 0.5,
    "condition_windows": 3,
    "word_vectors": "",
    "piece_dropout": 0.0,
}


def deciding(value: Any) -> Any:
    """A tree of dataclasses as JSON, without `remat`, since rematerialization does not change results, and without new settings that change nothing."""

    def without(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {name: without(item) for name, item in tree.items() if name != "remat" and _NEW_SETTINGS.get(name) != item}
        return [without(item) for item in tree] if isinstance(tree, list) else tree

    return without(to_dict(value))


def save_weights(folder: AnyPath, variables: Mapping[str, Any]) -> None:
    """Writes the weights of a step, if this is process 0."""
    if hosts.is_first():
        bundle.write_arrays(folder / WEIGHTS, jax.device_get(variables))


def save_array(path: AnyPath, array: np.ndarray) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)
