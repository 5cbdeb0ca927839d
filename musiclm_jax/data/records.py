"""Training batches from records with random access, such as ArrayRecord files of any size: memory does not grow with the data. No TensorFlow.

The clips of an epoch come in a random order that is computed, not stored (grain's `index_shuffle`), so that the batch of a step is a pure function of seed
and step: exact after a restart, and on any number of hosts, each of which reads its rows alone.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from musiclm_jax.data.clips import ALIGN_SAMPLES, crop_samples, draw_caption, draw_start
from musiclm_jax.data.prefetch import Rows, Source, map_ahead
from musiclm_jax.errors import UserError

# Below this number of records the order of an epoch is an array: the cipher has blocks of 16 bits, and is slow for fewer numbers.
_LISTED = 2**16
# Rounds of the block cipher that orders an epoch.
_ROUNDS = 4


@runtime_checkable
class Records(Protocol):
    """What `record_source` needs of a data set: `tfds.data_source(...)`, or any list of examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


def open_records(name: str, *, split: str, data_dir: str | None = None) -> Records:
    """The records of a data set of TFDS that was built with file_format="array_record". Raises UserError where it is not there."""
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise UserError(f"reading data sets of TFDS needs the package {error.name}; install it with: pip install 'musiclm-jax[data]'") from error
    try:
        return tfds.builder(name, data_dir=data_dir).as_data_source(split=split)
    except (LookupError, AssertionError, ValueError, ImportError, NotImplementedError) as error:
        raise UserError(f"the data set {name!r}, split {split!r}: {str(error).splitlines()[0]}: build it with `tfds build` first") from error


def shuffled(number: int, total: int, *, seed: int) -> int:
    """The record of example `number` of a training over `total` records: each once an epoch, in another order every epoch, which is not stored."""
    try:
        from grain.experimental import index_shuffle
    except ModuleNotFoundError as error:
        raise UserError(f"reading records at random needs the package {error.name}; install it with: pip install 'musiclm-jax[data]'") from error
    epoch, position = divmod(number, total)
    if total < _LISTED:
        return int(_order(total, seed, epoch)[position])
    return index_shuffle(position, max_index=total - 1, seed=zlib.crc32(f"{seed} {epoch}".encode()), rounds=_ROUNDS)


@functools.lru_cache(maxsize=8)
def _order(total: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(total)


def record_source(
    records: Records,
    *,
    crop_sec: float,
    batch_size: int,
    seed: int,
    sample_rate_hz: int,
    encode_text: Callable[[list[str]], tuple[np.ndarray, np.ndarray]] | None = None,
    text_mix: Mapping[str, float] | None = None,
) -> Source:
    """A source of training batches of random crops, as `data.clips.wave_source`: step -> {"wave": float32 [B, N]}, with `encode_text` also text_ids and
    text_mask of one caption per clip.

    Each clip is read once an epoch. Clips without a caption must not be among the records where there is an `encode_text`.

    Args:
        records: examples with "audio" int16 [N], "captions" and "kinds".
        sample_rate_hz: that of the audio.

    Raises:
        UserError: there are no records.
    """
    if not len(records):
        raise UserError("the data set has no clips of this split: build it from a folder that has some")
    crop, total = crop_samples(crop_sec, sample_rate_hz), len(records)

    def example(number: int) -> tuple[np.ndarray, str | None]:
        record = records[shuffled(number, total, seed=seed)]
        rng = np.random.default_rng([seed, number])
        samples = np.asarray(record["audio"])
        start = draw_start(rng, len(samples), crop, align=ALIGN_SAMPLES)
        wave = samples[start : start + crop].astype(np.float32) / 32768
        caption = draw_caption(rng, _texts(record["captions"]), _texts(record["kinds"]) or None, text_mix) if encode_text else None
        return np.pad(wave, (0, crop - len(wave))), caption

    def source(step: int, rows: Rows = np.arange) -> dict[str, np.ndarray]:
        numbers = [step * batch_size + int(row) for row in rows(batch_size)]
        waves, captions = zip(*(found for _, found in map_ahead(example, numbers)), strict=True)
        batch = {"wave": np.stack(waves)}
        if encode_text:
            ids, mask = encode_text(list(captions))
            batch |= {"text_ids": np.asarray(ids), "text_mask": np.asarray(mask)}
        return batch

    return source


def _texts(given: Sequence[bytes | str]) -> list[str]:
    """Texts of a record, which TFDS returns in UTF-8."""
    return [text.decode() if isinstance(text, bytes) else str(text) for text in given]
