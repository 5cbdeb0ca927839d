"""Token sets: the tokens of all clips of a folder, made once by `musiclm tokenize`, in shards with random access. No JAX, no TensorFlow.

    tokens.json                                     what the tokens are, counts, and a hash of all; written last
    tokenizers/                                     the frozen models that made them, as a bundle without stages
    music_tokens-train.array_record-00000-of-00012  a record for each window of a clip
    lengths-train.npy                               semantic tokens of each record, int32
    dataset_info.json, features.json                the same as a data set of TensorFlow Datasets, "music_tokens"
    plan/, shards/                                  the clips of each shard, and a report on each shard that is done

A record is a window of up to `record_sec` of a clip: semantic tokens int16 [T], acoustic tokens int16 [2 T, Q], MuLan's embeddings of windows float16
[W, D], one each `mulan_hop_sec`, and the captions of the clip with their MuLan tokens int16 [C, Q]. The last record of a clip ends where the clip ends, and
overlaps the one before, so that only clips shorter than a record make shorter records.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from musiclm_jax.buckets import is_bucket
from musiclm_jax.data.clips import load_array
from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath, as_path, atomic_path, is_file, read_json, write_json
from musiclm_jax.records import from_dict, to_dict
from musiclm_jax.specs import AudioSpec

TOKENS, TOKENIZERS, NAME = "tokens.json", "tokenizers", "music_tokens"
SPLITS = ("train", "test")
_VERSION = "1.0.0"


@dataclasses.dataclass(frozen=True)
class TokenInfo:
    """The content of tokens.json."""

    audio: AudioSpec
    # Longest record, and the context on each side with which it was encoded, where the clip has it.
    record_sec: float
    context_sec: float
    mulan_window_sec: float
    mulan_hop_sec: float
    # Name of the folder of the clips.
    data: str
    clips: int
    captioned: int
    held_out: int
    # Clips that could not be used.
    skipped: int
    hours: float
    # Number of records by split.
    records: dict[str, int]
    # Hash of the tokenizers and of all shards.
    sha256: str


def is_token_set(path: AnyPath | str) -> bool:
    return is_file(as_path(path) / TOKENS)


@dataclasses.dataclass(frozen=True)
class TokenSet:
    """An opened token set."""

    path: AnyPath
    info: TokenInfo

    @classmethod
    def open(cls, path: AnyPath | str) -> TokenSet:
        """Opens a complete token set. Raises UserError where it is none, or damaged."""
        path = as_path(path)
        if not is_token_set(path):
            raise UserError(f"{path} is no complete token set, because it has no {TOKENS}: make it with `musiclm tokenize`, which also continues one")
        return cls(path, from_dict(TokenInfo, read_json(path / TOKENS), where=str(path / TOKENS)))

    @property
    def tokenizers(self) -> AnyPath:
        return self.path / TOKENIZERS

    def records(self, split: str) -> Any:
        """The records of a split, by number. Raises UserError where the packages are missing, or the shards are not on a disk."""
        if is_bucket(self.path):
            raise UserError(f"{self.path}: shards are read at random, which needs a file system; mount the bucket, such as with gcsfuse, or copy the folder")
        return _open_records(str(self.path), split)

    def lengths(self, split: str) -> np.ndarray:
        """The semantic tokens of each record of a split, int32 [n]."""
        if not self.info.records.get(split):
            return np.zeros(0, np.int32)
        return np.asarray(load_array(self.path / lengths_file(split)))


@functools.cache
def _open_records(path: str, split: str) -> Any:
    try:
        return _Records(path, _tfds().builder_from_directory(path).as_data_source(split=split))
    except UserError:
        raise
    except Exception as error:  # Any of TFDS, ArrayRecord or JSON.
        raise _damaged(path, error) from error


@dataclasses.dataclass(frozen=True)
class _Records:
    """Records by number, whose damage is a UserError."""

    path: str
    source: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        try:
            return self.source[number]
        except Exception as error:  # Any of ArrayRecord, protobuf or TFDS.
            raise _damaged(self.path, error) from error


def _damaged(path: str, error: Exception) -> UserError:
    reason = " ".join((str(error).splitlines() or [type(error).__name__])[0].split())[:200]
    return UserError(f"{path}: a shard is damaged or missing ({reason}): run the same `musiclm tokenize` again, which makes it anew")


def lengths_file(split: str) -> str:
    return f"lengths-{split}.npy"


def _tfds():
    try:
        import array_record.python.array_record_module  # noqa: F401
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise UserError(f"token sets need the package {error.name}; install it with: pip install 'musiclm-jax[data]'") from error
    return tfds


# ---------------------------------------------------------------------------------------------------------------------- Writing


def shard_name(split: str, number: int, total: int) -> str:
    """The file of a shard, named as TFDS does."""
    return f"{NAME}-{split}.array_record-{number:05d}-of-{total:05d}"


def features(*, levels: int | None = None, mulan_levels: int | None = None, mulan_dim: int | None = None) -> Any:
    """The features of a record, for TFDS. levels: of the acoustic tokens. None: of any model."""
    features = _tfds().features
    array = lambda dtype, *shape: features.Tensor(shape=(None, *shape), dtype=dtype, encoding="bytes")  # noqa: E731
    return features.FeaturesDict(
        {
            # Name of the clip, and where the record begins in it.
            "id": features.Text(),
            "start_sec": features.Scalar(np.float32),
            "semantic": array(np.int16),
            "acoustic": array(np.int16, levels),
            "mulan": array(np.float16, mulan_dim),
            "captions": features.Sequence(features.Text()),
            "caption_tokens": array(np.int16, mulan_levels),
        }
    )


def write_shard(path: AnyPath, examples: Iterable[Mapping[str, Any]], form: Any) -> None:
    """Writes records to one ArrayRecord file, whole or not at all. form: `features`."""
    _tfds()
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    serializer = ExampleSerializer(form.get_serialized_info())
    with atomic_path(path) as temporary:
        # A group is what a random access reads.
        writer = ArrayRecordWriter(os.fspath(temporary), "group_size:1")
        for example in examples:
            # In one order of fields, so that the same records are the same bytes.
            writer.write(serializer.get_tf_example(form.encode_example(example)).SerializeToString(deterministic=True))
        writer.close()


def write_token_set(path: AnyPath, info: TokenInfo, form: Any, lengths: Mapping[str, Sequence[np.ndarray]], sizes: Mapping[str, int]) -> None:
    """Completes a token set whose shards are there.

    Args:
        lengths: semantic tokens of the records of each shard, by split.
        sizes: bytes of all shards, by split.
    """
    for split, shards in lengths.items():
        with atomic_path(path / lengths_file(split)) as temporary, temporary.open("wb") as file:
            np.save(file, np.concatenate([*shards, np.zeros(0)]).astype(np.int32))
    _write_dataset_info(path, form, {split: [len(shard) for shard in shards] for split, shards in lengths.items()}, sizes)
    write_json(path / TOKENS, to_dict(info))


def _write_dataset_info(path: AnyPath, form: Any, counts: Mapping[str, Sequence[int]], sizes: Mapping[str, int]) -> None:
    """Writes dataset_info.json and features.json."""
    tfds = _tfds()
    from tensorflow_datasets.core import naming
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    where = os.fspath(path)
    identity = DatasetIdentity(name=NAME, version=tfds.core.Version(_VERSION), data_dir=where, module_name="musiclm_jax.data.tfds_builders")
    info = tfds.core.DatasetInfo(builder=identity, features=form, description="Tokens of music, made by `musiclm tokenize`.")
    info.set_file_format("array_record")
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=list(shards),
            num_bytes=sizes[split],
            filename_template=naming.ShardedFileTemplate(data_dir=tfds.core.Path(where), dataset_name=NAME, split=split, filetype_suffix="array_record"),
        )
        for split, shards in counts.items()
    ]
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(where)
