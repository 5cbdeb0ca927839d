"""The state of a work folder: which steps are done, which must be redone and why. No output is ever deleted.

Each step has a folder with two records. `step.json` has the step's *key*: a hash of exactly what decides its result (its settings, the identities of its
inputs, digests of the data). `done.json` has its *identity* (the key; for a training, with the lengths that it has had) and the hashes of its outputs.
When the key changes, the folder is moved to `superseded/` and the step starts in a new one; when an old key returns, its folder is moved back. Only a
longer training with the same key continues from the shorter one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath, exists, fingerprint, is_bucket, read_json, sha256_file, write_json, write_text
from musiclm_jax.folders import move, move_aside
from musiclm_jax.parts.part import Run, Step, Work
from musiclm_jax.records import differences, from_dict
from musiclm_jax.training import hosts
from musiclm_jax.training.checkpoints import latest_lengths, trained_on

try:
    import fcntl
except ModuleNotFoundError:  # Windows.
    fcntl = None

STEP_FILE, DONE_FILE = "step.json", "done.json"
_SUPERSEDED, _LOCKS, _WHY = "superseded", ".locks", "WHY.txt"

# The actions of a plan, as printed.
DONE, NEW, CONTINUE, EXTEND, REPAIR, REDO, RESTORE = "done", "new", "continue", "extend", "repair", "redo", "restore"


@dataclasses.dataclass(frozen=True)
class Planned:
    """The planned action of a step."""

    step: Step
    action: str
    reasons: tuple[str, ...]
    # The content of step.json once the step has started.
    record: dict[str, Any]
    # The identity in done.json once it is done, as far as can be predicted.
    identity: str
    # Whether the folder contains the output of another key, which is moved to superseded/ first.
    sets_aside: bool = False
    # The folder in superseded/ with this step's key, which is moved back first.
    back: AnyPath | None = None

    @property
    def is_done(self) -> bool:
        """Whether the step need not run."""
        return self.action in (DONE, RESTORE)

    def __str__(self) -> str:
        reasons = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        return f"{self.step.name}: {self.action}{reasons}"


def make_plan(run: Run, steps: tuple[Step, ...]) -> list[Planned]:
    """The planned action of each step, in order. Writes nothing.

    Raises:
        UserError: the folder of a step contains files that no training wrote, or the data cannot be read.
    """
    planned: dict[str, Planned] = {}
    for step in steps:
        planned[step.name] = plan_step(run, step, {need: planned[need] for need in step.needs})
    return list(planned.values())


def plan_step(run: Run, step: Step, inputs: Mapping[str, Planned]) -> Planned:
    """The planned action of one step, given those of its inputs."""
    folder = run.folder(step.name)
    record = {
        "settings": step.settings,
        "inputs": {name: each.identity for name, each in inputs.items()},
        "data": {aspect: run.digest(aspect) for aspect in step.reads},
    }
    record = {"key": _hash(record), **record}
    before = _read_record(folder, step)
    here = _look(folder, step, record["key"]) if before is not None and before["key"] == record["key"] else None
    if isinstance(here, _Found) and here.action == DONE:
        return Planned(step, DONE, (), record, here.identity)
    reasons = () if before is None or isinstance(here, _Found) else (here,) if here else _reasons(record, before, inputs)
    # In superseded/, a finished step takes precedence over an unfinished one in place.
    for back, found in _usable(run, step, record["key"]):
        if found.action == DONE or not isinstance(here, _Found):
            action = RESTORE if found.action == DONE else found.action
            reasons = (*reasons, f"from {back}", *found.reasons)
            return Planned(step, action, reasons, record, found.identity, sets_aside=before is not None, back=back)
    if isinstance(here, _Found):
        return Planned(step, here.action, here.reasons, record, here.identity)
    fresh = identity(record["key"], step, None if step.num_steps is None else [[0, step.num_steps]])
    return Planned(step, NEW if before is None else REDO, reasons, record, fresh, sets_aside=before is not None)


@dataclasses.dataclass(frozen=True)
class _Found:
    """The state of a folder with the right key."""

    action: str
    identity: str
    reasons: tuple[str, ...] = ()


def _look(folder: AnyPath, step: Step, key: str) -> _Found | str:
    """The state of a folder with the right key; or, for a training already longer than requested, a reason not to use it."""
    done = read_done(folder)
    damaged = next(iter(_damaged(folder, done).values()), "") if done else ""
    if done and done["num_steps"] == step.num_steps and not damaged:
        return _Found(DONE, done["identity"])
    if step.num_steps is None:
        return _Found(REPAIR, done["identity"], (damaged,)) if done else _Found(CONTINUE, key)
    newest = latest_lengths(folder)  # (step of the newest checkpoint, its history) or None
    at = newest[0] if newest else 0
    if (trained := max(at, done["num_steps"] if done else 0)) > step.num_steps:
        return f"{step.num_steps} steps are requested, {trained} were trained"
    if done and done["num_steps"] == step.num_steps:
        return _Found(REPAIR, done["identity"], (damaged,))
    lengths = trained_on(newest[1] if newest else [], start=at, num_steps=step.num_steps)
    if done:
        return _Found(EXTEND, identity(key, step, lengths), (f"to step {step.num_steps}, from {at}",))
    return _Found(CONTINUE, identity(key, step, lengths), (f"from step {at}" if at else "from the beginning",))


def identity(key: str, step: Step, lengths: list[list[int]] | None) -> str:
    """The identity of a step's output: its key; for a training, hashed with the lengths that it has had, since schedules depend on them."""
    return _hash([key, lengths]) if step.num_steps else key


def _reasons(record: dict[str, Any], before: dict[str, Any], inputs: Mapping[str, Planned]) -> tuple[str, ...]:
    """Why a step's key differs from that of its folder."""
    if not before["key"]:
        return ("an older version of musiclm_jax wrote it",)
    reasons = differences(record["settings"], before["settings"])
    for name in record["inputs"]:
        if record["inputs"][name] != before["inputs"].get(name):
            reasons.append(f"{name} changed")
    reasons += [f"the {aspect} of the data changed" for aspect, digest in record["data"].items() if digest != before["data"].get(aspect)]
    return (*reasons[:4], f"and {len(reasons) - 4} more") if len(reasons) > 5 else tuple(reasons)


# ---------------------------------------------------------------------------------------------------------------------- Records


@dataclasses.dataclass(frozen=True)
class _Begun:
    """The fields of step.json."""

    key: str
    settings: Any
    inputs: dict[str, str]
    data: dict[str, str]
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class _Output:
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class _Done:
    """The fields of done.json."""

    key: str
    identity: str
    num_steps: int | None
    outputs: dict[str, _Output]
    seconds: float
    results: dict[str, Any]


def _read_record(folder: AnyPath, step: Step) -> dict[str, Any] | None:
    """step.json of a folder. None: no folder, or an empty one. UserError: the folder is not that of a step."""
    if (folder / STEP_FILE).exists():
        return _read(folder / STEP_FILE, _Begun)
    if not folder.exists() or not any(folder.iterdir()):
        return None
    if (folder / "begun.json").exists() or (folder / DONE_FILE).exists():
        return {"key": "", "settings": None, "inputs": {}, "data": {}}  # Of a version without keys.
    other = min(path.name for path in folder.iterdir())
    raise UserError(f"{folder} contains {other}, which no training wrote: the step {step.name} needs this folder, so choose another work folder")


def read_done(folder: AnyPath) -> dict[str, Any] | None:
    return _read(folder / DONE_FILE, _Done) if (folder / DONE_FILE).exists() else None


def _read(path: AnyPath, kind: type) -> dict[str, Any]:
    """A record with the fields of `kind`. UserError where the file has others, or none, as a failing disk leaves it."""
    try:
        record = read_json(path)
        from_dict(kind, record, where="")
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise
        remedy = f"move {path.parent} away, and the step starts again" if kind is _Begun else "delete that file, and the step is completed again"
        raise UserError(f"{path} is damaged: {remedy}") from error
    return record


_HASHES: dict[tuple[str, int, int], str] = {}


def _file_hash(path: AnyPath) -> str:
    """sha256 of a file, cached for as long as its size and time stay the same."""
    at = (str(path), *fingerprint(path))
    if at not in _HASHES:
        _HASHES[at] = sha256_file(path)
    return _HASHES[at]


def _damaged(folder: AnyPath, done: dict[str, Any]) -> dict[str, str]:
    """The outputs of a finished step that are missing or changed, by name, and in words."""
    found = {}
    for name, expected in done["outputs"].items():
        path = folder / name
        if not path.is_file():
            found[name] = f"{path} is missing"
        elif fingerprint(path)[0] != expected["bytes"] or _file_hash(path) != expected["sha256"]:
            found[name] = f"{path} is damaged"
    return found


def write_done(run: Run, step: Step, work: Work, *, seconds: float, results: dict[str, Any]) -> None:
    """Writes the record of a finished step, with the hashes of its outputs."""
    folder = run.folder(step.name)
    written = step.outputs if work.outputs is None else work.outputs
    outputs = {name: {"bytes": fingerprint(folder / name)[0], "sha256": _file_hash(folder / name)} for name in written}
    done = {"key": work.key, "identity": identity(work.key, step, work.lengths), "num_steps": step.num_steps}
    write_json(folder / DONE_FILE, {**done, "outputs": outputs, "seconds": round(seconds, 1), "results": results})


# ---------------------------------------------------------------------------------------------------------------------- Starting a step


def begin(run: Run, planned: Planned) -> float:
    """Prepares the folder of a step. Returns the seconds that interrupted runs of the step have taken.

    Damaged outputs are moved to `damaged`, so that the step makes them again and takes none of them for its own.
    """
    folder = run.folder(planned.step.name)
    if planned.sets_aside:
        set_aside(run, planned)
    if planned.back is not None:
        if folder.exists():  # Empty, or it would have been set aside.
            folder.rmdir()
        move(planned.back, folder, first=STEP_FILE)
        (folder / _WHY).unlink(missing_ok=True)
    if (done := read_done(folder)) is not None:
        for name in {PurePath(name).parts[0] for name in _damaged(folder, done)}:  # Of a bundle, the whole folder.
            if exists(folder / name):
                move_aside(folder / name, folder / "damaged" / name)
    if (folder / STEP_FILE).exists():
        return _read(folder / STEP_FILE, _Begun).get("seconds", 0.0)
    write_json(folder / STEP_FILE, planned.record)
    return 0.0


def keep_seconds(folder: AnyPath, seconds: float) -> None:
    """Records how long a step has run so far."""
    with contextlib.suppress(UserError):  # The disk may be full; that error is reported elsewhere.
        write_json(folder / STEP_FILE, {**read_json(folder / STEP_FILE), "seconds": round(seconds, 1)})


def _superseded(run: Run, name: str) -> list[AnyPath]:
    """The superseded folders of a step, newest first."""
    found = [path for path in (run.workdir / _SUPERSEDED).glob(f"{name}-*") if path.name.removeprefix(f"{name}-").isdigit() and (path / STEP_FILE).exists()]
    return sorted(found, key=lambda path: -int(path.name.removeprefix(f"{name}-")))


def _usable(run: Run, step: Step, key: str) -> list[tuple[AnyPath, _Found]]:
    """The superseded folders of a step with this key, and their states: finished ones first, and newer ones before older ones."""
    found = []
    for back in _superseded(run, step.name):
        with contextlib.suppress(UserError):  # Damaged, and not needed.
            if _read(back / STEP_FILE, _Begun)["key"] == key and isinstance(state := _look(back, step, key), _Found):
                found.append((back, state))
    return sorted(found, key=lambda each: each[1].action != DONE)


def aside(run: Run, name: str) -> AnyPath:
    """The next free folder in superseded/ for a step."""
    home, number = run.workdir / _SUPERSEDED, 1
    while (home / f"{name}-{number}").exists():
        number += 1
    return home / f"{name}-{number}"


def set_aside(run: Run, planned: Planned) -> None:
    """Moves the folder of a step into WORKDIR/superseded, with the reasons in WHY.txt. Nothing is deleted."""
    folder, target = run.folder(planned.step.name), aside(run, planned.step.name)
    move(folder, target, first=STEP_FILE)
    with contextlib.suppress(UserError):  # The disk may be full; the move has been made.
        write_text(target / _WHY, "".join(f"{line}\n" for line in planned.reasons))


@contextlib.contextmanager
def locked(run: Run, step: Step) -> Iterator[None]:
    """A lock on one step of a work folder, released when the process ends in any way. Process 0 has it for all processes of a training. Does nothing on an
    object store, or a platform without `flock`.

    Raises:
        UserError: another process has the lock.
    """
    with contextlib.ExitStack() as stack:
        hosts.first(lambda: stack.enter_context(_locked(run, step)))
        yield


@contextlib.contextmanager
def _locked(run: Run, step: Step) -> Iterator[None]:
    if fcntl is None or is_bucket(run.workdir):
        yield
        return
    path = run.workdir / _LOCKS / step.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):  # A file system without locks.
                yield
                return
            file.seek(0)
            other = file.read().strip() or "another"
            raise UserError(f"{run.folder(step.name)}: process {other} is running this step; wait for it, or choose another work folder") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def check_idle(run: Run) -> None:
    """Raises UserError where another process runs a step of the work folder, whose outputs must not be moved meanwhile."""
    if fcntl is None or is_bucket(run.workdir):
        return
    for path in sorted((run.workdir / _LOCKS).glob("*")):
        with path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    other = file.read().strip() or "another"
                    raise UserError(f"{run.workdir}: process {other} is running {path.name} there: wait for it, or choose another work folder") from None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
