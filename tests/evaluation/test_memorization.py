"""Memorization, of a model that knows some clips by heart."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
from folders import write_clips
from tiny_musiclm import tiny_config, tiny_musiclm

from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.memorization import calibrate, evaluate_memorization, format_memorization_report
from musiclm_jax.evaluation.pictures import draw_memorization
from musiclm_jax.evaluation.token_index import entropy_bits
from musiclm_jax.models.tokenizers import MuLanTokenizer, SemanticTokenizer
from musiclm_jax.musiclm import MusicLM
from musiclm_jax.tokens import Levels

TINY = tiny_musiclm()
CODES, LENGTH, PROMPTS = 11, 175, (0, 50)


class PitchTokenizer(SemanticTokenizer):
    """A token is the number of the loudest of the lowest frequencies."""

    def encode(self, wave):
        return np.abs(np.fft.rfft(wave.reshape(len(wave), -1, 960), axis=-1))[..., 1 : CODES + 1].argmax(axis=-1).astype(np.int32)


class FirstTokens(MuLanTokenizer):
    """The MuLan tokens of a clip are its first two semantic tokens."""

    def audio_tokens(self, wave):
        return PITCHES.encode(wave[:, : 2 * 960])


PITCHES = PitchTokenizer(TINY.config.w2v_bert, TINY.variables("w2v_bert"))


class Parrot(MusicLM):
    """Continues the clips that it knows, which it recognizes by their MuLan tokens, and repeats one token after others."""

    def __init__(self, known):
        super().__init__(TINY.config, {name: TINY.variables(name) for name in TINY.models}, TINY.text)
        self.known, self.calls = known, []
        self.__dict__["semantic"] = PITCHES
        self.__dict__["mulan"] = FirstTokens(TINY.config.mulan, TINY.variables("mulan"), TINY.text)

    def draw_stage(self, stage, streams, *, steps, keys, sampling, prompt):
        assert stage.name == "semantic" and sampling.temperature == 0 and len(keys) == len(streams["mulan"])
        self.calls.append((len(keys), steps))
        rows = [self.known.get(tuple(row.tolist()), np.full(LENGTH, 3)) for row in streams["mulan"]]
        if prompt is not None:
            assert all((row[: prompt.shape[1]] == given[:, 0]).all() for row, given in zip(rows, prompt) if row[0] != 3)
        return np.stack(rows)[:, :steps, None].astype(np.int32)


def tones(tokens):
    """A wave at 8 kHz whose semantic tokens at 24 kHz these are."""
    at = np.arange(320) / 8000
    return np.concatenate([0.4 * np.sin(2 * np.pi * 25 * (token + 1) * at) for token in tokens])


@pytest.fixture(scope="module")
def songs():
    """{name: tokens}: each clip has some pitches of its own."""
    rng = np.random.default_rng(0)
    found = {}
    for i in range(12):
        pitches = rng.permutation(CODES)[:4]
        found[f"{i:02}.wav"] = np.concatenate([[i % CODES, i // CODES + 5], rng.choice(pitches, LENGTH - 2)])
    return found


@pytest.fixture(scope="module")
def data(songs, tmp_path_factory):
    folder = write_clips(tmp_path_factory.mktemp("data"), {name: tones(tokens) for name, tokens in songs.items()})
    lines = [{"file_name": name, "split": "test" if name >= "09" else "train"} for name in songs]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def by_mulan(songs):
    return {tuple(tokens[:2].tolist()): tokens for tokens in songs.values()}


def test_what_a_model_knows_by_heart_is_found(songs, data):
    known = {name: songs[name] for name in ("00.wav", "01.wav", "02.wav")}
    # The order of the tokens of one clip is another: its histogram is the same, its tokens are not.
    known["02.wav"] = np.concatenate([songs["02.wav"][:50], songs["02.wav"][:49:-1]])
    model = Parrot(by_mulan(known))
    report = evaluate_memorization(model, data, prompt_tokens=(50, 0, 50), batch_size=4)
    assert report["num_clips"] == {"train": 9, "test": 3} and report["prompt_tokens"] == [0, 50]
    assert set(model.calls) == {(4, 125), (4, 175), (3, 125), (3, 175)}
    at_0, at_50 = report["results"]["train"]
    assert at_0["exact"] == pytest.approx(2 / 9) and at_50["exact"] == pytest.approx(2 / 9)
    assert at_50["approximate"] == pytest.approx(3 / 9) and at_50["equal"] > 2 / 9
    assert all(row["exact"] == row["approximate"] == 0 for row in report["results"]["test"])
    assert {(match["file_name"], match["exact"]) for match in report["matches"] if match["prompt_tokens"] == 50} == {
        ("00.wav", True),
        ("01.wav", True),
        ("02.wav", False),
    }
    assert report["threshold"] < report["mean_unrelated"] and report["num_unrelated_below"] == 0
    # The others are one token again and again.
    assert report["entropy"]["others"] == 0 and report["entropy"]["matches"] == pytest.approx(report["entropy"]["clips"], rel=0.1)
    assert any("too few unrelated pairs" in note for note in report["notes"]) and any("a rate below 28.3 %" in note for note in report["notes"])
    text = format_memorization_report(report)
    assert "9 training clips, 3 held-out clips" in text and "training clips  50 (2 s)" in text
    json.dumps(report)


def test_a_model_as_it_is(data):
    report = evaluate_memorization(TINY, data, prompt_tokens=(7,), num_clips=3)
    assert report["num_clips"] == {"train": 3, "test": 3} and len(report["results"]["train"]) == 1
    assert any("the stage sees 0.4 s at once" in note for note in report["notes"])


class Stopped(Exception):
    pass


def test_a_call_that_was_stopped_is_continued(songs, data, tmp_path):
    """Batches that were made are not made again, if model, clips and prompts are the same; others are."""
    known = by_mulan({name: songs[name] for name in ("00.wav", "01.wav", "02.wav", "03.wav")})
    whole = evaluate_memorization(Parrot(known), data, prompt_tokens=PROMPTS, batch_size=4)
    kept, options = tmp_path / "m.npz", {"prompt_tokens": PROMPTS, "batch_size": 4, "kept": tmp_path / "m.npz"}

    class Mortal(Parrot):
        def draw_stage(self, *args, **more):
            if len(self.calls) == 4:
                raise Stopped
            return super().draw_stage(*args, **more)

    with pytest.raises(Stopped):
        evaluate_memorization(Mortal(known), data, **options)
    model = Parrot(known)
    assert evaluate_memorization(model, data, **options) == whole
    # Of 2 times 3 batches of training clips and 2 of held-out ones, 4 were made.
    assert model.calls == [(4, 175), (4, 175), (3, 125), (3, 175)]
    again = Parrot(known)
    assert evaluate_memorization(again, data, **options) == whole and again.calls == []
    for change in ({"num_clips": 8}, {"seed": 1, "num_clips": 5}):
        evaluate_memorization(other := Parrot(known), data, **options | change)
        assert len(other.calls) >= 4
    evaluate_memorization(Parrot(known), data, **options | {"prompt_tokens": (0, 20)})
    # The clips are shorter now, their first tokens are the same: only the new prompt is continued.
    evaluate_memorization(other := Parrot(known), data, **options | {"prompt_tokens": (0, 10, 20)})
    assert other.calls == [(4, 135)] * 3 + [(3, 135)]
    changed = Parrot(known)
    changed.config = dataclasses.replace(changed.config, selection=dataclasses.replace(changed.config.selection, num_candidates=7))
    evaluate_memorization(changed, data, **options | {"prompt_tokens": (0, 10, 20)})
    assert len(changed.calls) == 12
    for content in (b"no arrays", b""):
        kept.write_bytes(content)
        with pytest.raises(UserError, match="m.npz: is not a file of continuations; move it away"):
            evaluate_memorization(Parrot(known), data, **options)
    with kept.open("wb") as file:
        np.savez(file, tokens=np.zeros(3))
    with pytest.raises(UserError, match="m.npz: is not a file of continuations"):
        evaluate_memorization(Parrot(known), data, **options)


def test_mistakes(data, tmp_path):
    with pytest.raises(UserError, match="prompt_tokens=\\[-1\\]: choose lengths"):
        evaluate_memorization(TINY, data, prompt_tokens=(-1,))
    with pytest.raises(UserError, match="num_clips=1, batch_size=20: choose at least 2 clips"):
        evaluate_memorization(TINY, data, num_clips=1)
    with pytest.raises(UserError, match="none of the 9 training clips can be used, such as .* is too short; at least 15.00 s"):
        evaluate_memorization(TINY, data)
    (_, coarse, _) = tiny_config().stages
    mulan, _ = coarse.prefix
    alone = dataclasses.replace(coarse, name="alone", target=Levels("acoustic"), prefix=(mulan,))
    with pytest.raises(UserError, match="the model has no stage of semantic tokens"):
        evaluate_memorization(tiny_musiclm(tiny_config(stages=(alone,), skipped_stages=())), data)


def test_the_threshold_lets_fewer_than_one_in_ten_thousand_pass():
    unrelated = np.random.default_rng(0).permutation(30_000) / 100
    assert calibrate(unrelated) == (0.02, 2)
    assert calibrate(unrelated[:9_000])[1] == 0


def test_entropy():
    assert entropy_bits(np.array([4, 4, 4])) == 0
    assert entropy_bits(np.array([0, 1, 2, 3])) == pytest.approx(2)


def test_the_figure(tmp_path):
    row = {"prompt_tokens": 50, "exact": 0.0, "exact_95": [0.0, 0.0], "approximate": 0.2, "approximate_95": [0.1, 0.3]}
    report = {"results": {"train": [row], "test": [row]}}
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(UserError, match="needs the package matplotlib; install it with: pip install matplotlib"):
            draw_memorization(report, tmp_path / "figure.png")
        return
    draw_memorization(report, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="figure.wav: is not a picture that matplotlib writes"):
        draw_memorization(report, tmp_path / "figure.wav")
