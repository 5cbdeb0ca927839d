"""Evaluations of pairs: the divergence of classes, and the cosine of captions and clips."""

import dataclasses

import numpy as np
import pytest
import scipy.special
import scipy.stats
from folders import RATE_HZ, tone, write_clips

from musiclm_jax.errors import UserError
from musiclm_jax.evaluation import judges
from musiclm_jax.evaluation.clips import ClipFile, Excerpt
from musiclm_jax.evaluation.kld import DIRECTIONS, EPSILON, divergences, evaluate_kld, format_kld_report
from musiclm_jax.evaluation.mcc import evaluate_mcc, format_mcc_report

PITCHES_HZ = (300, 600, 1200, 2400)


def bands(wave):
    """The spectrum of each 0.5 s at four pitches."""
    frames = wave[: len(wave) // 4000 * 4000].reshape(-1, 4000)
    return np.abs(np.fft.rfft(frames, axis=1))[:, [hz // 2 for hz in PITCHES_HZ]]


@dataclasses.dataclass
class Pitches:
    """Classifies by the pitch, and matches a clip with a text that has the number of its pitch."""

    name: str = "pitches"
    labels: tuple = PITCHES_HZ
    sample_rate_hz: int = RATE_HZ
    min_samples: int = 4000
    full_sec: float = 1.0

    def logits(self, wave):
        return 2 * np.log(bands(wave) + 1)

    def embed_clip(self, wave):
        level = bands(wave).mean(axis=0)
        return level / np.linalg.norm(level)

    def embed_texts(self, texts):
        return np.array([[float(str(hz) in text) for hz in PITCHES_HZ] for text in texts])


PITCH = Pitches()
assert isinstance(PITCH, judges.Classifier) and isinstance(PITCH, judges.Matcher)
WAVES = {f"{i}.wav": tone(hz, seed=i) for i, hz in enumerate(PITCHES_HZ)}
CAPTIONS = {f"{i}.wav": f"a tone of {hz} Hz" for i, hz in enumerate(PITCHES_HZ)}


@pytest.fixture
def real(tmp_path):
    return write_clips(tmp_path / "real", WAVES, CAPTIONS)


def shifted():
    """The clips under each other's names."""
    names = list(WAVES)
    return {name: WAVES[names[(i + 1) % 4]] for i, name in enumerate(names)}


def test_divergence_is_that_of_scipy():
    p, q = (np.random.default_rng(seed).dirichlet(np.ones(7), 5) for seed in range(2))
    expected = [[scipy.stats.entropy(a, b) for b in q] for a in p]
    np.testing.assert_allclose(divergences(p, q), expected, atol=200 * EPSILON)


def test_the_classes_of_the_same_clips_agree_and_those_of_others_do_not(real, tmp_path):
    copies = write_clips(tmp_path / "copies", WAVES)
    report = evaluate_kld(PITCH, real, copies)
    assert report["num_pairs"] == 4 and report["num_classes"] == 4 and report["notes"] == []
    brief = write_clips(tmp_path / "brief", {name: wave[:4000] for name, wave in WAVES.items()})
    assert "reference clips have 1 s on average, generated ones 0.5 s" in evaluate_kld(PITCH, real, brief)["notes"][0]
    for ways in report["results"].values():
        for result in ways.values():
            assert result["pairs"] == pytest.approx(0, abs=1e-3) and result["shuffled"] > 0.1
    other = evaluate_kld(PITCH, real, write_clips(tmp_path / "other", shifted()))
    for ways in other["results"].values():
        for result in ways.values():
            assert result["pairs"] > result["shuffled"] / 2 > 0.03
    text = format_kld_report(other).splitlines()
    assert len(text) == 3 + 4 and text[3].startswith(f"softmax, KL({DIRECTIONS[0]})")


def test_direction_and_normalization(real, tmp_path):
    # Clips of one window each, so that the distribution of a clip is that of its logits.
    made = write_clips(tmp_path / "made", {name: wave + tone(600, seed=9) / 3 for name, wave in WAVES.items()})
    report = evaluate_kld(PITCH, real, made, seconds=0.5)

    def logits(folder):
        excerpt = Excerpt(RATE_HZ, 4000, 0.5)
        return np.concatenate([PITCH.logits(excerpt.read(ClipFile(folder / name))) for name in sorted(WAVES)])

    p, q = (scipy.special.softmax(logits(folder).astype(float), axis=1) for folder in (real, made))
    expected = {
        DIRECTIONS[0]: np.sum(p * np.log((p + EPSILON) / (q + EPSILON)), 1).mean(),
        DIRECTIONS[1]: np.sum(q * np.log((q + EPSILON) / (p + EPSILON)), 1).mean(),
    }
    for way, value in expected.items():
        assert report["results"]["softmax"][way]["pairs"] == pytest.approx(value, rel=1e-6)
    p, q = (scipy.special.expit(logits(folder).astype(float)) for folder in (real, made))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    assert report["results"]["sigmoid"][DIRECTIONS[0]]["pairs"] == pytest.approx(np.sum(p * np.log((p + EPSILON) / (q + EPSILON)), 1).mean(), rel=1e-6)


def test_captions_match_their_clips(real, tmp_path):
    report = evaluate_mcc(PITCH, real)
    short = "pitches was trained on clips of 1 s: with 0.5 s the cosines are lower, also those of real clips"
    assert report["notes"] == [] and evaluate_mcc(PITCH, real, seconds=0.5)["notes"] == [short]
    assert list(report["results"]) == ["real"] and report["results"]["real"]["pairs"] == pytest.approx(1, abs=0.02)
    assert report["results"]["real"]["shuffled"] == pytest.approx(0, abs=0.1)
    assert [clip["caption"] for clip in report["clips"]] == list(CAPTIONS.values())
    report = evaluate_mcc(PITCH, real, write_clips(tmp_path / "made", shifted()))
    assert report["results"]["generated"]["pairs"] < 0.1 < 0.9 < report["results"]["real"]["pairs"]
    # A caption of the generated clip comes before that of the real one.
    report = evaluate_mcc(PITCH, real, write_clips(tmp_path / "own", shifted(), {name: CAPTIONS[f"{(i + 1) % 4}.wav"] for i, name in enumerate(WAVES)}))
    assert report["results"]["generated"]["pairs"] > 0.9 > 0.1 > report["results"]["real"]["pairs"]
    assert "generated clips  1.000 [1.000, 1.000]  0.000" in format_mcc_report(report)


def test_missing_partners_and_captions(real, tmp_path):
    made = write_clips(tmp_path / "made", {"0.wav": WAVES["0.wav"], "1.wav": WAVES["1.wav"], "2.wav": np.zeros(8000), "x.wav": WAVES["3.wav"]})
    report = evaluate_kld(PITCH, real, made)
    assert report["num_pairs"] == 2 and [note.split(",")[0] for note in report["notes"]] == [
        "without a partner of the same name: 1 reference clip",
        "without a partner of the same name: 1 generated clip",
        "left out",
    ]
    report = evaluate_mcc(PITCH, write_clips(tmp_path / "some", WAVES, dict(list(CAPTIONS.items())[:3])))
    assert report["num_clips"] == 3 and report["notes"] == ["left out, since they have no caption: 1 clip"]
    with pytest.raises(UserError, match="bare: 0 of 4 clips have a caption, expected at least 2; add captions to metadata.jsonl"):
        evaluate_mcc(PITCH, write_clips(tmp_path / "bare", WAVES))
    with pytest.raises(UserError, match="fewer than 2 have a caption in either folder"):
        evaluate_mcc(PITCH, tmp_path / "bare", made)
    with pytest.raises(UserError, match=r"0 clips have the same name in both folders \(.*real has 0.wav, .*else has a.wav\), expected at least 2"):
        evaluate_kld(PITCH, real, write_clips(tmp_path / "else", {"a.wav": WAVES["0.wav"]}))
    silent = write_clips(tmp_path / "silent", {"0.wav": WAVES["0.wav"], "1.wav": np.zeros(8000)})
    with pytest.raises(UserError, match="1 of the 2 reference and generated clips can be used, expected at least 2; the others: .*1.wav: is silent"):
        evaluate_kld(PITCH, real, silent)
    write_clips(tmp_path / "twice", {"a.wav": WAVES["0.wav"]})
    (tmp_path / "twice" / "a.flac").write_bytes(b"")
    with pytest.raises(UserError, match="a.flac and a.wav have the same name but for the suffix"):
        evaluate_kld(PITCH, real, tmp_path / "twice")
