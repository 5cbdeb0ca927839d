"""The readers of clips for training, each a source of batches of random crops: `open_source`. NumPy, and grain where it is asked for.

    "store"    crops are drawn in proportion to the lengths of the clips (`data.clips.wave_source`)
    "grain"    every clip once an epoch, in an order that is computed and not stored, by grain
    "tf_data"  the same batches as "grain", read and assembled by a pipeline of tf.data from a data set of TFDS in TFRecord files (`data/tf_data.py`)

The order is a function of the number of an example. So the batch of a step is a pure function of seed and step, exact after a restart and on any number of
hosts, each of which reads its rows alone.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping

import numpy as np

from musiclm_jax.data.clips import (
    ALIGN_SAMPLES,
    Clip,
    ClipStore,
    EncodeText,
    clips_of,
    crop_samples,
    draw_caption,
    draw_start,
    make_crops,
    wave_source,
)
from musiclm_jax.data.order import shuffled
from musiclm_jax.data.prefetch import Rows, Source, map_ahead
from musiclm_jax.data.records import RecordSamples
from musiclm_jax.errors import UserError

STORE, GRAIN, TF_DATA = READERS = ("store", "grain", "tf_data")


@dataclasses.dataclass(frozen=True)
class Crop:
    """An example: `samples` samples of a clip from sample `start` on, and one of its captions, or ""."""

    clip: Clip
    start: int
    samples: int
    caption: str


@dataclasses.dataclass(frozen=True)
class Epochs:
    """The examples of a training by number: each clip once an epoch, each epoch in another order."""

    clips: tuple[Clip, ...]
    crop_samples: int
    seed: int
    # Whether examples have captions, drawn by `text_mix` (`draw_caption`).
    captioned: bool
    text_mix: Mapping[str, float] | None = None

    def __getitem__(self, number: int) -> Crop:
        clip = self.clips[shuffled(number, len(self.clips), seed=self.seed)]
        rng = np.random.default_rng([self.seed, number])
        start = draw_start(rng, clip.length, self.crop_samples, align=ALIGN_SAMPLES)
        return Crop(clip, start, self.crop_samples, draw_caption(rng, clip.captions, clip.kinds, self.text_mix) if self.captioned else "")


def open_source(
    store: ClipStore,
    *,
    reader: str = STORE,
    split: str,
    crop_sec: float,
    batch_size: int,
    seed: int,
    encode_text: EncodeText | None = None,
    text_mix: Mapping[str, float] | None = None,
) -> Source:
    """A source of training batches of random crops, as `data.clips.wave_source`, by one of READERS.

    Raises:
        UserError: as `wave_source`; or the reader needs a package that is not installed, or a data set of TFDS.
    """
    if reader == STORE:
        options = {"encode_text": encode_text, "text_mix": text_mix}
        return wave_source(store, split=split, crop_sec=crop_sec, batch_size=batch_size, seed=seed, **options)
    check_reader(reader, store.samples.records.file_format if isinstance(store.samples, RecordSamples) else None)
    crop = crop_samples(crop_sec, store.sample_rate_hz)
    order = Epochs(clips_of(store, split, text_mix), crop, seed, encode_text is not None, text_mix)
    if reader == GRAIN:
        return grain_source(store, order, batch_size=batch_size, encode_text=encode_text)
    from musiclm_jax.data.tf_data import TfDataSource

    return TfDataSource(store.samples, order, batch_size=batch_size, encode_text=encode_text)


def grain_source(store: ClipStore, order: Epochs, *, batch_size: int, encode_text: EncodeText | None) -> Source:
    """Batches of consecutive examples of `order`, of any store."""

    def source(step: int, rows: Rows = np.arange) -> dict[str, np.ndarray]:
        crops = [order[step * batch_size + int(row)] for row in rows(batch_size)]
        waves = [wave for _, wave in map_ahead(lambda crop: store.wave(crop.clip, crop.start, crop.samples), crops)]
        return make_crops(np.stack(waves), [crop.caption for crop in crops], encode_text)

    return source


def check_reader(reader: str, file_format: str | None) -> None:
    """Raises UserError if a reader needs a package that is not installed, or other data. file_format: of a data set of TFDS. None: a folder of clips."""
    if reader not in READERS:
        raise ValueError(f"reader={reader!r}: expected one of {', '.join(READERS)}")
    if reader == TF_DATA and file_format != "tfrecord":
        found = f"in {file_format} files" if file_format else "of audio files"
        remedy = "build one with `tfds build --file_format tfrecord` (docs/data.md), or choose reader='grain', which gives the same batches"
        raise UserError(f"reader='tf_data' reads data sets of TFDS in tfrecord files, these data are {found}: {remedy}")
    needed = {GRAIN: {"grain": "data"}, TF_DATA: {"grain": "data", "tensorflow": "tfdata"}}.get(reader, {})
    for package, extra in needed.items():
        if importlib.util.find_spec(package) is None:
            raise UserError(f"reader={reader!r} needs the package {package}; install it with: pip install 'musiclm-jax[{extra}]', or choose reader='store'")
