"""Diversity of clips, of models whose acoustic tokens are decided by the semantic ones alone, or not at all."""

import dataclasses

import numpy as np
import pytest
from tiny_musiclm import CAPTIONS, tiny_config, tiny_musiclm, with_melody

from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.diversity import MEASURES, distance_table, evaluate_diversity, format_diversity_report, prompt_means
from musiclm_jax.models.tokenizers import AcousticTokenizer, MuLanTokenizer, SemanticTokenizer
from musiclm_jax.musiclm import MusicLM
from musiclm_jax.tokens import Levels

TINY = tiny_musiclm()
CODES = 7


class Tones(AcousticTokenizer):
    """The code of the first level is the pitch of a tone, of two frames."""

    def decode(self, codes):
        time = np.arange(960)
        tones = 0.3 * np.sin(2 * np.pi * (codes[:, ::2, :1] + 1) * time / 960)
        return tones.reshape(len(codes), -1).astype(np.float32)


class Pitches(SemanticTokenizer):
    """The inverse of `Tones`."""

    def encode(self, wave):
        return np.abs(np.fft.rfft(wave.reshape(len(wave), -1, 960), axis=-1))[..., 1 : CODES + 1].argmax(axis=-1).astype(np.int32)


class Spectra(MuLanTokenizer):
    """The embedding of a clip is its spectrum, since the tiny MuLan tells no clips apart."""

    def embed_audio(self, wave):
        return np.abs(np.fft.rfft(wave, axis=-1))[:, :500].astype(np.float32)


class Scripted(MusicLM):
    """Draws semantic tokens at random. Its acoustic codes are the semantic tokens, or random where it does not follow them."""

    def __init__(self, *, follows):
        super().__init__(TINY.config, {name: TINY.variables(name) for name in TINY.models}, TINY.text)
        self.follows, self.rows = follows, []
        self.__dict__["acoustic"] = Tones(TINY.config.codec, TINY.variables("codec"))
        self.__dict__["semantic"] = Pitches(TINY.config.w2v_bert, TINY.variables("w2v_bert"))
        self.__dict__["mulan"] = Spectra(TINY.config.mulan, TINY.variables("mulan"), TINY.text)

    def draw_stage(self, stage, streams, *, steps, keys):
        random = np.stack([np.random.default_rng(key).integers(0, CODES, (steps, stage.target.end or 3)) for key in keys]).astype(np.int32)
        self.rows.append((stage.name, {name: len(stream) for name, stream in streams.items()}))
        if stage.target.stream == "semantic":
            return random[:, :, :1]
        codes = random[:, :, stage.target.first :]
        if stage.name == "coarse" and self.follows:
            codes = np.repeat(np.repeat(streams["semantic"], len(keys) // len(streams["semantic"]), axis=0), 2, axis=1)[:, :steps]
        return codes


def test_acoustics_that_follow_semantic_tokens():
    model = Scripted(follows=True)
    report = evaluate_diversity(model, CAPTIONS, num_draws=3, seconds=3)
    for name, result in report["results"].items():
        assert result["same"] == pytest.approx(0, abs=1e-5) and result["anew"] > 1e-4 and result["ratio"] < 0.01, name
    # Tokens that are drawn at random are equal in one of 7 places.
    apart = report["results"]["semantic tokens that differ"]
    assert apart["anew"] == pytest.approx(6 / 7, abs=0.04) and apart["prompts"] == pytest.approx(6 / 7, abs=0.04)
    assert report["kept"]["pairs"] == 1 and report["kept"]["shuffled"] == pytest.approx(1 / 7, abs=0.04)
    # The semantic tokens are drawn for all clips of a prompt at once, and shared by one group of two.
    assert model.rows[:3] == [("semantic", {"mulan": 1}), ("coarse", {"mulan": 1, "semantic": 1}), ("fine", {"acoustic": 3})]
    assert model.rows[3:5] == [("coarse", {"mulan": 3, "semantic": 3}), ("fine", {"acoustic": 3})]


def test_acoustics_that_ignore_semantic_tokens():
    report = evaluate_diversity(Scripted(follows=False), CAPTIONS, num_draws=3, seconds=3)
    for result in report["results"].values():
        assert result["same"] == pytest.approx(result["anew"]) and result["ratio"] == pytest.approx(1)
    assert report["kept"]["pairs"] == pytest.approx(1 / 7, abs=0.04)


def test_a_real_model_with_an_optional_stream():
    model = tiny_musiclm(with_melody("semantic", "coarse"))
    report = evaluate_diversity(model, CAPTIONS[:2], num_draws=2, seconds=3, seed=5)
    assert report == evaluate_diversity(model, CAPTIONS[:2], num_draws=2, seconds=3, seed=5)
    assert list(report["results"]) == list(MEASURES) and report["results"]["spectra, dB"]["same"] > 1
    text = format_diversity_report(report)
    assert "2 prompts, 2 clips of 3 s in each group" in text and f"{report['results']['spectra, dB']['same']:.1f} [" in text


def test_distances():
    rows = np.array([[3.0, 0], [0, 2], [1, 0]])
    np.testing.assert_allclose(distance_table("musicnn, cosine distance", rows), [[0, 1, 0], [1, 0, 1], [0, 1, 0]], atol=1e-9)
    spectra = np.array([[[0.0, 0.5]], [[0.5, 0.5]]])
    np.testing.assert_allclose(distance_table("spectra, dB", spectra), [[0, 20], [20, 0]])
    np.testing.assert_allclose(distance_table("semantic tokens that differ", np.array([[1, 2, 3], [1, 0, 0]])), [[0, 2 / 3], [2 / 3, 0]])


def test_means_of_prompts_leave_a_clip_and_itself_out():
    table = np.random.default_rng(0).random((6, 6))
    table = table + table.T
    means = prompt_means(table, 2)
    assert means[0, 1] == pytest.approx(table[:3, 3:].mean()) and means[1, 0] == pytest.approx(means[0, 1])
    assert means[1, 1] == pytest.approx(np.mean([table[3, 4], table[3, 5], table[4, 5]]))


def test_user_errors():
    for prompts, options, message in [
        (CAPTIONS[:1], {}, "give two or more that differ"),
        ([CAPTIONS[0], CAPTIONS[0].upper()], {}, "give two or more that differ"),
        (CAPTIONS, {"num_draws": 1}, "draws=1: choose 2 or more"),
        (CAPTIONS, {"seconds": 2.9}, "seconds=2.9: choose at least 3"),
        (CAPTIONS, {"seed": -1}, "seed=-1"),
        ([*CAPTIONS, " "], {}, "prompt 4 is empty"),
    ]:
        with pytest.raises(UserError, match=message):
            evaluate_diversity(TINY, prompts, **options)
    without = lambda stage: dataclasses.replace(stage, prefix=tuple(each for each in stage.prefix if each != Levels("semantic")))  # noqa: E731
    alone = tiny_config(stages=tuple(map(without, TINY.config.stages[1:])))
    with pytest.raises(UserError, match="has no stage of semantic tokens"):
        evaluate_diversity(tiny_musiclm(alone), CAPTIONS)
