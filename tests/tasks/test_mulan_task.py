import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from musiclm_jax.audio.features import LogMelConfig
from musiclm_jax.models.mulan import MuLanConfig, SpecAugmentConfig
from musiclm_jax.models.resnet import ResNetConfig
from musiclm_jax.models.text_tower import TextTowerConfig
from musiclm_jax.tasks.mulan import MuLanRecipe, MuLanTask, contrastive_loss, recall_at_1, same_text, word_loss
from musiclm_jax.training.optim import OptimizerConfig

TINY = MuLanConfig(
    mel=LogMelConfig(sample_rate_hz=100, window_samples=40, hop_samples=20, num_fft=64, num_mels=11, max_hz=50.0),
    audio=ResNetConfig(depths=(1, 1), widths=(4, 8), strides=((1, 1), (2, 2)), bottleneck=False, stem_width=4, stem_pool=False),
    text=TextTowerConfig(vocab_size=19, max_tokens=13, dim=10, num_layers=2, num_heads=2, mlp_dim=14, dropout=0.0, pre_norm=True),
    spec_augment=SpecAugmentConfig(num_time_masks=0, num_mel_masks=0),
    embedding_dim=7,
    num_levels=3,
    num_codes=5,
)
FORMS = ("decoupled", "infonce", "sigmoid")
TASK = MuLanTask(TINY, MuLanRecipe(optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_steps=5)))


def batch(size=6, seed=0):
    rng = np.random.default_rng(seed)
    ids, mask = rng.integers(4, 19, (size, 5)).astype(np.int32), np.ones((size, 5), bool)
    mask[1:, 4] = False
    hz = np.linspace(4, 45, size)[:, None]
    wave = np.sin(2 * np.pi * hz * np.arange(1000) / 100) + 0.1 * rng.normal(size=(size, 1000))
    return {"wave": jnp.asarray(wave, jnp.float32), "text_ids": jnp.asarray(ids), "text_mask": jnp.asarray(mask)}


def loss_by_loops(cosines, same, temperature, bias, form):
    s, size, total = cosines / temperature + bias, len(cosines), 0.0
    for i in range(size):
        others = [j for j in range(size) if not same[i, j]]
        if form == "decoupled":
            total += -s[i, i] + math.log(sum(math.exp(s[i, j]) + math.exp(s[j, i]) for j in others))
        elif form == "infonce":
            rows, columns = (sum(math.exp(x) for x in xs) for xs in ([s[i, j] for j in [i, *others]], [s[j, i] for j in [i, *others]]))
            total += -s[i, i] + (math.log(rows) + math.log(columns)) / 2
        else:
            total += math.log(1 + math.exp(-s[i, i])) + sum(math.log(1 + math.exp(s[i, j])) for j in others)
    return total / size


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("twins", [False, True])
def test_loss_is_the_loops(form, twins):
    cosines = np.random.default_rng(0).uniform(-1, 1, (5, 5)).astype(np.float32)
    same = np.eye(5, dtype=bool)
    same[1, 3] = same[3, 1] = twins
    bias = -1.5 if form == "sigmoid" else 0.0
    ours = contrastive_loss(jnp.asarray(cosines), jnp.asarray(same), temperature=jnp.float32(0.3), bias=jnp.float32(bias), form=form)
    np.testing.assert_allclose(ours, loss_by_loops(cosines, same, 0.3, bias, form), rtol=1e-5)


@pytest.mark.parametrize("form, expected", [("infonce", math.log(7)), ("decoupled", math.log(2 * 6))])
def test_chance_lines(form, expected):
    loss = contrastive_loss(jnp.zeros((7, 7)), jnp.eye(7, dtype=bool), temperature=jnp.float32(0.1), bias=jnp.zeros(()), form=form)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_loss_is_finite_at_extremes(form):
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def loss(cosines, temperature, same):
        return contrastive_loss(cosines, same, temperature=temperature, bias=jnp.zeros(()), form=form)

    loss = jax.jit(loss)
    for cosines in (jnp.ones((3, 3)), -jnp.ones((3, 3)), 2 * jnp.eye(3) - 1):
        for same in (jnp.eye(3, dtype=bool), jnp.ones((3, 3), bool)):
            value, grads = loss(cosines, jnp.float32(0.005), same)
            assert all(np.isfinite(leaf).all() for leaf in (value, *grads))


def test_same_text_looks_at_tokens_only():
    ids = jnp.asarray([[2, 5, 3, 7], [2, 5, 3, 9], [2, 5, 6, 3], [2, 5, 3, 3]], jnp.int32)
    mask = jnp.asarray([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]], bool)
    expected = np.eye(4, dtype=bool)
    expected[0, 1] = expected[1, 0] = True
    np.testing.assert_array_equal(same_text(ids, mask), expected)


def test_recall_counts_twins_as_right():
    cosines = jnp.asarray([[0.1, 0.9, 0.2], [0.3, 0.8, 0.1], [0.4, 0.1, 0.2]])
    assert recall_at_1(cosines, jnp.eye(3, dtype=bool)) == pytest.approx(1 / 3)
    assert recall_at_1(cosines, jnp.eye(3, dtype=bool).at[0, 1].set(True)) == pytest.approx(2 / 3)


@pytest.fixture(scope="module")
def state():
    return jax.jit(TASK.init_state)(jax.random.key(0, impl="rbg"))  # threefry takes 10 s to compile on a CPU


@pytest.fixture(scope="module")
def train_step():
    return jax.jit(TASK.train_step)


def test_every_parameter_gets_a_gradient(state, train_step):
    # After one step Adam's first moment is a tenth of the gradient.
    grads = optax.tree_utils.tree_get(train_step(state, batch(), jax.random.key(0))[0].opt_state, "mu")
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, state.params)
    silent = [jax.tree_util.keystr(path) for path, grad in jax.tree_util.tree_leaves_with_path(grads) if not jnp.any(grad != 0)]
    assert not silent


def test_sigmoid_adds_a_bias(state):
    sigmoid = MuLanTask(dataclasses.replace(TINY, loss="sigmoid"))
    shapes = jax.eval_shape(sigmoid.init_state, jax.random.key(0)).params
    assert set(shapes["mulan"]) - set(state.params["mulan"]) == {"bias"}


def test_overfits_a_batch(state, train_step):
    first = None
    for i in range(60):
        state, metrics = train_step(state, batch(), jax.random.key(i))
        first = first or metrics
    assert metrics["loss"] < first["loss"] and metrics["temperature"] > 0 and state.step == 60
    evaluated = jax.jit(TASK.eval_step)(state, batch(), jax.random.key(0))
    assert evaluated["audio_to_text"] == evaluated["text_to_audio"] == 1.0
    assert evaluated["recall_chance"] == pytest.approx(1 / 6)
    assert evaluated["pair_cosine"] > evaluated["negative_cosine"]
    assert all(value.shape == () for value in metrics.values())


def test_augmentation_and_dropout_draw_from_the_steps_key(state):
    noisy = dict(spec_augment=SpecAugmentConfig(max_time_frames=20, max_mel_bins=4), text=dataclasses.replace(TINY.text, dropout=0.5))
    task = MuLanTask(dataclasses.replace(TINY, **noisy))

    @jax.jit
    def loss(rng):
        return task._loss(state.params, batch(), rng)[0]

    losses = [float(loss(jax.random.key(i))) for i in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_temperature_has_a_floor(state):
    towers = state.params["mulan"]
    cold = {**towers, "log_temperature": jax.tree.map(lambda x: x - 100, towers["log_temperature"])}
    evaluated = jax.jit(TASK.eval_step)(state.replace(params={"mulan": cold}), batch(), jax.random.key(0))
    assert evaluated["temperature"] == pytest.approx(TINY.min_temperature)


def test_word_loss_by_hand():
    logits, ids = np.random.default_rng(0).standard_normal((2, 5)), np.array([[1, 4, 0], [3, 3, 2]])
    mask = np.array([[True, True, False], [True, True, True]])
    nats = -np.log(np.exp(logits) / np.exp(logits).sum(axis=0))  # over clips
    expected = (nats[0, 1] + nats[0, 4] + 2 * nats[1, 3] + nats[1, 2]) / 2
    np.testing.assert_allclose(word_loss(jnp.asarray(logits), jnp.asarray(ids), jnp.asarray(mask)), expected, rtol=1e-5)


def test_words_are_read_off_the_audio_embedding():
    task = dataclasses.replace(TASK, recipe=dataclasses.replace(TASK.recipe, word_weight=0.5))
    state = jax.jit(task.init_state)(jax.random.key(0, impl="rbg"))
    step = jax.jit(task.train_step)
    first = step(state, batch(), jax.random.key(0))[1]
    for i in range(30):
        state, metrics = step(state, batch(), jax.random.key(i))
    assert metrics["word_loss"] < 0.9 * first["word_loss"]
    # The layer that reads them is of no use after training, and stays behind.
    assert jax.tree.structure(task.variables(state)) == jax.tree.structure(TASK.variables(TASK.init_state(jax.random.key(0))))


def test_variables_are_plain_arrays(state):
    leaves = jax.tree.leaves(TASK.variables(state), is_leaf=lambda x: not isinstance(x, dict))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
