import dataclasses
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from musiclm_jax import audio
from musiclm_jax.audio.features import LogMelConfig
from musiclm_jax.corpus.synthesized.attributes import Attributes
from musiclm_jax.corpus.synthesized.clip import SynthesizedCorpus
from musiclm_jax.corpus.synthesized.compose import Note
from musiclm_jax.corpus.write import _metadata
from musiclm_jax.data.folder import Entry
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.clips import read_clips
from musiclm_jax.evaluation.semantic import (
    PITCH,
    evaluate_semantic,
    format_semantic_report,
    information,
    middle_tokens,
    neighbours_repeat,
    notes_repeat,
    read_notes,
    sounding_pitch,
)

SECONDS, NUM_TOKENS, TOKEN_SAMPLES = 2.0, 50, 960
CONFIG = SimpleNamespace(mel=LogMelConfig(window_samples=1024, num_mels=64), token_samples=TOKEN_SAMPLES, num_clusters=60)
SETTINGS = {"num_clips": 12, "seconds": SECONDS, "fit_clips": 6}


def entry_of(line):
    return Entry(line["file_name"], tuple(line["captions"]), None, line["split"], line["attributes"], None, None)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """True metadata, 12 held-out and 6 training clips, and in place of the music 2 s of the melody as plain sines."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "audio").mkdir()
    (folder / "corpus.json").write_text(json.dumps(SynthesizedCorpus(0).identity))
    clips = [_metadata(SynthesizedCorpus(0), index, 0) for index in [*range(6), *range(9, 129, 10)]]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, clips)))
    for clip, notes in zip(clips, read_notes(folder, [entry_of(clip) for clip in clips]), strict=True):
        pitch = np.repeat(sounding_pitch(*notes, num_tokens=NUM_TOKENS, token_sec=0.04), TOKEN_SAMPLES)
        wave = 0.5 * np.sin(2 * np.pi * np.cumsum(440 * 2 ** ((pitch - 69) / 12)) / 24_000)
        audio.write_wav((folder / clip["file_name"]).with_suffix(".wav"), wave)
        (folder / clip["file_name"]).with_suffix(".wav").rename(folder / clip["file_name"])  # The name decides nothing.
    return folder


class Scripted:
    """Its tokens are those of a list, clip by clip in the order of the calls."""

    config = CONFIG

    def __init__(self, rows):
        self.rows = list(rows)

    def encode(self, wave):
        rows, self.rows = self.rows[: len(wave)], self.rows[len(wave) :]
        return np.stack(rows)


def drawn(corpus):
    """The held-out clips in the order in which they are coded."""
    held_out = read_clips(corpus).split("test")
    return [held_out[int(i)] for i in np.random.default_rng([0, 1]).permutation(len(held_out))]


def test_tokens_that_are_the_melody(corpus):
    rows = [sounding_pitch(*notes, num_tokens=NUM_TOKENS, token_sec=0.04) for notes in read_notes(corpus, drawn(corpus))]
    report = evaluate_semantic(Scripted(rows), corpus, seconds=SECONDS, fit_clips=6)
    assert report["num_clips"] == 12
    ours, mel = (report["results"][name] for name in ("tokens", "log-mel"))
    assert ours["information"][PITCH]["nmi"] == pytest.approx(1) and ours["information"][PITCH]["chance"] < 0.7
    assert ours["notes_repeat"]["same clip, same pitch"] == ours["notes_repeat"]["other clip, same pitch and instrument"] == 1
    assert ours["notes_repeat"]["other clip, any note"] < 0.3
    # The music is a melody of sines, of which a log-mel frame says most.
    assert mel["information"][PITCH]["nmi"] > 0.65 and mel["notes_repeat"]["same clip, same pitch"] > 0.3
    table = format_semantic_report(report)
    assert PITCH in table and f"{report['num_notes']} notes" in table


def test_tokens_that_are_the_instrument(corpus):
    names = [clip.attributes["instrument"] for clip in drawn(corpus)]
    rows = [np.full(NUM_TOKENS, sorted(set(names)).index(name)) for name in names]
    result = evaluate_semantic(Scripted(rows), corpus, **SETTINGS)["results"]["tokens"]
    assert result["information"]["instrument"]["nmi"] == pytest.approx(1) and result["neighbours_repeat"] == 1
    assert all(result["information"][name]["nmi"] < 1 for name in ("tonic", "mode", "drums", PITCH))


def test_random_tokens_are_at_chance(corpus):
    rows = np.random.default_rng(0).integers(0, CONFIG.num_clusters, (12, NUM_TOKENS))
    result = evaluate_semantic(Scripted(rows), corpus, **SETTINGS)["results"]["tokens"]
    for shares in result["information"].values():
        assert shares["nmi"] == pytest.approx(shares["chance"], abs=0.03)
    assert result["neighbours_repeat"] == pytest.approx(1 / 60, abs=0.02)
    assert result["notes_repeat"]["same clip, same pitch"] < 0.15


def test_information_of_swapped_clips_is_chance():
    tokens = np.array([[0, 0, 1, 1], [2, 2, 3, 3]])
    labels = np.array([[0, 0, 0, 0], [1, 1, 1, 1]])
    whole = information(tokens, labels, rng=np.random.default_rng(0))
    # Two clips that swap their labels are as well told apart: with so few, chance is as high.
    assert whole["nmi"] == pytest.approx(2 / 3) == whole["chance"]
    assert neighbours_repeat(tokens) == pytest.approx(2 / 3)


def test_places_of_notes():
    attributes = Attributes("piano", 60, "slow", "4/4", "C major", 0, "major", False, "ballad", "soft", False, "piano")
    note = lambda pitch, step, length: Note("piano", "lead", pitch, step, length, 0.0, 1.0)  # noqa: E731
    notes = [note(60, 0, 2), note(62, 2, 1), note(64, 3, 5)]  # From 0.02, 1.02 and 1.52 s on.
    pitch = sounding_pitch(attributes, notes, num_tokens=50, token_sec=0.04)
    # Token 26 is centred on 1.06 s, token 38 on 1.54.
    assert (pitch[:25] == 60).all() and (pitch[26:38] == 62).all() and (pitch[38:] == 64).all()
    # 0.52 and 1.27 s; the third ends at 4.02 s, beyond the last token.
    at, pitches = middle_tokens(attributes, notes, num_tokens=50, token_sec=0.04)
    assert at.tolist() == [13, 31] and pitches.tolist() == [60, 62]


def test_pairs_of_notes():
    columns = zip(
        # token, clip, instrument, pitch
        (1, 0, 0, 60),
        (1, 0, 0, 60),
        (2, 0, 0, 60),
        (2, 0, 0, 62),
        (1, 1, 0, 60),
        (2, 2, 1, 60),
        strict=True,
    )
    shares = notes_repeat(*map(np.array, columns))
    assert shares == {
        "same clip, same pitch": pytest.approx(1 / 3),
        "same clip, any pitch": pytest.approx(2 / 6),
        "other clip, same pitch and instrument": pytest.approx(2 / 3),
        "other clip, any note": pytest.approx(4 / 9),
    }
    assert notes_repeat(*np.array([[5], [0], [0], [60]]))["same clip, same pitch"] is None


def test_without_the_corpus_file_there_are_no_notes(corpus, tmp_path):
    clips = drawn(corpus)
    assert read_notes(tmp_path, clips) is None
    (tmp_path / "corpus.json").write_text('{"seed": 0, "version": -1}')
    assert read_notes(tmp_path, clips) is None
    (tmp_path / "corpus.json").write_text(json.dumps(SynthesizedCorpus(1).identity))  # Another corpus.
    assert read_notes(tmp_path, clips) is None
    report = {"num_clips": 2, "seconds": 1.0, "num_clusters": 3, "fit_clips": 1, "num_notes": 0, "left_out": []}
    result = {"information": {"mode": {"nmi": 0.5, "chance": 0.1}}, "neighbours_repeat": 0.5, "notes_repeat": None}
    assert "no notes" in format_semantic_report(report | {"results": {"tokens": result, "log-mel": result}})


def test_user_errors(corpus, tmp_path):
    model = Scripted([])
    for settings, message in [
        ({"num_clips": 13}, "12 held-out"),
        ({"num_clips": 1}, "2 to 12"),
        ({"fit_clips": 7}, "6 training"),
        ({"seed": -1}, "seed=-1: choose a number from 0"),
        ({"fit_clips": 1}, "50 frames are fewer than the 60 clusters"),
        ({"seconds": 3.0}, "2 s, less than the 3 s"),
    ]:
        with pytest.raises(UserError, match=message):
            evaluate_semantic(model, corpus, **(SETTINGS | settings))


def test_notes_of_a_variant_are_those_that_it_plays():
    clips = [entry_of(_metadata(SynthesizedCorpus(0), 9, variant)) for variant in (0, 1)]
    clips = [dataclasses.replace(clip, captions=()) for clip in clips]
    (attributes, notes), (others, variant) = read_notes_of(clips)
    assert attributes.instrument != others.instrument and {note.voice for note in variant} == {others.instrument}
    assert [(note.pitch, note.step) for note in notes] == [(note.pitch, note.step) for note in variant]


def read_notes_of(clips):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "corpus.json").write_text(json.dumps(SynthesizedCorpus(0).identity))
        return read_notes(folder, clips)


def test_clips_that_are_no_corpus(tmp_path):
    """Nothing but waves, and one attribute that all have."""
    rng = np.random.default_rng(0)
    for i in range(40):
        audio.write_wav(tmp_path / f"{i}.wav", 0.3 * rng.standard_normal(48_000))
    num_clips = len(read_clips(tmp_path).split("test"))
    assert num_clips >= 2
    rows = np.arange(NUM_TOKENS) // 2 + np.zeros((num_clips, 1), int)
    report = evaluate_semantic(Scripted(rows), tmp_path, seconds=SECONDS, fit_clips=3)
    assert report["num_clips"] == num_clips and report["num_notes"] == 0
    assert report["results"]["tokens"]["information"] == {} and report["results"]["tokens"]["neighbours_repeat"] == pytest.approx(25 / 49)
    assert report["left_out"] == [f"{name}: not all clips have that attribute" for name in ("instrument", "tonic", "mode", "drums")]
    assert "note: left out: instrument: not all" in format_semantic_report(report)

    lines = [{"file_name": f"{i}.wav", "split": ("test", "train")[i % 2], "attributes": {"mode": [i % 4 > 1], "tonic": i}} for i in range(8)]
    del lines[2]["attributes"]["tonic"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = [np.full(NUM_TOKENS, int(clip.attributes["mode"][0])) for clip in drawn(tmp_path)]
    report = evaluate_semantic(Scripted(rows), tmp_path, seconds=SECONDS, fit_clips=3)
    assert list(report["results"]["tokens"]["information"]) == ["mode"] and len(report["left_out"]) == 3
    assert report["results"]["tokens"]["information"]["mode"]["nmi"] == pytest.approx(1)
