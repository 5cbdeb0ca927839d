"""The stage that T5X trains: its part of a config, and the folders in which its tokens are."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from musiclm_jax.data.prefetch import Source
from musiclm_jax.errors import UserError
from musiclm_jax.parts import workdir
from musiclm_jax.parts.part import FitConfig, Run
from musiclm_jax.parts.stage import StagePart
from musiclm_jax.records import coerce
from musiclm_jax.tokens import StageLayout


@dataclasses.dataclass(frozen=True)
class StageRun:
    """One stage of a config."""

    config: FitConfig
    # Its name, such as "semantic".
    stage: str
    # The folder of clips and the work folder, as given to `musiclm fit`. None: the tokens come from elsewhere.
    data: str | None = None
    workdir: str | None = None

    @functools.cached_property
    def fit(self) -> FitConfig:
        """The config, with values of the declared types, as `musiclm fit` has it."""
        return coerce(self.config)

    @functools.cached_property
    def part(self) -> StagePart:
        """The training of the stage. Raises UserError where the config has none of this name."""
        part = self.fit.part(self.stage)
        if not isinstance(part, StagePart):
            raise UserError(f"{self.stage!r} is no stage: choose one of {', '.join(each.name for each in self.fit.parts if isinstance(each, StagePart))}")
        return part

    @functools.cached_property
    def layout(self) -> StageLayout:
        return self.part.layout(self.fit)

    @functools.cached_property
    def run(self) -> Run:
        """The work folder. Raises UserError where none is named, or where it lacks what the stage reads."""
        if self.data is None or self.workdir is None:
            raise UserError("the tokens are in a work folder: give --gin.DATA and --gin.WORKDIR as in `musiclm fit DATA --workdir WORKDIR`")
        run = Run(self.fit, Path(self.data), Path(self.workdir))
        for planned in workdir.make_plan(run, self.fit.steps_to(self.stage))[:-1]:
            if planned.action != workdir.DONE:
                raise UserError(f"{self.stage} needs {planned} in {run.workdir}: run `musiclm train {planned.step.name}` with the same gin values first")
        self.part.check(run)
        return run

    def source(self, split: str, seed: int | None = None) -> Source:
        """Whole batches of a split. seed: None is the one that `musiclm train` uses for this split."""
        seed = self.part.loop.seed + (split != "train") if seed is None else seed
        return self.part.source(self.run, split, seed)

    def example_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each stream in one example."""
        return {name: each.shape[1:] for name, each in self.part.batch_shapes(self.fit).items()}
