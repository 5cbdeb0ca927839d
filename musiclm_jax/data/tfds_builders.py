"""Data sets of clips for TensorFlow Datasets: any folder of clips, MusicCaps and FMA.

    import tensorflow_datasets as tfds
    import musiclm_jax.data.tfds_builders  # Registers them.

    builder = tfds.builder("captioned_folder", folder="clips", file_format="array_record")
    builder.download_and_prepare()

or `tfds build --imports=musiclm_jax.data.tfds_builders musiccaps --manual_dir FOLDER`. Nothing is downloaded: the folder is that of `data/folder.py`, for
MusicCaps and FMA with their tables (`data/layouts.py`). Each example is a clip, decoded to mono at 24 kHz. The format "array_record" is for random access
(`data/records.py`), "tfrecord" for tf.data. The examples do not depend on the format, nor on the machine.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from musiclm_jax import audio
from musiclm_jax.data.decoding import MIN_SEC, to_int16
from musiclm_jax.data.folder import ClipFolder, Entry, read_folder
from musiclm_jax.data.layouts import FMA, MUSICCAPS
from musiclm_jax.data.token_set import TokenSet, features
from musiclm_jax.errors import UserError
from musiclm_jax.files import as_path, is_file


class CaptionedFolder(tfds.core.GeneratorBasedBuilder):
    """A folder of clips, with the captions, splits and groups that `data/folder.py` finds. Clips that cannot be used are in `left_out` instead."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the audio files and their table into one folder, and give it as --manual_dir or as the argument `folder`."
    # The table that must be in the folder. None: any layout.
    TABLE: str | None = None

    def __init__(self, *, folder: str | None = None, **kwargs: Any):
        """folder: the folder of clips. None: the manual_dir of TFDS."""
        self._folder = folder
        # (name, reason) of clips that are left out, once the data set is built.
        self.left_out: list[tuple[str, str]] = []
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        texts = tfds.features.Sequence(tfds.features.Text())
        features = {
            "id": tfds.features.Text(),
            # At `audio.SAMPLE_RATE_HZ`. (features.Audio could not be read without TensorFlow.)
            "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes"),
            "captions": texts,
            # The kind of each caption; empty where they have none.
            "kinds": texts,
            "group": tfds.features.Text(),
            "melody": tfds.features.Text(),
            "licence": tfds.features.Text(),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features), description=type(self).__doc__)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        folder = as_path(self._folder or dl_manager.manual_dir)
        if self.TABLE is not None and not is_file(folder / self.TABLE):
            raise UserError(f"{folder} has no {self.TABLE}: put the table of {self.name} there, beside its audio")
        clips = read_folder(folder)
        self.left_out += [*clips.unusable, *((name, "its audio is not there") for name in clips.absent)]
        return {split: self._generate_examples(clips, split) for split in ("train", "test") if clips.split(split)}

    def _generate_examples(self, clips: ClipFolder, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for entry in clips.split(split):
            try:
                yield entry.name, {"id": entry.name, "audio": _decode(clips, entry), **_texts(entry)}
            except UserError as error:
                self.left_out.append((entry.name, str(error)))


class Musiccaps(CaptionedFolder):
    """MusicCaps (MusicLM, arXiv 2301.11325): its public table beside audio that you have. AudioSet's evaluation split is "test"."""

    TABLE = MUSICCAPS


class Fma(CaptionedFolder):
    """The Free Music Archive data set (arXiv 1612.01840): its metadata beside its folders of audio. Captions are made of genres."""

    TABLE = FMA


def _decode(clips: ClipFolder, entry: Entry) -> np.ndarray:
    """The samples of a clip, int16 [N] at 24 kHz."""
    sink = io.BytesIO()
    part = {"start_sec": entry.start_sec or 0.0, "end_sec": entry.end_sec}
    decoded = audio.decode(clips.path / entry.file_name, sink, min_samples=round(MIN_SEC * audio.SAMPLE_RATE_HZ), **part)
    return to_int16(np.frombuffer(sink.getbuffer(), np.float32), peak=decoded.peak)


def _texts(entry: Entry) -> dict[str, Any]:
    return {
        "captions": list(entry.captions),
        "kinds": list(entry.kinds or ()),
        "group": entry.group or "",
        "melody": entry.melody or "",
        "licence": entry.licence or "",
    }


class MusicTokens(tfds.core.GeneratorBasedBuilder):
    """The records of a token set (`data/token_set.py`), such as in TFRecord for tf.data."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Make a token set with `musiclm tokenize`, and give its folder as --manual_dir or as the argument `folder`."

    def __init__(self, *, folder: str | None = None, **kwargs: Any):
        """folder: the folder of the token set. None: the manual_dir of TFDS."""
        self._folder = folder
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(features=features(), description=type(self).__doc__)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        tokens = TokenSet.open(self._folder or dl_manager.manual_dir)
        return {split: self._generate_examples(tokens.records(split)) for split in tokens.info.records}

    def _generate_examples(self, records: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        for number in range(len(records)):
            record = records[number]
            yield f"{record['id'].decode()} {record['start_sec']}", dict(record)
