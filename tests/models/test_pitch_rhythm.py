import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.audio.features import LogMelConfig
from musiclm_jax.errors import UserError
from musiclm_jax.models import mulan
from musiclm_jax.models.mulan import MuLanConfig
from musiclm_jax.models.pitch_rhythm import PitchRhythmConfig, PitchRhythmTower, around, autocorrelation

TINY = PitchRhythmConfig(widths=(4, 4, 8), num_lags=30, rhythm_width=5, num_classes=40, chord_width=6, key_width=7, band_width=3)
BANDS = 160


def tower(config=TINY):
    model = PitchRhythmTower(config)
    variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 40, BANDS))))
    return lambda mels: np.asarray(jax.jit(model.apply)(variables, mels))


def parts(features):
    """Rhythm, harmony and timbre of features."""
    return np.split(features, [TINY.rhythm_width, TINY.rhythm_width + 2 * TINY.key_width], axis=1)


def chord(bands, *, frames=40):
    mels = np.zeros((1, frames, BANDS), np.float32)
    mels[:, :, list(bands)] = np.random.default_rng(0).uniform(1, 2, size=(1, frames, 1))
    return mels


def test_autocorrelation_against_a_loop():
    x = np.random.default_rng(0).standard_normal((2, 11, 3))
    centred = x - x.mean(axis=1, keepdims=True)
    for num_lags in (4, 15):
        expected = np.zeros((2, num_lags, 3))
        for lag in range(min(num_lags, 11)):
            expected[:, lag] = np.sum(centred[:, : 11 - lag] * centred[:, lag:], axis=1) / 11
        expected /= expected[:, :1] + 1e-3
        np.testing.assert_allclose(autocorrelation(jnp.asarray(x, jnp.float32), num_lags=num_lags), expected, atol=1e-5)


def test_a_constant_repeats_nothing():
    np.testing.assert_array_equal(autocorrelation(jnp.ones((1, 9, 2)), num_lags=3), 0)


def test_harmony_is_the_same_in_every_key_and_timbre_is_not():
    embed = tower()
    # Major in two keys, and minor: an octave is 80 bands, of which the stem leaves 40.
    major, higher, minor = (parts(embed(chord(notes)))[1:] for notes in ((20, 28, 34), (40, 48, 54), (20, 26, 34)))
    np.testing.assert_allclose(higher[0], major[0], atol=1e-4)
    assert np.abs(minor[0] - major[0]).max() > 1e-2
    assert np.abs(higher[1] - major[1]).max() > 1e-2


def test_the_circle_has_no_start():
    class Turn(nn.Module):
        @nn.compact
        def __call__(self, x):
            return around(x, 4, name="turn")

    x = jax.random.normal(jax.random.key(0), (2, 3, 12, 5))
    variables = Turn().init(jax.random.key(1), x)
    turned = Turn().apply(variables, jnp.roll(x, 7, axis=2))
    np.testing.assert_allclose(turned, jnp.roll(Turn().apply(variables, x), 7, axis=2), atol=1e-5)


def test_bands_that_are_no_whole_octaves_are_refused():
    with pytest.raises(ValueError, match="75 bands after the stem .* num_classes=40"):
        PitchRhythmTower(TINY).init(jax.random.key(0), jnp.zeros((1, 40, 150)))


def test_rhythm_tells_tempi_apart():
    embed = tower()

    def beats(period):
        mels = np.zeros((1, 120, BANDS), np.float32)
        mels[:, ::period] = 3.0
        return parts(embed(mels))[0]

    assert np.abs(beats(8) - beats(12)).max() > 1e-2
    np.testing.assert_allclose(parts(embed(np.ones((1, 120, BANDS), np.float32)))[0].shape, (1, TINY.rhythm_width))


def test_recomputing_changes_nothing():
    mels = jax.random.normal(jax.random.key(1), (2, 40, BANDS))
    variables = PitchRhythmTower(TINY).init(jax.random.key(0), mels)
    np.testing.assert_allclose(PitchRhythmTower(TINY, remat="full").apply(variables, mels), PitchRhythmTower(TINY).apply(variables, mels), atol=1e-5)


def test_in_mulan():
    mel = LogMelConfig(num_mels=80, scale="octave", min_hz=110.0)
    config = MuLanConfig(mel=mel, audio=TINY, text=dataclasses.replace(MuLanConfig().text, dim=12, num_heads=2, num_layers=1, mlp_dim=8))
    params = nn.unbox(mulan.init(config, jax.random.key(0)))
    embedding = mulan.embed_audio(config, params, jax.random.normal(jax.random.key(2), (2, 24_000)))
    assert embedding.shape == (2, 128)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"widths": (4, 4)}, {"num_lags": 0}])
def test_bad_configs_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        PitchRhythmConfig(**wrong)
