"""The protocol of MusicCaps, from its table and some audio to the report, with a tiny model."""

import json

import numpy as np
import pytest
import soundfile
from folders import RATE_HZ, tone
from tiny_musiclm import tiny_config, tiny_musiclm

from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.embeddings import MuLanJudge, load_musicnn
from musiclm_jax.evaluation.generated import SETTINGS
from musiclm_jax.evaluation.musiccaps import Judges, evaluate_musiccaps, format_musiccaps_report

MODEL = tiny_musiclm()
MUSICNN = load_musicnn()
JUDGES = Judges((MUSICNN,), (MUSICNN,), (MuLanJudge(MODEL.mulan, "mulan@tiny", 24_000),))
COLUMNS = "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval"
ROWS = """abc,30,40,/m/04rlf,"['slow', 'piano']","A calm, slow piano melody. It is sad.",4,True,True
train,10,20,/m/04rlf,['fast'],a clip for training,4,False,False
-video,2,5,/m/04rlf,['fast'],fast drums and bass,4,True,True
gone,0,10,/m/04rlf,['fast'],a slow guitar tune,4,True,True
eval,50,60,/m/04rlf,['deep'],zzzz,4,False,True
broken,0,10,/m/04rlf,['deep'],a minor key,4,True,True
"""
SECONDS = 3.2


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("musiccaps")
    (folder / "table.csv").write_text(f"{COLUMNS}\n{ROWS}")
    (folder / "audio" / "more").mkdir(parents=True)
    video = np.concatenate([np.zeros(2 * RATE_HZ), tone(500, seconds=4)])
    for name, wave in {"[abc]-[30-40]": tone(300, seconds=4), "train-10": tone(900, seconds=4), "more/-video": video, "eval-50": tone(700, seconds=4)}.items():
        soundfile.write(folder / "audio" / f"{name}.wav", wave, RATE_HZ)
    (folder / "audio" / "broken-0.wav").write_bytes(b"RIFF")
    return folder


@pytest.fixture(scope="module")
def report(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, evaluate_musiccaps(MODEL, source / "table.csv", source / "audio", out, JUDGES, seconds=SECONDS, batch_size=1)


def test_the_balanced_subset_is_generated_and_compared(report):
    out, report = report
    assert (report["num_captions"], report["num_clips"], report["absent"]) == (4, 2, ["gone-0"])
    assert len(report["skipped"]) == 1 and "broken-0.wav: cannot be read" in report["skipped"][0]
    for folder in ("reference", "generated"):
        assert sorted(path.name for path in (out / folder).glob("*.wav")) == ["-video-2.wav", "abc-30.wav"]
        assert all(abs(soundfile.info(path).duration - SECONDS) < 0.3 for path in (out / folder).glob("*.wav"))
    # The clip of a video begins where the table says, after its silence.
    wave, rate_hz = soundfile.read(out / "reference" / "-video-2.wav")
    assert rate_hz == 24_000 and np.abs(wave[: rate_hz // 10]).max() > 0.3
    assert report["fad"][0]["generated"]["num_clips"] == report["kld"][0]["num_pairs"] == report["mcc"][0]["num_clips"] == 2
    assert [clip["caption"] for clip in report["mcc"][0]["clips"]] == ["fast drums and bass", "A calm, slow piano melody. It is sad."]
    assert json.loads((out / "musiccaps.json").read_text()) == report
    page = (out / "musiccaps.md").read_text()
    assert page.startswith("# MusicCaps, 2 of 4 captions of the subset 'balanced', 3.2 s each") and "| MusicLM (table 1) | Trill 0.44, VGGish 4.0 |" in page
    text = format_musiccaps_report(report)
    assert f"musicnn {report['fad'][0]['fad']:.3f}" in text and "note: 1 clips have no audio, such as gone-0" in text


def test_generation_continues(source, report, monkeypatch):
    out, first = report
    (out / "generated" / "abc-30.wav").unlink()
    (out / "reference" / "abc-30.wav").unlink()
    kept, prompts = (out / "generated" / "-video-2.wav").stat().st_mtime_ns, []
    generate = type(MODEL).generate
    monkeypatch.setattr(type(MODEL), "generate", lambda self, texts, **options: prompts.append(texts) or generate(self, texts, **options))
    again = evaluate_musiccaps(MODEL, source / "table.csv", source / "audio", out, JUDGES, seconds=SECONDS)
    assert prompts == [["A calm, slow piano melody. It is sad."]] and (out / "generated" / "-video-2.wav").stat().st_mtime_ns == kept
    assert again["fad"][0]["fad"] == pytest.approx(first["fad"][0]["fad"], rel=1e-6)
    other = tiny_musiclm(tiny_config(selection=tiny_config().selection.replace(num_candidates=2, num_drafts=None)))
    with pytest.raises(UserError, match="generated: has clips that were generated otherwise .*name another folder"):
        evaluate_musiccaps(other, source / "table.csv", source / "audio", out, JUDGES, seconds=SECONDS)
    assert json.loads((out / "generated" / SETTINGS).read_text())["seconds"] == SECONDS


def test_all_of_the_evaluation_split(source, tmp_path):
    no_judges = Judges((), (), ())
    report = evaluate_musiccaps(MODEL, source / "table.csv", source / "audio", tmp_path, no_judges, subset="eval", seconds=0.4, batch_size=1)
    assert (report["num_captions"], report["num_clips"], report["fad"]) == (5, 3, [])
    assert "captions have no word that the model knows" in format_musiccaps_report(report)


def test_mistakes(source, tmp_path):
    def call(table=source / "table.csv", audio_dir=source / "audio", **options):
        return evaluate_musiccaps(MODEL, table, audio_dir, tmp_path / "out", JUDGES, **options)

    bare = tmp_path / "bare.csv"
    bare.write_text("ytid,start_s,end_s,caption\nabc,30,40,a melody\n")
    odd = tmp_path / "odd.csv"
    odd.write_text("ytid,start_s,end_s,caption\nabc,nan,40,a melody\n")
    (tmp_path / "empty").mkdir()
    for options, message in [
        ({"table": tmp_path / "none.csv"}, "none.csv"),
        ({"table": bare}, "bare.csv: flags no clip as is_balanced_subset; take the table that was published"),
        ({"table": odd}, "odd.csv line 2: is from nan to 40 s, expected numbers from 0 on, in order"),
        ({"audio_dir": tmp_path / "none"}, "none: is not a folder; name the folder of MusicCaps' audio"),
        ({"audio_dir": tmp_path / "empty"}, "empty: has the audio of 0 clips of the subset 'balanced', expected at least 2"),
        ({"subset": "train"}, "subset 'train': choose one of balanced, eval"),
    ]:
        with pytest.raises(UserError, match=message):
            call(**options)
