"""Stories, beginnings, likeness, live music, and files that say how they were made."""

import json
import os

import numpy as np
import pytest
import soundfile
from run_command import run
from tiny_musiclm import steerable, tiny_musiclm

from musiclm_jax.audio.writer import read_comment
from musiclm_jax.cli.recipe import read_story
from musiclm_jax.errors import UserError


@pytest.fixture
def make(tiny_bundle, tmp_path, capsys, monkeypatch):
    """Runs `musiclm generate` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run("generate", *arguments, "--model", tiny_bundle, capsys=capsys)


def read(path):
    return soundfile.read(path, dtype="int16")[0]


def test_a_story_has_times_and_prompts(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeff0:00 time to meditate\r\n\r\n0:15  time to wake up \r\n1:02:03.5 time to run\r\n".encode())
    assert read_story(tmp_path / "a.txt") == [(0.0, "time to meditate"), (15.0, "time to wake up"), (3723.5, "time to run")]
    for text, says in (("", "has no lines"), ("0:00", "line 1"), ("0:00 a\nlater b", "line 2 is 'later b'"), ("0:61 a", "0:61"), ("12 a", "'12 a'")):
        (tmp_path / "b.txt").write_text(text)
        with pytest.raises(UserError, match=says):
            read_story(tmp_path / "b.txt")
    with pytest.raises(UserError, match="no.txt"):
        read_story(tmp_path / "no.txt")


def test_one_line_is_the_prompt_and_a_file_says_how_it_was_made(make, tmp_path):
    (tmp_path / "story.txt").write_text("0:00 a calm piano melody\n")
    assert make("a calm piano melody", "--seconds", "0.3", "--seed", "5", "--out", "a.wav")[0] == 0
    assert make("--story", "story.txt", "--seconds", "0.3", "--seed", "5", "--out", "b.flac")[0] == 0
    np.testing.assert_array_equal(read("a.wav"), read("b.flac"))
    made = json.loads(read_comment(tmp_path / "b.flac"))
    assert (made["story"], made["seed"], made["seconds"]) == ([[0.0, "a calm piano melody"]], 5, 0.3)
    assert make("--again", "b.flac", "--out", "c.wav")[0] == 0
    np.testing.assert_array_equal(read("a.wav"), read("c.wav"))
    # So do files of a version that had one setting of the sampling more.
    before = made | {"sampling": {stage: {**values, "cooling": 1.0} for stage, values in made["sampling"].items()}}
    with soundfile.SoundFile("d.flac", "w", 24_000, 1) as file:
        file.comment = json.dumps(before)
        file.write(np.zeros(100))
    assert make("--again", "d.flac", "--out", "e.wav")[0] == 0
    np.testing.assert_array_equal(read("a.wav"), read("e.wav"))


def test_one_of_several_is_made_again(make):
    options = ("--seconds", "0.3", "--seed", "7", "--samples", "2", "--temperature", "semantic=0.9")
    assert make("a calm piano melody", "fast drums and bass", "A calm  PIANO melody", *options, "--out", "a.wav")[0] == 0
    for number in range(1, 7):
        status, _, err = make("--again", f"a-{number}.wav", "--out", "b.wav")
        assert status == 0, err
        np.testing.assert_allclose(read(f"a-{number}.wav").astype(int), read("b.wav").astype(int), atol=1)  # Other batches round differently.


def test_another_model_is_said(make, tmp_path, capsys):
    make("a calm piano melody", "--seconds", "0.2", "--out", "a.wav")
    from tiny_musiclm import tiny_config, tiny_musiclm

    tiny_musiclm(tiny_config(skipped_stages=("fine",))).save_pretrained(tmp_path / "other")
    status, _, err = run("generate", "--again", "a.wav", "--out", "b.wav", "--model", tmp_path / "other", capsys=capsys)
    assert status == 0 and "made by another model" in err


def test_music_continues_a_recording(make):
    wave = 0.3 * np.sin(np.arange(2 * 24_000 + 100) * 0.05)
    soundfile.write("in.flac", wave, 24_000)
    status, out, err = make("a calm piano melody", "--continue", "in.flac", "--seconds", "2.6", "--out", "a.wav")
    assert status == 0 and "2.60 s" in out, err
    begin, found = read("in.flac"), read("a.wav")
    join = 48_000  # Whole frames; the last of them fades over.
    np.testing.assert_array_equal(found[: join - 480], begin[: join - 480])
    assert len(found) == round(2.6 * 24_000) and np.abs(found[join:]).max() > 0
    assert make("--continue", "in.flac", "--seconds", "2.2", "--out", "b.wav")[0] == 0
    assert make("--again", "a.wav", "--out", "c.wav")[0] == 0
    np.testing.assert_array_equal(read("c.wav"), found)


def test_a_band_accompanies_a_voice_and_pieces_end(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_musiclm(steerable()).save_pretrained("bundle")
    make = lambda *arguments: run("generate", *arguments, "--model", "bundle", capsys=capsys)  # noqa: E731
    soundfile.write("voice.wav", 0.3 * np.sin(np.arange(66_150) * 0.05), 44_100)
    status, out, err = make("--accompany", "voice.wav", "--out", "band.wav")
    assert status == 0 and "band-mix.wav  1.50 s" in out, err
    band, mixed = read("band.wav"), read("band-mix.wav")
    assert len(band) == len(mixed) == 36_000 and not np.array_equal(band, mixed)
    assert make("a calm piano melody", "--ending", "--seconds", "1", "--out", "a.wav")[0] == 0
    assert json.loads(read_comment(tmp_path / "a.wav"))["ending"] is True
    for name in ("band.wav", "a.wav"):
        assert make("--again", name, "--out", "again.wav")[0] == 0
        np.testing.assert_array_equal(read(name), read("again.wav"))


def test_music_is_like_a_recording(make):
    soundfile.write("in.wav", 0.3 * np.sin(np.arange(24_000) * 0.05), 24_000)
    assert make("--like", "in.wav", "--seconds", "0.3", "--out", "a.wav")[0] == 0
    assert len(read("a.wav")) == 7200


def test_a_line_of_json_says_all(make, tmp_path):
    status, out, err = make("a calm piano melody", "--seconds", "1", "--key", "A minor", "--tries", "2", "--without", "drums", "--json", "--out", "a.wav")
    assert status == 0, err
    made = json.loads(out)
    assert made["file"] == "a.wav" and made["length_sec"] == 1 and made["without"] == ["drums"] and made["exact"] == {"key": "a minor"}
    assert made["estimated"].keys() == {"bpm", "key", "meter"} and made["missed"] in ([], ["key"])
    assert make("--again", "a.wav", "--out", "b.flac")[0] == 0
    np.testing.assert_array_equal(read("a.wav"), read("b.flac"))


def test_a_miss_is_said(make):
    status, out, err = make("a calm piano melody", "--seconds", "1", "--bpm", "60", "--tries", "1", "--out", "a.wav")
    assert status == 0 and "estimated: " in out and "which is not the bpm that was asked for" in out, out + err


def test_recordings_are_spared_and_known_again(make, tmp_path):
    soundfile.write("in.wav", 0.3 * np.sin(np.arange(24_000) * 0.05), 24_000)
    before = (tmp_path / "in.wav").read_bytes()
    status, _, err = make("--continue", "in.wav", "--seconds", "2", "--out", str(tmp_path / "in.wav"))
    assert status == 2 and "would be overwritten" in err and (tmp_path / "in.wav").read_bytes() == before
    assert make("--like", "in.wav", "--seconds", "0.3", "--out", "a.wav")[0] == 0
    assert make("--again", "a.wav", "--out", "b.wav")[2].count("not what it was") == 0
    soundfile.write("in.wav", 0.3 * np.sin(np.arange(24_000) * 0.08), 24_000)
    status, _, err = make("--again", "a.wav", "--out", "b.wav")
    assert status == 0 and "in.wav is not what it was when a.wav was made" in err
    # It is found beside the clip from elsewhere, and missed where it is not.
    (tmp_path / "sub").mkdir()
    os.chdir("sub")
    assert make("--again", "../a.wav", "--out", "b.wav")[0] == 0
    (tmp_path / "in.wav").unlink()
    assert "in.wav: no such file" in make("--again", "../a.wav", "--out", "b.wav")[2]


def test_any_music_and_mixtures(make):
    assert make("--no-prompt", "--samples", "2", "--seconds", "0.2", "--out", "a.wav")[0] == 0
    assert not np.array_equal(read("a-1.wav"), read("a-2.wav"))
    assert make("--no-prompt", "--seconds", "0.2", "--sample", "2", "--out", "b.wav")[0] == 0
    np.testing.assert_allclose(read("a-2.wav").astype(int), read("b.wav").astype(int), atol=1)
    status, out, err = make("0.5: piano | 0.5: fast drums", "--seconds", "0.2", "--out", "c.wav")
    assert status == 0 and "'0.5: piano | 0.5: fast drums'" in out and "does not know" not in err


def test_a_recording_is_played_anew(make):
    soundfile.write("in.wav", 0.3 * np.sin(np.arange(24_000) * 0.05), 24_000)
    status, out, err = make("--resynthesize", "in.wav", "--out", "a.wav")
    assert status == 0 and "1.00 s" in out and len(read("a.wav")) == 24_000, err
    assert make("--again", "a.wav", "--out", "b.wav")[0] == 0
    np.testing.assert_array_equal(read("a.wav"), read("b.wav"))


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["x", "--again", "in.wav"], "not PROMPT and --again"),
        (["--like", "in.wav", "--story", "story.txt"], "not --story and --like"),
        (["--again", "in.wav"], "does not say how it was made"),
        (["--again", "story.txt"], "name a WAV or FLAC file"),
        (["--continue", "in.wav", "--seconds", "0.5"], "the beginning has 1.00 s"),
        (["--continue", "short.wav"], "short.wav"),
        (["--continue", "in.wav", "--samples", "2"], "With --continue one clip is made"),
        (["--continue", "in.wav", "--resynthesize", "in.wav"], "exclude each other"),
        (["--like", "in.wav", "--resynthesize", "in.wav"], "--resynthesize and --like exclude each other"),
        (["x", "--no-prompt"], "not PROMPT and --no-prompt"),
        (["x", "y", "--sample", "2"], "With --sample one clip is made"),
        (["x", "--fade", "2"], "give a story"),
        (["x", "--ending"], "lists timing"),
        (["x", "--tries", "3"], "--tries goes with --bpm"),
        (["x", "--without", " "], "what is excluded is ' '"),
        (["x", "--without", "\udcff"], "what is excluded is"),
        (["--resynthesize", "in.wav", "--seconds", "3"], "leave --seconds out"),
        (["--story", "no.txt"], "no.txt: no such file"),
        (["--accompany", "in.wav"], "lists voice"),
        (["--accompany", "in.wav", "--continue", "in.wav"], "--continue and --accompany exclude each other"),
        (["--again", "in.wav", "--seed", "3", "--top-k", "5"], "leave --seed and --top-k out"),
        (["--story", "story.txt", "--fade", "4"], "fade=4: the line at 0 s lasts 2 s"),
        (["--no-prompt", "--bpm", "96"], "--bpm goes with a PROMPT"),
        (["x", "--key", "H minor"], "'H minor'"),
        (["x", "--meter", "5/4"], "3/4, 4/4"),
        (["x", "--bpm", "96", "--seconds", "0.5"], "clips of 1 s or more"),
        (["0.5: x | y"], "the mixture"),
        (["--like", "silent.wav"], "silent"),
        (["--story", "story.txt", "--seconds", "1"], "a line at 2 s"),
        (["--story", "late.txt"], "begins at 1 s"),
        (["--continue", "no.wav"], "no.wav"),
    ],
)
def test_bad_input_is_one_line(make, tmp_path, arguments, says):
    soundfile.write("in.wav", 0.3 * np.sin(np.arange(24_000) * 0.05), 24_000)
    soundfile.write("short.wav", 0.3 * np.sin(np.arange(300) * 0.05), 24_000)
    soundfile.write("silent.wav", np.zeros(24_000), 24_000)
    (tmp_path / "story.txt").write_text("0:00 a\n0:02 b\n")
    (tmp_path / "late.txt").write_text("0:01 a\n")
    status, out, err = make(*arguments, "--out", "out.wav")
    assert status == 2 and out == "" and says in err and err.startswith("musiclm: ") and err.count("\n") == 1, err
    assert not (tmp_path / "out.wav").exists()


def test_live_music_goes_to_the_standard_output(tiny_bundle, capsysbinary, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sounddevice", None)
    from musiclm_jax.cli.main import main

    with pytest.raises(SystemExit) as exit_info:
        main(["live", "a calm piano melody", "--seconds", "0.5", "--model", str(tiny_bundle)])
    out, err = capsysbinary.readouterr()
    assert not exit_info.value.code and len(out) == 2 * 12_000 and b"first audio after" in err
