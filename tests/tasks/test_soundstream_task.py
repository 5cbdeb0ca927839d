import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.errors import UserError
from musiclm_jax.models import codec
from musiclm_jax.models.discriminators import DiscriminatorConfig
from musiclm_jax.models.soundstream import SoundStreamConfig
from musiclm_jax.nn.quantize import RVQConfig
from musiclm_jax.tasks import soundstream
from musiclm_jax.tasks.soundstream import SoundStreamRecipe, SoundStreamTask
from musiclm_jax.training.optim import OptimizerConfig

OPTIMIZER = OptimizerConfig(learning_rate=3e-3, schedule="constant", warmup_steps=1, weight_decay=0.0)
TASK = SoundStreamTask(
    SoundStreamConfig(channels=2, decoder_channels=4, strides=(3, 4), dim=5, num_levels=3, num_codes=7, dilations=(1,)),
    SoundStreamRecipe(
        quantizer=RVQConfig(kmeans_iters=3),
        discriminator=DiscriminatorConfig(wave_scales=1, wave_channels=4, wave_max_channels=4, stft_channels=2, stft_window_samples=128, stft_hop_samples=32),
        optimizer=OPTIMIZER,
        discriminator_optimizer=OPTIMIZER,
        discriminator_start_step=2,
        loss_windows=(64, 512),
        loss_mels=(64, 32),
    ),
    sample_rate_hz=24_000,
)
KEY = jax.random.key(0)


def changed(**changes):
    """The task with other fields of its recipe."""
    return dataclasses.replace(TASK, recipe=dataclasses.replace(TASK.recipe, **changes))


def batch(samples=1300, batch=3):
    t = jnp.arange(samples) / 24_000
    return {"wave": 0.3 * jnp.sin(2 * jnp.pi * jnp.array([220.0, 440.0, 997.0])[:batch, None] * t)}


@pytest.fixture(scope="module")
def step():
    return jax.jit(TASK.train_step)


def same(a, b):
    return jax.tree.map(lambda x, y: bool(jnp.all(x == y)), a, b)


def unchanged_kernels(a, b):
    # Not biases: that of the logits has no gradient while both margins are violated.
    paths = [(jax.tree_util.keystr(path), equal) for path, equal in jax.tree_util.tree_leaves_with_path(same(a, b))]
    return [path for path, equal in paths if equal and "kernel" in path]


def test_warmup_trains_the_generator_alone_and_then_both(step):
    states = [TASK.init_state(KEY)]
    for i in range(3):
        state, metrics = step(states[-1], batch(), jax.random.fold_in(KEY, i))
        states.append(state)
        assert metrics["skipped"] == 0 and (metrics["discriminator"] > 0) == (i >= 2)
        assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())
    assert not unchanged_kernels(states[0].params["generator"], states[2].params["generator"])
    assert jax.tree.all(same(states[0].params["discriminator"], states[2].params["discriminator"]))
    assert not unchanged_kernels(states[2].params["discriminator"], states[3].params["discriminator"])
    assert int(states[3].step) == 3


@pytest.mark.parametrize("start", [0, 5])
def test_a_bad_batch_is_skipped(step, start):
    state = TASK.init_state(KEY).replace(step=jnp.int32(start))
    bad = {"wave": batch()["wave"].at[1, 7].set(jnp.nan)}
    after, metrics = step(state, bad, KEY)
    assert metrics["skipped"] == 1 and int(after.step) == start + 1
    assert jax.tree.all(same(state, after.replace(step=state.step, guard=state.guard)))
    assert not bool(after.stats["quantizer"].initialized)
    _, metrics = step(after, batch(), KEY)
    assert metrics["skipped"] == 0


def test_a_gradient_of_the_discriminators_that_is_not_finite_is_skipped_too(monkeypatch):
    # Its value is 0 and its gradient 0 / 0.
    monkeypatch.setattr(soundstream, "hinge_discriminator_loss", lambda real, fake: jnp.sqrt(0 * jnp.sum(real[0])))
    small = dataclasses.replace(TASK.recipe.discriminator, wave_scales=0)
    task = changed(discriminator=small, discriminator_start_step=0, loss_windows=(64,), loss_mels=(64,))
    state = task.init_state(KEY)
    after, metrics = jax.jit(task.train_step)(state, batch(), KEY)
    assert metrics["discriminator"] == 0 and jnp.isfinite(metrics["loss"] + metrics["grad_norm"])
    assert metrics["skipped"] == 1 and jax.tree.all(same(state, after.replace(step=state.step, guard=state.guard)))


def test_training_lowers_the_loss_and_silence_is_finite(step):
    state, data = TASK.init_state(KEY).replace(step=jnp.int32(-100)), batch()  # The discriminators stay out.
    losses = []
    for i in range(60):
        state, metrics = step(state, data, jax.random.fold_in(KEY, i))
        losses.append(float(metrics["reconstruction"]))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    state, metrics = step(state, {"wave": jnp.zeros((3, 1300))}, KEY)
    assert metrics["skipped"] == 0


def test_steps_are_a_function_of_state_batch_and_key(step):
    state = TASK.init_state(KEY)
    one, two = step(state, batch(), KEY), step(state, batch(), KEY)
    assert jax.tree.all(same(one, two))


def test_eval_measures_what_the_exported_variables_do(step):
    state, _ = step(TASK.init_state(KEY), batch(), KEY)
    metrics = jax.jit(TASK.eval_step)(state, batch(), KEY)
    assert {"loss", "mel_distance", "perplexity_1", "perplexity_3"} <= set(metrics)
    variables = TASK.variables(state)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables)) and variables["quantizer"]["codebooks"].shape == (3, 7, 5)
    wave = jnp.pad(batch()["wave"], ((0, 0), (0, 8)))  # 1300 -> 109 frames of 12.
    fake = codec.decode(TASK.model, variables, codec.encode(TASK.model, variables, wave))
    np.testing.assert_allclose(TASK._reconstruction(fake, wave), metrics["loss"], rtol=1e-4)


def test_paper_size_has_a_state():
    state = jax.eval_shape(SoundStreamTask(SoundStreamConfig(), sample_rate_hz=24_000).init_state, KEY)
    assert state.stats["quantizer"].codebooks.shape == (12, 1024, 256)
    assert 8.4e6 < sum(leaf.size for leaf in jax.tree.leaves(state.params["generator"])) < 8.7e6


def test_nonsense_is_refused():
    with pytest.raises(UserError, match="quantizer_dropout=2"):
        changed(quantizer_dropout=2.0)
    with pytest.raises(UserError, match=r"loss_windows=\(64, 512\), loss_mels=\(64,\)"):
        changed(loss_mels=(64,))


def test_before_its_start_the_quantizer_follows_but_does_not_touch_the_wave():
    waiting, started = (changed(quantizer_start_step=start, quantizer_dropout=0.0) for start in (1, 0))
    state, _ = jax.jit(TASK.train_step)(TASK.init_state(KEY), batch(), KEY)  # Codebooks are there.
    off = state.replace(stats={"quantizer": state.stats["quantizer"].replace(codebooks=state.stats["quantizer"].codebooks + 3.0)})
    at = lambda task, state, step: jax.jit(task.train_step)(state.replace(step=jnp.int32(step)), batch(), KEY)  # noqa: E731
    assert at(waiting, state, 0)[1]["reconstruction"] == at(waiting, off, 0)[1]["reconstruction"]
    assert at(waiting, state, 1)[1]["reconstruction"] == at(started, state, 1)[1]["reconstruction"]
    assert at(started, state, 0)[1]["reconstruction"] != at(started, off, 0)[1]["reconstruction"]
    assert bool(at(waiting, TASK.init_state(KEY), 0)[0].stats["quantizer"].initialized)


def test_the_waveform_term_is_the_mean_absolute_difference():
    fake, wave = jax.random.normal(KEY, (2, 2, 1300))
    plain, weighted = (changed(waveform_weight=weight)._reconstruction(fake, wave) for weight in (0.0, 2.5))
    np.testing.assert_allclose(weighted - plain, 2.5 * np.mean(np.abs(np.asarray(fake - wave))), rtol=1e-4)
