"""Converts the weights of a stage between T5X's checkpoints and our bundles. The parameters are the same arrays under the same names; needs Orbax only."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from musiclm_jax import bundle, pretrained
from musiclm_jax.errors import UserError
from musiclm_jax.musiclm import MusicLM

# The item of a checkpoint of T5X that has {"target": parameters, "state": step and moments}.
_ITEM = "state"


def read_params(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """The parameters in a checkpoint of T5X, a folder such as MODEL_DIR/checkpoint_1000: nested dicts of float32 arrays. The optimizer is not read.

    Raises:
        UserError: the folder is not a checkpoint that T5X wrote with Orbax, its default.
    """
    folder = _absolute(checkpoint) / _ITEM
    if not folder.is_dir():
        raise UserError(f"{checkpoint} is no checkpoint of T5X: name a folder such as MODEL_DIR/checkpoint_1000")
    handler = ocp.PyTreeCheckpointHandler()
    saved = handler.metadata(folder).tree["target"]
    target = _map(saved, lambda leaf: np.zeros(leaf.shape, leaf.dtype))
    how = _map(saved, lambda _: ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.float32))
    return handler.restore(folder, args=ocp.args.PyTreeRestore({"target": target}, restore_args={"target": how}, partial_restore=True))["target"]


def write_params(params: dict[str, Any], model_dir: str | os.PathLike, *, step: int = 0) -> epath.Path:
    """Writes parameters as MODEL_DIR/checkpoint_STEP, which T5X's eval and infer read, and train with `fallback_to_scratch`. Returns that folder.

    Raises:
        UserError: there is such a folder.
    """
    folder = _absolute(model_dir) / f"checkpoint_{step}"
    if folder.exists():
        raise UserError(f"{folder} exists: name another model_dir")
    options = ocp.CheckpointManagerOptions(step_prefix="checkpoint", enable_async_checkpointing=False)
    state = {"target": _map(params, np.asarray), "state": {"step": np.asarray(step, np.int32)}}
    with ocp.CheckpointManager(folder.parent, options=options, item_handlers={_ITEM: ocp.PyTreeCheckpointHandler()}) as manager:
        manager.save(step, args=ocp.args.Composite(**{_ITEM: ocp.args.PyTreeSave(state)}), force=True)
    return folder


def to_bundle(checkpoint: str | os.PathLike, *, model: str | os.PathLike, stage: str, out: str | os.PathLike) -> None:
    """Writes the bundle `model` with the weights of one stage from a checkpoint of T5X to the folder `out`.

    Raises:
        UserError: the bundle has no such stage, or one of other sizes; a folder cannot be read or written.
    """
    opened = pretrained.open_pretrained(model)
    config = pretrained.read_config(opened)
    weights = {"params": read_params(checkpoint)}
    bundle.check_shapes(weights, config.variable_shapes(config.stage(stage).name), where=os.fspath(checkpoint))
    MusicLM(config, {stage: weights}, pretrained.load_vocabulary(opened), source=opened).save_pretrained(out)


def from_bundle(model: str | os.PathLike, *, stage: str, model_dir: str | os.PathLike, step: int = 0) -> epath.Path:
    """Writes one stage of a bundle as a checkpoint of T5X. Returns its folder. Raises UserError where the bundle has no such stage or cannot be read."""
    opened = pretrained.open_pretrained(model)
    config = pretrained.read_config(opened)
    return write_params(pretrained.load(opened, config, config.stage(stage).name)["params"], model_dir, step=step)


def _absolute(path: str | os.PathLike) -> epath.Path:
    """Orbax wants absolute paths. Those of buckets, gs://..., are."""
    path = os.fspath(path)
    return epath.Path(path if "://" in path else os.path.abspath(path))


def _map(tree: Any, function: Any) -> Any:
    return {name: _map(value, function) for name, value in tree.items()} if isinstance(tree, dict) else function(tree)
