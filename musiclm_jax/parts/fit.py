"""From a folder of captioned clips to a bundle: all the training of MusicLM, step by step, each done once.

    prepare -> codec, its tokens -> w2v-BERT, k-means, its tokens -> MuLan, its quantizer -> rerankers -> semantic, coarse, fine -> export

The parts and their order are those of `FitConfig.parts`, which gin_configs/system.gin lists; each has its file, `workdir.py` records what is done, and
this file knows no part by name but the export. `fit` makes the bundle and whatever it needs; `run_step` makes one thing, such as the melody embedder
of a model whose stages do not read it.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from typing import Any

import jax

import musiclm_jax
from musiclm_jax.data.token_set import is_token_set
from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath, as_path, check_writable, is_bucket, list_files, remove, write_text
from musiclm_jax.parts import workdir as work_folder
from musiclm_jax.parts.data_check import check_headers
from musiclm_jax.parts.part import PREPARE, FitConfig, Run, Step, Work
from musiclm_jax.parts.token_set import trained_on_tokens
from musiclm_jax.parts.trained import TrainedPart
from musiclm_jax.parts.workdir import DONE, EXTEND, NEW, STEP_FILE, Planned
from musiclm_jax.training import hosts
from musiclm_jax.training.sharding import make_mesh

EXPORT = "export"


def fit(data: AnyPath | str, *, config: FitConfig, workdir: AnyPath | str, config_text: str = "") -> AnyPath:
    """Trains all parts on the clips in `data`. Returns the folder of the bundle, which `MusicLM.from_pretrained` opens. Both folders may be on buckets.

    The same call continues an interrupted run. Where several processes train as one (`training/hosts.py`), all of them make it, with shared folders.
    Changed arguments redo the steps that they affect; earlier outputs of those are moved to `workdir`/superseded. `data/folder.py` describes the folder of
    clips. Where `data` is a token set (`data/token_set.py`), the stages alone are trained. Each step that runs records `config_text`, the config as a gin
    file, if given.

    Raises:
        UserError: the data cannot train a part, a batch does not split over the devices, another process runs in `workdir`, the processes have different
            configs, or a file cannot be read or written.
    """
    run = _open(config, data, workdir, config_text)
    steps = run.config.steps_to(EXPORT)
    _check_hosts(run, steps)
    _check_batches(run.config, steps)
    hosts.first(lambda: _check_workdir(run))
    hosts.first(lambda: _announce(run, steps))
    for number, step in enumerate(steps, start=1):
        _do(run, step, title=f"[{number}/{len(steps)}] {step.name}")
        if step.name == PREPARE:
            _check_clips(run, steps)
    return run.folder(EXPORT) / "bundle"


def _open(config: FitConfig, data: AnyPath | str, workdir: AnyPath | str, config_text: str = "") -> Run:
    """A run on clips, or on their tokens, where the stages are all that is trained."""
    return Run(trained_on_tokens(config, data) if is_token_set(data) else config, as_path(data), as_path(workdir), config_text)


def _announce(run: Run, steps: tuple[Step, ...]) -> None:
    """Prints which earlier outputs will be moved, and which trainings extended. Raises UserError where the lengths of clips that are not yet decoded cannot
    train a part."""
    plan = work_folder.make_plan(run, steps)
    if not plan[0].is_done and run.tokens is None:
        check_headers(run)
    if any(planned.sets_aside for planned in plan):
        work_folder.check_idle(run)
    for planned in plan:
        if planned.sets_aside:
            print(f"{planned}; the earlier output moves to {work_folder.aside(run, planned.step.name)}", flush=True)
        elif planned.action == EXTEND:
            print(planned, flush=True)


def plan(data: AnyPath | str, *, config: FitConfig, workdir: AnyPath | str, step: str = EXPORT) -> list[Planned]:
    """What `fit`, or `run_step` of `step`, would do, step by step. Writes nothing but a cache of hashes of the clips.

    Raises:
        UserError: as `fit`; that the clips cannot train a part is known once `prepare` is done.
    """
    run = _open(config, data, workdir)
    steps = run.config.steps_to(step)
    planned = work_folder.make_plan(run, steps)
    if planned[0].step.name == PREPARE and planned[0].action == DONE:
        _check_clips(run, steps)
    return planned


def run_step(name: str, data: AnyPath | str, *, config: FitConfig, workdir: AnyPath | str, config_text: str = "") -> dict[str, Any]:
    """Runs one step, unless it is done, and returns its results. Runs `prepare` first, too, unless it is done.

    Raises:
        UserError: as `fit`, or another step that this one needs is not done.
    """
    run = _open(config, data, workdir, config_text)
    steps = run.config.steps_to(name)
    _check_hosts(run, steps)
    _check_batches(run.config, steps[-1:])
    hosts.first(lambda: _check_workdir(run))
    done = hosts.first(lambda: _done_before(run, steps))
    for step, is_done in zip(steps[:-1], done, strict=True):
        if not is_done:
            _do(run, step, title=step.name)
    if name != PREPARE:
        _check_clips(run, steps[-1:])
    return _do(run, steps[-1], title=name)


def _done_before(run: Run, steps: tuple[Step, ...]) -> list[bool]:
    """Whether each step before the last is done. Raises UserError where one that the last needs is not, apart from `prepare`."""
    *before, last = work_folder.make_plan(run, steps)
    if last.sets_aside:
        work_folder.check_idle(run)
    for planned in before:
        if not planned.is_done and planned.step.name != PREPARE:
            raise UserError(
                f"{last.step.name} needs the output of {planned.step.name}, which is not up to date in {run.workdir} ({planned.action}"
                f"{': ' + '; '.join(planned.reasons) if planned.reasons else ''}): run `musiclm train {planned.step.name}` with the same options"
            )
    return [planned.action == DONE for planned in before]


def _do(run: Run, step: Step, *, title: str) -> dict[str, Any]:
    """Runs a step, unless it is done. Returns its results."""
    with work_folder.locked(run, step):
        begun = hosts.first(lambda: _begin(run, step, title=title))
        if "results" in begun:
            return begun["results"]
        work, clock = Work(run.folder(step.name), begun["key"]), time.perf_counter()
        seconds = lambda: begun["seconds"] + time.perf_counter() - clock  # noqa: E731
        try:
            results = step.run(run, work)
        finally:
            run.release()
            if hosts.is_first():
                work_folder.keep_seconds(work.folder, seconds())
        hosts.first(lambda: work_folder.write_done(run, step, work, seconds=seconds(), results=results))
        hosts.say(f"{title}: finished in {seconds():.1f} s  {_summary(results)}")
        return results


def _begin(run: Run, step: Step, *, title: str) -> dict[str, Any]:
    """Prepares the folder of a step that is to run. Returns its key, and the seconds that it has run so far; for a step that is done, its results."""
    planned = work_folder.make_plan(run, run.config.steps_to(step.name))[-1]
    folder = run.folder(step.name)
    before = work_folder.begin(run, planned) if planned.action != DONE else 0.0
    if planned.is_done:
        print(f"{title}: done", flush=True)
        return {"results": work_folder.read_done(folder)["results"]}
    print(f"{title}: {step.title}{f' ({planned.action})' if planned.action != NEW else ''}", flush=True)
    if run.config_text:
        write_text(folder / "config.gin", run.config_text)
    return {"key": planned.record["key"], "seconds": before}


def _check_hosts(run: Run, steps: tuple[Step, ...]) -> None:
    """Raises UserError where processes of one training have another config, step or package, or see other folders."""
    if jax.process_count() == 1:
        return
    token = run.workdir / ".hosts"
    hosts.first(lambda: write_text(token, uuid.uuid4().hex))
    seen = {
        "version of musiclm_jax or jax": f"{musiclm_jax.__version__} {jax.__version__}",
        "step": " ".join(step.name for step in steps),
        "config": repr(run.config),
        f"work folder {run.workdir}": token.read_text() if token.exists() else "",
        f"list of files in {run.data}": "\n".join(list_files(run.data)),
    }
    hosts.check_agreement({name: hashlib.sha256(text.encode()).digest() for name, text in seen.items()})
    hosts.first(lambda: remove(token))


def _check_clips(run: Run, steps: tuple[Step, ...]) -> None:
    """Raises UserError where the clips cannot train a part of one of the steps."""
    names = {step.name for step in steps}
    parts = [part for part in run.config.parts if any(step.name in names for step in part.steps(run.config))]
    _ = run.tokens or run.clips  # Opened by all processes, and checked by one.
    hosts.first(lambda: [part.check(run) for part in parts] and None)


def _check_batches(config: FitConfig, steps: tuple[Step, ...]) -> None:
    """Raises UserError where a mesh does not tile the devices, or a batch does not split over it, before anything is computed."""
    names = {step.name for step in steps}
    for part in config.parts:
        if isinstance(part, TrainedPart) and part.name in names:
            part.check_batch(config, make_mesh(part.loop.mesh))


def _check_workdir(run: Run) -> None:
    """Raises UserError where the work folder is on an object store that this account may not write, or that does not exist."""
    if is_bucket(run.workdir):
        check_writable(run.workdir / STEP_FILE)


def _summary(results: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in results.items() if isinstance(value, (int, float)) and not name.endswith("_per_sec"))
