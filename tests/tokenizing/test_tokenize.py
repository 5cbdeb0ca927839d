"""Token sets: made by the frozen models, killed and continued to the same bytes, read by TFDS, trained on."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import soundfile
from tiny_musiclm import tiny_config, tiny_musiclm
from tiny_parts import read_metadata, write_clips, write_metadata

from musiclm_jax.data import token_set
from musiclm_jax.data.beam import check_flags, run_jobs
from musiclm_jax.data.token_crops import SetCrops
from musiclm_jax.data.token_set import TokenSet
from musiclm_jax.errors import UserError
from musiclm_jax.files import list_files, sha256_file, write_bytes
from musiclm_jax.models.tokenizers import AcousticTokenizer, SemanticTokenizer
from musiclm_jax.tokenizing import shards
from musiclm_jax.tokenizing.run import tokenize
from musiclm_jax.tokenizing.shards import Windowing

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("array_record", "tensorflow_datasets", "apache_beam", "grain")), reason="needs the extra tfdata"
)
OPTIONS = {"record_sec": 1.0, "context_sec": 0.4, "batch_size": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "bundle"
    tiny_musiclm().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Four clips of 2 to 3 s, one of them held out."""
    folder = write_clips(tmp_path_factory.mktemp("data") / "clips")
    lines = read_metadata(folder)
    lines[3]["split"] = "test"
    del lines[2]["captions"]
    write_metadata(folder, lines)
    return folder


@pytest.fixture(scope="module")
def tokens(model, clips, tmp_path_factory):
    return tokenize(clips, tmp_path_factory.mktemp("out") / "tokens", model=str(model), **OPTIONS)


def contents(folder):
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("total, starts", [(7, [0]), (25, [0]), (26, [0, 1]), (50, [0, 25]), (60, [0, 25, 35])])
def test_records_cover_a_clip_and_end_with_it(total, starts):
    found = Windowing(record=25, context=4).records(total)
    assert [start for start, _ in found] == starts
    assert set().union(*(range(start, start + length) for start, length in found)) == set(range(total))


def test_what_is_encoded_lies_in_the_clip():
    windowing = Windowing(record=25, context=4)
    assert [windowing.first_encoded(start, 60) for start in (0, 25, 35)] == [0, 21, 27]
    assert windowing.first_encoded(0, 20) == 0  # Shorter than the input: it is padded.


def test_tokens_are_those_of_the_models(model, clips, tokens):
    musiclm = tiny_musiclm()
    wave, _ = soundfile.read(clips / "1.wav", dtype="float32")
    record = next(each for each in map(tokens.records("train").__getitem__, range(len(tokens.records("train")))) if each["id"] == b"1.wav")
    assert record["start_sec"] == 0
    encoded = np.pad(wave[: 45 * 960], (0, max(0, 45 * 960 - len(wave))))[None]
    np.testing.assert_array_equal(record["semantic"], SemanticTokenizer(musiclm.config.w2v_bert, musiclm.variables("w2v_bert")).encode(encoded)[0, :25])
    np.testing.assert_array_equal(record["acoustic"], AcousticTokenizer(musiclm.config.codec, musiclm.variables("codec")).encode(encoded)[0, :50])
    captions = [text.decode() for text in record["captions"]]
    np.testing.assert_array_equal(record["caption_tokens"], musiclm.mulan.text_tokens(captions))
    first = musiclm.mulan.embed_audio(wave[None, : musiclm.config.mulan.window_samples])
    np.testing.assert_allclose(record["mulan"][:1], first, atol=1e-3)
    assert record["mulan"].shape == (6, 6)  # A window of 0.5 s each 0.1 s of 1 s.


def test_counts_and_lengths(tokens):
    assert (tokens.info.clips, tokens.info.captioned, tokens.info.held_out, tokens.info.skipped) == (4, 3, 1, 0)
    assert tokens.info.hours == pytest.approx((4 * 48_000 + 6 * 7001) / 24_000 / 3600, abs=1e-3)
    for split, count in tokens.info.records.items():
        assert [len(tokens.records(split)[i]["semantic"]) for i in range(count)] == list(tokens.lengths(split)) == [25] * count


def test_tfds_reads_it_and_makes_tfrecords_of_it(tokens, tmp_path):
    pytest.importorskip("tensorflow")
    import tensorflow_datasets as tfds

    from musiclm_jax.data import tfds_builders  # noqa: F401

    builder = tfds.builder("music_tokens", folder=str(tokens.path), data_dir=str(tmp_path), file_format="tfrecord")
    builder.download_and_prepare()
    mine = {(record["id"], float(record["start_sec"])): record for record in map(tokens.records("train").__getitem__, range(tokens.info.records["train"]))}
    found = list(tfds.load("music_tokens", split="train", data_dir=str(tmp_path)).as_numpy_iterator())
    assert len(found) == len(mine)
    for record in found:
        same = mine[record["id"], float(record["start_sec"])]
        for name in ("semantic", "acoustic", "mulan", "caption_tokens"):
            np.testing.assert_array_equal(record[name], same[name])


def test_killed_and_continued_it_has_the_same_bytes(model, clips, tokens, tmp_path, monkeypatch):
    made = []

    def stop_at_second(job):
        if made:
            raise KeyboardInterrupt
        shards.make_shard(job)
        made.append(job)

    def in_turn(jobs, work, *, flags=()):
        for job in jobs:
            stop_at_second(job)

    monkeypatch.setattr("musiclm_jax.tokenizing.run.run_jobs", in_turn)
    with pytest.raises(KeyboardInterrupt):
        tokenize(clips, tmp_path / "tokens", model=str(model), **OPTIONS)
    with pytest.raises(UserError, match="no complete token set"):
        TokenSet.open(tmp_path / "tokens")
    made[0].file.write_bytes(made[0].file.read_bytes()[:-1])  # A copy that lost its end is made again.
    monkeypatch.undo()
    tokenize(clips, tmp_path / "tokens", model=str(model), **OPTIONS)
    assert contents(tmp_path / "tokens") == contents(tokens.path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.array_record*")}
    tokenize(clips, tmp_path / "tokens", model=str(model), **OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.array_record*")} == before


def test_other_arguments_are_refused(model, clips, tokens, tmp_path):
    with pytest.raises(UserError, match="begun with another model, other clips or settings \\(windowing\\)"):
        tokenize(clips, tokens.path, model=str(model), **{**OPTIONS, "record_sec": 0.8})
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="exists and is no token set"):
        tokenize(clips, tmp_path, model=str(model))
    assert (tmp_path / "mine.txt").read_text() == "x"


def test_bad_clips_are_named(model, tmp_path, capsys):
    folder = write_clips(tmp_path / "clips")
    (folder / "1.wav").write_bytes(b"RIFF nothing")
    soundfile.write(folder / "2.wav", np.zeros(48_000), 24_000)
    found = tokenize(folder, tmp_path / "tokens", model=str(model), **OPTIONS)
    assert (found.info.clips, found.info.skipped) == (2, 2)
    lines = (tmp_path / "tokens" / "skipped.log").read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == ["1.wav", "2.wav"] and "silent" in lines[1]
    assert "2 clips cannot be used" in capsys.readouterr().out


def test_no_usable_clip(model, tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").write_bytes(b"nothing")
    with pytest.raises(UserError, match="a.wav"):
        tokenize(tmp_path / "clips", tmp_path / "tokens", model=str(model))


def test_unknown_flag():
    with pytest.raises(UserError, match="--modle"):
        check_flags(["--modle=x"])
    with pytest.raises(UserError, match="cannot run with --runner=DirectRuner"):
        run_jobs([1], print, flags=["--runner=DirectRuner"])


def test_damage_of_a_shard_is_one_line_and_made_good(model, clips, tokens, tmp_path):
    shutil.copytree(tokens.path, tmp_path / "tokens")
    (shard,) = (tmp_path / "tokens").glob("music_tokens-train*")
    data = bytearray(shard.read_bytes())
    data[200:2000] = bytes(1800)
    shard.write_bytes(data)
    records = TokenSet.open(tmp_path / "tokens").records
    with pytest.raises(UserError, match="a shard is damaged or missing .*musiclm tokenize"):
        [records("train")[number] for number in range(tokens.info.records["train"])]
    # The plan names the folder, so that it is made again in its place.
    assert tokenize(clips, tmp_path / "tokens", model=str(model), **OPTIONS).info == tokens.info
    assert contents(tmp_path / "tokens") == contents(tokens.path)


# ---------------------------------------------------------------------------------------------------------------------- Crops


@pytest.fixture
def crops(tokens):
    return SetCrops(tokens, ("semantic", "acoustic", "mulan"), lambda embeddings: np.round(1000 * embeddings[:, :2]).astype(np.int32))


def test_crops_are_aligned_and_pure(tokens, crops):
    options = {"split": "train", "crop_sec": 0.4, "batch_size": 4, "seed": 3}
    batch, again = crops.source(**options)(5), crops.source(**options)(5)
    records = [tokens.records("train")[i] for i in range(tokens.info.records["train"])]
    for row in range(4):
        where = [
            (record, start)
            for record in records
            for start in range(16)
            if np.array_equal(record["semantic"][start : start + 10], batch["semantic"][row])
            and np.array_equal(record["acoustic"][2 * start : 2 * start + 20], batch["acoustic"][row])
        ]
        assert where
    assert {name: array.dtype for name, array in batch.items()} == dict.fromkeys(("semantic", "acoustic", "mulan"), np.int32)
    for name in batch:
        np.testing.assert_array_equal(batch[name], again[name])
        hosts = [crops.source(**options)(5, lambda size, host=host: np.arange(2) + 2 * host)[name] for host in range(2)]
        np.testing.assert_array_equal(np.concatenate(hosts), batch[name])


def test_each_record_once_an_epoch(tokens, crops):
    total = tokens.info.records["train"]
    source = crops.source(split="train", crop_sec=1.0, batch_size=1, seed=0)
    epochs = [[source(step)["acoustic"].tobytes() for step in range(total * epoch, total * (epoch + 1))] for epoch in range(3)]
    assert len(set(epochs[0])) == total and {*epochs[0]} == {*epochs[1]} and len({tuple(epoch) for epoch in epochs}) > 1


def test_captions_stand_for_the_audio(tokens, crops):
    texts = crops.source(split="test", crop_sec=1.0, batch_size=40, seed=0, text_share=1.0)(0)["mulan"]
    record = tokens.records("test")[0]
    known = {tuple(row) for row in record["caption_tokens"].astype(np.int32)}
    assert {tuple(row) for row in texts} == known
    half = crops.source(split="test", crop_sec=1.0, batch_size=40, seed=0, text_share=0.5)(0)["mulan"]
    assert 5 < sum(tuple(row) in known for row in half) < 35


def test_a_share_of_crops_is_the_end_of_a_record(tokens, crops):
    source = crops.source(split="train", crop_sec=0.6, batch_size=40, seed=0, end_share=1.0)
    ends = {tuple(tokens.records("train")[number]["semantic"][-15:]) for number in range(tokens.info.records["train"])}
    assert {tuple(row) for row in source(0)["semantic"]} <= ends


def test_a_crop_longer_than_all_records(crops):
    with pytest.raises(UserError, match="no train record"):
        crops.source(split="train", crop_sec=2.0, batch_size=1, seed=0)


# ---------------------------------------------------------------------------------------------------------------------- Training


def test_stages_are_trained_on_it_and_exported(tokens, tmp_path, capsys):
    from musiclm_jax.cli.gin_config import load_config
    from musiclm_jax.musiclm import MusicLM
    from musiclm_jax.parts.fit import fit, plan

    bindings = [
        f"{stage}/stages.StageSpec.{end}_sec={value}" for stage, value in (("semantic", 0.8), ("coarse", 0.4), ("fine", 0.4)) for end in ("window", "hop")
    ]
    config = load_config("test", bindings=bindings)
    bundle = fit(tokens.path, config=config, workdir=tmp_path / "run")
    musiclm = MusicLM.from_pretrained(bundle)
    assert musiclm.config.codec == tiny_config().codec
    np.testing.assert_array_equal(musiclm.variables("codec")["quantizer"]["codebooks"], tiny_musiclm().variables("codec")["quantizer"]["codebooks"])
    assert musiclm.generate(["a calm piano melody"], seconds=0.4).wave.shape == (1, 9600)
    card = (bundle / "README.md").read_text()
    assert "4 clips" in card and "| semantic |" in card
    assert all(step.is_done for step in plan(tokens.path, config=config, workdir=tmp_path / "run"))
    done = json.loads((tmp_path / "run" / "semantic" / "done.json").read_text())["results"]
    assert done["eval_bigram"] > 0
    with pytest.raises(UserError, match="no training clip is as long"):
        fit(tokens.path, config=load_config("test", bindings=[*bindings[2:], "semantic/stages.StageSpec.window_sec=9.6"]), workdir=tmp_path / "other")


def test_token_set_of_no_bundle(tmp_path):
    (tmp_path / token_set.TOKENS).write_text("{}")
    with pytest.raises(UserError, match=token_set.TOKENS):
        TokenSet.open(tmp_path)


def test_a_token_set_on_a_bucket(any_bucket, clips, model, tokens, tmp_path):
    for name, data in {path.name: path.read_bytes() for path in clips.iterdir()}.items():
        write_bytes(any_bucket / "clips" / name, data)
    made = tokenize(any_bucket / "clips", any_bucket / "tokens", model=str(model), **OPTIONS)
    assert made.info == tokens.info
    assert list(made.lengths("train")) == list(tokens.lengths("train"))
    assert {*list_files(made.path)} == {*list_files(tokens.path)}
    with pytest.raises(UserError, match="mount the bucket"):
        made.records("train")
