import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.errors import UserError
from musiclm_jax.models import codec
from musiclm_jax.models.spectral_codec import SpectralCodecConfig, add_noise, invert, log_magnitudes
from musiclm_jax.nn.quantize import RVQConfig
from musiclm_jax.tasks.spectral_codec import SpectralCodecRecipe, SpectralCodecTask
from musiclm_jax.training.losses import mel_distance
from musiclm_jax.training.optim import OptimizerConfig

TASK = SpectralCodecTask(
    SpectralCodecConfig(frame_samples=120, window_samples=480, encoder_width=16, decoder_width=16, dim=5, num_levels=3, num_codes=7),
    SpectralCodecRecipe(
        quantizer=RVQConfig(kmeans_iters=3),
        loss_mels=40,
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="constant", warmup_steps=1, weight_decay=0.0),
        quantizer_start_step=5,
    ),
    sample_rate_hz=24_000,
)
KEY = jax.random.key(0)


def changed(**changes):
    """The task with other fields of its recipe."""
    return dataclasses.replace(TASK, recipe=dataclasses.replace(TASK.recipe, **changes))


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
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), state, after.replace(step=state.step, guard=state.guard)))


def test_loud_bins_weigh_more_than_hiss():
    spectrum = log_magnitudes(TASK.model, batch()["wave"])
    loud = spectrum > -1.0
    off = lambda where: float(TASK._difference(spectrum + 0.1 * where, spectrum))  # noqa: E731
    assert off(loud) / loud.sum() > 2 * off(~loud) / (~loud).sum()
    assert off(jnp.zeros_like(spectrum)) == 0


def test_roughness_falls_as_noise_is_added_where_the_clip_has_noise():
    model, noise = SpectralCodecConfig(), 0.1 * jax.random.normal(KEY, (3, 24_000))
    smooth = jnp.full_like(log_magnitudes(model, noise), jnp.log(0.1 * (0.375 * model.window_samples) ** 0.5))
    noisy = lambda noisiness: invert(model, add_noise(model, smooth, jnp.full_like(smooth, noisiness), 0))[0]  # noqa: E731
    off = lambda noisiness: float(TASK._roughness(noisy(noisiness), noise))  # noqa: E731
    assert off(1.0) < 0.7 * off(0.5) and off(0.5) < 0.9 * off(0.25)
    assert TASK._roughness(noise, noise) == 0


def test_how_noisy_each_bin_is_is_learned_from_the_losses_of_the_wave():
    def slope(task):
        state = task.init_state(KEY)
        grads = nn.meta.unbox(jax.jit(jax.grad(lambda params: task._loss(params, state, batch(), KEY)[0]))(state.params))
        return jnp.abs(grads[f"decoder_{len(task.model.decoder_dilations) + 1}"]["bias"][task.model.num_bins :]).max()

    assert slope(TASK) > 0 == slope(changed(wave_loss_start_step=1))


def test_at_the_end_the_decoder_alone_learns_from_the_levels_that_are_written(step):
    task = changed(finish_step=10, finish_levels=1, quantizer_dropout=0.0)
    start = TASK.init_state(KEY)
    state, _ = step(start, batch(), KEY)
    before = state.replace(step=jnp.asarray(10), opt_state=start.opt_state)  # Without momentum.
    after, metrics = jax.jit(task.train_step)(before, batch(), KEY)
    moved = {name: jax.tree.reduce(lambda a, b: a | b, jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before.params[name], after.params[name]))
             for name in before.params}  # fmt: skip
    assert moved == {name: name.startswith("decoder") for name in before.params}
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), before.stats, after.stats))
    _, more = jax.jit(changed(finish_step=10, finish_levels=3, quantizer_dropout=0.0).train_step)(before, batch(), KEY)
    assert abs(metrics["reconstruction"] - more["reconstruction"]) > 1e-4


def test_eval_measures_what_the_exported_variables_do(step):
    state, _ = step(TASK.init_state(KEY), batch(), KEY)
    metrics = jax.jit(TASK.eval_step)(state, batch(), KEY)
    assert {"loss", "mel_distance", "mel_distance_1_level", "roughness", "perplexity_1", "perplexity_3"} <= set(metrics)
    variables = TASK.variables(state)
    wave = batch()["wave"]
    fake = codec.decode(TASK.model, variables, codec.encode(TASK.model, variables, wave))[:, : wave.shape[1]]
    np.testing.assert_allclose(mel_distance(fake, wave, sample_rate_hz=24_000), metrics["mel_distance"], rtol=1e-3)


def test_nonsense_is_refused():
    with pytest.raises(UserError, match="quantizer_dropout=2"):
        changed(quantizer_dropout=2.0)
    with pytest.raises(UserError, match="finish_levels=4: choose from 1 to 3"):
        changed(finish_levels=4)
