"""The examples of a stage as seqio tasks: T5X's eval.py and infer.py read nothing else, and train.py reads them too."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio

from musiclm_jax.errors import UserError
from musiclm_jax.interop.t5x.stage import StageRun


class StageFeatures(seqio.PassThroughFeatureConverter):
    """The features of the model are those of the task: the streams of the stage."""

    TASK_FEATURES: Mapping[str, Any] = {}
    MODEL_FEATURES: Mapping[str, Any] = {}
    pack = False


def held_out(stage: StageRun) -> str:
    """Registers the examples of `eval_batches` held-out batches of a work folder, as the split "test". Returns the name of the task."""

    def dataset(split: str, shuffle_files: bool, seed: int | None = None):
        import tensorflow as tf

        del shuffle_files, seed
        examples = list(itertools.islice(read_examples(stage, split), stage.part.loop.eval_batches * stage.part.batch_size))
        return tf.data.Dataset.from_tensor_slices({name: np.stack([each[name] for each in examples]) for name in examples[0]})

    return _register(f"musiclm_{stage.stage}", stage, seqio.FunctionDataSource(dataset, splits=("test",)))


def token_records(stage: StageRun, files: Mapping[str, str | Sequence[str]]) -> str:
    """Registers TFRecords of tokens, as `write_records` writes them. Returns the name of the task.

    Args:
        files: {split: paths with wildcards}.

    Raises:
        UserError: a path has no files.
    """
    import tensorflow as tf

    for pattern in itertools.chain.from_iterable([paths] if isinstance(paths, str) else paths for paths in files.values()):
        if not tf.io.gfile.glob(pattern):
            raise UserError(f"{pattern}: no such files; write them with `write_records`, or correct the path")
    features = {name: tf.io.FixedLenFeature(shape, tf.int64) for name, shape in stage.example_shapes().items()}
    as_int32 = lambda data: data.map(lambda example: {name: tf.cast(value, tf.int32) for name, value in example.items()})  # noqa: E731
    return _register(f"musiclm_{stage.stage}_records", stage, seqio.TFExampleDataSource(dict(files), features), as_int32)


def read_examples(stage: StageRun, split: str) -> Iterator[dict[str, np.ndarray]]:
    """The examples of a split, {stream: int32 tokens}, in the order of the batches, endlessly."""
    source = stage.source(split)
    for step in itertools.count():
        batch = source(step)
        for row in range(stage.part.batch_size):
            yield {name: array[row] for name, array in batch.items()}


def write_records(stage: StageRun, path: str, *, split: str, num_examples: int) -> None:
    """Writes the first examples of a split to a TFRecord file: one tf.train.Example each, a flat list of int64 for each stream."""
    import tensorflow as tf

    feature = lambda array: tf.train.Feature(int64_list=tf.train.Int64List(value=array.ravel()))  # noqa: E731
    with tf.io.TFRecordWriter(path) as writer:
        for example in itertools.islice(read_examples(stage, split), num_examples):
            features = tf.train.Features(feature={name: feature(array) for name, array in example.items()})
            writer.write(tf.train.Example(features=features).SerializeToString())


def _register(name: str, stage: StageRun, source: seqio.DataSource, *preprocessors: Callable[..., Any]) -> str:
    """Adds a task unless there is one of the name: gin calls what it refers to anew for each reference."""
    if name not in seqio.TaskRegistry.names():
        codes = seqio.PassThroughVocabulary(stage.layout.vocab_size)
        features = {stream: seqio.Feature(codes, add_eos=False, rank=len(shape)) for stream, shape in stage.example_shapes().items()}
        tokens = stage.part.tokens_per_example(stage.fit)[0]
        metrics = [functools.partial(_nats, tokens=tokens)]
        seqio.TaskRegistry.add(name, source, output_features=features, preprocessors=preprocessors, metric_fns=metrics)
    return name


def _nats(targets: Sequence[Any], scores: Sequence[float], *, tokens: int) -> dict[str, float]:
    """The loss of `tasks.stage`, in nats per token, from `StageModel.score_batch`."""
    del targets
    return {"loss": -float(np.mean(scores)) / tokens}
