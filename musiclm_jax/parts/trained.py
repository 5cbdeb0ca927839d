"""The base class of the parts that are trained."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from musiclm_jax.checks import SECONDS, SIZE, check_numbers
from musiclm_jax.data.clips import crop_samples
from musiclm_jax.data.prefetch import Source
from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath
from musiclm_jax.parts.part import PREPARE, SPLITS, WEIGHTS, FitConfig, Part, Run, Step, Work, deciding, save_weights
from musiclm_jax.training import hosts
from musiclm_jax.training.loop import TrainConfig, train
from musiclm_jax.training.sharding import check_batch
from musiclm_jax.training.task import Task, TrainState
from musiclm_jax.training.trackers import Sample


@dataclasses.dataclass(frozen=True)
class TrainedPart(Part):
    """A part with a training. A subclass has a `recipe` and defines `task`, `batch_shapes` and `source`; the other methods have defaults."""

    batch_size: int = 8
    # Seconds of audio per example.
    crop_sec: float | int = 2.0
    loop: TrainConfig = TrainConfig()

    def __post_init__(self):
        check_numbers(self, batch_size=SIZE, crop_sec=SECONDS)

    # ------------------------------------------------------------------------------------------------ required

    def task(self, fit: FitConfig) -> Task:
        """The model with its training recipe."""
        raise NotImplementedError

    def batch_shapes(self, fit: FitConfig) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the batches of `source`."""
        raise NotImplementedError

    def source(self, run: Run, split: str, seed: int) -> Source:
        """step -> batch of the split "train" or "test", or the rows of it that are asked for (`data.prefetch.Source`)."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------ optional

    def needs(self, fit: FitConfig) -> tuple[str, ...]:
        """Steps whose outputs the training reads."""
        return (PREPARE,)

    def reads(self, fit: FitConfig) -> tuple[str, ...]:
        """The aspects of the data that the training reads, apart from the decoded waves."""
        return (SPLITS,)

    def settings(self, fit: FitConfig) -> dict[str, Any]:
        """Further settings that decide the weights, as JSON."""
        return {}

    def outputs(self) -> tuple[str, ...]:
        """Output files apart from the weights."""
        return ()

    def begin(self, run: Run, folder: AnyPath) -> None:
        """Writes files that `source` reads to the folder of the step, before the training. All processes call it, and one writes (`hosts.first`)."""

    def warm_start(self, run: Run) -> Callable[[TrainState], TrainState] | None:
        """A function of the initial state, applied before the first step. None: no change."""
        return None

    def finish(self, run: Run, variables: dict[str, Any], results: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Changes the variables, NumPy arrays, and metrics before they are saved. Warnings belong here. All processes call it."""
        return variables, results

    def samples(self, run: Run, variables: dict[str, Any]) -> dict[str, Sample]:
        """What trackers show of the weights at an evaluation, made from held-out clips as in inference."""
        return {}

    def has_held_out(self, run: Run) -> bool:
        """Whether the split "test" has clips to evaluate on."""
        return bool(run.clips.split("test"))

    def example_sec(self, fit: FitConfig) -> float:
        """Seconds of audio in an example, for the dry run."""
        return self.crop_sec

    def tokens_per_example(self, fit: FitConfig) -> tuple[int, int] | None:
        """(predicted tokens, all tokens) of an example. None: not a model of tokens."""
        return None

    # ------------------------------------------------------------------------------------------------ shared

    def check_batch(self, fit: FitConfig, mesh: Mesh | AbstractMesh) -> None:
        """Raises UserError where a batch does not split evenly into micro-batches over the mesh."""
        try:
            check_batch(self.batch_shapes(fit), mesh, self.task(fit).recipe.accumulate)
        except UserError as error:
            raise UserError(f"{self.name}: {error} of {type(self).__name__}") from error

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
            samples=functools.partial(self.samples, run),
            **options,
        )
        work.lengths = trained.lengths
        results = {name: value for name, value in trained.metrics.items() if name not in ("step", "sec_left")}
        variables, results = self.finish(run, hosts.gather(task.variables(trained.state)), results)
        save_weights(work.folder, variables)
        return results


def wave_shapes(part: TrainedPart, fit: FitConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of `wave_source`, without texts."""
    samples = crop_samples(part.crop_sec, fit.model.audio.sample_rate_hz)
    return {"wave": jax.ShapeDtypeStruct((part.batch_size, samples), np.float32)}
