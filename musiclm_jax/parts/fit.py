"""From a folder of captioned clips to a bundle: all the training of MusicLM, step by step, each done once.

    prepare -> codec, its tokens -> w2v-BERT, k-means, its tokens -> MuLan, its quantizer -> rerankers -> semantic, coarse, fine -> export

`fit` makes the bundle and whatever it needs; `run_step` makes one thing, such as the melody embedder, which bundles do not hold yet. What the steps do
stands in the file of each part; this file knows only their order, and `workdir.py` what is done.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

from musiclm_jax.checks import SECONDS, SEED, SIZE, check_numbers
from musiclm_jax.configs import MusicLMConfig
from musiclm_jax.errors import UserError
from musiclm_jax.parts import workdir as work_folder
from musiclm_jax.parts.codec import CodecPart
from musiclm_jax.parts.export import ExportPart
from musiclm_jax.parts.melody import MelodyPart
from musiclm_jax.parts.mulan import MuLanPart
from musiclm_jax.parts.part import PREPARE, Part, Run, Step, TokenStream, TrainedPart, Work
from musiclm_jax.parts.prepare import PreparePart
from musiclm_jax.parts.reranker import RerankerPart
from musiclm_jax.parts.semantic_reranker import SemanticRerankerPart
from musiclm_jax.parts.stage import StagePart
from musiclm_jax.parts.w2v_bert import W2vBertPart
from musiclm_jax.parts.workdir import DONE, NEW, Planned
from musiclm_jax.training.sharding import abstract_mesh, check_batch

EXPORT = "export"


def musiclm_parts() -> tuple[Part, ...]:
    """The parts of MusicLM, in the order in which they are trained."""
    return (
        PreparePart(),
        CodecPart(),
        W2vBertPart(),
        MuLanPart(),
        RerankerPart(),
        SemanticRerankerPart(),
        StagePart("semantic"),
        StagePart("coarse"),
        StagePart("fine"),
        ExportPart(),
        MelodyPart(),
    )


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Everything that decides what `fit` and `run_step` make of the data."""

    # What is trained.
    model: MusicLMConfig = MusicLMConfig()
    # How, in the order in which it is done. Parts of your own may stand among them.
    parts: tuple[Part, ...] = dataclasses.field(default_factory=musiclm_parts)
    # Windows in which clips are tokenized, seconds, each with so much of the one before as context; windows per batch.
    encode_sec: float | int = 30.0
    encode_context_sec: float | int = 5.0
    encode_batch_size: int = 4
    # Of the clustering and of the quantizers.
    seed: int = 0

    def __post_init__(self):
        check_numbers(self, encode_sec=SECONDS, encode_context_sec=(0.0, SECONDS[1]), encode_batch_size=SIZE, seed=SEED)
        if not 0 <= self.encode_context_sec < self.encode_sec:
            raise UserError(f"encode_context_sec={self.encode_context_sec}, encode_sec={self.encode_sec}: the context must be shorter")
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


def fit(data: Path | str, *, config: FitConfig, workdir: Path | str) -> Path:
    """Trains everything on the clips in `data` and returns the folder of the bundle, which `MusicLM.from_pretrained` opens.

    Call it again after an interruption, with the same arguments: it continues. Called with others it redoes what they change; what was there before is
    moved to `workdir`/superseded. `data/folder.py` says what the folder of clips holds.

    Raises:
        UserError: the data do not do for this training, another process is at work in `workdir`, or a file cannot be read or written.
    """
    run = Run(config, Path(data), Path(workdir))
    steps = config.steps_to(EXPORT)
    _check_batches(config, steps)
    for planned in work_folder.make_plan(run, steps):
        if planned.sets_aside:
            print(f"{planned}; what is there goes to {work_folder.aside(run, planned.step.name)}", flush=True)
    for number, step in enumerate(steps, start=1):
        _do(run, step, title=f"[{number}/{len(steps)}] {step.name}")
        if step.name == PREPARE:
            for part in config.parts:
                if {each.name for each in part.steps(config)} & {each.name for each in steps}:
                    part.check(run)
    return run.folder(EXPORT) / "bundle"


def plan(data: Path | str, *, config: FitConfig, workdir: Path | str, step: str = EXPORT) -> list[Planned]:
    """What `fit`, or `run_step` of another step, would do, step by step. Nothing is written but hashes of the clips."""
    return work_folder.make_plan(Run(config, Path(data), Path(workdir)), config.steps_to(step))


def run_step(name: str, data: Path | str, *, config: FitConfig, workdir: Path | str) -> dict[str, Any]:
    """Runs one step, if it is not done already, and returns its results. Raises `UserError` where steps before it are missing; but where nothing
    has read the data yet, it does that first.
    """
    if name not in config.steps:
        raise UserError(f"step {name!r}: choose one of {', '.join(config.steps)}")
    run = Run(config, Path(data), Path(workdir))
    steps = config.steps_to(name)
    _check_batches(config, steps[-1:])
    for planned in work_folder.make_plan(run, steps)[:-1]:
        if planned.is_done or planned.step.name == PREPARE:
            _do(run, planned.step, title=planned.step.name, quiet=planned.action == DONE)
        else:
            raise UserError(
                f"{name} needs the result of {planned.step.name}, which in {run.workdir} is to be made first ({planned.action}"
                f"{': ' + '; '.join(planned.reasons) if planned.reasons else ''}): run `musiclm train {planned.step.name}` with the same options"
            )
    if name != PREPARE:
        next(part for part in config.parts if name in {each.name for each in part.steps(config)}).check(run)
    return _do(run, steps[-1], title=name)


def _do(run: Run, step: Step, *, title: str, quiet: bool = False) -> dict[str, Any]:
    """Makes a step, unless it is done; returns its results."""
    with work_folder.locked(run, step):
        planned = work_folder.make_plan(run, run.config.steps_to(step.name))[-1]
        folder = run.folder(step.name)
        before = work_folder.begin(run, planned) if planned.action != DONE else 0.0
        if planned.is_done:
            if not quiet:
                print(f"{title}: done", flush=True)
            return work_folder.read_done(folder)["results"]
        print(f"{title}: {step.title}{f' ({planned.action})' if planned.action != NEW else ''}", flush=True)
        work, clock = Work(folder, planned.record["key"]), time.perf_counter()
        try:
            results = step.run(run, work)
        finally:
            seconds = before + time.perf_counter() - clock
            work_folder.keep_seconds(folder, seconds)
        work_folder.write_done(run, planned, lengths=work.lengths, seconds=seconds, results=results)
        print(f"{title}: finished in {seconds:.1f} s  {_summary(results)}", flush=True)
        return results


def _check_batches(config: FitConfig, steps: tuple[Step, ...]) -> None:
    """Raises UserError where a batch does not split over the mesh, before anything is computed."""
    names = {step.name for step in steps}
    for part in config.parts:
        if isinstance(part, TrainedPart) and part.name in names:
            check_batch(part.batch_shapes(config), abstract_mesh(part.loop.mesh))


def _summary(results: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in results.items() if isinstance(value, (int, float)) and not name.endswith("_per_sec"))
