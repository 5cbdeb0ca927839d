"""Batches from a data set of TFDS in TFRecord files by a pipeline of tf.data: TensorFlow reads, parses, crops, batches and prefetches, in parallel.

The number of an example decides its crop (`data.readers.Epochs`), and the index of its file the place of its record. So the step is the whole position: a
restart opens the pipeline there, without a saved iterator and without passing over what was read before.

The crops of some steps at a time are drawn here and handed to TensorFlow as arrays. It never calls Python back, since the end of a pipeline whose threads
wait for Python is a deadlock (seen with TensorFlow 2.21 and `tf.numpy_function`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from musiclm_jax.data.clips import EncodeText, make_crops
from musiclm_jax.data.prefetch import Rows
from musiclm_jax.data.readers import Epochs
from musiclm_jax.data.records import RecordSamples, damaged

# Steps whose crops are drawn at a time.
_STEPS = 64
_PREFETCH_BATCHES = 2


class TfDataSource:
    """A `data.prefetch.Source`. Steps are to be asked for one after the other; another step, or other rows, open the pipeline anew."""

    def __init__(self, samples: RecordSamples, order: Epochs, *, batch_size: int, encode_text: EncodeText | None):
        """samples: of a data set in TFRecord files."""
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")  # They are JAX's.
        self._tf, self._samples, self._order, self._batch_size, self._encode_text = tf, samples, order, batch_size, encode_text
        self._next: tuple[int, bytes] | None = None
        self._batches: Iterator[dict[str, np.ndarray]] = iter(())

    def __call__(self, step: int, rows: Rows = np.arange) -> dict[str, np.ndarray]:
        here = rows(self._batch_size)
        batches = self._batches if self._next == (step, here.tobytes()) else iter(())
        self._next = None  # Until the batch is there: after an error the pipeline is opened anew.
        try:
            if (batch := next(batches, None)) is None:
                batches = self._open(step, here)
                batch = next(batches)
        except self._tf.errors.OpError as error:
            raise damaged(self._samples.records.path) from error
        self._batches, self._next = batches, (step + 1, here.tobytes())
        return make_crops(batch["wave"], [caption.decode() for caption in batch["caption"]], self._encode_text)

    def _open(self, step: int, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Those rows of the batches of _STEPS steps: {"wave": float32 [b, N], "caption": strings [b]}."""
        tf = self._tf
        crops = [self._crop((step + i) * self._batch_size + int(row)) for i in range(_STEPS) for row in rows]
        examples = tf.data.Dataset.from_tensor_slices({name: np.array([crop[name] for crop in crops]) for name in crops[0]})
        read = tf.autograph.experimental.do_not_convert(self._read)
        waves = examples.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return waves.batch(len(rows)).prefetch(_PREFETCH_BATCHES).as_numpy_iterator()

    def _crop(self, number: int) -> dict[str, Any]:
        """What TensorFlow needs to know of an example. `start` is in samples, the others in bytes."""
        crop = self._order[number]
        file, before, size, after = self._samples.records.place(self._samples.number(crop.clip.offset))
        return {"file": str(file), "before": before, "size": size, "after": after, "start": crop.start, "caption": crop.caption}

    def _read(self, crop: dict[str, Any]) -> dict[str, Any]:
        """One example, as tensors."""
        tf, length = self._tf, self._order.crop_samples
        # Of a file with one record of `size` bytes between a header and a footer.
        record = tf.data.FixedLengthRecordDataset(crop["file"], crop["size"], crop["before"], crop["after"]).get_single_element()
        audio = tf.io.parse_single_example(record, {"audio": tf.io.FixedLenFeature([], tf.string)})["audio"]
        samples = tf.io.decode_raw(tf.strings.substr(audio, 2 * crop["start"], 2 * length), tf.int16, little_endian=True)
        wave = tf.cast(samples, tf.float32) / 32768
        return {"wave": tf.ensure_shape(tf.pad(wave, [[0, length - tf.size(wave)]]), [length]), "caption": crop["caption"]}
