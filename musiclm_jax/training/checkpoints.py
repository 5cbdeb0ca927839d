"""Checkpoints of a training run, from which it continues. (`MusicLM.save_pretrained` writes the bundles for users.)

    WORKDIR/checkpoints/<step>/state/             the whole state, written by Orbax
    WORKDIR/checkpoints/<step>/checkpoint.json    the identity of the training, the lengths of its run, and the SHA-256 of each file
    WORKDIR/damaged/<step>/                       a checkpoint whose files differ from what was written

A folder gets the name of its step only when all of it is on the disk, so that a half-written checkpoint, left by a kill or a power cut, is never read.
The hashes alone decide whether a checkpoint is damaged, not the exceptions raised while reading: after an I/O error, the same file may be readable
later. A damaged checkpoint is never deleted.

On an object store, which cannot rename a folder, the state is written to its place at once, and checkpoint.json, written last, makes it a checkpoint.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import jax
import orbax.checkpoint as ocp

from musiclm_jax.errors import UserError, unreadable, unwritable
from musiclm_jax.files import AnyPath, as_path, is_bucket, is_file, list_files, make_folder, parse_json, remove, sync, write_json
from musiclm_jax.folders import move_aside, remove_folder

log = logging.getLogger(__name__)

# The lengths that a run has had, as [first step, num_steps] pairs: a run of 4 steps that was later extended to 6 is [[0, 4], [4, 6]].
Lengths = list[list[int]]

_RECORD, _UNFINISHED = "checkpoint.json", ".unfinished"


class Checkpoints:
    """The checkpoints of one run, by step. Use it as a context manager, or call `close`.

    identity: an opaque string, the hash of all that decides the training's result except its length. A checkpoint with another identity is refused.
    keep: number of checkpoints to keep; older ones are deleted.
    """

    def __init__(self, workdir: AnyPath, *, identity: str, keep: int = 2):
        workdir = as_path(workdir)
        self._workdir, self._identity, self._keep = workdir if is_bucket(workdir) else workdir.absolute(), identity, keep
        self._directory = self._workdir / "checkpoints"
        self._newest = 0
        with self._writing():
            make_folder(self._directory)
            for path in self._unfinished():
                remove_folder(path)
            sync(self._workdir)
        # Orbax also logs the exceptions that it raises, each with a stack trace.
        self._orbax_log = logging.getLogger("absl")
        self._orbax_log_level = self._orbax_log.level
        self._orbax_log.setLevel(logging.CRITICAL)
        _quiet_asyncio()
        self._orbax = ocp.StandardCheckpointer()
        self._worker = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._saving: concurrent.futures.Future | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Waits until the last save is on the disk. Raises UserError where it failed."""
        try:
            self._wait()
        finally:
            self._worker.shutdown()
            with contextlib.suppress(Exception):  # `_wait` has already raised the error of a failed save; Orbax raises it again.
                self._orbax.close()
            self._orbax_log.setLevel(self._orbax_log_level)

    # ---------------------------------------------------------------- Save

    def save(self, step: int, state: Any, lengths: Lengths) -> None:
        """Writes the state as the checkpoint of `step`, in the background on an accelerator. An existing checkpoint of this step is left unchanged.

        Raises:
            UserError: this save or the one before it failed, for example because the disk is full.
        """
        self._wait()
        folder = self._directory / str(step)
        if folder.exists():
            return
        unfinished = folder if is_bucket(folder) else folder.with_name(f"{step}{_UNFINISHED}")
        with self._writing():
            self._orbax.save(unfinished / "state", state)
        self._saving = self._worker.submit(self._finish, step, unfinished, {"identity": self._identity, "lengths": lengths})
        # On the CPU an array's host copy may be the array itself, which the next step's donation overwrites.
        if jax.default_backend() == "cpu":
            self._wait()

    def _wait(self) -> None:
        """Waits for the last save. Raises UserError where it failed."""
        saving, self._saving = self._saving, None
        if saving is not None:
            with self._writing():
                saving.result()

    def _finish(self, step: int, unfinished: AnyPath, record: dict[str, Any]) -> None:
        self._orbax.wait_until_finished()
        if not is_bucket(unfinished):
            for path in unfinished.rglob("*"):
                sync(path)
        record["files"] = {name: _hash_file(unfinished / name) for name in list_files(unfinished)}
        write_json(unfinished / _RECORD, record | {"sha256": _hash_record(record)})
        if unfinished.name != str(step):
            unfinished.rename(self._directory / str(step))
        sync(self._directory)
        self._newest = step
        for old in _steps(self._directory)[: -self._keep]:
            self._delete(self._directory / str(old))

    def _delete(self, folder: AnyPath) -> None:
        """Deletes a checkpoint. It is none from the first moment on, so that a kill while deleting leaves no incomplete checkpoint."""
        if is_bucket(folder):
            remove(folder / _RECORD)
        else:
            folder = folder.rename(folder.with_name(f"{folder.name}{_UNFINISHED}"))
        remove_folder(folder)

    def _unfinished(self) -> list[AnyPath]:
        """The folders of checkpoints that are not, or no longer, complete."""
        if is_bucket(self._directory):
            return [self._directory / str(step) for step in _numbers(self._directory) if not is_file(self._directory / str(step) / _RECORD)]
        return list(self._directory.glob(f"*{_UNFINISHED}"))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns an OS error within the block into a UserError, and deletes what the failed save wrote."""
        try:
            yield
        except Exception as error:
            reason = _os_error(error)
            if reason is None:
                raise
            self._remove_unfinished()
            raise UserError(f"{unwritable(self._directory, reason)}; the training continues from step {self._newest}") from error

    def _remove_unfinished(self) -> None:
        """Deletes what a failed save wrote. It retries, since other threads of that save may write for a moment longer."""
        with contextlib.suppress(Exception):
            self._orbax.wait_until_finished()
        for _ in range(20):
            left = self._unfinished()
            if not left:
                return
            for path in left:
                with contextlib.suppress(OSError):
                    remove_folder(path)
            time.sleep(0.05)

    # ---------------------------------------------------------------- Restore

    def restore(self, abstract_state: Any, *, num_steps: int) -> tuple[Any, Lengths] | None:
        """Reads the newest checkpoint that is not damaged. Newer, damaged ones are moved to WORKDIR/damaged, with a warning.

        Args:
            abstract_state: ShapeDtypeStructs with the shardings that the state shall have.
            num_steps: length of the run that shall continue.

        Returns:
            (state, lengths of its run), or None where there is no checkpoint.

        Raises:
            UserError: all checkpoints are damaged; a file cannot be read; the checkpoint belongs to another training or is beyond num_steps. Then
                no checkpoint is moved.
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
                    f"{folder} belongs to another training, with another config, seed or data: choose another work folder than {self._workdir}, "
                    f"restore that config, seed and data, or move {self._directory} away to train anew"
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

    def _load(self, folder: AnyPath, abstract_state: Any) -> Any:
        """Reads the state of a checkpoint whose files match their hashes."""
        try:
            return self._orbax.restore(folder / "state", abstract_state)
        except Exception as error:  # Orbax raises many types.
            if (reason := _os_error(error)) is not None:
                raise _unreadable(folder, reason) from error
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"{folder} is intact but cannot be restored here ({first_line}): use the package version that wrote it and as much memory, "
                f"or move {self._directory} away to train anew"
            ) from error

    def _move_damaged(self, damaged: dict[int, str], step: int) -> None:
        """Moves damaged checkpoints, {step: reason}, to WORKDIR/damaged. The training continues from `step`."""
        for each, reason in damaged.items():
            aside = move_aside(self._directory / str(each), self._workdir / "damaged" / str(each))
            log.warning("the checkpoint of step %d is damaged (%s) and was moved to %s: training continues from step %d", each, reason, aside, step)


def latest_lengths(workdir: AnyPath) -> tuple[int, Lengths] | None:
    """The step of the newest checkpoint and the lengths of its run, or None where there is no checkpoint. Reads the record alone."""
    directory = workdir / "checkpoints"
    for step in reversed(_steps(directory)):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return step, parse_json((directory / str(step) / _RECORD).read_bytes())["lengths"]
    return None


def trained_on(lengths: Lengths, *, start: int, num_steps: int) -> Lengths:
    """The lengths of a run that continues from step `start` and shall end at `num_steps`. lengths: those before; empty for a new run."""
    return lengths if lengths and lengths[-1][1] == num_steps else [*lengths, [start, num_steps]]


class _Damaged(Exception):
    """The files of a checkpoint differ from what was written. The message names the file."""


def _verified_record(folder: AnyPath) -> dict[str, Any]:
    """Reads a checkpoint's record and compares the hashes of all files with it. Raises _Damaged where they differ, UserError where reading fails."""
    try:
        record = parse_json((folder / _RECORD).read_bytes())
        if record.pop("sha256") != _hash_record(record):
            raise ValueError
        for name, expected in record["files"].items():
            if _hash_file(folder / name) != expected:
                raise _Damaged(f"{name} has changed")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise _Damaged(f"{PurePath(error.filename or folder).name} is missing") from error
    except OSError as error:
        raise _unreadable(folder, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # Not JSON, or JSON of another form.
        raise _Damaged(f"{_RECORD} has changed") from error
    return record


def _steps(directory: AnyPath) -> list[int]:
    """The steps of the checkpoints in a folder, in ascending order."""
    return [step for step in _numbers(directory) if not is_bucket(directory) or is_file(directory / str(step) / _RECORD)]


def _numbers(directory: AnyPath) -> list[int]:
    """The folders named by a step, in ascending order."""
    try:
        return sorted(int(path.name) for path in directory.iterdir() if path.name.isascii() and path.name.isdigit())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(directory, error) from error


def _hash_record(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _hash_file(path: AnyPath) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unreadable(folder: AnyPath, error: OSError) -> UserError:
    return UserError(f"{unreadable(folder, error)}; or move it away, and training continues from the checkpoint before it")


def _os_error(error: BaseException | None) -> OSError | None:
    """The OS error that caused an exception of Orbax; None where it has another cause."""
    while error is not None and not isinstance(error, OSError):
        # TensorStore, which reads and writes the arrays, raises ValueError with the OS error's number in the message.
        if number := re.search(r"os_error_code='(\d+)'", str(error)):
            return OSError(int(number[1]), os.strerror(int(number[1])))
        error = error.__cause__
    return error


@functools.cache
def _quiet_asyncio() -> None:
    """Drops the reports of asyncio on tasks of a failed save, one for each array, at any later time. Their error is raised; these are copies of it."""
    logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.getMessage())
    warnings.filterwarnings("ignore", r"coroutine '.*serialize.*' was never awaited", RuntimeWarning)
    report = sys.unraisablehook
    sys.unraisablehook = lambda found: None if "Event loop is closed" in str(found.exc_value) else report(found)
