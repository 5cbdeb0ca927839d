import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from musiclm_jax import audio
from musiclm_jax.corpus.synthesized.clip import SynthesizedCorpus
from musiclm_jax.corpus.write import _metadata
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.clips import read_clips
from musiclm_jax.evaluation.mulan import bound_scores, evaluate_mulan, format_mulan_report, recall_at
from musiclm_jax.evaluation.statements import facts, num_disagreements, stated

NUM_CLIPS = 60
_MARK = 100.0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The true metadata of held-out clips, with 0.1 s of audio each that says in its first sample which clip it is."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "audio").mkdir()
    lines = []
    for place in range(NUM_CLIPS):
        clip = _metadata(SynthesizedCorpus(0), 10 * place + 9, 0)
        name = f"audio/{place}.wav"
        wave = np.full(2400, -0.5)
        wave[0] = place / _MARK
        audio.write_wav(folder / name, wave)
        lines.append(clip | {"file_name": name})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@dataclasses.dataclass
class Knowing:
    """Embeds a clip as one axis, and a text as the direction of the clips that have all that it states."""

    truths: list

    def embed_audio(self, wave):
        return np.eye(len(self.truths))[np.round(np.asarray(wave)[:, 0] * _MARK).astype(int)]

    def embed_text(self, texts):
        fits = np.array([[num_disagreements(stated(text), truth) == 0 for truth in self.truths] for text in texts], float)
        return fits / np.linalg.norm(fits, axis=1, keepdims=True)


class Deaf:
    """Embeds at random."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def _rows(self, count):
        rows = self.rng.standard_normal((count, 16))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embed_audio(self, wave):
        return self._rows(len(wave))

    def embed_text(self, texts):
        return self._rows(len(texts))


def test_a_model_that_knows_the_attributes_reaches_the_bound(corpus):
    knowing = Knowing([facts(clip.attributes) for clip in sorted(read_clips(corpus).entries, key=lambda clip: int(Path(clip.file_name).stem))])
    report = evaluate_mulan(knowing, corpus, seconds=0.1)
    assert report["left_out"] == []
    assert report["num_clips"] == NUM_CLIPS
    for ranks in report["retrieval"].values():
        for k, row in ranks.items():
            assert row["recall"] == pytest.approx(row["bound"]) and row["chance"] == pytest.approx(int(k) / NUM_CLIPS)
            assert 0.5 < row["bound"] <= 1
    assert report["macro_auc"] == 1 and all(auc == 1 for tag in report["tags"].values() for auc in tag["values"].values())
    assert "perfect reader" in format_mulan_report(report)


def test_a_deaf_model_is_near_chance(corpus):
    report = evaluate_mulan(Deaf(), corpus, seconds=0.1, batch_size=7)
    for ranks in report["retrieval"].values():
        assert ranks["10"]["recall"] == pytest.approx(10 / NUM_CLIPS, abs=0.15)  # Three standard errors.
    assert report["macro_auc"] == pytest.approx(0.5, abs=0.1)


def test_ties_count_as_the_mean_over_their_orders():
    assert recall_at(np.array([[1.0, 1.0], [0.0, 1.0]]), 1) == 0.75
    assert recall_at(np.zeros((5, 5)), 2) == pytest.approx(0.4)
    assert recall_at(-np.eye(4), 3) == 0 and recall_at(-np.eye(4), 4) == 1


def test_bound_ranks_by_agreement_and_telling_captions_first():
    truths = [{"instrument": "piano", "drums": True}, {"instrument": "piano", "drums": False}, {"instrument": "flute", "drums": True}]
    scores = bound_scores(["piano with drums", "piano", "flute without drums"], truths)
    assert scores[0, 0] > 0 > scores[0, 1] == scores[0, 2]
    # The first clip fits the first two captions; the one that fits it alone is the better guess.
    assert scores[0, 0] > scores[1, 0] == scores[1, 1]
    assert scores[2].tolist() == [-2, -1, -1]


def make_folder(folder, attributes, **more):
    """Three held-out clips of 0.1 s, each with a caption and the attributes of its number."""
    for i in range(3):
        audio.write_wav(folder / f"{i}.wav", np.sin(np.arange(2400) * 0.1 * (i + 1)))
    lines = [{"file_name": f"{i}.wav", "split": "test", "captions": ["my own words"], "attributes": attributes(i), **more} for i in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_clips_that_are_no_corpus_are_retrieved_and_the_rest_is_named(tmp_path):
    folder = make_folder(tmp_path, lambda i: {})
    report = evaluate_mulan(Deaf(), folder, seconds=0.1)
    for ranks in report["retrieval"].values():
        assert ranks["10"] == {"recall": 1.0, "bound": None, "chance": 1.0} and ranks["1"]["bound"] is None
    assert report["tags"] == {} and report["macro_auc"] is None and len(report["left_out"]) == 5
    assert "lacks instrument, drums, mode, key, tempo, meter, style, dynamics, tempo_bpm" in report["left_out"][0]
    table = format_mulan_report(report)
    assert (
        "zero-shot" not in table
        and "note: left out: what a perfect reader reaches: " in table
        and "note: left out: tags of drums: not all clips have that attribute" in table
    )


def test_tags_are_of_the_attributes_that_all_clips_have(tmp_path):
    make_folder(tmp_path, lambda i: {"drums": i == 0, "instrument": ["of", "another", "kind"]} | ({"mode": "major"} if i else {}))
    report = evaluate_mulan(Deaf(), tmp_path, seconds=0.1)
    assert list(report["tags"]) == ["instrument", "drums"] and report["tags"]["instrument"]["auc"] is None
    assert report["macro_auc"] == report["tags"]["drums"]["auc"] is not None
    assert [line for line in report["left_out"] if "tags" in line] == [f"tags of {name}: not all clips have that attribute" for name in ("mode", "tempo")]
    assert "drums" in format_mulan_report(report)


def test_user_errors(corpus, tmp_path):
    with pytest.raises(UserError, match="num_clips=61, .*60 held-out"):
        evaluate_mulan(Deaf(), corpus, num_clips=61)
    with pytest.raises(UserError, match="0.1 s, less than the 2 s"):
        evaluate_mulan(Deaf(), corpus, num_clips=2, seconds=2.0)
    with pytest.raises(UserError, match="metadata.jsonl"):
        evaluate_mulan(Deaf(), tmp_path)
    with pytest.raises(UserError, match="seed=-1"):
        evaluate_mulan(Deaf(), corpus, seed=-1)
    with pytest.raises(UserError, match="0 held-out"):
        evaluate_mulan(Deaf(), make_folder(tmp_path, lambda i: {}, split="train"))
    with pytest.raises(UserError, match="no clip has a caption, which this evaluation needs"):
        evaluate_mulan(Deaf(), make_folder(tmp_path, lambda i: {}, captions=[]))
