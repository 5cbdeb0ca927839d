"""Mel spectrograms against librosa.feature.melspectrogram, in float64, for the front ends of w2v-BERT and MuLan."""

import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.audio.features import LogMelConfig, log_mel
from musiclm_jax.models.mulan import MuLanConfig
from musiclm_jax.models.w2v_bert import W2vBertConfig

librosa = pytest.importorskip("librosa")

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(W2vBertConfig().mel, id="w2v-BERT"),
        pytest.param(MuLanConfig().mel, id="MuLan"),
        pytest.param(LogMelConfig(window_samples=2048, hop_samples=480, num_fft=2048, num_mels=96, min_hz=30.0, max_hz=12_000.0), id="long windows"),
    ],
)
@pytest.mark.parametrize("num_samples", [7001, 7200])
def test_log_mel_is_librosas(config, num_samples):
    # Noise under a tone: every bin is well above `magnitude`'s 1e-12, which keeps its gradient finite in silence and is not librosa's.
    rng, t = np.random.default_rng(0), np.arange(num_samples) / config.sample_rate_hz
    wave = 0.3 * np.sin(2 * np.pi * np.array([[440.0], [997.0]]) * t) + 1e-2 * rng.standard_normal((2, num_samples))
    wave = wave.astype(np.float32)
    frames = -(-num_samples // config.hop_samples)
    # librosa centres the window among num_fft samples. We start it at the frame's first one, and pad on the right.
    left = (config.num_fft - config.window_samples) // 2
    padded = np.pad(wave.astype(np.float64), ((0, 0), (left, (frames - 1) * config.hop_samples + config.num_fft - left - num_samples)))
    mel = librosa.feature.melspectrogram(
        y=padded,
        sr=config.sample_rate_hz,
        n_fft=config.num_fft,
        hop_length=config.hop_samples,
        win_length=config.window_samples,
        center=False,
        power=1.0,
        n_mels=config.num_mels,
        fmin=config.min_hz,
        fmax=config.max_hz,
    )
    ours = log_mel(jnp.asarray(wave), config)
    assert ours.shape == (2, frames, config.num_mels)
    np.testing.assert_allclose(ours, np.log(mel + config.floor).transpose(0, 2, 1), atol=1e-4, rtol=0)
