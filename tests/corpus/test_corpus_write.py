"""The corpus folder: the same bytes however it is made."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import soundfile

from musiclm_jax.corpus import make_corpus, render_clip
from musiclm_jax.corpus.synthesized.clip import SynthesizedCorpus
from musiclm_jax.data.folder import read_folder
from musiclm_jax.errors import UserError


def _contents(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    make_corpus(directory, num_clips=3, seed=7)
    return directory


def test_metadata_and_audio(corpus):
    lines = [json.loads(line) for line in (corpus / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == [f"audio/{index:06d}.flac" for index in range(3)]
    for index, line in enumerate(lines):
        assert list(line) == ["file_name", "split", "captions", "attributes"]
        clip = render_clip(SynthesizedCorpus(7), index)
        assert (line["split"], line["captions"], line["attributes"]) == (clip.split, clip.captions, clip.attributes)
        info = soundfile.info(corpus / line["file_name"])
        assert (info.format, info.subtype, info.samplerate, info.channels) == ("FLAC", "PCM_16", 24000, 1)
        wave, _ = soundfile.read(corpus / line["file_name"], dtype="float32")
        np.testing.assert_allclose(wave, clip.wave, atol=1 / 32768)
    assert set(lines[0]["attributes"]) == {
        *("instrument", "tempo_bpm", "tempo", "meter", "key", "tonic", "mode"),
        *("drums", "style", "dynamics", "bass", "accompaniment"),
    }


def test_same_bytes_with_two_workers(corpus, tmp_path):
    seen = []
    make_corpus(tmp_path, num_clips=3, seed=7, workers=2, on_clip=seen.append)
    assert _contents(tmp_path) == _contents(corpus)
    assert seen == [0, 1, 2]


def test_continues_and_repairs(corpus, tmp_path):
    make_corpus(tmp_path, num_clips=1, seed=7)
    kept = (tmp_path / "audio/000000.flac").stat().st_mtime_ns
    (tmp_path / "audio/000001.flac").write_bytes(b"half a file")
    make_corpus(tmp_path, num_clips=3, seed=7)
    assert (tmp_path / "audio/000000.flac").stat().st_mtime_ns == kept
    assert _contents(tmp_path) == _contents(corpus)


def test_variants_are_added_to_a_corpus(corpus, tmp_path):
    make_corpus(tmp_path, num_clips=2, seed=7)
    seen = []
    make_corpus(tmp_path, num_clips=2, seed=7, num_variants=1, on_clip=seen.append)
    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == [f"audio/{name}.flac" for name in ("000000", "000000-1", "000001", "000001-1")]
    assert [line["melody"] for line in lines] == ["000000", "000000", "000001", "000001"] and seen == [0, 1, 2, 3]
    before = [json.loads(line) for line in (corpus / "metadata.jsonl").read_text().splitlines()]
    assert [{**line, "melody": clip["melody"]} for line, clip in zip(before, lines[::2])] == lines[::2]
    variant = render_clip(SynthesizedCorpus(7), 1, 1)
    assert (lines[3]["captions"], lines[3]["split"], lines[3]["attributes"]) == ([], variant.split, variant.attributes)
    np.testing.assert_allclose(soundfile.read(tmp_path / "audio/000001-1.flac", dtype="float32")[0], variant.wave, atol=1 / 32768)


def test_a_corpus_of_before_is_continued_unless_it_has_variants(corpus, tmp_path):
    """The clips are the same as those of version 1; its variants had no hums."""
    shutil.copytree(corpus, tmp_path / "old")
    (tmp_path / "old" / "corpus.json").write_text('{"seed": 7, "version": 1}\n')
    make_corpus(tmp_path / "old", num_clips=3, seed=7)
    assert _contents(tmp_path / "old") == _contents(corpus)
    (tmp_path / "old" / "corpus.json").write_text('{"seed": 7, "version": 1}\n')
    (tmp_path / "old" / "audio" / "000001-1.flac").write_bytes(b"a variant of before")
    with pytest.raises(UserError, match="'version': 1.*'version': 2.*choose another directory"):
        make_corpus(tmp_path / "old", num_clips=3, seed=7)


def test_clips_that_a_call_does_not_list_stay_and_are_named(corpus, tmp_path):
    assert make_corpus(tmp_path, num_clips=3, seed=7) == []
    (tmp_path / "audio" / "my own.flac").write_text("a person's")
    assert make_corpus(tmp_path, num_clips=1, seed=7) == ["audio/000001.flac", "audio/000002.flac"]
    assert len((tmp_path / "metadata.jsonl").read_text().splitlines()) == 1
    # They are nobody's data, and are there for a call that wants them again.
    folder = read_folder(tmp_path)
    assert [entry.file_name for entry in folder.entries] == ["audio/000000.flac"] and "3 audio files are not listed" in folder.warnings[0]
    assert make_corpus(tmp_path, num_clips=3, seed=7) == []
    assert _contents(tmp_path) == _contents(corpus) | {"audio/my own.flac": b"a person's"}


@pytest.mark.parametrize("edit", [lambda line: line | {"captions": ["my own"]}, lambda line: line | {"melody": "x"}, lambda line: {"file_name": "b.wav"}])
def test_metadata_that_were_edited_are_not_lost(corpus, tmp_path, edit):
    shutil.copytree(corpus, tmp_path / "edited")
    path = tmp_path / "edited" / "metadata.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], json.dumps(edit(json.loads(lines[1]))), lines[2], ""]))
    before = _contents(tmp_path / "edited")
    with pytest.raises(UserError, match="metadata.jsonl line 2 was edited: keep that file under another name"):
        make_corpus(tmp_path / "edited", num_clips=3, seed=7)
    assert _contents(tmp_path / "edited") == before
    path.rename(path.with_suffix(".mine"))
    make_corpus(tmp_path / "edited", num_clips=3, seed=7)
    assert path.read_bytes() == _contents(corpus)["metadata.jsonl"]


def test_audio_that_is_no_corpus_is_not_overwritten(tmp_path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "000000.flac").write_text("a person's")
    with pytest.raises(UserError, match="has files that are not of a corpus, such as audio: choose a new or empty directory"):
        make_corpus(tmp_path, num_clips=1, seed=7)
    assert _contents(tmp_path) == {"audio/000000.flac": b"a person's"}


def test_another_seed_is_refused(corpus):
    before = _contents(corpus)
    with pytest.raises(UserError, match="seed"):
        make_corpus(corpus, num_clips=1, seed=8)
    assert _contents(corpus) == before


def test_a_users_own_folder_is_refused(tmp_path):
    (tmp_path / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="a new or empty directory"):
        make_corpus(tmp_path, num_clips=1, seed=0)
    assert (tmp_path / "metadata.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize("bad", [{"num_clips": 0}, {"seed": -1}, {"num_variants": -1}, {"workers": 0}])
def test_bad_numbers(tmp_path, bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        make_corpus(tmp_path / "new", **{"num_clips": 1, "seed": 0, **bad})
    assert not pathlib.Path(tmp_path / "new").exists()


def test_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/corpus cannot be written, something in this path is a file and no folder: choose another path$"):
        make_corpus(tmp_path / "file" / "corpus", num_clips=1, seed=0)


def test_stems_are_written_beside_the_clips(corpus, tmp_path):
    make_corpus(tmp_path, num_clips=2, seed=7, stems=True, num_variants=1)
    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    names = [line["file_name"].removeprefix("audio/").removesuffix(".flac") for line in lines]
    assert names == ["000000", "000000-1", "000000-lead", "000000-band", "000001", "000001-1", "000001-lead", "000001-band"]
    assert [line.get("voice") for line in lines[:4]] == [None, None, None, "audio/000000-lead.flac"]
    assert [line.get("melody") for line in lines[:4]] == ["000000", "000000", None, None]
    folder = read_folder(tmp_path)
    found = {entry.file_name: entry.voice for entry in folder.entries if entry.voice}
    assert found == {f"audio/00000{i}-band.flac": f"audio/00000{i}-lead.flac" for i in (0, 1)}
    # A call without stems leaves them, unlisted.
    assert make_corpus(tmp_path, num_clips=2, seed=7) == sorted(f"audio/00000{i}-{name}.flac" for i in (0, 1) for name in ("1", "lead", "band"))
    assert (tmp_path / "metadata.jsonl").read_text().splitlines() == (corpus / "metadata.jsonl").read_text().splitlines()[:2]
