import json
from types import SimpleNamespace

import numpy as np
import pytest

from musiclm_jax import audio
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.codec import evaluate_codec, format_codec_report, si_sdr_db


def test_si_sdr_is_the_noise_level_and_ignores_gain():
    rng = np.random.default_rng(0)
    signal, noise = rng.standard_normal((2, 20_000))
    noise -= noise @ signal / (signal @ signal) * signal
    noise *= np.linalg.norm(signal) / np.linalg.norm(noise)
    for gain in (1.0, 0.2, -3.0):
        assert si_sdr_db(gain * (signal + 0.1 * noise), signal) == pytest.approx(20, abs=0.05)


class Pcm:
    """Two levels of 16 codes each: the wave in 4 bits per sample, then in 8."""

    config = SimpleNamespace(num_codes=16)

    def encode(self, wave):
        codes = np.clip(np.round((np.asarray(wave) + 1) * 127.5), 0, 255).astype(np.int32)
        return np.stack([codes // 16, codes % 16], axis=-1)

    def decode(self, codes):
        codes = np.asarray(codes)
        fine = codes[..., 1] if codes.shape[-1] == 2 else 8
        return ((codes[..., 0] * 16 + fine) / 127.5 - 1).astype(np.float32)


def test_evaluate_codec(tmp_path):
    rng, lines = np.random.default_rng(0), []
    for index, split in enumerate(("train", "test", "test")):
        audio.write_wav(tmp_path / f"{index}.wav", rng.uniform(-1, 1, 4800))
        lines.append({"file_name": f"{index}.wav", "split": split})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))

    report = evaluate_codec(Pcm(), tmp_path, num_clips=2, seconds=0.1)
    one, both = report["quality"]
    assert (one["levels"], both["levels"]) == (1, 2)
    assert both["mel_distance"] < one["mel_distance"]
    # Uniform noise of variance 1/3 against steps of 1/127.5: 20 log10(2 * 127.5) dB.
    assert both["si_sdr_db"] == pytest.approx(20 * np.log10(255), abs=0.2)
    assert report["num_frames"] == 2 * 2400
    # A uniform wave uses all codes alike.
    assert report["perplexity"] == pytest.approx([16, 16], rel=0.02)
    assert "half of 16 codes is 8" in format_codec_report(report) and "below half" not in format_codec_report(report)

    with pytest.raises(UserError, match="2 held-out"):
        evaluate_codec(Pcm(), tmp_path, num_clips=3)

    # Without metadata too: one of three is held out.
    (tmp_path / "metadata.jsonl").unlink()
    assert evaluate_codec(Pcm(), tmp_path, num_clips=1, seconds=0.1)["num_clips"] == 1
    with pytest.raises(UserError, match="1 held-out"):
        evaluate_codec(Pcm(), tmp_path, num_clips=2)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.wav"}')
    with pytest.raises(UserError, match="no held-out clips"):
        evaluate_codec(Pcm(), tmp_path)
