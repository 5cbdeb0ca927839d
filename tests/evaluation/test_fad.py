"""The Fréchet audio distance of folders: what is read, what is saved, and what is said of poor input."""

import dataclasses

import numpy as np
import pytest
import soundfile
from folders import RATE_HZ, tone, write_clips

from musiclm_jax.errors import UserError
from musiclm_jax.evaluation import embeddings
from musiclm_jax.evaluation.fad import evaluate_fad, format_fad_report
from musiclm_jax.evaluation.frechet import frechet_distance


@dataclasses.dataclass
class Bands:
    """Embeds each 0.1 s as the levels of 3 bands, in dB."""

    name: str = "bands"
    sample_rate_hz: int = RATE_HZ
    min_samples: int = 800

    def embed(self, wave):
        frames = wave[: len(wave) // 800 * 800].reshape(-1, 800)
        power = np.abs(np.fft.rfft(frames * np.hanning(800), axis=1)) ** 2
        return 10 * np.log10(np.stack([band.sum(axis=1) for band in np.array_split(power, 3, axis=1)], axis=1) + 1e-6)


BANDS = Bands()
assert isinstance(BANDS, embeddings.Embedding)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(14 clips of low tones, 13 clips of higher ones)."""
    root = tmp_path_factory.mktemp("fad")
    low = {f"{i}.wav": tone(200 + 20 * i, seed=i) for i in range(14)}
    high = {f"more/{i}.wav": tone(1500 + 20 * i, seed=i + 100) for i in range(13)}
    return write_clips(root / "low", low), write_clips(root / "high", high)


def rows(folder):
    return np.concatenate([BANDS.embed(soundfile.read(path)[0].astype(np.float32)) for path in sorted(folder.rglob("*.wav"))])


def test_the_distance_is_that_of_all_embeddings(folders, tmp_path):
    low, high = folders
    report = evaluate_fad(BANDS, low, high)
    assert report["fad"] == pytest.approx(frechet_distance(rows(low), rows(high)), rel=1e-9)
    assert report["fad_95"][0] < report["fad"] < report["fad_95"][1] and 0 < report["halves"] < report["fad"] / 2
    assert report["reference"] == {"path": str(low), "num_clips": 14, "num_embeddings": 140, "mean_seconds": 1.0}
    assert report["fad_inf"] == pytest.approx(report["fad"], rel=0.2) and report["notes"] == []
    # The clip farthest from the reference comes first.
    scores = {clip["file_name"]: clip["score"] for clip in report["clips"]}
    assert list(scores) == sorted(scores, key=lambda name: -scores[name]) and len(scores) == 13
    one = BANDS.embed(soundfile.read(high / "more/3.wav")[0].astype(np.float32))
    assert scores["more/3.wav"] == pytest.approx(frechet_distance(rows(low), one), rel=1e-9)
    text = format_fad_report(report)
    assert "14 clips of 1 s, 140 embeddings" in text and f"{report['fad']:.3f} [" in text and "note" not in text


def test_any_rate_is_read(folders, tmp_path):
    for path in sorted(folders[0].glob("*.wav")):
        wave, _ = soundfile.read(path)
        soundfile.write(tmp_path / f"{path.stem}.flac", np.repeat(wave, 2), 2 * RATE_HZ)
    report = evaluate_fad(BANDS, folders[0], tmp_path)
    assert report["generated"]["num_embeddings"] == 140 and report["fad"] < evaluate_fad(BANDS, *folders)["fad"]


def test_a_reference_is_saved_and_read(folders, tmp_path):
    low, high = folders
    report = evaluate_fad(BANDS, low, high, save_to=tmp_path / "low.npz")
    assert evaluate_fad(BANDS, tmp_path / "low.npz", high) == report
    with pytest.raises(UserError, match=r"low.npz: has statistics of bands, but the embedding is others: choose the same"):
        evaluate_fad(Bands(name="others"), tmp_path / "low.npz", high)
    with pytest.raises(UserError, match="low.npz: is a file, expected a folder of generated clips; the reference, which may be a file, comes first"):
        evaluate_fad(BANDS, high, tmp_path / "low.npz")
    for data in (b"", b"PK\x03\x04", (tmp_path / "low.npz").read_bytes()[:-100]):
        (tmp_path / "bad.npz").write_bytes(data)
        with pytest.raises(UserError, match="bad.npz: is neither a folder of clips nor statistics"):
            evaluate_fad(BANDS, tmp_path / "bad.npz", high)


def test_a_draw_of_clips_and_their_beginnings(folders):
    report = evaluate_fad(BANDS, *folders, num_clips=5, seconds=0.5, seed=3)
    assert report["generated"]["num_clips"] == report["reference"]["num_clips"] == 5 and report["generated"]["num_embeddings"] == 25
    assert evaluate_fad(BANDS, *folders, num_clips=5, seconds=0.5, seed=3) == report
    with pytest.raises(UserError, match="seconds=0.05: choose at least 0.1 s"):
        evaluate_fad(BANDS, *folders, seconds=0.05)


def test_what_limits_the_figures_is_said(folders, tmp_path):
    low, high = folders
    same = evaluate_fad(BANDS, low, low)
    assert same["fad"] == pytest.approx(0, abs=1e-6) and same["notes"] == ["the distance is 0: both folders have the same clips"]
    alone = evaluate_fad(BANDS, low, write_clips(tmp_path / "alone", {"a.wav": tone(300, seconds=0.3)}))
    assert alone["fad_95"] is None and alone["fad_inf"] is None
    assert [note.split(":")[0] for note in alone["notes"]] == [
        "one generated clip",
        "generated",
        "too few generated clips for the limit of many clips (fad_inf)",
        "reference clips have 1 s on average, generated ones 0.3 s",
    ]
    assert "3 embeddings of 3 dimensions" in alone["notes"][1]
    assert any("folders swapped" in note for note in evaluate_fad(BANDS, high, low)["notes"])


def test_clips_that_cannot_be_used_are_counted(folders, tmp_path):
    good = tone(300)
    write_clips(tmp_path, {"a.wav": good, "b.wav": good, "silent.wav": np.zeros(8000), "short.wav": good[:700]})
    soundfile.write(tmp_path / "nan.wav", np.full(8000, np.nan), RATE_HZ, subtype="FLOAT")
    report = evaluate_fad(BANDS, folders[0], tmp_path)
    assert report["generated"]["num_clips"] == 2 and len(report["skipped"]) == 3 and "cannot be used: 3 clips" in report["notes"][0]
    assert sorted(reason.split(": ")[1].split(" ")[0] for reason in report["skipped"]) == ["0.0875", "has", "is"]
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match="none of the 3 generated clips can be used, such as .*nan.wav: has NaN"):
        evaluate_fad(BANDS, folders[0], tmp_path)
    with pytest.raises(UserError, match="none: is not a folder|none is not a folder"):
        evaluate_fad(BANDS, folders[0], tmp_path / "none")


def test_an_embedding_that_is_not_finite_is_refused(folders):
    class Broken(Bands):
        def embed(self, wave):
            return np.full((2, 3), np.inf)

    with pytest.raises(UserError, match="0.wav: its embedding by bands has NaN or infinity"):
        evaluate_fad(Broken(), *folders)
