import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.models import codec
from musiclm_jax.models.spectral_codec import SpectralCodecConfig, log_magnitudes, waver
from musiclm_jax.nn.quantize import RVQConfig
from musiclm_jax.optim import OptimizerConfig
from musiclm_jax.tasks.spectral_codec import SpectralCodecTask

TASK = SpectralCodecTask(
    model=SpectralCodecConfig(frame_samples=120, window_samples=480, encoder_width=16, decoder_width=16, dim=5, num_levels=3, num_codes=7),
    quantizer=RVQConfig(kmeans_iters=3),
    loss_mels=40,
    optimizer=OptimizerConfig(learning_rate=3e-3, schedule="constant", warmup_steps=1, weight_decay=0.0),
    quantizer_start_step=5,
)
KEY = jax.random.key(0)


def batch(samples=2500, batch=3):
    t = jnp.arange(samples) / 24_000
    return {"wave": 0.3 * jnp.sin(2 * jnp.pi * jnp.array([220.0, 440.0, 997.0])[:batch, None] * t)}


@pytest.fixture(scope="module")
def step():
    return jax.jit(TASK.train_step)


def test_training_lowers_the_loss_and_every_parameter_moves(step):
    state = start = TASK.init_state(KEY)
    losses = []
    for i in range(60):
        state, metrics = step(state, batch(), jax.random.fold_in(KEY, i))
        losses.append(float(metrics["reconstruction"]))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), start.params, state.params)
    assert jax.tree.all(moved), moved
    assert bool(state.stats["quantizer"].initialized)


def test_a_bad_batch_changes_nothing(step):
    state = TASK.init_state(KEY)
    after, metrics = step(state, {"wave": batch()["wave"].at[1, 7].set(jnp.nan)}, KEY)
    assert metrics["skipped"] == 1 and int(after.step) == 1
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), state, after.replace(step=state.step)))


def test_loud_bins_weigh_more_than_hiss():
    spectrum = log_magnitudes(TASK.model, batch()["wave"])
    loud = spectrum > -1.0
    off = lambda where: float(TASK._difference(spectrum + 0.1 * where, spectrum))  # noqa: E731
    assert off(loud) / loud.sum() > 2 * off(~loud) / (~loud).sum()
    assert off(jnp.zeros_like(spectrum)) == 0


def test_roughness_asks_for_noise_that_wavers():
    spectrum = log_magnitudes(TASK.model, jax.random.normal(KEY, (3, 6000)))
    smooth = jnp.broadcast_to(jnp.mean(spectrum), spectrum.shape)
    off = lambda noisiness: float(TASK._roughness(waver(TASK.model, smooth, jnp.full_like(smooth, noisiness), 0), spectrum))  # noqa: E731
    assert off(1.0) < 0.5 * off(0.5) < 0.5 * off(0.0)
    assert TASK._roughness(spectrum, spectrum) == 0


def test_eval_measures_what_the_exported_variables_do(step):
    state, _ = step(TASK.init_state(KEY), batch(), KEY)
    metrics = jax.jit(TASK.eval_step)(state, batch(), KEY)
    assert {"loss", "mel_distance", "mel_distance_1_level", "roughness", "perplexity_1", "perplexity_3"} <= set(metrics)
    variables = TASK.variables(state)
    wave = batch()["wave"]
    fake = codec.decode(TASK.model, variables, codec.encode(TASK.model, variables, wave))[:, : wave.shape[1]]
    from musiclm_jax.losses import mel_distance

    np.testing.assert_allclose(mel_distance(fake, wave, sample_rate_hz=24_000), metrics["mel_distance"], rtol=1e-3)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="quantizer_dropout=2"):
        dataclasses.replace(TASK, quantizer_dropout=2.0)
