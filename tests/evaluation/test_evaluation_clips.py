"""Which clips evaluations ask about, and that packages and caches which are not there are no traceback."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from musiclm_jax.corpus.synthesized.clip import SynthesizedCorpus
from musiclm_jax.corpus.write import _metadata
from musiclm_jax.data.folder import read_folder
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation import extras
from musiclm_jax.evaluation.clips import ClipFile, Excerpt, choose_prompts, draw_clips, map_waves, pair_clips, read_clips, read_waves, with_ground_truth


def make(folder, lines):
    for line in lines:
        (folder / line["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / line["file_name"]).touch()
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return read_clips(folder)


def test_the_prompts_of_a_seed_stay_what_they_were(tmp_path):
    """Published figures are of these draws. Recorded when prompts were read by a parser of their own."""
    lines = [_metadata(SynthesizedCorpus(3), index, variant) for index in range(120) for variant in range(2)]
    folder = make(tmp_path, lines)
    for clips in (with_ground_truth(folder), folder.captioned):
        prompts = choose_prompts(clips, num_captions=7, rng=np.random.default_rng([0, 0]))
        assert [(prompt.file_name, prompt.caption) for prompt in prompts] == [
            ("audio/000099.flac", "sombre, drums, folk, drawbar organ, minor, mid-tempo"),
            (
                "audio/000029.flac",
                "The melody is in a major key, played on an electric piano at a fast tempo. The music is cheerful and there is no drum beat.",
            ),
            ("audio/000079.flac", "There is a drum beat in this up-tempo rock piece. It has a piano in the lead of a gentle melody in the key of F major."),
            ("audio/000049.flac", "sombre, no drums, ballad, bells, minor, mid-tempo"),
            ("audio/000059.flac", "In the key of E minor and with a drum kit, a sombre waltz piece for drawbar organ at an unhurried tempo."),
            ("audio/000119.flac", "The melody is in a minor key, played on a synth at a moderate pace. The music is sombre and it has no drums."),
            ("audio/000009.flac", "A piece without percussion, in major, with violins in the lead at a moderate tempo."),
        ]
    assert prompts[0].named == {"instrument", "drums", "mode", "tempo"} and prompts[0].attributes == lines[2 * 99]["attributes"]
    assert len(choose_prompts(folder.captioned, num_captions=None, rng=np.random.default_rng(0))) == 12


def test_the_splits_are_those_of_fit_and_what_is_amiss_is_said(tmp_path):
    said = []
    lines = [{"file_name": f"{i}.wav", "captions": {"short": ["x"], "long": ["y", "z"]}} for i in range(60)]
    make(tmp_path, lines)
    (tmp_path / "7.wav").unlink()
    (tmp_path / "new.wav").touch()
    folder = read_clips(tmp_path, progress=said.append)
    assert folder.split("test") and {e.file_name for e in folder.split("test")} == {e.file_name for e in read_folder(tmp_path).split("test")}
    assert folder.entries[0].captions == ("x", "y", "z")
    assert len(said) == 2 and "such as new.wav" in said[0] and "such as 7.wav: no such file" in said[1]


def test_too_few_clips(tmp_path):
    clips = make(tmp_path, [{"file_name": f"{i}.wav"} for i in range(3)]).entries
    rng = np.random.default_rng(0)
    assert sorted(clip.file_name for clip in draw_clips(clips, 3, name="n", rng=rng)) == ["0.wav", "1.wav", "2.wav"]
    for count in (-1, 1, 4):
        with pytest.raises(UserError, match=f"n={count}, but there are 3 held-out clips .*: choose 2 to 3"):
            draw_clips(clips, count, name="n", rng=rng)
    with pytest.raises(UserError, match="there are 1 training clips .*, expected at least 2"):
        draw_clips(clips[:1], 1, name="n", kind="training", rng=rng)


def test_a_missing_package_is_named_with_its_remedy():
    with pytest.raises(UserError, match=r"needs the package no_such_package; install it with: pip install 'musiclm-jax\[eval\]'"):
        extras.require("json", "no_such_package.module")


# A user without a name has no home directory, whatever the user is that runs the tests. Compiled functions look for their caches when they are defined.
PROGRAM = """
import os, pwd

def unknown(uid):
    raise KeyError(uid)

pwd.getpwuid = unknown
from musiclm_jax.evaluation.extras import extra
librosa = extra("librosa")
print(librosa.filters.mel, librosa.feature.spectral_contrast, librosa.onset.onset_strength)
"""


def test_librosa_needs_no_home_directory(tmp_path):
    root = os.path.dirname(os.path.dirname(os.path.abspath(sys.modules["musiclm_jax"].__file__)))
    env = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env={**env, "PYTHONPATH": root}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("base", ["/proc/none", "relative", None])
def test_caches_are_temporary_where_there_is_no_place_for_them(tmp_path, monkeypatch, base):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "to be restored")
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", base or str(tmp_path / "cache"))
    removed = []
    monkeypatch.setattr(extras.atexit, "register", lambda function, folder, **options: removed.append(folder))
    extras._give_caches.__wrapped__()
    if base is None:
        assert removed == [] and "NUMBA_CACHE_DIR" not in os.environ
    else:
        assert removed == [os.environ["NUMBA_CACHE_DIR"]] == [os.environ["XDG_CACHE_HOME"]] and os.listdir(removed[0]) == []
        os.rmdir(removed[0])
        assert list(tmp_path.iterdir()) == []


def test_a_part_of_a_file_is_read_as_a_clip_and_pairs_by_its_name(tmp_path):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 24_000 * 4).astype(np.float32)
    for name in ("real/a.wav", "made/a[1-3].wav", "made/b.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, wave, 24_000, subtype="FLOAT")
    soundfile.write(tmp_path / "real/b.wav", -wave, 24_000, subtype="FLOAT")
    lines = [{"file_name": "a.wav", "start_sec": 1, "end_sec": 3, "text": "x"}, {"file_name": "a.wav", "start_sec": 3, "text": "y"}, {"file_name": "b.wav"}]
    (tmp_path / "real/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    real, made = read_clips(tmp_path / "real"), read_clips(tmp_path / "made")
    assert [(clip.name, other.name) for clip, other in pair_clips(real, made)] == [("a.wav[1-3]", "a[1-3].wav"), ("b.wav", "b.wav")]
    files = [ClipFile.of(real, clip) for clip in real.entries]
    done, skipped = map_waves(lambda read: read, files, Excerpt(24_000, 960), what="real")
    assert not skipped and [str(file) for file, _, _ in done] == [f"{tmp_path}/real/{name}" for name in ("a.wav[1-3]", "a.wav[3-]", "b.wav")]
    for (_, read, seconds), expected in zip(done, (wave[24_000:72_000], wave[72_000:], -wave), strict=True):
        np.testing.assert_array_equal(read, expected)
        assert seconds == len(expected) / 24_000
    assert np.array_equal(read_waves(files[:2], 10), [wave[24_000:24_010], wave[72_000:72_010]])
