"""Batches from records with random access: each clip once an epoch, a pure function of seed and step, on any number of hosts."""

import json

import numpy as np
import pytest
import soundfile

from musiclm_jax.data.records import open_records, record_source
from musiclm_jax.errors import UserError

pytest.importorskip("grain", reason="the extra `data` is not installed")
RATE = 8000


class Counting(list):
    """Records that remember which were read."""

    def __init__(self, records):
        super().__init__(records)
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


def make_records(count, *, seconds=1.0):
    """Clip i has the constant 100 i, so that its crops can be told; two captions, one of each kind."""
    samples = round(seconds * RATE)
    return Counting(
        {"id": f"{i}", "audio": np.full(samples, 100 * i, np.int16), "captions": [f"short {i}".encode(), f"long {i}".encode()], "kinds": ["short", "long"]}
        for i in range(count)
    )


def clips_of(batch):
    return [round(float(wave[0]) * 32768 / 100) for wave in batch["wave"]]


def source(records, **options):
    return record_source(records, **{"crop_sec": 0.48, "batch_size": 4, "seed": 3, "sample_rate_hz": RATE} | options)


def test_each_epoch_has_every_clip_once_in_another_order():
    batches = source(make_records(12))
    epochs = [[clip for step in range(first, first + 3) for clip in clips_of(batches(step))] for first in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] != [clip for step in range(3) for clip in clips_of(source(make_records(12), seed=4)(step))]


def test_a_batch_is_a_function_of_the_step_and_hosts_read_their_rows_alone():
    texts = lambda captions: (np.array([[len(each)] for each in captions]), np.ones((len(captions), 1), bool))  # noqa: E731
    whole = source(make_records(13, seconds=3), encode_text=texts)
    for step in (5, 0, 7):
        records = make_records(13, seconds=3)
        part = source(records, encode_text=texts)(step, lambda size: np.array([1, 3]))
        assert len(records.read) == 2
        for name, array in whole(step).items():
            np.testing.assert_array_equal(array[[1, 3]], part[name])


def test_crops_are_drawn_and_short_clips_padded():
    ramp = [{"id": "0", "audio": np.arange(4 * RATE, dtype=np.int16), "captions": [], "kinds": []}]
    starts = {round(float(source(ramp, batch_size=1)(step)["wave"][0, 0]) * 32768) for step in range(20)}
    assert len(starts) > 10 and all(start % 960 == 0 for start in starts)
    (wave,) = source(make_records(2, seconds=0.1), batch_size=1)(0)["wave"]
    assert wave.shape == (3840,) and not wave[800:].any()
    with pytest.raises(UserError, match="no clips of this split"):
        source([])


def test_kinds_of_captions_are_drawn_by_weight():
    seen = []
    encode = lambda captions: (seen.extend(captions), np.zeros((len(captions), 1)))  # noqa: E731
    batches = source(make_records(4), encode_text=encode, text_mix={"short": 1.0})
    for step in range(5):
        batches(step)
    assert len(seen) == 20 and all(caption.startswith("short") for caption in seen)


def test_a_folder_of_clips_is_built_by_tfds_and_read_at_random(tmp_path):
    pytest.importorskip("tensorflow", reason="TFDS builds data sets with TensorFlow")
    tfds = pytest.importorskip("tensorflow_datasets")
    from musiclm_jax.data import tfds_builders  # noqa: F401

    folder = tmp_path / "in"
    folder.mkdir()
    rows = []
    for i in range(6):
        soundfile.write(folder / f"{i}.wav", 0.1 * np.random.default_rng(i).normal(size=2 * RATE), RATE)
        rows.append({"file_name": f"{i}.wav", "caption": f"tune {i}", "group": f"album {i}", "split": "test" if i == 5 else "train", "end_sec": 1.5})
    (folder / "silent.wav").write_bytes(b"no audio")
    rows.append({"file_name": "silent.wav", "caption": "nothing", "split": "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    builder = tfds.builder("captioned_folder", folder=str(folder), data_dir=tmp_path / "out", file_format="array_record")
    builder.download_and_prepare()
    assert [name for name, _ in builder.left_out] == ["silent.wav"]
    records = open_records("captioned_folder", split="train", data_dir=str(tmp_path / "out"))
    found = {record["id"].decode(): record for record in (records[i] for i in range(len(records)))}
    assert sorted(found) == [f"{i}.wav[0-1.5]" for i in range(5)]
    assert found["3.wav[0-1.5]"]["audio"].shape == (36_000,) and found["3.wav[0-1.5]"]["captions"][0] == b"tune 3"
    assert found["3.wav[0-1.5]"]["group"] == b"album 3"
    assert record_source(records, crop_sec=1.0, batch_size=2, seed=0, sample_rate_hz=24_000)(0)["wave"].shape == (2, 24_000)
    with pytest.raises(UserError, match=r"has no musiccaps-public\.csv: put the table of musiccaps there"):
        tfds.builder("musiccaps", folder=str(folder), data_dir=tmp_path / "other").download_and_prepare()
    with pytest.raises(UserError, match="'captioned_folder', split 'train': .*: build it with `tfds build` first"):
        open_records("captioned_folder", split="train", data_dir=str(tmp_path / "nowhere"))
