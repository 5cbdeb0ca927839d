"""Batches from a data set of TFDS by a pipeline of tf.data: records are read in parallel, parsed and cropped by TensorFlow, and prefetched.

The pipeline begins at the number of an example, and each number decides its example (`data.readers.Epochs`). So the step is the whole position: a restart
opens the pipeline there, without a saved iterator and without passing over what was read before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from musiclm_jax.data.clips import EncodeText, make_crops
from musiclm_jax.data.prefetch import Rows
from musiclm_jax.data.readers import Epochs
from musiclm_jax.data.records import RecordSamples, damaged
from musiclm_jax.errors import UserError

_PREFETCH_BATCHES = 2
_LAST = np.iinfo(np.int64).max


class TfDataSource:
    """A `data.prefetch.Source`. Steps are to be asked for one after the other; another step, or other rows, open the pipeline anew."""

    def __init__(self, samples: RecordSamples, order: Epochs, *, batch_size: int, encode_text: EncodeText | None):
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")  # They are JAX's.
        self._tf = tf
        self._samples, self._order, self._batch_size, self._encode_text = samples, order, batch_size, encode_text
        self._next: tuple[int, bytes] | None = None
        self._batches: Iterator[dict[str, np.ndarray]] = iter(())
        # The error in reading a record, which TensorFlow would make a text of.
        self._error: UserError | None = None

    def __call__(self, step: int, rows: Rows = np.arange) -> dict[str, np.ndarray]:
        here = rows(self._batch_size).astype(np.int64)
        if self._next != (step, here.tobytes()):
            self._batches = self._pipeline(step, here).as_numpy_iterator()
        self._next = None  # Until the batch is there: after an error the pipeline is opened anew.
        try:
            batch = next(self._batches)
        except self._tf.errors.OpError as error:
            raise self._error or damaged(self._samples.records.path) from error
        self._next = (step + 1, here.tobytes())
        return make_crops(batch["wave"], [caption.decode() for caption in batch["caption"]], self._encode_text)

    def _pipeline(self, step: int, rows: np.ndarray) -> Any:
        """Batches of those rows from a step on, a tf.data.Dataset of {"wave": float32 [b, N], "caption": strings [b]}."""
        tf, batch_size, count = self._tf, self._batch_size, len(rows)
        numbers = tf.data.Dataset.range(step * count, _LAST).map(lambda i: i // count * batch_size + tf.constant(rows)[i % count])
        example = tf.autograph.experimental.do_not_convert(self._example)
        examples = numbers.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return examples.batch(count, drop_remainder=True).prefetch(_PREFETCH_BATCHES)

    def _example(self, number: Any) -> dict[str, Any]:
        """One example, as tensors."""
        tf, length = self._tf, self._order.crop_samples
        record, start, caption = tf.numpy_function(self._read, [number], [tf.string, tf.int64, tf.string])
        audio = tf.io.parse_single_example(record, {"audio": tf.io.FixedLenFeature([], tf.string)})["audio"]
        samples = tf.io.decode_raw(tf.strings.substr(audio, 2 * start, 2 * length), tf.int16, little_endian=True)
        wave = tf.cast(samples, tf.float32) / 32768
        return {"wave": tf.ensure_shape(tf.pad(wave, [[0, length - tf.size(wave)]]), [length]), "caption": caption}

    def _read(self, number: np.int64) -> tuple[bytes, np.int64, bytes]:
        """The record of an example, the first sample of its crop and its caption."""
        crop = self._order[int(number)]
        try:
            record = self._samples.records[self._samples.number(crop.clip.offset)]
        except UserError as error:
            self._error = error
            raise
        return record, np.int64(crop.start), crop.caption.encode()
