"""Checkpoints of a training run (Orbax): the whole state, and the config it belongs to. Bundles for users are `MusicLM.save_pretrained`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from musiclm_jax.errors import UserError
from musiclm_jax.records import differences

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints in one folder, by step. Use it as a context manager, or call `close`.

    Each holds the state and `config`, any JSON tree, so that a run cannot continue under a config that is not its own.
    """

    def __init__(self, directory: Path, *, config: Any, keep: int = 2):
        self._directory = Path(directory).absolute()
        self._config = config
        # On the CPU an array's host copy may be the array itself, which the next step's donation overwrites: save before going on.
        asynchronous = jax.default_backend() != "cpu"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=asynchronous)
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def save(self, step: int, state: Any) -> None:
        """Writes the state as `step`; on an accelerator in the background. A step that exists already is left alone."""
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(self._config))
        self._manager.save(step, args=items)

    def restore(self, abstract_state: Any) -> Any | None:
        """The newest readable state, placed as `abstract_state` (ShapeDtypeStructs with shardings) says; None where there is no checkpoint.

        An unreadable checkpoint (killed while writing, disk full) is removed with a warning and the one before it is taken. Raises `UserError`
        where a checkpoint belongs to another config, or where none of them can be read.
        """
        unreadable = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                config = self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]
                self._check_config(config)
                items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
                state = self._manager.restore(step, args=items)["state"]
            except UserError:
                raise
            except Exception as error:  # Orbax raises many types for a damaged folder.
                log.warning("checkpoint %s cannot be read (%s): trying the one before it", self._directory / str(step), _first_line(error))
                unreadable.append(step)
                continue
            for damaged in unreadable:  # Only now that another is known to be good; training will write these steps again.
                self._manager.delete(damaged)
            return state
        if unreadable:
            raise UserError(f"none of the checkpoints in {self._directory} can be read: delete the folder to start this training anew")
        return None

    def _check_config(self, config: Any) -> None:
        changed = differences(self._config, config)
        if changed:
            raise UserError(
                f"the checkpoints in {self._directory} belong to another config ({'; '.join(changed[:5])}{'; ...' if changed[5:] else ''}): "
                "go back to that config, choose another folder, or delete this one to start anew"
            )

    def close(self) -> None:
        """Waits until what was saved is on the disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
