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
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from musiclm_jax import bundle
from musiclm_jax.checks import SECONDS, SIZE, check_numbers
from musiclm_jax.data.clips import ClipStore, crop_samples, refresh_index
from musiclm_jax.data.folder import ClipFolder, read_folder
from musiclm_jax.data.prefetch import Source
from musiclm_jax.data.token_store import ClipTokens
from musiclm_jax.records import atomic_path, to_dict
from musiclm_jax.specs import Stream
from musiclm_jax.training.loop import TrainConfig, train
from musiclm_jax.training.task import Task, TrainState

if TYPE_CHECKING:
    from musiclm_jax.parts.fit import FitConfig

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
class TrainedPart(Part):
    """A part with a training. A subclass has a `recipe` and says `task`, `batch_shapes` and `source`; the rest it may."""

    batch_size: int = 8
    # Seconds of audio per example.
    crop_sec: float | int = 2.0
    loop: TrainConfig = TrainConfig()

    def __post_init__(self):
        check_numbers(self, batch_size=SIZE, crop_sec=SECONDS)

    # ------------------------------------------------------------------------------------------------ to be said by each

    def task(self, fit: FitConfig) -> Task:
        """Model and recipe."""
        raise NotImplementedError

    def batch_shapes(self, fit: FitConfig) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a batch, as `source` makes it."""
        raise NotImplementedError

    def source(self, run: Run, split: str, seed: int) -> Source:
        """step -> batch of the split "train" or "test"."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------ may be said

    def needs(self, fit: FitConfig) -> tuple[str, ...]:
        """Steps whose outputs the training reads."""
        return (PREPARE,)

    def reads(self, fit: FitConfig) -> tuple[str, ...]:
        """What it reads of the data beside the decoded waves."""
        return (SPLITS,)

    def settings(self, fit: FitConfig) -> dict[str, Any]:
        """What else of the config decides the weights, as JSON."""
        return {}

    def outputs(self) -> tuple[str, ...]:
        """Files beside the weights."""
        return ()

    def begin(self, run: Run, folder: Path) -> None:
        """Makes what `source` reads, in the folder of the step, before the training."""

    def warm_start(self, run: Run) -> Callable[[TrainState], TrainState] | None:
        """What changes a fresh state before the first step. None: nothing."""
        return None

    def finish(self, run: Run, variables: dict[str, Any], results: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The trained variables and last metrics as they are to be kept; a place for warnings."""
        return variables, results

    def has_held_out(self, run: Run) -> bool:
        """Whether the split "test" has something to evaluate on."""
        return bool(run.clips.split("test"))

    def example_sec(self, fit: FitConfig) -> float:
        """Seconds of audio in an example, for the dry run."""
        return self.crop_sec

    def tokens_per_example(self, fit: FitConfig) -> tuple[int, int] | None:
        """Tokens of an example that are predicted, and all that it has. None: it has no tokens."""
        return None

    # ------------------------------------------------------------------------------------------------ the same for all

    def steps(self, fit: FitConfig) -> tuple[Step, ...]:
        return (self.training(fit),)

    def training(self, fit: FitConfig) -> Step:
        task = self.task(fit)
        settings = {"task": deciding(task), "batch_size": self.batch_size, "crop_sec": self.crop_sec, "seed": self.loop.seed, **self.settings(fit)}
        del settings["task"]["recipe"]["num_steps"]
        outputs = (WEIGHTS, *self.outputs())
        return Step(self.name, "training", self._train, outputs, settings, self.needs(fit), self.reads(fit), num_steps=task.num_steps)

    def check(self, run: Run) -> None:
        self.source(run, "train", self.loop.seed)

    def _train(self, run: Run, work: Work) -> dict[str, Any]:
        self.begin(run, work.folder)
        task = self.task(run.config)
        seed, options = self.loop.seed, {}
        if (warm_start := self.warm_start(run)) is not None:
            options["warm_start"] = warm_start
        trained = train(
            task,
            self.source(run, "train", seed),
            workdir=work.folder,
            config=self.loop,
            identity=work.key,
            eval_source=self.source(run, "test", seed + 1) if self.has_held_out(run) else None,
            **options,
        )
        work.lengths = trained.lengths
        results = {name: value for name, value in trained.metrics.items() if name not in ("step", "sec_left")}
        variables, results = self.finish(run, task.variables(trained.state), results)
        save_weights(work.folder, variables)
        return results


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


def wave_shapes(part: TrainedPart, fit: FitConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of `wave_source`, without texts."""
    samples = crop_samples(part.crop_sec, fit.model.audio.sample_rate_hz)
    return {"wave": jax.ShapeDtypeStruct((part.batch_size, samples), np.float32)}


def save_weights(folder: Path, variables: Mapping[str, Any]) -> None:
    bundle.write_arrays(folder / WEIGHTS, jax.device_get(variables))


def save_array(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)
