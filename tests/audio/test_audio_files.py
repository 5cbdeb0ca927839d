import os

import numpy as np
import pytest
import soundfile
import soxr

from musiclm_jax import audio
from musiclm_jax import files as atomic_files
from musiclm_jax.audio import files
from musiclm_jax.errors import UserError


def sine(*, hz=440.0, seconds=0.5, rate_hz=24_000, amplitude=0.5):
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def test_write_then_read_is_exact_to_16_bits(tmp_path):
    wave = sine()
    audio.write_wav(tmp_path / "a.wav", wave)
    info = soundfile.info(tmp_path / "a.wav")
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (24_000, 1, "PCM_16", len(wave))
    np.testing.assert_allclose(audio.read(tmp_path / "a.wav"), wave, atol=1 / 32767)


@pytest.mark.parametrize(
    "name, rate_hz, channels, subtype, tolerance",
    [
        ("stereo.wav", 24_000, 2, "PCM_16", 1e-4),
        ("cd.flac", 44_100, 2, "PCM_16", 1e-3),
        ("fast.wav", 96_000, 1, "PCM_24", 1e-3),
        ("eight_bits.wav", 24_000, 1, "PCM_U8", 1e-2),
        ("float.wav", 8_000, 6, "FLOAT", 1e-3),
        ("lossy.ogg", 48_000, 2, "VORBIS", 5e-2),
        ("lossy.mp3", 44_100, 2, "MPEG_LAYER_III", 5e-2),
    ],
)
def test_whatever_comes_is_converted(tmp_path, name, rate_hz, channels, subtype, tolerance):
    path = tmp_path / name
    wave = sine(rate_hz=rate_hz)
    if not soundfile.check_format(path.suffix[1:].upper(), subtype):
        pytest.skip(f"this libsndfile does not write {path.suffix}")
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate_hz, subtype=subtype)
    ours = audio.read(path)
    assert ours.dtype == np.float32 and ours.ndim == 1
    # A lossy file may be padded; inside, away from the resampler's edges, the sine is the sine.
    assert len(ours) == pytest.approx(12_000, abs=1 if tolerance < 5e-2 else 2400)
    inside = ours[3000:9000]
    t = np.arange(len(inside)) / 24_000
    basis = np.stack([np.sin(2 * np.pi * 440 * t), np.cos(2 * np.pi * 440 * t)], axis=1)
    weights, *_ = np.linalg.lstsq(basis, inside, rcond=None)
    assert np.hypot(*weights) == pytest.approx(0.5, rel=tolerance)
    assert np.abs(inside - basis @ weights).max() < tolerance


def test_channels_are_averaged(tmp_path):
    left, right = sine(hz=300), sine(hz=700)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 24_000, subtype="FLOAT")
    np.testing.assert_allclose(audio.read(tmp_path / "a.wav"), (left + right) / 2, atol=1e-6)


def test_float_file_beyond_full_scale_is_scaled_not_clipped(tmp_path):
    wave = sine(amplitude=3.0)
    soundfile.write(tmp_path / "a.wav", wave, 24_000, subtype="FLOAT")
    np.testing.assert_allclose(audio.read(tmp_path / "a.wav"), wave / np.abs(wave).max(), atol=1e-6)


@pytest.mark.parametrize(("name", "rate_hz", "channels"), [("a.wav", 24_000, 1), ("b.flac", 44_100, 3), ("c.ogg", 48_000, 2), ("d.wav", 8_000, 5)])
def test_blocks_give_the_samples_of_the_whole(tmp_path, monkeypatch, name, rate_hz, channels):
    wave = 0.3 * np.random.default_rng(0).standard_normal((rate_hz, channels))
    soundfile.write(tmp_path / name, wave, rate_hz)
    whole = soundfile.read(tmp_path / name, dtype="float32", always_2d=True)[0].mean(axis=1)
    whole = whole if rate_hz == 24_000 else soxr.resample(whole, rate_hz, 24_000)
    whole /= max(1, np.abs(whole).max())
    np.testing.assert_array_equal(audio.read(tmp_path / name), whole)
    monkeypatch.setattr(files, "_BLOCK_VALUES", 997)
    np.testing.assert_array_equal(audio.read(tmp_path / name), whole)


def test_of_channels_that_cancel_each_other_the_loudest_is_taken(tmp_path):
    wave, rng = sine(rate_hz=48_000), np.random.default_rng(0)
    left, right = wave, -0.9 * wave
    soundfile.write(tmp_path / "anti.wav", np.stack([0.85 * left, right, 0 * left], axis=1), 48_000, subtype="FLOAT")
    soundfile.write(tmp_path / "right.wav", right, 48_000, subtype="FLOAT")
    np.testing.assert_array_equal(audio.read(tmp_path / "anti.wav"), audio.read(tmp_path / "right.wav"))
    # Wide stereo, and one channel of many, are averaged.
    for channels in ([left, -0.5 * left], [left, rng.permutation(left)], [left, *[0 * left] * 15]):
        soundfile.write(tmp_path / "a.wav", np.stack(channels, axis=1), 24_000, subtype="FLOAT")
        np.testing.assert_allclose(audio.read(tmp_path / "a.wav"), np.mean(channels, axis=0), atol=1e-6)


def test_what_sounds_like_nothing_is_silent(tmp_path):
    for rate_hz in (24_000, 44_100):
        for wave in (sine(amplitude=9e-4), np.full(24_000, 0.5), 0.5 + sine(amplitude=9e-4)):
            soundfile.write(tmp_path / "a.wav", wave, rate_hz, subtype="FLOAT")
            with pytest.raises(UserError, match=r"a\.wav: is silent.*; remove it"):
                audio.read(tmp_path / "a.wav")
    soundfile.write(tmp_path / "a.wav", sine(amplitude=1.1e-3), 24_000, subtype="FLOAT")
    np.testing.assert_array_equal(audio.read(tmp_path / "a.wav"), sine(amplitude=1.1e-3))


def bad_files(folder):
    wave = sine()
    (folder / "text.wav").write_text("I am not a wave.")
    (folder / "empty.flac").write_bytes(b"")
    soundfile.write(folder / "silent.wav", np.zeros(24_000), 24_000)
    soundfile.write(folder / "three.wav", wave[:3], 24_000)
    soundfile.write(folder / "none.wav", wave[:0], 24_000)
    soundfile.write(folder / "three96.wav", wave[:3], 96_000)
    soundfile.write(folder / "slow.wav", wave, 1)
    for name, value in (("nan.wav", np.nan), ("inf.wav", np.inf)):
        soundfile.write(folder / name, np.where(np.arange(len(wave)) == 7, value, wave), 24_000, subtype="FLOAT")
    soundfile.write(folder / "cut.flac", wave, 24_000)
    (folder / "cut.flac").write_bytes((folder / "cut.flac").read_bytes()[:30])
    (folder / "folder.wav").mkdir()
    return [*sorted(path.name for path in folder.iterdir()), "missing.wav"]


def test_useless_files_are_named(tmp_path):
    for name in bad_files(tmp_path):
        with pytest.raises(UserError) as error:
            audio.read(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value), name


def test_nothing_is_ever_clipped(tmp_path):
    wave = sine(amplitude=2.5)
    audio.write_wav(tmp_path / "a.wav", wave)
    samples, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    np.testing.assert_allclose(samples, wave / np.abs(wave).max() * 32767, atol=0.51)
    with pytest.raises(ValueError, match="finite"):
        audio.write_wav(tmp_path / "b.wav", np.full(7, np.nan))
    assert os.listdir(tmp_path) == ["a.wav"]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.wav").mkdir()
    before = sorted(os.listdir(tmp_path))
    for place in ("no/such/a.wav", "file/a.wav", "folder.wav", "a.mp3", "a" * 300 + ".wav"):
        with pytest.raises(UserError, match=place.split("/")[-1]):
            audio.write_wav(tmp_path / place, sine())
    assert sorted(os.listdir(tmp_path)) == before


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    audio.write_wav(tmp_path / "a.wav", sine())
    old = (tmp_path / "a.wav").read_bytes()

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_files, "sync", full)
    with pytest.raises(UserError, match="a.wav cannot be written, the disk is full"):
        audio.write_wav(tmp_path / "a.wav", sine(hz=7))
    assert os.listdir(tmp_path) == ["a.wav"] and (tmp_path / "a.wav").read_bytes() == old
