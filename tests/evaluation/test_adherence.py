import json
from types import SimpleNamespace

import numpy as np
import pytest

from musiclm_jax import audio
from musiclm_jax.corpus.clip import clip_rng, clip_split
from musiclm_jax.corpus.synthesized.attributes import INSTRUMENTS, draw_attributes
from musiclm_jax.corpus.synthesized.captions import KINDS, write_captions
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation import adherence
from musiclm_jax.evaluation.adherence import HEADLINE, MEASURES, evaluate_adherence, format_report, in_band, score
from musiclm_jax.evaluation.clips import Prompt, read_clips
from musiclm_jax.evaluation.estimators import Estimate
from musiclm_jax.evaluation.statements import named_attributes
from musiclm_jax.evaluation.tables import percent


def truth_of(rng):
    tempo_bpm = int(rng.integers(60, 170))
    return {
        "instrument": str(rng.choice(INSTRUMENTS)),
        "drums": bool(rng.random() < 0.5),
        "tonic": int(rng.integers(12)),
        "mode": str(rng.choice(["major", "minor"])),
        "tempo_bpm": tempo_bpm,
        "tempo": "slow" if tempo_bpm < 90 else "mid" if tempo_bpm <= 125 else "fast",
        "meter": "4/4",
    }


def estimate_of(truth):
    return Estimate(truth["instrument"], truth["drums"], truth["tonic"], truth["mode"], float(truth["tempo_bpm"]))


ALL = frozenset(HEADLINE) | {"tempo_bpm"}


def make(count, seed=0):
    rng = np.random.default_rng(seed)
    truths = [truth_of(rng) for _ in range(count)]
    return [Prompt("", "", truth, ALL) for truth in truths], [estimate_of(truth) for truth in truths]


@pytest.mark.parametrize("name", MEASURES)
def test_perfect_model_is_at_the_ceiling_and_deaf_model_at_chance(name):
    prompts, real = make(150)
    perfect = score(MEASURES[name], prompts, real, real, rng=np.random.default_rng(0))
    assert perfect["generated"] == perfect["ceiling"] == perfect["fraction"] == 1
    _, deaf = make(150, seed=1)
    result = score(MEASURES[name], prompts, deaf, real, rng=np.random.default_rng(0))
    low, high = result["fraction_95"]
    assert low < 0 < high and abs(result["fraction"]) < 0.2


def test_model_that_always_plays_the_same_is_exactly_at_chance():
    prompts, real = make(40)
    result = score(MEASURES["drums"], prompts, [real[0]] * 40, real, rng=np.random.default_rng(0))
    assert result["chance"] == pytest.approx(result["generated"]) and result["fraction"] == pytest.approx(0, abs=1e-9)


def test_chance_is_the_mean_over_derangements():
    rng = np.random.default_rng(0)
    agree = rng.random((5, 5)) < 0.5
    chance = adherence._rates(agree, np.ones(5, bool), np.ones((1, 5)))["chance"][0]
    samples = []
    for _ in range(20_000):
        order = rng.permutation(5)
        if (order != np.arange(5)).all():
            samples.append(agree[np.arange(5), order].mean())
    assert chance == pytest.approx(np.mean(samples), abs=0.01)


def test_clips_drawn_twice_never_meet_their_own_caption():
    # Every clip agrees with its own caption only: chance is zero in every resample.
    chance = adherence._rates(np.eye(3, dtype=bool), np.ones(3, bool), np.array([[2.0, 1.0, 0.0]]))["chance"]
    assert chance == pytest.approx(0)


def test_only_named_attributes_count():
    prompts, real = make(10)
    prompts = [Prompt(p.caption, p.file_name, p.attributes, ALL if i < 4 else frozenset()) for i, p in enumerate(prompts)]
    assert score(MEASURES["mode"], prompts, real, real, rng=np.random.default_rng(0))["count"] == 4
    prompts = [Prompt("", "", p.attributes, frozenset()) for p in prompts]
    assert score(MEASURES["mode"], prompts, real, real, rng=np.random.default_rng(0)) == {"count": 0}


def test_no_fraction_where_the_ceiling_is_chance():
    prompts, real = make(20)
    real = [real[0]] * 20
    result = score(MEASURES["instrument"], prompts, real, [Estimate("?", True, 0, "?", 1.0)] * 20, rng=np.random.default_rng(0))
    assert result["fraction"] is None and "-" in percent(result["fraction"], result["fraction_95"])


def test_bands():
    assert in_band(89.0, "slow") and not in_band(95.0, "slow")
    assert in_band(92.0, "slow") and in_band(92.0, "mid")  # At the edge both are right.
    assert in_band(140.0, "fast") and not in_band(140.0, "mid")


@pytest.mark.parametrize(
    "caption, named",
    [
        ("A fast happy piano waltz in a major key with drums.", {"instrument", "drums", "mode", "tempo"}),
        ("Sad rhodes march, at about 120 bpm.", {"instrument", "tempo", "tempo_bpm"}),
        ("Sombre music, no percussion", {"drums"}),
        ("Chimes in F sharp minor", {"instrument", "mode"}),
        ("steady fasting", set()),
    ],
)
def test_named_attributes(caption, named):
    assert named_attributes(caption) == named


def test_full_captions_of_the_corpus_name_all_four():
    for index in range(0, 200, 7):
        split = clip_split(index)
        attributes = draw_attributes(split=split, rng=clip_rng(3, index, "attributes"))
        captions = dict(zip(KINDS, write_captions(attributes, split=split, rng=np.random.default_rng(index)), strict=True))
        for kind in ("tags", "one full", "two full"):
            assert named_attributes(captions[kind]) >= set(HEADLINE), captions[kind]


# ------------------------------------------------- the whole evaluation, on a tiny corpus with a scripted model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """24 training and 6 held-out clips of 2 s: the drums click, the bright instrument has overtones."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "audio").mkdir()
    rng, lines = np.random.default_rng(0), []
    for index in range(30):
        truth = truth_of(rng) | {"instrument": ("flute", "organ")[index % 2], "drums": index % 4 < 2}
        time = np.arange(48_000) / 24_000
        wave = sum(0.1 * np.sin(2 * np.pi * 440 * n * time) for n in ((1,) if truth["instrument"] == "flute" else (1, 2, 3, 5)))
        if truth["drums"]:
            wave = wave + 0.2 * rng.standard_normal(48_000) * np.exp(-(time % 0.5) / 0.02)
        audio.write_wav(folder / f"audio/{index}.wav", wave + 1e-3 * rng.standard_normal(48_000))
        caption = f"a {truth['tempo']} {truth['instrument']} melody in {truth['mode']}, {'with' if truth['drums'] else 'without'} drums, {index}"
        split = "test" if index >= 24 else "train"
        lines.append({"file_name": f"audio/{index}.wav", "split": split, "captions": ["music", caption], "attributes": truth})
    # A variant, which no caption describes, is nobody's prompt.
    lines.append({"file_name": "audio/29-1.wav", "split": "test", "captions": [], "attributes": truth, "melody": "29"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


class Scripted:
    """Plays the held-out clip whose caption it gets, `shift` clips further on."""

    def __init__(self, corpus, *, shift=0):
        held_out = [clip for clip in read_clips(corpus).captioned if clip.split == "test"]
        waves = [audio.read(corpus / clip.file_name) for clip in held_out]
        self.clips = {clip.captions[1]: waves[(i + shift) % len(waves)] for i, clip in enumerate(held_out)}
        self.calls = []

    def generate(self, prompts, *, seconds, seed):
        self.calls.append((len(prompts), seconds, seed))
        return SimpleNamespace(wave=np.stack([self.clips[prompt] for prompt in prompts]), sample_rate_hz=24_000)


def test_evaluation_end_to_end(corpus, tmp_path):
    perfect = Scripted(corpus)
    settings = {"num_captions": 6, "seconds": 2.0, "batch_size": 4}
    report = evaluate_adherence(perfect, corpus, out_dir=tmp_path / "out", **settings)
    assert perfect.calls == [(4, 2.0, 0), (2, 2.0, 0)]
    assert report["fit_clips"] == 24  # All there are.
    for name in ("instrument", "drums"):
        assert report["results"][name]["generated"] == report["results"][name]["ceiling"] == report["results"][name]["fraction"] == 1
    assert json.loads((tmp_path / "out/adherence.json").read_text()) == report
    assert len(list((tmp_path / "out").rglob("*.wav"))) == 6
    # What was generated is a folder of captioned clips itself, under the names of the real ones.
    captions = {clip["file_name"]: (clip["caption"],) for clip in report["clips"]}
    assert {entry.file_name: entry.captions for entry in read_clips(tmp_path / "out").entries} == captions

    wrong = evaluate_adherence(Scripted(corpus, shift=1), corpus, **settings)
    assert wrong["results"]["instrument"]["generated"] == 0 and wrong["results"]["instrument"]["fraction"] < 0
    assert wrong["clips"][0]["estimated_in_real"] == report["clips"][0]["estimated_in_real"]

    table = format_report(report).splitlines()
    assert len(table) == 3 + len(MEASURES) and "100 % [100, 100]" in table[3]
    assert "too few captions" in table[-1]  # No caption gives beats per minute.


def test_user_errors(corpus, tmp_path):
    model = Scripted(corpus)
    with pytest.raises(UserError, match="6 held-out"):
        evaluate_adherence(model, corpus, num_captions=7)
    with pytest.raises(UserError, match="cannot be fitted"):
        evaluate_adherence(model, corpus, num_captions=4, fit_clips=1)
    with pytest.raises(UserError, match="metadata.jsonl"):
        evaluate_adherence(model, tmp_path)
    with pytest.raises(UserError, match="seed=-1: choose a number from 0 to 4294967295"):
        evaluate_adherence(model, corpus, num_captions=4, seed=-1)
    with pytest.raises(UserError, match="metadata.jsonl cannot be written, something in this path is a file and no folder"):
        evaluate_adherence(model, corpus, num_captions=4, seconds=2.0, out_dir=corpus / "metadata.jsonl")
    with pytest.raises(UserError, match="at least 2 s"):
        evaluate_adherence(model, corpus, seconds=1.0)
    audio.write_wav(tmp_path / "a.wav", np.sin(np.arange(48_000) * 0.1))
    line = {"file_name": "a.wav", "split": "test", "captions": ["x"]}
    truth = truth_of(np.random.default_rng(0))
    for attributes, message in [
        ({}, "no clip has both captions and attributes, which this evaluation needs"),
        ({"genre": "x"}, "attributes of a.wav lack instrument, drums, tonic, mode, tempo, tempo_bpm, which this evaluation needs"),
        (truth | {"tempo": "andante"}, "attributes of a.wav have unexpected values .'andante'.; this evaluation needs"),
        (truth | {"tempo_bpm": "fast"}, "have unexpected values"),
    ]:
        (tmp_path / "metadata.jsonl").write_text(json.dumps(line | {"attributes": attributes}))
        with pytest.raises(UserError, match=message):
            evaluate_adherence(model, tmp_path)


def test_model_of_the_wrong_shape_is_refused(corpus):
    model = SimpleNamespace(generate=lambda prompts, **_: SimpleNamespace(wave=np.zeros((1, 9), np.float32), sample_rate_hz=24_000))
    with pytest.raises(ValueError, match="expected waves"):
        evaluate_adherence(model, corpus, num_captions=4, seconds=2.0, fit_clips=24)
