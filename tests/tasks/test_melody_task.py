import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from musiclm_jax.audio.features import LogMelConfig
from musiclm_jax.errors import UserError
from musiclm_jax.models import melody
from musiclm_jax.models.melody import MelodyConfig
from musiclm_jax.tasks.melody import MelodyRecipe, MelodyTask
from musiclm_jax.training import sharding
from musiclm_jax.training.optim import OptimizerConfig
from musiclm_jax.training.task import Task

TINY = MelodyConfig(
    mel=LogMelConfig(sample_rate_hz=100, window_samples=40, hop_samples=20, num_fft=64, num_mels=11, max_hz=50.0),
    dim=10,
    num_layers=2,
    num_heads=3,
    head_dim=2,
    mlp_dim=14,
    dropout=0.0,
    embedding_dim=7,
    window_sec=2.6,
)
TASK = MelodyTask(TINY, MelodyRecipe(optimizer=OptimizerConfig(learning_rate=3e-3, schedule="constant", warmup_steps=5)))


def batch(size=6):
    """A melody is a tone, a rendering its loudness and noise."""
    rng = np.random.default_rng(0)
    tones = np.sin(2 * np.pi * np.linspace(4, 45, size)[:, None] * np.arange(260) / 100)
    wave, other = (jnp.asarray(gain * tones + 0.1 * rng.normal(size=(size, 260)), jnp.float32) for gain in (1.0, 0.3))
    return {"wave": wave, "other_wave": other, "melody": jnp.arange(size)}


@pytest.fixture(scope="module")
def state():
    return jax.jit(TASK.init_state)(jax.random.key(0, impl="rbg"))  # threefry takes long to compile on a CPU


@pytest.fixture(scope="module")
def train_step():
    return jax.jit(TASK.train_step)


@pytest.fixture(scope="module")
def eval_step():
    return jax.jit(TASK.eval_step)


def test_it_is_a_task():
    assert isinstance(TASK, Task) and TASK.name == "melody"


def test_every_parameter_gets_a_gradient(state, train_step):
    # After one step Adam's first moment is a tenth of the gradient.
    grads = optax.tree_utils.tree_get(train_step(state, batch(), jax.random.key(0))[0].opt_state, "mu")
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, state.params)
    silent = [jax.tree_util.keystr(path) for path, grad in jax.tree_util.tree_leaves_with_path(grads) if not jnp.any(grad != 0)]
    assert not silent


def test_overfits_a_batch(state, train_step, eval_step):
    first = eval_step(state, batch(), jax.random.key(0))
    for i in range(80):
        state, metrics = train_step(state, batch(), jax.random.key(i))
    assert state.step == 80 and all(value.shape == () for value in metrics.values())
    last = eval_step(state, batch(), jax.random.key(0))
    assert last["loss"] < 0.5 * first["loss"] and last["recall"] == 1.0
    assert last["recall_chance"] == pytest.approx(1 / 11)
    assert last["pair_cosine"] - last["negative_cosine"] > first["pair_cosine"] - first["negative_cosine"]


def metrics_by_loops(anchors, melodies, margin):
    """Loss, recall and mean cosines of [2, B, D] unit vectors, one pair at a time."""
    which = [(rendering, row) for rendering in range(2) for row in range(anchors.shape[1])]
    distance = lambda a, b: float(np.sum((anchors[a] - anchors[b]) ** 2))  # noqa: E731
    losses, hits, pairs, unlike = [], [], [], []
    for a in which:
        twin = (1 - a[0], a[1])
        positive = distance(a, twin)
        negatives = [distance(a, b) for b in which if melodies[b[1]] != melodies[a[1]]]
        farther = [d for d in negatives if positive < d < positive + margin]
        losses.append(max(0.0, positive - (min(farther) if farther else max(negatives)) + margin))
        nearest = min((b for b in which if b != a), key=lambda b: distance(a, b))  # noqa: B023
        hits.append(melodies[nearest[1]] == melodies[a[1]])
        pairs.append(anchors[a] @ anchors[twin])
        unlike += [anchors[a] @ anchors[b] for b in which if melodies[b[1]] != melodies[a[1]]]
    return {"loss": np.mean(losses), "recall": np.mean(hits), "pair_cosine": np.mean(pairs), "negative_cosine": np.mean(unlike)}


@pytest.mark.parametrize("melodies", [[0, 1, 2, 3, 4], [7, 3, 7, 5, 3]])
def test_metrics_are_the_loops(state, eval_step, melodies):
    rng = np.random.default_rng(1)
    wave, other = (jnp.asarray(rng.normal(size=(5, 260)), jnp.float32) for _ in range(2))
    metrics = eval_step(state, {"wave": wave, "other_wave": other, "melody": jnp.asarray(melodies)}, jax.random.key(0))
    params = sharding.unbox(state.params)
    anchors = np.stack([np.asarray(melody.embed(TINY, params, each), np.float64) for each in (wave, other)])
    for name, expected in metrics_by_loops(anchors, melodies, TASK.recipe.margin).items():
        assert metrics[name] == pytest.approx(expected, abs=1e-5), name
    twins = sum(melodies.count(each) * 2 - 1 for each in melodies) * 2
    assert metrics["recall_chance"] == pytest.approx(twins / (10 * 9))


def test_equal_embeddings_cost_the_margin(state, eval_step):
    same = {**batch(), "wave": jnp.ones((6, 260)), "other_wave": jnp.ones((6, 260))}
    assert eval_step(state, same, jax.random.key(0))["loss"] == pytest.approx(TASK.recipe.margin, abs=1e-5)


def test_one_melody_alone_has_nothing_to_say(state, eval_step):
    metrics = eval_step(state, {**batch(), "melody": jnp.zeros(6, jnp.int32)}, jax.random.key(0))
    assert metrics["loss"] == 0 and metrics["recall"] == metrics["recall_chance"] == 1 and metrics["negative_cosine"] == 0


def test_dropout_draws_from_the_steps_key(state):
    task = MelodyTask(dataclasses.replace(TINY, dropout=0.5))
    loss = jax.jit(lambda rng: task._loss(state.params, batch(), rng)[0])
    losses = [float(loss(jax.random.key(i))) for i in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_variables_are_plain_arrays(state):
    leaves = jax.tree.leaves(TASK.variables(state), is_leaf=lambda x: not isinstance(x, dict))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)


def test_margin_must_be_positive():
    with pytest.raises(UserError, match="margin=0"):
        MelodyRecipe(margin=0.0)
