"""The bookkeeping of a work folder: what is done, what would be redone and why, and that nothing made is lost.

Each step has a folder of its own with two records. `step.json` says what the folder is for: a *key*, the hash of exactly what decides the step's result
(its settings, the identities of what it reads, digests of the data). `done.json` says what was made: its *identity*, which for a training is the key
with the history of its length, and the hashes of its outputs. A step with another key is another thing: the folder is set aside in `superseded/`, and the
step begins in a new one. Only a longer training with the same key continues where the shorter one ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from musiclm_jax.errors import UserError
from musiclm_jax.parts.part import Run, Step
from musiclm_jax.records import differences, read_json, sha256_file, write_json, write_text
from musiclm_jax.training.checkpoints import latest_lengths

try:
    import fcntl
except ModuleNotFoundError:  # Windows.
    fcntl = None

STEP_FILE, DONE_FILE = "step.json", "done.json"
_SUPERSEDED, _LOCKS = "superseded", ".locks"

# What a plan says of a step, in words.
DONE, NEW, CONTINUE, LONGER, REPAIR, ANEW = "done", "new", "continue", "train on", "repair", "anew"


@dataclasses.dataclass(frozen=True)
class Planned:
    """What is to be done about a step. Of those that are made `anew`, the folder is set aside first."""

    step: Step
    action: str
    reasons: tuple[str, ...]
    # What step.json says once the step has begun.
    record: dict[str, Any]
    # What done.json will say, as far as can be known.
    identity: str

    def __str__(self) -> str:
        reasons = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        return f"{self.step.name}: {self.action}{reasons}"


def make_plan(run: Run, steps: tuple[Step, ...]) -> list[Planned]:
    """What would be done about each step, in order. Nothing is written.

    Raises:
        UserError: a folder that a step wants holds something that no training made, or the data cannot be read.
    """
    planned: dict[str, Planned] = {}
    for step in steps:
        inputs = {need: planned[need] for need in step.needs}
        planned[step.name] = plan_step(run, step, inputs)
    return list(planned.values())


def plan_step(run: Run, step: Step, inputs: Mapping[str, Planned]) -> Planned:
    """What is to be done about one step, given what is planned for those that it reads."""
    folder = run.folder(step.name)
    record = {
        "settings": step.settings,
        "inputs": {name: each.identity for name, each in inputs.items()},
        "data": {aspect: run.clip_folder.digest(aspect) for aspect in step.reads},
    }
    record = {"key": _hash(record), **record}
    before = _read_record(folder, step)
    done = read_done(folder)
    planned = lambda action, *reasons, lengths=None: Planned(step, action, reasons, record, identity(record["key"], step, lengths))  # noqa: E731
    fresh = [[0, step.num_steps]] if step.num_steps else None
    if before is None:
        return planned(NEW, lengths=fresh)
    if before["key"] != record["key"]:
        return planned(ANEW, *_reasons(record, before, inputs), lengths=fresh)
    damaged = done is not None and _damaged(folder, done)
    lengths = latest_lengths(folder) if step.num_steps else None
    if step.num_steps:
        trained = max(lengths[0] if lengths else 0, done["num_steps"] if done else 0)
        if done and not damaged and done["num_steps"] == step.num_steps:
            return Planned(step, DONE, (), record, done["identity"])
        if trained > step.num_steps:
            return planned(ANEW, f"{step.num_steps} steps are asked for, {trained} were trained", lengths=fresh)
        history = _history(lengths, step.num_steps)
        if done and done["num_steps"] < step.num_steps:
            return planned(LONGER, f"to step {step.num_steps}, from {lengths[0] if lengths else 0}", lengths=history)
        if done:
            return Planned(step, REPAIR, (damaged,), record, done["identity"])
        return planned(CONTINUE, f"from step {lengths[0]}", lengths=history) if lengths else planned(CONTINUE, "from the beginning", lengths=history)
    if done and not damaged:
        return Planned(step, DONE, (), record, done["identity"])
    if done:
        return Planned(step, REPAIR, (damaged,), record, done["identity"])
    return planned(CONTINUE)


def identity(key: str, step: Step, lengths: list[list[int]] | None) -> str:
    """Of what a step makes: its key, and for a training how long it was to be, from which step on, since a schedule goes by it."""
    return _hash([key, lengths]) if step.num_steps else key


def _history(lengths: tuple[int, list[list[int]]] | None, num_steps: int) -> list[list[int]]:
    """The history of a training that continues from its newest checkpoint with this length."""
    if lengths is None:
        return [[0, num_steps]]
    step, history = lengths
    return history if history[-1][1] == num_steps else [*history, [step, num_steps]]


def _reasons(record: dict[str, Any], before: dict[str, Any], inputs: Mapping[str, Planned]) -> list[str]:
    """Why a step is another than the one that the folder holds."""
    reasons = differences(record["settings"], before["settings"])
    for name in record["inputs"]:
        if record["inputs"][name] != before["inputs"].get(name):
            reasons.append(f"{name} is another")
    reasons += [f"the {aspect} of the data changed" for aspect, digest in record["data"].items() if digest != before["data"].get(aspect)]
    return [*reasons[:4], f"and {len(reasons) - 4} more"] if len(reasons) > 5 else reasons


# ---------------------------------------------------------------------------------------------------------------------- Records


def _read_record(folder: Path, step: Step) -> dict[str, Any] | None:
    """step.json of a folder; None where the folder is not there or empty. UserError where it is not ours."""
    if (folder / STEP_FILE).exists():
        return read_json(folder / STEP_FILE)
    if not folder.exists() or not any(folder.iterdir()):
        return None
    if (folder / "begun.json").exists() or (folder / DONE_FILE).exists():
        return {"key": "", "settings": {"musiclm_jax": "a version before parts had identities"}, "inputs": {}, "data": {}}
    other = min(path.name for path in folder.iterdir())
    raise UserError(f"{folder} holds {other}, which no training made: the step {step.name} would work there, so choose another work folder")


def read_done(folder: Path) -> dict[str, Any] | None:
    return read_json(folder / DONE_FILE) if (folder / DONE_FILE).exists() else None


_HASHES: dict[tuple[str, int, int], str] = {}


def _file_hash(path: Path) -> str:
    """sha256 of a file; of a file that was not touched since, as this process found it."""
    status = path.stat()
    at = (str(path), status.st_size, status.st_mtime_ns)
    if at not in _HASHES:
        _HASHES[at] = sha256_file(path)
    return _HASHES[at]


def _damaged(folder: Path, done: dict[str, Any]) -> str:
    """Which output of a finished step is not what it was; "" if none."""
    for name, expected in done["outputs"].items():
        path = folder / name
        if not path.is_file():
            return f"{path} is gone"
        if path.stat().st_size != expected["bytes"] or _file_hash(path) != expected["sha256"]:
            return f"{path} is damaged"
    return ""


def write_done(run: Run, planned: Planned, *, lengths: list[list[int]] | None, seconds: float, results: dict[str, Any]) -> None:
    """The record of a finished step, with the hashes of what it made."""
    folder = run.folder(planned.step.name)
    outputs = {name: {"bytes": (folder / name).stat().st_size, "sha256": _file_hash(folder / name)} for name in planned.step.outputs}
    key = planned.record["key"]
    done = {"key": key, "identity": identity(key, planned.step, lengths), "num_steps": planned.step.num_steps}
    write_json(folder / DONE_FILE, {**done, "outputs": outputs, "seconds": round(seconds, 1), "results": results})


# ---------------------------------------------------------------------------------------------------------------------- Beginning


def begin(run: Run, planned: Planned) -> float:
    """Makes the folder ready for a step; returns the seconds that interrupted runs of it have taken."""
    folder = run.folder(planned.step.name)
    if planned.action == ANEW:
        set_aside(run, planned)
    if (folder / STEP_FILE).exists():
        return read_json(folder / STEP_FILE).get("seconds", 0.0)
    write_json(folder / STEP_FILE, planned.record)
    return 0.0


def keep_seconds(folder: Path, seconds: float) -> None:
    """Remembers how long a step has been at work, however it ended."""
    with contextlib.suppress(UserError):  # On a full disk there is another error to report.
        write_json(folder / STEP_FILE, {**read_json(folder / STEP_FILE), "seconds": round(seconds, 1)})


def aside(run: Run, name: str) -> Path:
    """Where the folder of a step goes when it is superseded."""
    home, number = run.workdir / _SUPERSEDED, 1
    while (home / f"{name}-{number}").exists():
        number += 1
    return home / f"{name}-{number}"


def set_aside(run: Run, planned: Planned) -> None:
    """Moves the folder of a step into WORKDIR/superseded, with the reason beside it. Nothing is deleted."""
    folder, target = run.folder(planned.step.name), aside(run, planned.step.name)
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)
    with contextlib.suppress(UserError):  # On a full disk the move is what counts.
        write_text(target / "WHY.txt", "".join(f"{line}\n" for line in planned.reasons))


@contextlib.contextmanager
def locked(run: Run, step: Step) -> Iterator[None]:
    """Keeps two runs apart that would work on the same step of one work folder. The lock goes with the process, however it ends.

    Raises:
        UserError: another process is at work there.
    """
    if fcntl is None:
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
            raise UserError(f"{run.folder(step.name)}: process {other} is at work there; wait for it, or choose another work folder") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
