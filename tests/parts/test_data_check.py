"""`musiclm data check`: what it says of clean data, and of each fault that would stop or spoil a training."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import soundfile

from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.cli.main import main
from musiclm_jax.parts.data_check import check_data

RATE = 16_000


@pytest.fixture(scope="module")
def config():
    return load_config("test")


@pytest.fixture
def folder(tmp_path):
    """Twelve clips of noise, each with notes of its own, and captions."""
    tmp_path, rows = tmp_path / "clips", []
    tmp_path.mkdir()
    for i in range(12):
        rng = np.random.default_rng(i)
        notes = np.repeat(rng.uniform(300, 2000, 20), RATE // 5)
        wave = 0.2 * np.sin(2 * np.pi * np.cumsum(notes) / RATE) + 0.01 * rng.normal(size=len(notes))
        soundfile.write(tmp_path / f"{i:02d}.wav", wave, RATE)
        rows.append({"file_name": f"{i:02d}.wav", "caption": f"tune number {i}", "split": "test" if i > 9 else "train"})
    write(tmp_path, rows)
    return tmp_path


def write(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_clean_data(folder, config):
    report = check_data(folder, config=config)
    assert report.errors == () == report.warnings
    assert (report.clips, report.splits, report.rates_hz, report.channels) == (12, {"train": 10, "test": 2}, {"16000": 12}, {"1": 12})
    assert report.captions == 12 and report.words == 14 and report.scripts == {"latin": 12}
    assert report.hours == pytest.approx(12 * 4 / 3600)
    stage = next(part for part in report.parts if part.name == "semantic")
    assert (stage.clips, stage.hours) == (10, pytest.approx(10 * 4 / 3600))
    assert str(report).endswith("nothing that would stop a training")


def test_what_spoils_a_training_is_an_error(folder, config):
    soundfile.write(folder / "11.flac", soundfile.read(folder / "03.wav")[0] * 0.5, RATE)  # Held out, and trained on in another form.
    rows = rows_of(folder)
    rows[11]["file_name"] = "11.flac"
    write(folder, rows)
    (error,) = check_data(folder, config=config).errors
    assert error.startswith("1 pairs of clips in different splits are the same recording, by fingerprint") and "03.wav and 11.flac" in error
    shutil.copy(folder / "03.wav", folder / "10.wav")
    assert "1 pairs of clips in different splits are the same file" in check_data(folder, config=config).errors[0]


def test_clips_that_are_too_short_for_a_stage_are_an_error_before_any_decoding(folder, config):
    stages = tuple(dataclasses.replace(stage, window_sec=10.0, hop_sec=5.0) if stage.name == "semantic" else stage for stage in config.model.stages)
    longer = dataclasses.replace(config, model=dataclasses.replace(config.model, stages=stages))
    (error,) = check_data(folder, config=longer, listen=False).errors
    assert "no training clip is as long as the semantic stage's window of 10 s (the longest: 4 s)" in error


def test_faults_of_single_clips_are_warnings_until_they_are_many(folder, config):
    soundfile.write(folder / "00.wav", np.zeros(4 * RATE), RATE)
    soundfile.write(folder / "01.wav", np.sign(np.random.default_rng(0).normal(size=4 * RATE)), RATE)
    wave = soundfile.read(folder / "02.wav")[0]
    wave[: 3 * RATE] = 0
    soundfile.write(folder / "02.wav", wave, RATE)
    report = check_data(folder, config=config)
    assert not report.errors and report.clips == 11
    assert [each.split(":")[0] for each in report.warnings] == [
        "1 of 12 clips cannot be used",
        "1 clips are at full scale in more than 0.1% of their samples",
        "1 clips are silent for 50% of the time or more",
    ]
    soundfile.write(folder / "03.wav", np.full(RATE // 2, 0.1), RATE)
    assert "2 of 12 clips cannot be used: 00.wav (is silent" in check_data(folder, config=config).errors[0]
    soundfile.write(folder / "00.wav", np.full(RATE // 2, 0.1), RATE)
    assert "2 of 12 clips cannot be used: 00.wav (0.50 s is too short" in check_data(folder, config=config, listen=False).errors[0]
    (folder / "00.wav").write_bytes(b"no audio")
    assert "2 of 12 clips cannot be used: 00.wav (cannot be read as audio" in check_data(folder, config=config).errors[0]


def test_data_of_which_nothing_is_held_out_are_a_warning(folder, config):
    write(folder, [row | {"split": "train"} for row in rows_of(folder)])
    assert check_data(folder, config=config, listen=False).warnings == ("no clip is held out, so nothing will be evaluated: give some the split 'test'",)


def test_the_command(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["data", "check", str(folder), "--size", "test", "--quick", "--json", str(tmp_path / "report.json")])
    assert not end.value.code and "12 clips" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["splits"] == {"train": 10, "test": 2}
    with pytest.raises(SystemExit) as end:
        main(["data", "check", str(folder), "--size", "test", "--quick", "--json", str(folder / "metadata.jsonl")])
    assert end.value.code == 2 and "would lie among the clips" in capsys.readouterr().err and len(rows_of(folder)) == 12
    write(folder, [{"file_name": row["file_name"]} for row in rows_of(folder)])
    with pytest.raises(SystemExit) as end:
        main(["data", "check", str(folder), "--size", "test", "--quick"])
    out = capsys.readouterr().out
    assert end.value.code == 1 and "error: " in out and "no captions" in out
