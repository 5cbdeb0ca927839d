import dataclasses
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from tiny_musiclm import tiny_config

from musiclm_jax import bundle, folders, records
from musiclm_jax.configs import MusicLMConfig
from musiclm_jax.errors import UserError
from musiclm_jax.models.pitch_rhythm import PitchRhythmConfig
from musiclm_jax.models.spectral_codec import SpectralCodecConfig

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


@pytest.mark.parametrize("value, dtype, says", [(1e5, "float16", "float16"), (np.nan, "float32", "NaN"), (np.inf, "float16", "NaN"), (1.0, "int8", "choose")])
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
    (tmp_path / "deep").mkdir()
    bundle.save(tmp_path / "deep", config=CONFIG, models={})
    (tmp_path / "deep" / "more.safetensors").mkdir()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for name in ("photos", "file", "file/b", "notes", "foreign", "deep"):
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


def older(path):
    (path / "config.json").write_text(json.dumps({"format": 1, "musiclm_jax": "0.1.0", "model": {}, "files": {}, "sha256": ""}))
    return "tools/upgrade_bundle.py OLD NEW"


def pipe(path):
    os.remove(path / "soundstream.safetensors")
    os.mkfifo(path / "soundstream.safetensors")
    return "soundstream.safetensors"


def no_config(path):
    os.remove(path / "config.json")
    return "config.json"


@pytest.mark.parametrize("damage", [cut, flip, exchange, remove, edit_config, cut_config, foreign, list_config, newer, older, pipe, no_config])
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
    assert bundle.read_card(path) == "My card."
    (path / "README.md").write_bytes("# Für ".encode("cp1252"))
    assert bundle.read_card(path) == "# F\ufffdr "
    os.remove(path / "README.md")
    bundle.open_bundle(path).load("soundstream")
    assert bundle.read_card(path) == ""
    os.mkfifo(path / "README.md")
    assert bundle.read_card(path) == ""


def test_files_may_be_links_into_a_download_cache(path, tmp_path):
    (tmp_path / "blobs").mkdir()
    os.rename(path / "mulan.safetensors", tmp_path / "blobs" / "0")
    (path / "mulan.safetensors").symlink_to(tmp_path / "blobs" / "0")
    assert_same(bundle.open_bundle(path).load("mulan")[0], models()["mulan"])
    bundle.save(path, config=CONFIG, models={})  # Removes the link, not what it leads to.
    assert (tmp_path / "blobs" / "0").exists() and not os.path.lexists(path / "mulan.safetensors")


# ------------------------------------------------------------------------------------------------- saving


def test_a_full_disk_leaves_the_old_bundle(path, monkeypatch):
    def full(path, *arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for owner, name in ((bundle, "_write_safetensors"), (Path, "write_text"), (Path, "touch"), (folders, "sync")):
        with monkeypatch.context() as patch, pytest.raises(UserError) as error:
            patch.setattr(owner, name, full)
            bundle.save(path, config={"dim": 3}, models=models())
        assert str(error.value) == f"{path} cannot be written, the disk is full: free some space and run the same command again"
        assert os.listdir(path.parent) == ["b"] and bundle.open_bundle(path).config == CONFIG


def test_a_save_that_was_killed_between_its_renames_is_recovered(path):
    os.rename(path, path.with_name(".b.old"))
    (path.with_name(".b.tmp")).mkdir()
    assert_same(bundle.open_bundle(path).load("mulan")[0], models()["mulan"])
    bundle.save(path, config={"dim": 3}, models={})
    assert bundle.open_bundle(path).config == {"dim": 3} and os.listdir(path.parent) == ["b"]


def test_names_of_models_are_names_of_files(tmp_path):
    with pytest.raises(ValueError, match="'a/b'"):
        bundle.save(tmp_path / "b", config=CONFIG, models={"a/b": {}})
    with pytest.raises(ValueError, match="JSON"):
        bundle.save(tmp_path / "b", config={"dim": float("nan")}, models={})
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------- crafted configs


def rewrite(path, document):
    """Writes config.json as someone would who wants it to be believed."""
    try:
        document = document | {"sha256": bundle._digest(document)}
    except ValueError:  # NaN, which nobody can sign.
        pass
    (path / "config.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"files": ["soundstream.safetensors"]}, "files is a list of 1, expected names with values"),
        ({"files": None}, "files is None, expected names with values"),
        ({"files": {"a.safetensors": {"sha256": "0" * 64}}}, "files['a.safetensors'] lacks bytes of StoredFile"),
        ({"files": {"a.safetensors": {"bytes": True, "sha256": "0" * 64}}}, "files['a.safetensors'].bytes is True, expected a whole number"),
        ({"files": {"a.safetensors": {"bytes": -1, "sha256": "0" * 64}}}, "files['a.safetensors']: expected a size of 0 or more"),
        ({"files": {"a.safetensors": {"bytes": 1, "sha256": "0" * 63}}}, "files['a.safetensors']: expected a size of 0 or more"),
        ({"files": {"a.safetensors": 3}}, "files['a.safetensors'] is 3, expected the fields of StoredFile"),
        *(
            ({"files": {name: {"bytes": 1, "sha256": "0" * 64}}}, f"files has {name!r}, expected a name such as coarse.safetensors")
            for name in ("../../x.safetensors", "/etc/passwd", "x\\y.safetensors", "..safetensors", "a.npy", "a\n.safetensors", "a.safetensors\n", "")
        ),
        ({"model": [1]}, "model is a list of 1, expected names with values"),
        ({"musiclm_jax": 3}, "musiclm_jax is 3, expected a string"),
        ({"more": 3}, "more is not a field of Document in this version"),
        ({"format": True}, "has no format number"),
        ({"format": 0}, "has no format number"),
        ({"format": "2"}, "has no format number"),
        ({"format": 3}, "bundle format 3, but this version reads 2; upgrade musiclm-jax"),
        ({"model": {"dim": float("nan")}}, "cannot be read as JSON"),
    ],
)
def test_crafted_documents_are_refused_in_one_line(path, change, says):
    rewrite(path, json.loads((path / "config.json").read_text()) | change)
    with pytest.raises(UserError) as error:
        bundle.open_bundle(path)
    assert says in str(error.value) and str(path) in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [b"", b"\xff\xfe{\x00}\x00", b"[" * 100_000, b'{"a":' * 100_000, b'{"format": 2, "format": 2}', b'{"format": 2, "x": 1e999}', b" " * 2**24 + b"{}"],
)
def test_what_is_no_json_is_refused_in_one_line(path, text):
    (path / "config.json").write_bytes(text)
    with pytest.raises(UserError, match="config.json: cannot be read as JSON .*; copy or export the bundle again$"):
        bundle.open_bundle(path)


def test_a_byte_order_mark_changes_nothing(path):
    (path / "config.json").write_bytes(b"\xef\xbb\xbf" + (path / "config.json").read_bytes())
    assert bundle.open_bundle(path).config == CONFIG


def nodes(value, at=()):
    """The place of every value in a JSON tree."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from nodes(item, (*at, key))


def changed(value, at, change):
    """A JSON tree with the value at one place replaced, or removed."""
    if not at:
        return change(value)
    copy = value.copy()
    if change is None and len(at) == 1:
        del copy[at[0]]
    else:
        copy[at[0]] = changed(copy[at[0]], at[1:], change)
    return copy


DEEP = json.loads("[" * 200 + "]" * 200)
CHANGES = [
    None,
    *(
        (lambda old, new=new: new)
        for new in (None, [], {}, [1, 2], {"kind": "x"}, {"": {}}, "", "x\n", "\ud800", -1, 0, 1, 2**62, 10**30, 0.5, -1e308, 1e-308, True, DEEP)
    ),
    lambda old: [old],
    lambda old: {"a": old},
    lambda old: -old if isinstance(old, (int, float)) else old * 2 if isinstance(old, list) else f"{old}x",
]

STEP = 8


@pytest.mark.parametrize("number", range(2))
def test_no_change_of_a_config_is_more_than_a_user_error(tmp_path, number):
    """Each value of config.json, replaced by some of CHANGES, and signed anew: by all of them with STEP = 1."""
    config = tiny_config()
    if number:
        config = dataclasses.replace(config, codec=SpectralCodecConfig(), mulan=dataclasses.replace(config.mulan, audio=PitchRhythmConfig()))
    bundle.save(tmp_path / "b", config=config.to_dict(), models=models())
    document = json.loads((tmp_path / "b" / "config.json").read_text())
    del document["sha256"]
    refused = 0
    for place, at in enumerate(at for at in nodes(document) if at):
        for change in CHANGES[place % STEP :: STEP]:
            rewrite(tmp_path / "b", changed(document, at, change))
            try:
                opened = bundle.open_bundle(tmp_path / "b")
                records.from_dict(MusicLMConfig, opened.config, where="model")
                opened.load("mulan")
            except UserError as error:
                assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
                refused += 1
    assert refused > 400
