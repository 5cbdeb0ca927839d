"""Data sets of TFDS as folders of clips: read once for their index, then at random, without TensorFlow."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from told_clips import KINDS, RATE, TRAIN, samples_of

from musiclm_jax.data.clips import ClipStore, prepare
from musiclm_jax.data.folder import read_folder
from musiclm_jax.data.records import Records, TfRecordFile, is_record_folder, open_records, read_record_folder
from musiclm_jax.errors import UserError

FORMS = ["array_record", "tfrecord"]


def write_tfrecord(path, records):
    """Frames with the checksum of each record (CRC-32C, bit by bit), and any of its length."""

    def masked(data):
        crc = 0xFFFFFFFF
        for byte in data:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        crc ^= 0xFFFFFFFF
        return ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")

    frames = [len(record).to_bytes(8, "little") + b"crc." + record + masked(record) for record in records]
    path.write_bytes(b"".join(frames))


def test_records_of_a_tfrecord_file_are_read_at_random(tmp_path):
    pytest.importorskip("google_crc32c")
    records = [b"first", b"", b"the third" * 1000]
    write_tfrecord(tmp_path / "a", records)
    file = TfRecordFile(tmp_path / "a")
    assert [file[i] for i in (2, 0, 1)] == [records[i] for i in (2, 0, 1)] and len(file) == 3
    data = (tmp_path / "a").read_bytes()
    for i, record in enumerate(records):
        path, before, size, after = file.place(i)
        assert data[before : before + size] == record and before + size + after == len(data) and path == tmp_path / "a"
    (tmp_path / "c").write_bytes(data[:-10] + b"x" + data[-9:])  # In the third record.
    other = TfRecordFile(tmp_path / "c")
    assert other[0] == records[0]
    with pytest.raises(UserError, match="c has a damaged record"):
        other[2]
    for size in (len(data) - 1, len(data) + 3):
        (tmp_path / "b").write_bytes((data + b"abc")[:size])
        with pytest.raises(UserError, match="b has a damaged record: copy it again, or build the data set again"):
            TfRecordFile(tmp_path / "b")


@pytest.mark.parametrize("form", FORMS)
def test_a_store_of_records_has_the_clips_and_samples_of_the_folder(form, data_of, store_of):
    store, folder = store_of(form), store_of("folder")
    assert is_record_folder(data_of(form)) and not is_record_folder(data_of("folder"))
    for clip, other in zip(store.clips, folder.clips, strict=True):
        assert (clip.file_name, clip.length, clip.split) == (other.file_name, other.length, other.split)
        assert sorted(zip(clip.kinds, clip.captions)) == sorted(zip(other.kinds, other.captions))
        np.testing.assert_array_equal(store.wave(clip), folder.wave(other))
    clip = store.clips[3]
    np.testing.assert_array_equal(store.wave(clip, 24_000, 30_000), np.pad(samples_of(3)[24_000:54_000], (0, 15_597)).astype(np.float32) / 32768)
    assert len(store.split("train")) == TRAIN and set(KINDS) == set(clip.kinds)


@pytest.mark.parametrize("form", FORMS)
def test_records_are_read_once_and_known_by_their_files(form, data_of, tmp_path, monkeypatch):
    shutil.copytree(data_of(form), tmp_path / "data")
    first = read_record_folder(tmp_path / "data", cache=tmp_path / "cache")
    read, example = [], Records.example
    monkeypatch.setattr(Records, "example", lambda self, number: (read.append(number), example(self, number))[1])
    again = read_record_folder(tmp_path / "data", cache=tmp_path / "cache")
    assert again == first and not read
    (file,) = (tmp_path / "data").glob("*test*")
    os.utime(file, ns=(1, 1))  # A copy: the same clips, but they are read again.
    assert read_record_folder(tmp_path / "data", cache=tmp_path / "cache") == first and len(read) == 2
    (tmp_path / "cache" / f"{file.name}.json").write_text('{"state": ')
    assert read_record_folder(tmp_path / "data", cache=tmp_path / "cache") == first and len(read) == 4
    folder = read_folder(data_of("folder"))
    assert [entry.group for entry in first.entries] == [entry.group for entry in folder.entries]
    assert first.digest("splits") == folder.digest("splits") and first.digest("waves") != folder.digest("waves")
    info = tmp_path / "data" / "dataset_info.json"
    info.write_text(info.read_text().replace('"1.0.0"', '"1.0.1"'))
    assert read_record_folder(tmp_path / "data", cache=tmp_path / "cache").digest("waves") != first.digest("waves")


def test_an_index_is_that_of_its_records(data_of, store_of, tmp_path):
    folder = read_record_folder(data_of("tfrecord"), cache=tmp_path / "cache")
    with pytest.raises(UserError, match="has clips at 24000 Hz where AudioSpec has 16000 Hz: give the folder of audio files instead"):
        prepare(folder, tmp_path / "work", sample_rate_hz=16_000)
    prepare(folder, tmp_path / "work", sample_rate_hz=RATE)
    index = json.loads((tmp_path / "work" / "index.json").read_text())
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["index.json"]
    del index["clips"][4]
    (tmp_path / "work" / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="has 14 records where its index has 13: run the training again"):
        ClipStore.open(tmp_path / "work")


def test_a_data_set_that_cannot_be_read_is_a_user_error(data_of, tmp_path, monkeypatch):
    shutil.copytree(data_of("array_record"), tmp_path / "data")
    features = json.loads((tmp_path / "data" / "features.json").read_text())
    del features["featuresDict"]["features"]["captions"]
    (tmp_path / "data" / "features.json").write_text(json.dumps(features))
    with pytest.raises(UserError, match="its records have no captions: build it with a builder of musiclm_jax.data.tfds_builders"):
        open_records(tmp_path / "data")
    for name in ("dataset_info.json", "features.json"):
        shutil.copytree(data_of("array_record"), tmp_path / name)
        (tmp_path / name / name).write_text("{")
        with pytest.raises(UserError, match="that TFDS does not read .*: build the data set again"):
            open_records(tmp_path / name)
    shutil.copytree(data_of("array_record"), tmp_path / "lost")
    next((tmp_path / "lost").glob("*train*")).unlink()
    with pytest.raises(UserError, match="array_record-00000-of-00001 cannot be read, No such file or directory"):
        read_record_folder(tmp_path / "lost", cache=tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"needs the package tensorflow_datasets; install it with: pip install 'musiclm-jax\[data\]'"):
        open_records(tmp_path / "data")


WITHOUT_TENSORFLOW = """
import sys
from pathlib import Path

from musiclm_jax.data.clips import prepare
from musiclm_jax.data.readers import open_source
from musiclm_jax.data.records import read_record_folder

data, work = map(Path, sys.argv[1:])
store = prepare(read_record_folder(data, cache=work / "records"), work / "prepare", sample_rate_hz=24_000)
print(open_source(store, reader="grain", split="train", crop_sec=1.0, batch_size=5, seed=0)(0)["wave"].shape, "tensorflow" in sys.modules)
"""


@pytest.mark.parametrize("form", FORMS)
def test_records_are_read_without_tensorflow(form, data_of, tmp_path):
    data, env = data_of(form), {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", WITHOUT_TENSORFLOW, data, tmp_path], capture_output=True, text=True, timeout=300, env=env)
    assert done.stdout.split("\n")[-2] == "(5, 24000) False", done.stderr[-2000:]


def test_clips_that_cannot_be_used_and_tables_that_are_missing_are_named(data_of, tmp_path):
    data_of("tfrecord")  # Skipped without TensorFlow.
    import tensorflow_datasets as tfds

    shutil.copytree(data_of("folder"), tmp_path / "in")
    (tmp_path / "in" / "00.wav").write_bytes(b"no audio")
    builder = tfds.builder("captioned_folder", folder=str(tmp_path / "in"), data_dir=tmp_path / "out", file_format="array_record")
    builder.download_and_prepare()
    assert [name for name, _ in builder.left_out] == ["00.wav"] and builder.info.splits["train"].num_examples == TRAIN - 1
    with pytest.raises(UserError, match=r"has no musiccaps-public\.csv: put the table of musiccaps there"):
        tfds.builder("musiccaps", folder=str(tmp_path / "in"), data_dir=tmp_path / "other").download_and_prepare()
