import json
import os

import numpy as np
import pytest

from musiclm_jax import bundle
from musiclm_jax.errors import UserError

CONFIG = {"dim": 7, "strides": [2, 3], "name": "π"}


def models():
    rng = np.random.default_rng(0)
    array = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "soundstream": {"params": {"conv": {"kernel": array(3, 5, 7), "bias": array(7)}}, "quantizer": {"codebooks": array(2, 11, 3)}},
        "mulan": {"params": {"ids": np.arange(5, dtype=np.int32), "flag": np.array([True, False]), "scalar": np.float32(2.5)}},
    }


@pytest.fixture
def path(tmp_path):
    bundle.save(tmp_path / "b", config=CONFIG, models=models(), metadata={"mulan": {"vocabulary": '{"é": 1}'}}, card="# Card")
    return tmp_path / "b"


def assert_same(tree, other):
    flat, flat_other = bundle.flatten(tree), bundle.flatten(other)
    assert flat.keys() == flat_other.keys()
    for key in flat:
        assert (flat[key].dtype, flat[key].shape) == (flat_other[key].dtype, flat_other[key].shape)
        np.testing.assert_array_equal(flat[key], flat_other[key])


def test_flatten_is_undone():
    tree = {"a": {"b": np.arange(3), "c": {"d": np.ones((2, 1))}}, "e": np.zeros(())}
    assert set(bundle.flatten(tree)) == {"a/b", "a/c/d", "e"}
    assert_same(bundle.unflatten(bundle.flatten(tree)), tree)
    with pytest.raises(ValueError, match="'/'"):
        bundle.flatten({"a/b": np.zeros(1)})


def test_round_trip_is_bit_exact(path):
    opened = bundle.open_bundle(path)
    assert opened.config == CONFIG
    for name, variables in models().items():
        loaded, metadata = opened.load(name)
        assert_same(loaded, variables)
    assert metadata == {"vocabulary": '{"é": 1}'}
    assert sorted(os.listdir(path)) == ["README.md", "config.json", "mulan.safetensors", "soundstream.safetensors"]


def test_same_weights_same_files(path, tmp_path):
    bundle.save(tmp_path / "again", config=CONFIG, models=models(), metadata={"mulan": {"vocabulary": '{"é": 1}'}}, card="# Card")
    for name in os.listdir(path):
        assert (path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_float16_halves_the_file_and_loads_as_float32(path, tmp_path):
    bundle.save(tmp_path / "half", config=CONFIG, models=models(), dtype="float16")
    loaded, _ = bundle.open_bundle(tmp_path / "half").load("soundstream")
    kernel = models()["soundstream"]["params"]["conv"]["kernel"]
    np.testing.assert_array_equal(loaded["params"]["conv"]["kernel"], kernel.astype(np.float16).astype(np.float32))
    assert loaded["params"]["conv"]["kernel"].dtype == np.float32
    ids = bundle.open_bundle(tmp_path / "half").load("mulan")[0]["params"]["ids"]
    np.testing.assert_array_equal(ids, np.arange(5, dtype=np.int32))


@pytest.mark.parametrize(
    "value, dtype, says", [(1e5, "float16", "float16"), (np.nan, "float32", "NaN"), (np.inf, "float16", "NaN"), (1.0, "int8", "choose")]
)
def test_weights_that_cannot_be_stored(tmp_path, value, dtype, says):
    with pytest.raises(UserError, match=says):
        bundle.save(tmp_path / "b", config=CONFIG, models={"coarse": {"w": np.full(3, value, np.float32)}}, dtype=dtype)
    assert os.listdir(tmp_path) == []


def test_an_older_bundle_is_replaced_whole(path):
    bundle.save(path, config={"dim": 3}, models={"mulan": models()["mulan"]})
    assert bundle.open_bundle(path).config == {"dim": 3}
    assert sorted(os.listdir(path)) == ["README.md", "config.json", "mulan.safetensors"]
    assert os.listdir(path.parent) == ["b"]


def test_other_things_are_not_overwritten(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    (tmp_path / "file").write_text("")
    bundle.save(tmp_path / "notes", config=CONFIG, models={})
    (tmp_path / "notes" / "mine.txt").write_text("")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text("{}")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for name in ("photos", "file", "file/b", "notes", "foreign"):
        with pytest.raises(UserError, match=name):
            bundle.save(tmp_path / name, config=CONFIG, models=models())
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def cut(path):
    blob = (path / "soundstream.safetensors").read_bytes()
    (path / "soundstream.safetensors").write_bytes(blob[:-5])
    return "soundstream.safetensors"


def flip(path):
    blob = bytearray((path / "soundstream.safetensors").read_bytes())
    blob[-3] ^= 1
    (path / "soundstream.safetensors").write_bytes(blob)
    return "soundstream.safetensors"


def exchange(path):
    os.replace(path / "mulan.safetensors", path / "soundstream.safetensors")
    (path / "mulan.safetensors").write_bytes(b"")
    return "safetensors"


def remove(path):
    os.remove(path / "soundstream.safetensors")
    return "soundstream.safetensors"


def edit_config(path):
    text = (path / "config.json").read_text()
    (path / "config.json").write_text(text.replace('"dim": 7', '"dim": 8'))
    return "config.json"


def cut_config(path):
    (path / "config.json").write_text((path / "config.json").read_text()[:50])
    return "config.json"


def foreign(path):
    (path / "config.json").write_text(json.dumps({"model_type": "musicgen"}))
    return "musiclm_jax"


def list_config(path):
    (path / "config.json").write_text("[1]")
    return "musiclm_jax"


def newer(path):
    (path / "config.json").write_text(json.dumps({"format": 99}))
    return "upgrade"


def no_config(path):
    os.remove(path / "config.json")
    return "config.json"


@pytest.mark.parametrize("damage", [cut, flip, exchange, remove, edit_config, cut_config, foreign, list_config, newer, no_config])
def test_damage_is_named(path, damage):
    says = damage(path)
    with pytest.raises(UserError) as error:
        bundle.open_bundle(path).load("soundstream")
    assert says in str(error.value) and ";" in str(error.value) and "\n" not in str(error.value)


def test_missing_bundle_and_missing_model(path):
    with pytest.raises(UserError, match="no such folder"):
        bundle.open_bundle(path / "nowhere")
    with pytest.raises(UserError, match="fine.safetensors"):
        bundle.open_bundle(path).load("fine")


def test_the_card_may_be_edited(path):
    (path / "README.md").write_text("My card.")
    bundle.open_bundle(path).load("soundstream")
