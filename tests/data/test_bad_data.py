"""Damaged and odd files stop nothing: a small form of `checks/bad_data.py`."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musiclm_jax import audio
from musiclm_jax.data.clips import prepare
from musiclm_jax.data.folder import read_folder
from musiclm_jax.errors import UserError

sys.path.append(str(Path(__file__).parents[2] / "checks"))
import bad_data  # noqa: E402

KINDS = [kind for kind in bad_data.KINDS if kind not in bad_data.ONCE]


def test_each_file_is_used_or_left_out_with_a_reason_and_a_remedy(tmp_path):
    kinds, wrong = bad_data.check(tmp_path, KINDS, count=len(KINDS), seed=1)
    assert wrong == []
    for kind in ("good, of any format", "wrong extension", "clipped", "7 channels", "one channel inverted", "name with newlines and tabs"):
        assert kinds[kind].used == 1, kind
    for kind in ("NaN", "infinite", "1e30", "constant", "1 sample", "empty", "4 GHz", "name in Latin-1", "link to itself", "pipe", "compressed tar"):
        assert kinds[kind].left_out == 1, kind


def test_the_check_names_what_is_wrong():
    written = dict.fromkeys(("a.wav", "b.wav", "c.wav", "d.wav"), "good, of any format")
    _, wrong = bad_data.outcomes(written, ["a.wav", "b.wav"], {"b.wav": "is odd; remove it", "c.wav": "is odd"})
    assert [line.split(":")[0] for line in wrong] == ["'c.wav'", "'b.wav' is used and left out", "'d.wav' (good, of any format) is neither used nor left out"]


def test_a_name_with_a_newline_is_one_line_of_the_log(tmp_path):
    for number in range(12):
        soundfile.write(tmp_path / f"{number}.wav", bad_data.noise(np.random.default_rng(number)), 24_000)
    (tmp_path / "a\nb.wav").write_bytes(b"no audio")
    prepare(read_folder(tmp_path), tmp_path / "store", sample_rate_hz=2_000)
    [line] = (tmp_path / "store" / "skipped.log").read_text().splitlines()
    assert line.startswith("a\\nb.wav: cannot be read as audio")


def test_a_click_far_beyond_full_scale_would_silence_the_file(tmp_path):
    wave = bad_data.noise(np.random.default_rng(0))[:, 0]
    for factor in (1, 2.0**15):  # As of 16-bit samples that were written as floats.
        soundfile.write(tmp_path / "a.wav", factor * wave, 24_000, subtype="FLOAT")
        assert np.abs(audio.read(tmp_path / "a.wav")).mean() > 0.2
    wave[1000] = 1e6
    soundfile.write(tmp_path / "a.wav", wave, 24_000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"is silent but for samples of 1e\+06 times full scale; remove them"):
        audio.read(tmp_path / "a.wav")
