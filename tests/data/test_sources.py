"""All readers give the same kind of batches: a pure function of seed and step, on any number of hosts, from any form of the data."""

import collections
import contextlib
import dataclasses
import importlib.util
import shutil

import numpy as np
import pytest
from told_clips import KINDS, RATE, TRAIN, samples_of

from musiclm_jax.data import tf_data
from musiclm_jax.data.clips import ClipStore
from musiclm_jax.data.prefetch import prefetch
from musiclm_jax.data.readers import open_source
from musiclm_jax.data.records import RecordSamples, open_records
from musiclm_jax.errors import UserError

CROP_SEC, CROP, BATCH = 1.6, 38_400, 4
STEPS = TRAIN // BATCH  # Of an epoch.
MIX = {"short": 2.0, "long": 2.0, "playlist": 1.0, "label": 1.0}
PACKAGES = {"store": (), "grain": ("grain",), "tf_data": ("grain", "tensorflow")}
FORMS = {"store": ("folder", "array_record"), "grain": ("folder", "array_record", "tfrecord"), "tf_data": ("tfrecord",)}
ALL = [pytest.param((reader, form), id=f"{reader}-{form}") for reader, forms in FORMS.items() for form in forms]
IN_EPOCHS = [param for param in ALL if not param.id.startswith("store")]


def encode_text(captions):
    """ids: the kind of the caption and the number of its clip."""
    words = [caption.replace("longer", "long").split() for caption in captions]
    return np.array([[KINDS.index(kind), int(clip)] for kind, clip in words], np.int32), np.ones((len(captions), 2), bool)


@pytest.fixture(autouse=True)
def few_steps_at_a_time(monkeypatch):
    monkeypatch.setattr(tf_data, "_STEPS", 3)  # After which tf.data gets the next crops.


@pytest.fixture
def kind(request):
    for package in PACKAGES[request.param[0]]:
        pytest.importorskip(package, reason="the extra `tfdata` is not installed")
    return request.param


@pytest.fixture
def open_kind(kind, store_of):
    """Opens a source of a reader and a form of the data; every call another one."""
    reader, form = kind
    options = {"split": "train", "crop_sec": CROP_SEC, "batch_size": BATCH, "seed": 3, "encode_text": encode_text, "text_mix": MIX}
    return lambda **changes: open_source(store_of(form), reader=reader, **{**options, **changes})


def assert_equal(batch, other):
    assert batch.keys() == other.keys()
    for name, array in batch.items():
        assert array.dtype == other[name].dtype
        np.testing.assert_array_equal(array, other[name])


def read_off(wave):
    """(clip, first sample) of a crop, which is compared with the clip."""
    value = round(float(wave[0]) * 32768)
    clip, start = value // 2000 - 1, value % 2000 * 960
    there = samples_of(clip)[start : start + CROP].astype(np.float32) / 32768
    np.testing.assert_array_equal(wave, np.pad(there, (0, CROP - len(there))))
    assert start + CROP <= max(len(samples_of(clip)), CROP)
    return clip, start


def clips_in(batch):
    return [read_off(wave)[0] for wave in batch["wave"]]


@pytest.mark.parametrize("kind", ALL, indirect=True)
def test_crops_lie_within_clips_at_whole_tokens_and_short_clips_are_padded(open_kind):
    source, seen = open_kind(), collections.defaultdict(set)
    for step in range(8):
        batch = source(step)
        assert batch["wave"].shape == (BATCH, CROP) and batch["wave"].dtype == np.float32
        for wave, (_, clip) in zip(batch["wave"], batch["text_ids"], strict=True):
            assert read_off(wave)[0] == clip  # The caption is one of this clip.
            seen[int(clip)].add(read_off(wave)[1])
    assert seen.keys() <= set(range(TRAIN)) and seen[0] <= {0} and any(len(starts) > 1 for starts in seen.values())


@pytest.mark.parametrize("kind", ALL, indirect=True)
def test_a_batch_is_a_function_of_seed_and_step(open_kind):
    whole = [open_kind()(step) for step in range(2 * STEPS)]
    source = open_kind()
    for step in (4, 5, 0, 5, 5, 2):
        assert_equal(source(step), whole[step])
    assert any((open_kind(seed=4)(step)["wave"] != whole[step]["wave"]).any() for step in range(2))
    with contextlib.closing(prefetch(open_kind(), start=2, stop=6)) as batches:
        for step, batch in enumerate(batches, start=2):
            assert_equal(batch, whole[step])


@pytest.mark.parametrize("kind", ALL, indirect=True)
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_rows_of_hosts_make_up_the_batch(open_kind, hosts):
    whole = open_kind()
    of_hosts = [open_kind() for _ in range(hosts)]
    for step in (1, 2, 3):
        parts = [source(step, lambda size, host=host: np.arange(size).reshape(hosts, -1)[host]) for host, source in enumerate(of_hosts)]
        assert_equal({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, whole(step))


@pytest.mark.parametrize("kind", IN_EPOCHS, indirect=True)
def test_each_clip_comes_once_an_epoch_over_hosts_and_each_epoch_in_another_order(open_kind):
    host_0, host_1 = open_kind(), open_kind()
    steps = [clips_in(host_0(step, lambda size: np.array([0, 1]))) + clips_in(host_1(step, lambda size: np.array([2, 3]))) for step in range(3 * STEPS)]
    epochs = [sum(steps[first : first + STEPS], []) for first in range(0, len(steps), STEPS)]
    assert all(sorted(epoch) == list(range(TRAIN)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("kind", IN_EPOCHS, indirect=True)
def test_readers_and_forms_of_the_data_give_the_same_batches(open_kind, store_of):
    options = {"split": "train", "crop_sec": CROP_SEC, "batch_size": BATCH, "seed": 3, "encode_text": encode_text, "text_mix": MIX}
    source, expected = open_kind(), open_source(store_of("folder"), reader="grain", **options)
    for step in (0, 1, STEPS, 1000, 10**9):
        assert_equal(source(step), expected(step))


@pytest.mark.parametrize("kind", ALL, indirect=True)
def test_kinds_of_captions_are_drawn_by_their_weights(open_kind):
    source = open_kind(crop_sec=0.04, batch_size=TRAIN)
    ids = np.concatenate([source(step)["text_ids"] for step in range(50)])
    share = np.bincount(ids[:, 0], minlength=len(KINDS)) / len(ids)
    assert np.abs(share - np.array([2, 2, 1, 1]) / 6).max() < 0.08  # 4 standard deviations.


@pytest.mark.parametrize("kind", ALL, indirect=True)
def test_a_split_without_clips_or_weights_is_a_user_error(open_kind, store_of):
    with pytest.raises(UserError, match="no clip of split 'valid'"):
        open_kind(split="valid")
    with pytest.raises(UserError, match="captions of 00.wav are all of kind label or long or playlist or short"):
        open_kind(text_mix={"other": 1.0})
    assert set(open_kind(encode_text=None)(0)) == {"wave"}


def test_a_pipeline_of_tf_data_is_opened_anew_only_at_another_step(store_of, monkeypatch):
    pytest.importorskip("grain")
    options = {"split": "train", "crop_sec": CROP_SEC, "batch_size": BATCH, "seed": 3}
    source, expected = open_source(store_of("tfrecord"), reader="tf_data", **options), open_source(store_of("folder"), reader="grain", **options)
    opened, open_pipeline = [], tf_data.TfDataSource._open
    monkeypatch.setattr(tf_data.TfDataSource, "_open", lambda self, step, rows: (opened.append(step), open_pipeline(self, step, rows))[1])
    for step in (5, 6, 7, 7, 8, 2, 3, 4, 5, 6):
        assert_equal(source(step), expected(step))
    assert opened == [5, 7, 2, 5]


@pytest.mark.parametrize("kind", [param for param in IN_EPOCHS if "folder" not in param.id], indirect=True)
def test_a_damaged_record_is_a_user_error_in_the_loop(kind, data_of, store_of, tmp_path):
    reader, form = kind
    shutil.copytree(data_of(form), tmp_path / "data")
    store = store_of(form)
    at = np.sort([*(clip.offset for clip in store.clips), store.samples.shape[0]])
    (file,) = (tmp_path / "data").glob("*train*")
    with file.open("r+b") as opened:  # Within the features of a record.
        opened.seek(file.stat().st_size // 2)
        opened.write(bytes(file.stat().st_size // 2))
    broken = dataclasses.replace(store, samples=RecordSamples(open_records(tmp_path / "data"), at))
    source = open_source(broken, reader=reader, split="train", crop_sec=CROP_SEC, batch_size=TRAIN, seed=3)
    with pytest.raises(UserError, match="a damaged record: copy it again, or build the data set again"):
        list(prefetch(source, start=0, stop=1))


def test_what_a_reader_lacks_is_a_user_error(store_of, monkeypatch):
    options = {"split": "train", "crop_sec": CROP_SEC, "batch_size": BATCH, "seed": 3}
    store: ClipStore = store_of("folder")
    with pytest.raises(UserError, match="reads data sets of TFDS in tfrecord files, these data are of audio files: build one .*, or choose reader='grain'"):
        open_source(store, reader="tf_data", **options)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"reader='grain' needs the package grain; install it with: pip install 'musiclm-jax\[data\]', or choose"):
        open_source(store, reader="grain", **options)
    with pytest.raises(ValueError, match="expected one of store, grain, tf_data"):
        open_source(store, reader="tfdata", **options)
    assert open_source(store, reader="store", **options)(0)["wave"].shape == (BATCH, CROP)
    assert store.sample_rate_hz == RATE
