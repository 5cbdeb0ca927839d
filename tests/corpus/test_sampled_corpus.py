"""The sampled corpus as a whole: what its metadata say, what it needs, and that its clips are made by their numbers alone."""

import json

import numpy as np
import pytest
import soundfile

from musiclm_jax.corpus import make_corpus, render_clip
from musiclm_jax.corpus.clip import Corpus
from musiclm_jax.corpus.sampled import soundfonts
from musiclm_jax.corpus.sampled.captions import KINDS
from musiclm_jax.corpus.sampled.clip import SampledCorpus
from musiclm_jax.data.folder import read_folder
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.clips import named_by_captions
from musiclm_jax.evaluation.estimators import lead

CORPUS = SampledCorpus(7, endings=0.5)


def installed() -> bool:
    try:
        CORPUS.require()
    except UserError:
        return False
    return True


plays = pytest.mark.skipif(not installed(), reason="FluidSynth, the soundfonts or the drums are not installed")


def test_what_the_metadata_say():
    assert isinstance(CORPUS, Corpus)
    assert CORPUS.identity == {"instruments": "sampled", "seed": 7, "version": 1, "endings": 0.5}
    clip, variant, band = (CORPUS.describe(19, variant) for variant in (0, 1, "band"))
    assert clip.split == variant.split == band.split == "test" and CORPUS.describe(20).split == "train"
    assert len(clip.captions) == len(KINDS) == len(clip.attributes["named"]) and variant.captions == band.captions == []
    assert band.attributes == {name: value for name, value in clip.attributes.items() if name != "named"}
    assert "named" not in variant.attributes and variant.attributes["instrument"] != clip.attributes["instrument"]
    assert variant.attributes["key"] == clip.attributes["key"]
    ends = [CORPUS.score(index).attributes.ends for index in range(40)]
    assert 10 < sum(ends) < 30 and not any(SampledCorpus(7).score(index).attributes.ends for index in range(40))


def test_an_evaluation_asks_for_what_a_caption_names(tmp_path):
    described = CORPUS.describe(3)
    soundfile.write(tmp_path / "0.wav", np.random.default_rng(0).standard_normal(24_000) / 9, 24_000)
    line = {"file_name": "0.wav", "captions": described.captions, "split": "test", "attributes": described.attributes}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    (entry,) = read_folder(tmp_path).entries
    names = named_by_captions(entry)
    assert {"instrument", "drums", "mode", "tempo"} <= names[0] and len(names) == len(KINDS)
    for found, told in zip(names, described.attributes["named"], strict=True):
        assert found - {"instrument"} == set(told) - {"instrument"} and ("instrument" in found) == bool({"instrument", "family"} & set(told))
    assert lead(entry.attributes) == described.attributes["family"]


def test_what_is_missing_is_said_before_anything_is_written(tmp_path, monkeypatch):
    def missing():
        raise UserError("a soundfont is missing; install it")

    monkeypatch.setattr(soundfonts, "require", missing)
    with pytest.raises(UserError, match="a soundfont is missing"):
        make_corpus(tmp_path / "new", num_clips=1, seed=7, instruments="sampled")
    assert not (tmp_path / "new").exists()


@plays
def test_the_folder_has_clips_variants_and_stems(tmp_path):
    make_corpus(tmp_path, num_clips=1, seed=7, instruments="sampled", num_variants=1, endings=1.0, stems=True)
    waves = {name: soundfile.read(tmp_path / f"audio/000000{name}.flac", dtype="float32")[0] for name in ("", "-1", "-lead", "-band")}
    clip = render_clip(SampledCorpus(7, endings=1.0), 0)
    assert len({len(wave) for wave in waves.values()}) == 1 and len(clip.wave) == len(waves[""]) < 720_000
    np.testing.assert_allclose(waves[""], clip.wave, atol=1 / 32768)
    np.testing.assert_allclose(waves["-lead"] + waves["-band"], waves[""], atol=5e-3)
    assert np.abs(waves["-1"] - waves[""]).max() > 0.05
    assert (tmp_path / "NOTICE").read_text(encoding="utf-8") == CORPUS.notice and "FluidR3_GM" in CORPUS.notice
    assert make_corpus(tmp_path, num_clips=1, seed=7, instruments="sampled", endings=1.0) == [
        "audio/000000-1.flac",
        "audio/000000-band.flac",
        "audio/000000-lead.flac",
    ]
    with pytest.raises(UserError, match="corpus.json is of the corpus .*sampled.*, expected .*: choose another directory"):
        make_corpus(tmp_path, num_clips=1, seed=7)
