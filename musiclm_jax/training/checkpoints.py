"""Checkpoints of a training run. Bundles for users are `MusicLM.save_pretrained`.

    WORKDIR/checkpoints/<step>/state/             the whole state, by Orbax
    WORKDIR/checkpoints/<step>/checkpoint.json    which training it belongs to, how long its run was to be, and the SHA-256 of each file
    WORKDIR/damaged/<step>/                       a checkpoint whose files are not those that were written

A folder has the name of its step only when all of it is on the disk, so what a kill or a power cut leaves half-written never counts. Whether a
checkpoint is damaged is decided by its hashes alone, and not by what is raised while it is read: a disk that gives an error may give the file
tomorrow. A damaged checkpoint is never deleted.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from musiclm_jax.errors import UserError, unreadable, unwritable
from musiclm_jax.folders import move_aside
from musiclm_jax.records import parse_json, sync, write_json

log = logging.getLogger(__name__)

# How the length of a run was changed, as [first step, num_steps] pairs: a run of 4 steps that was trained on to 6 is [[0, 4], [4, 6]].
Lengths = list[list[int]]

_RECORD, _UNFINISHED = "checkpoint.json", ".unfinished"


class Checkpoints:
    """The checkpoints of one run, by step. Use it as a context manager, or call `close`.

    identity: of the training, an opaque string. A checkpoint of another training is an error.
    """

    def __init__(self, workdir: Path, *, identity: str, keep: int = 2):
        self._workdir, self._identity, self._keep = Path(workdir).absolute(), identity, keep
        self._directory = self._workdir / "checkpoints"
        self._newest = 0
        with self._writing():
            self._directory.mkdir(parents=True, exist_ok=True)
            for path in self._directory.glob(f"*{_UNFINISHED}"):
                shutil.rmtree(path)
            sync(self._workdir)
        # Orbax logs a stack of lines for what it raises as well.
        self._orbax_log = logging.getLogger("absl")
        self._orbax_log_level = self._orbax_log.level
        self._orbax_log.setLevel(logging.CRITICAL)
        self._orbax = ocp.StandardCheckpointer()
        self._worker = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._saving: concurrent.futures.Future | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Waits until what was saved is on the disk."""
        try:
            self._wait()
        finally:
            self._worker.shutdown()
            with contextlib.suppress(Exception):  # What a save raised has been raised; Orbax raises it again.
                self._orbax.close()
            self._orbax_log.setLevel(self._orbax_log_level)

    # ---------------------------------------------------------------- Save

    def save(self, step: int, state: Any, lengths: Lengths) -> None:
        """Writes the state as `step`; on an accelerator in the background. A step that exists is left alone."""
        self._wait()
        folder = self._directory / str(step)
        if folder.exists():
            return
        unfinished = folder.with_name(f"{step}{_UNFINISHED}")
        with self._writing():
            self._orbax.save(unfinished / "state", state)
        self._saving = self._worker.submit(self._finish, step, unfinished, {"identity": self._identity, "lengths": lengths})
        # On the CPU an array's host copy may be the array itself, which the next step's donation overwrites.
        if jax.default_backend() == "cpu":
            self._wait()

    def _wait(self) -> None:
        """Until the last save is done. Raises `UserError` where the disk refused it."""
        saving, self._saving = self._saving, None
        if saving is not None:
            with self._writing():
                saving.result()

    def _finish(self, step: int, unfinished: Path, record: dict[str, Any]) -> None:
        self._orbax.wait_until_finished()
        record["files"] = {}
        for path in sorted(unfinished.rglob("*")):
            sync(path)
            if path.is_file():
                record["files"][path.relative_to(unfinished).as_posix()] = _hash_file(path)
        write_json(unfinished / _RECORD, record | {"sha256": _hash_record(record)})
        unfinished.rename(self._directory / str(step))
        sync(self._directory)
        self._newest = step
        for old in _steps(self._directory)[: -self._keep]:
            doomed = self._directory / f"{old}{_UNFINISHED}"  # A kill leaves no half of a checkpoint.
            (self._directory / str(old)).rename(doomed)
            shutil.rmtree(doomed)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises `UserError` where the disk refuses, and leaves nothing that takes up its space."""
        try:
            yield
        except Exception as error:
            reason = _os_error(error)
            if reason is None:
                raise
            self._remove_unfinished()
            raise UserError(f"{unwritable(self._directory, reason)}; the training continues from step {self._newest}") from error

    def _remove_unfinished(self) -> None:
        """Frees the space of a save that failed. Other threads of that save may write for a moment longer."""
        with contextlib.suppress(Exception):
            self._orbax.wait_until_finished()
        for _ in range(20):
            left = list(self._directory.glob(f"*{_UNFINISHED}"))
            if not left:
                return
            for path in left:
                shutil.rmtree(path, ignore_errors=True)
            time.sleep(0.05)

    # ---------------------------------------------------------------- Restore

    def restore(self, abstract_state: Any, *, num_steps: int) -> tuple[Any, Lengths] | None:
        """The newest checkpoint that is not damaged, and the lengths of its run; None where there is no checkpoint.

        abstract_state: ShapeDtypeStructs with the shardings that the state is to have. num_steps: length of the run that is to continue.

        Damaged checkpoints after it are moved to WORKDIR/damaged, with a warning. Raises `UserError`, and moves nothing, where all are damaged,
        where the disk gives an error, and where the checkpoint belongs to another training or is beyond the end of the run.
        """
        damaged: dict[int, str] = {}
        for step in reversed(_steps(self._directory)):
            folder = self._directory / str(step)
            try:
                record = _verified_record(folder)
            except _Damaged as error:
                damaged[step] = str(error)
                continue
            if record["identity"] != self._identity:
                raise UserError(
                    f"{folder} belongs to another training, of another config, seed or data: choose another work folder than {self._workdir}, "
                    f"go back to what it was, or move {self._directory} away to train anew"
                )
            if step > num_steps:
                raise UserError(f"{folder} is beyond num_steps={num_steps}: choose {step} or more, or move {self._directory} away to train anew")
            state = self._load(folder, abstract_state)
            self._move_damaged(damaged, step)
            self._newest = step
            return state, record["lengths"]
        if damaged:
            found = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            raise UserError(f"all checkpoints in {self._directory} are damaged ({found}): restore them from a copy, or move the folder away to train anew")
        return None

    def _load(self, folder: Path, abstract_state: Any) -> Any:
        """The state of a checkpoint whose files are all as they were written."""
        try:
            return self._orbax.restore(folder / "state", abstract_state)
        except Exception as error:  # Orbax raises many types.
            if (reason := _os_error(error)) is not None:
                raise _unreadable(folder, reason) from error
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"{folder} is intact but cannot be restored here ({first_line}): use the version and the memory that it was written with, "
                f"or move {self._directory} away to train anew"
            ) from error

    def _move_damaged(self, damaged: dict[int, str], step: int) -> None:
        """What is in the way of the training that continues from `step`."""
        for each, reason in damaged.items():
            aside = move_aside(self._directory / str(each), self._workdir / "damaged" / str(each))
            log.warning("the checkpoint of step %d is damaged (%s) and was moved to %s: training continues from step %d", each, reason, aside, step)


def latest_lengths(workdir: Path) -> tuple[int, Lengths] | None:
    """The step of the newest checkpoint and the lengths of its run, as they are recorded: its files are not read. None: there is no checkpoint."""
    directory = workdir / "checkpoints"
    for step in reversed(_steps(directory)):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return step, parse_json((directory / str(step) / _RECORD).read_bytes())["lengths"]
    return None


def trained_on(lengths: Lengths, *, start: int, num_steps: int) -> Lengths:
    """The lengths of a run that continues from step `start` and is to end at `num_steps`. lengths: up to there; empty: it starts anew."""
    return lengths if lengths and lengths[-1][1] == num_steps else [*lengths, [start, num_steps]]


class _Damaged(Exception):
    """A checkpoint is not what was written; the message says where."""


def _verified_record(folder: Path) -> dict[str, Any]:
    """What a checkpoint's record says, after all of its files were compared with it."""
    try:
        record = parse_json((folder / _RECORD).read_bytes())
        if record.pop("sha256") != _hash_record(record):
            raise ValueError
        for name, expected in record["files"].items():
            if _hash_file(folder / name) != expected:
                raise _Damaged(f"{name} has changed")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise _Damaged(f"{Path(error.filename or folder).name} is missing") from error
    except OSError as error:
        raise _unreadable(folder, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # What JSON makes of any bytes.
        raise _Damaged(f"{_RECORD} has changed") from error
    return record


def _steps(directory: Path) -> list[int]:
    """Of the checkpoints in a folder, in ascending order."""
    try:
        return sorted(int(path.name) for path in directory.iterdir() if path.name.isascii() and path.name.isdigit())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(directory, error) from error


def _hash_record(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unreadable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{unreadable(folder, error)}; or move it away, and training continues from the checkpoint before it")


def _os_error(error: BaseException | None) -> OSError | None:
    """The error of the system that is behind what Orbax raised; None where there is none."""
    while error is not None and not isinstance(error, OSError):
        # TensorStore, which reads and writes the arrays, raises ValueError with the number of the system's error in its text.
        if number := re.search(r"os_error_code='(\d+)'", str(error)):
            return OSError(int(number[1]), os.strerror(int(number[1])))
        error = error.__cause__
    return error
