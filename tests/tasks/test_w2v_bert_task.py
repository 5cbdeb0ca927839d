"""The losses of w2v-BERT, and that a step learns."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.audio.features import LogMelConfig
from musiclm_jax.models.w2v_bert import W2vBertConfig, W2vBertOutput, sample_mask
from musiclm_jax.tasks.w2v_bert import (
    W2vBertRecipe,
    W2vBertTask,
    contrastive_loss,
    diversity_loss,
    masked_mean,
    masked_prediction_loss,
    sample_distractors,
)
from musiclm_jax.training.optim import OptimizerConfig

TASK = W2vBertTask(
    model=W2vBertConfig(
        mel=LogMelConfig(num_mels=13, num_fft=1024),
        conv_channels=(2, 3),
        dim=6,
        num_heads=2,
        mlp_dim=11,
        num_contrastive_layers=1,
        num_masked_layers=1,
        feature_layer=1,
        num_codes=7,
        code_dim=5,
        num_clusters=7,
    ),
    recipe=W2vBertRecipe(
        # Without weight decay a parameter moves only if it has a gradient.
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_steps=1, weight_decay=0.0),
        mask_start_rate=0.1,
        mask_span=3,
        num_distractors=11,
    ),
)


def output(rng=0, shape=(3, 13), codes=7, dim=5) -> W2vBertOutput:
    keys = jax.random.split(jax.random.key(rng), 4)
    logits = jax.random.normal(keys[0], (*shape, codes))
    ids = jnp.argmax(logits, -1).astype(jnp.int32)
    return W2vBertOutput(
        context=jax.random.normal(keys[1], (*shape, dim)),
        targets=jax.random.normal(keys[2], (codes, dim))[ids],
        sampled_ids=ids,
        code_ids=ids,
        code_probs=jax.nn.softmax(logits),
        logits=jax.random.normal(keys[3], (*shape, codes)),
    )


def batch(seed=0):
    rng = np.random.default_rng(seed)
    tones = np.sin(2 * np.pi * rng.integers(200, 4000, size=(2, 8, 1)) * np.arange(2880) / 24_000)
    return {"wave": (0.3 * tones).reshape(2, -1).astype(np.float32)}


@pytest.fixture(scope="module")
def step():
    return jax.jit(TASK.train_step)


@pytest.fixture(scope="module")
def trained(step):
    """The first state, the state after some steps on one batch, and the metrics of every step."""
    state = first = nn.unbox(jax.jit(TASK.init_state)(jax.random.key(0)))
    history = []
    for i in range(60):
        state, metrics = step(state, batch(), jax.random.key(i))
        history.append({name: float(value) for name, value in metrics.items()})
    return first, state, history


def test_distractors_are_other_masked_frames_all_of_them_equally_often():
    mask = jnp.asarray([[1, 0, 1, 1, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0, 0, 1]], bool)
    picks = np.asarray(sample_distractors(jax.random.key(0), mask, num=6000))
    assert picks.shape == (2, 8, 6000)
    for row, frames in enumerate([[0, 2, 3, 6], [3, 7]]):
        for frame in frames:
            others, counts = np.unique(picks[row, frame], return_counts=True)
            np.testing.assert_array_equal(others, [f for f in frames if f != frame])
            np.testing.assert_allclose(counts / 6000, 1 / len(others), atol=0.03)


def test_contrastive_loss_equals_its_definition():
    out, mask = output(), sample_mask(jax.random.key(9), (3, 13), start_rate=0.3, span=2)
    loss, accuracy = contrastive_loss(out, mask, rng=jax.random.key(4), num_distractors=5, temperature=0.1)
    picks = np.asarray(sample_distractors(jax.random.key(4), mask, num=5))
    out = types.SimpleNamespace(**{name: np.asarray(value) for name, value in vars(out).items()})
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    losses, wins = [], []
    for b, t in np.argwhere(np.asarray(mask)):
        true = cosine(out.context[b, t], out.targets[b, t]) / 0.1
        others = [cosine(out.context[b, t], out.targets[b, s]) / 0.1 for s in picks[b, t]]
        rivals = [o for o, s in zip(others, picks[b, t], strict=True) if out.sampled_ids[b, s] != out.sampled_ids[b, t]]
        losses.append(np.log(np.sum(np.exp([true, *others]))) - true)
        wins.append(bool(rivals) and true > max(rivals))
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(accuracy, np.mean(wins), rtol=1e-5)


def test_losses_touch_masked_frames_only():
    out, mask = output(), sample_mask(jax.random.key(9), (3, 13), start_rate=0.2, span=2)
    # Gradients of the predictions are zero wherever nothing was masked.
    logits = jax.grad(lambda x: masked_prediction_loss(out.replace(logits=x), mask)[0])(out.logits)
    context = jax.grad(lambda x: contrastive_loss(out.replace(context=x), mask, rng=jax.random.key(1), num_distractors=5, temperature=0.1)[0])(out.context)
    targets = jax.grad(lambda x: contrastive_loss(out.replace(targets=x), mask, rng=jax.random.key(1), num_distractors=5, temperature=0.1)[0])(out.targets)
    assert 0 < mask.sum() < mask.size
    for grad in (logits, context, targets):
        assert np.isfinite(grad).all()
        np.testing.assert_array_equal(np.asarray(grad)[~np.asarray(mask)], 0)
    np.testing.assert_array_equal(np.abs(np.asarray(logits)).sum(-1) > 0, mask)


def test_nothing_masked_costs_nothing():
    for mask in (jnp.zeros((3, 13), bool), jnp.zeros((3, 13), bool).at[1, 4].set(True)):
        loss, accuracy = contrastive_loss(output(), mask, rng=jax.random.key(1), num_distractors=5, temperature=0.1)
        assert loss == 0 and accuracy == 0
    assert masked_prediction_loss(output(), jnp.zeros((3, 13), bool))[0] == 0
    assert masked_mean(jnp.full((1, 2), jnp.inf), jnp.zeros((1, 2), bool)) == 0


def test_diversity_is_the_unused_share_of_the_codebook():
    uniform, one = jnp.full((2, 3, 8), 1 / 8), jax.nn.one_hot(jnp.full((2, 3), 5), 8)
    np.testing.assert_allclose(diversity_loss(uniform), 0, atol=1e-5)
    np.testing.assert_allclose(diversity_loss(one), 1 - 1 / 8, atol=1e-5)
    half = jax.nn.one_hot(jnp.arange(8).reshape(2, 4) % 4, 8)
    np.testing.assert_allclose(diversity_loss(half), 0.5, atol=1e-5)
    assert 0 <= diversity_loss(output().code_probs) <= 1


def test_diversity_has_a_gradient_where_a_softmax_has_underflowed():
    slope = jax.grad(lambda logits: diversity_loss(jax.nn.softmax(logits)))(jnp.array([[[200.0, 0, 0, 0, 0]], [[0.0, 200, 0, 0, 0]]]))
    assert jnp.all(jnp.isfinite(slope))


def test_gumbel_temperature_falls_to_its_floor():
    np.testing.assert_allclose(TASK.gumbel_temperature_at(0), 2.0)
    np.testing.assert_allclose(TASK.gumbel_temperature_at(1000), 2 * 0.999995**1000, rtol=1e-4)
    np.testing.assert_allclose(TASK.gumbel_temperature_at(10**7), 0.5)


def test_a_collapsed_codebook_is_no_way_out():
    """One code for all frames costs log(K + 1), and wins nothing."""
    out = output()
    out = out.replace(sampled_ids=jnp.zeros((3, 13), jnp.int32), targets=jnp.ones((3, 13, 5)))
    loss, accuracy = contrastive_loss(out, jnp.ones((3, 13), bool), rng=jax.random.key(1), num_distractors=5, temperature=0.1)
    np.testing.assert_allclose(loss, np.log(6), rtol=1e-5)
    assert accuracy == 0


def test_the_losses_of_one_batch_fall(trained):
    _, state, history = trained
    for name in ("loss", "contrastive_loss"):
        early, late = (np.mean([m[name] for m in part]) for part in (history[:10], history[-10:]))
        assert late < 0.9 * early, (name, early, late)
    assert state.step == 60 and all(m["skipped"] == 0 for m in history)
    assert all(0 <= m["diversity_loss"] <= 1 and 1 <= m["code_perplexity"] <= 7.001 for m in history)


def test_every_parameter_is_trained(trained):
    first, state, _ = trained
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(first.params), jax.tree.leaves(state.params), strict=True):
        assert not np.array_equal(old, new), jax.tree_util.keystr(path)


def test_steps_are_deterministic_and_keys_matter(trained, step):
    first, _, _ = trained
    a, b, c = (step(first, batch(), jax.random.key(k))[1]["loss"] for k in (1, 1, 2))
    assert a == b != c


def test_a_step_that_is_not_finite_is_skipped(trained, step):
    first, _, _ = trained
    bad = {"wave": np.full_like(batch()["wave"], np.nan)}
    state, metrics = step(first, bad, jax.random.key(0))
    assert metrics["skipped"] == 1 and state.step == 1
    jax.tree.map(np.testing.assert_array_equal, state.params, first.params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, first.opt_state)


def test_eval_gives_scalars_and_variables_have_no_boxes():
    state = jax.eval_shape(TASK.init_state, jax.random.key(0))
    metrics = jax.eval_shape(TASK.eval_step, state, batch(), jax.random.key(0))
    assert all(value.shape == () for value in metrics.values()) and "masked_accuracy" in metrics
    variables = jax.eval_shape(TASK.variables, state)
    assert set(variables) == {"params"} and variables["params"]["input"]["kernel"].shape == (6, 6)


def test_shapes_of_the_paper_trace():
    task = W2vBertTask(W2vBertConfig())  # 12 + 12 blocks of width 1,024.
    state = jax.eval_shape(task.init_state, jax.random.key(0))
    wave = jax.ShapeDtypeStruct((2, 240_000), jnp.float32)
    _, metrics = jax.eval_shape(task.train_step, state, {"wave": wave}, jax.random.key(0))
    assert metrics["loss"].shape == ()
