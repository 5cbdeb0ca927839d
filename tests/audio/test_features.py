import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.audio.features import LogMelConfig, frame, log_mel, mel_filterbank, octave_filterbank, stft
from musiclm_jax.errors import UserError


def test_frame_covers_its_samples_and_pads_right():
    wave = jnp.arange(1.0, 24.0)[None]  # 23 samples
    frames = np.asarray(frame(wave, window=7, hop=3))
    assert frames.shape == (1, 8, 7)
    padded = np.pad(np.arange(1.0, 24.0), (0, 10))
    for t in range(8):
        np.testing.assert_array_equal(frames[0, t], padded[3 * t : 3 * t + 7])


@pytest.mark.parametrize("num_fft, num_mels, max_hz", [(1024, 80, 8000.0), (2048, 128, 12000.0), (512, 64, 7000.0)])
def test_filterbank_is_librosas(num_fft, num_mels, max_hz):
    librosa = pytest.importorskip("librosa")
    ours = mel_filterbank(sample_rate_hz=24_000, num_fft=num_fft, num_mels=num_mels, min_hz=0.0, max_hz=max_hz)
    theirs = librosa.filters.mel(sr=24_000, n_fft=num_fft, n_mels=num_mels, fmin=0.0, fmax=max_hz)
    np.testing.assert_allclose(ours, theirs.T, atol=1e-7)


def test_octave_bands_are_as_far_apart_everywhere():
    config = LogMelConfig(window_samples=4096, num_fft=4096, num_mels=61, min_hz=220.0, max_hz=7040.0, scale="octave")  # 12 per octave
    t = np.arange(24_000) / 24_000
    for note in (0, 7, 12, 24):
        tone = jnp.asarray(np.sin(2 * np.pi * 440 * 2 ** (note / 12) * t), jnp.float32)[None]
        assert int(log_mel(tone, config)[0, 10].argmax()) == 12 + note
    filters = octave_filterbank(sample_rate_hz=24_000, num_fft=512, num_bands=61, min_hz=220.0, max_hz=7040.0)
    assert (filters.sum(axis=0) > 0).all()  # Also where bands lie closer than bins.
    filters = octave_filterbank(sample_rate_hz=24_000, num_fft=8192, num_bands=13, min_hz=440.0, max_hz=880.0)
    np.testing.assert_allclose(filters.sum(axis=0) * 24_000 / 8192, 1, rtol=0.05)


def test_nonsense_scales_are_refused():
    with pytest.raises(UserError, match="scale='bark'"):
        LogMelConfig(scale="bark")
    with pytest.raises(UserError, match="min_hz above 0"):
        LogMelConfig(scale="octave")


def test_stft_is_librosas_up_to_framing():
    librosa = pytest.importorskip("librosa")
    wave = np.random.default_rng(0).normal(size=2048).astype(np.float32)
    ours = np.asarray(stft(jnp.asarray(wave)[None], window=256, hop=64))[0]
    theirs = librosa.stft(np.pad(wave, (0, 256)), n_fft=256, hop_length=64, center=False).T
    np.testing.assert_allclose(ours, theirs[: len(ours)], atol=1e-4)


def test_thirty_seconds_are_three_thousand_frames():
    import jax

    shape = jax.eval_shape(lambda w: log_mel(w, LogMelConfig()), jax.ShapeDtypeStruct((2, 720_000), jnp.float32))
    assert shape.shape == (2, 3000, 80)
