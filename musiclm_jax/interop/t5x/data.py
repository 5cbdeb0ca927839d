"""The batches of a stage from a work folder, for T5X's `get_dataset_fn`: the same as those of `musiclm train`, each host its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from clu.data.dataset_iterator import ArraySpec, DatasetIterator
from t5x import checkpoints, utils

from musiclm_jax.data.prefetch import Source, prefetch
from musiclm_jax.errors import UserError
from musiclm_jax.interop.t5x.stage import StageRun

_FOREVER = 2**62


class SourceIterator(DatasetIterator):
    """The batches of a source, from `start` on. A batch is a function of the step, so that a checkpoint needs nothing of this iterator."""

    def __init__(self, source: Source, *, start: int):
        first = source(start)
        self._spec = {name: ArraySpec(array.dtype, array.shape) for name, array in first.items()}
        self._batches = prefetch(source, start=start, stop=_FOREVER)

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._batches)

    @property
    def element_spec(self) -> dict[str, ArraySpec]:
        return self._spec

    def save(self, filename: Any) -> None:
        del filename

    def restore(self, filename: Any) -> None:
        del filename


def get_dataset(
    cfg: utils.DatasetConfig,
    shard_id: int,
    num_shards: int,
    feature_converter_cls: Callable[..., Any],
    num_epochs: int | None = None,
    continue_from_last_checkpoint: bool = False,
    *,
    stage: StageRun,
    model_dir: str | None = None,
) -> SourceIterator:
    """T5X's `get_dataset_fn`: training batches of a stage, endlessly.

    Args:
        cfg: its batch size must be the stage's; "split", such as "train"; "seed", where None is that of the config. The rest is seqio's.
        shard_id: number of the host's share of the rows.
        num_shards: number of shares.
        model_dir: T5X's folder. Batches begin at its newest checkpoint, at which T5X continues. None: at step 0.

    Raises:
        UserError: the work folder lacks the tokens, or the batch size differs from the stage's.
    """
    del feature_converter_cls, num_epochs, continue_from_last_checkpoint
    start = (model_dir and checkpoints.latest_step(model_dir)) or 0
    return SourceIterator(_host_source(cfg, shard_id, num_shards, stage), start=start)


def get_eval_datasets(
    cfg: utils.DatasetConfig,
    shard_id: int,
    num_shards: int,
    eval_steps: int,
    feature_converter_cls: Callable[..., Any],
    *,
    stage: StageRun,
) -> dict[str, Any]:
    """T5X's `train_eval_get_dataset_fn`: the first `eval_steps` held-out batches, {stage: tf.data.Dataset}. Without held-out clips: {}."""
    import tensorflow as tf

    del feature_converter_cls
    if not stage.part.has_held_out(stage.run):
        return {}
    source = _host_source(cfg, shard_id, num_shards, stage)
    batches = jax.tree.map(lambda *arrays: np.stack(arrays), *(source(i) for i in range(eval_steps)))
    return {stage.stage: tf.data.Dataset.from_tensor_slices(batches)}


def _host_source(cfg: utils.DatasetConfig, shard_id: int, num_shards: int, stage: StageRun) -> Source:
    """The host's rows of each batch."""
    if cfg.batch_size != stage.part.batch_size or cfg.batch_size % num_shards:
        sizes = f"a batch of {cfg.batch_size} in T5X, of {stage.part.batch_size} in the stage, for {num_shards} hosts"
        raise UserError(f"{sizes}: set BATCH_SIZE, which is both, to a multiple of the hosts")
    source, rows = stage.source(cfg.split, cfg.seed), cfg.batch_size // num_shards
    return lambda step: {name: array[shard_id * rows : (shard_id + 1) * rows] for name, array in source(step).items()}
