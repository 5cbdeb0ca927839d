import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_streams import STAGES, make_streams, stage_layout

from musiclm_jax.errors import UserError
from musiclm_jax.generation.stages import StageSpec
from musiclm_jax.generation.timing import TimingConfig
from musiclm_jax.models.stage import StageConfig
from musiclm_jax.specs import Stream
from musiclm_jax.tasks.stage import StageRecipe, StageTask, _dropped, _hidden_steps
from musiclm_jax.tokens import ABSENT, Levels
from musiclm_jax.training.optim import OptimizerConfig

MODEL = StageConfig(dim=16, num_layers=2, num_heads=2, head_dim=8, mlp_dim=32, dropout=0.0)
LAYOUTS = {name: stage_layout(name) for name in STAGES}
FAST = OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_steps=10, weight_decay=0.0)


def task(name="semantic", *, model=MODEL, layout=None, prefix_dropout=0.0, **recipe):
    return StageTask(name, model, layout or LAYOUTS[name], StageRecipe(**recipe), prefix_dropout)


def batch(size=2, steps=5):
    rng = np.random.default_rng(0)
    return {
        "mulan": rng.integers(5, size=(size, 3), dtype=np.int32),
        "semantic": rng.integers(7, size=(size, steps), dtype=np.int32),
        "acoustic": rng.integers(11, size=(size, 2 * steps, 5), dtype=np.int32),
    }


@pytest.fixture(scope="module")
def semantic_state():
    return jax.jit(task().init_state)(jax.random.key(0))


@pytest.mark.parametrize("name", STAGES)
def test_overfits_one_batch(name):
    fast = task(name, optimizer=FAST)
    state = jax.jit(fast.init_state)(jax.random.key(0))
    step = jax.jit(fast.train_step)
    first = None
    for i in range(150):
        state, metrics = step(state, batch(), jax.random.fold_in(jax.random.key(1), i))
        first = metrics if first is None else first
    codes = fast.layout.target.codes
    assert 0.7 * np.log(codes) < first["loss"] < 2 * np.log(codes)  # starts near uniform
    assert metrics["loss"] < 0.1 and metrics["accuracy"] > 0.98
    evaluated = fast.eval_step(state, batch(), jax.random.key(2))
    assert evaluated["loss"] < 0.1 and evaluated["tokens"] == fast.layout.target_codes(batch()).size
    assert int(state.step) == 150


def test_levels_average_to_the_loss():
    fine = task("fine")
    metrics = jax.jit(fine.eval_step)(jax.jit(fine.init_state)(jax.random.key(0)), batch(), jax.random.key(0))
    np.testing.assert_allclose(np.mean([metrics[f"loss_level_{q}"] for q in range(3)]), metrics["loss"], rtol=1e-6)


def test_a_step_is_a_pure_function_of_its_arguments(semantic_state):
    step = jax.jit(task(model=dataclasses.replace(MODEL, dropout=0.2), optimizer=FAST, prefix_dropout=0.5).train_step)
    a, b, other = (step(semantic_state, batch(), jax.random.key(seed)) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert a[1]["loss"] != other[1]["loss"]


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropped_text_reaches_the_mask_row(semantic_state, rate):
    grads = jax.jit(jax.grad(lambda params: task(prefix_dropout=rate).loss(params, batch(8), jax.random.key(0))[0]))(semantic_state.params)
    assert (np.abs(grads["embed"]["embedding"].unbox()[-1]).max() > 0) == (rate > 0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_hidden_past_reaches_the_mask_row(semantic_state, share):
    grads = jax.jit(jax.grad(lambda params: task(past_dropout=share).loss(params, batch(8), jax.random.key(0))[0]))(semantic_state.params)
    assert (np.abs(grads["embed"]["embedding"].unbox()[-1]).max() > 0) == (share > 0)


def test_hidden_steps_differ_from_sequence_to_sequence():
    hidden = np.asarray(_hidden_steps(jax.random.key(0), (2000, 50), 0.5)).mean(axis=1)
    assert abs((hidden == 0).mean() - 0.5) < 0.05
    assert abs(hidden[hidden > 0].mean() - 0.5) < 0.05 and hidden.std() > 0.25


def test_z_loss_is_in_the_gradient_and_not_in_the_metric(semantic_state):
    plain, heavy = (jax.jit(lambda params, z=z: task(z_loss=z).loss(params, batch(), None))(semantic_state.params) for z in (0.0, 1.0))
    assert plain[0] == plain[1]["loss"] == heavy[1]["loss"] < heavy[0]


def test_variables_are_plain_arrays(semantic_state):
    variables = task().variables(semantic_state)
    assert all(isinstance(leaf, jnp.ndarray) for leaf in jax.tree.leaves(variables))
    assert variables["params"]["body"]["layers"]["attention"]["qkv_kernel"].shape == (2, 16, 3, 2, 8)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_stage_may_have_no_conditions(rate):
    alone = task(layout=dataclasses.replace(LAYOUTS["semantic"], prefix=()), prefix_dropout=rate)
    state = jax.jit(alone.init_state)(jax.random.key(0))
    tokens = {"semantic": batch()["semantic"]}
    alone.check_batch(tokens)
    _, metrics = jax.jit(alone.train_step)(state, tokens, jax.random.key(1))
    assert metrics["skipped"] == 0 and metrics["tokens"] == tokens["semantic"].size


def test_codes_that_the_stage_does_not_know_and_streams_of_other_lengths_are_refused():
    task("coarse").check_batch(batch())
    with pytest.raises(UserError, match=r"semantic has codes from 0 to 7, the coarse stage expects 0 to 6"):
        task("coarse").check_batch({**batch(), "semantic": np.arange(8, dtype=np.int32).reshape(1, 8)})
    with pytest.raises(UserError, match="differ in length"):
        task("coarse").check_batch({**batch(), "semantic": batch(steps=4)["semantic"]})


def test_nonsense_is_refused():
    with pytest.raises(UserError, match="prefix_dropout=1"):
        task(prefix_dropout=1.0)
    with pytest.raises(UserError, match="past_dropout=1.5"):
        StageRecipe(past_dropout=1.5)


def melody_task(**recipe):
    streams = {**make_streams(), "melody": Stream("melody", 2, 3, steps=2, optional=True)}
    spec = StageSpec("semantic", Levels("semantic"), (Levels("melody"), Levels("mulan")))
    return task(layout=spec.layout(streams), **recipe)


def test_the_melody_is_dropped_whole_and_at_random(monkeypatch):
    melody = np.random.default_rng(1).integers(3, size=(400, 2, 2)).astype(np.int32)
    dropped = _dropped({"melody": melody, "mulan": np.ones(400)}, "melody", jax.random.key(0), 0.25)
    gone = (np.asarray(dropped["melody"]) == ABSENT).all(axis=(1, 2))
    np.testing.assert_array_equal(dropped["melody"], np.where(gone[:, None, None], ABSENT, melody))
    assert 0.18 < gone.mean() < 0.32 and (dropped["mulan"] == 1).all()


def test_streams_of_any_shape_are_dropped_one_by_one():
    timing = np.ones((400, 2), np.int32)
    keys = jax.random.split(jax.random.key(0))
    one, two = (np.asarray(_dropped({"timing": timing}, "timing", key, 0.5)["timing"]) for key in keys)
    assert (one[:, 0] == one[:, 1]).all() and 150 < np.sum(one[:, 0] == ABSENT) < 250 and not np.array_equal(one, two)
    streams = {**make_streams(), **{name: Stream(name, 2, 3, optional=True) for name in ("melody", "timing")}}
    layout = StageSpec("semantic", Levels("semantic"), (Levels("melody", 0, 1), Levels("timing"), Levels("melody", 1), Levels("mulan"))).layout(streams)
    assert dataclasses.replace(melody_task(), layout=layout).optional_streams == ("melody", "timing")


def test_training_and_evaluation_with_a_melody():
    """At a share of 1 no training step sees the melody, at 0 each does; evaluation always does."""
    given = {**batch(), "melody": np.array([[[0, 1], [2, 0]], [[1, 1], [0, 2]]], np.int32)}
    absent = {**given, "melody": np.full_like(given["melody"], ABSENT)}
    state = jax.jit(melody_task().init_state)(jax.random.key(0))
    loss = lambda task, batch: float(task.loss(state.params, batch, jax.random.key(1))[1]["loss"])  # noqa: E731
    always, never = melody_task(optional_dropout=0.0), melody_task(optional_dropout=1.0)
    assert loss(never, given) == loss(never, absent) and loss(always, given) != loss(always, absent)
    shown = [float(each.eval_step(state, given, jax.random.key(2))["loss"]) for each in (always, never)]
    assert shown[0] == shown[1] != float(never.eval_step(state, absent, jax.random.key(2))["loss"])


def test_a_stage_without_melody_draws_as_before(semantic_state):
    """Its random numbers do not depend on the share of melodies that are dropped."""
    losses = [task(past_dropout=0.5, optional_dropout=share).loss(semantic_state.params, batch(), jax.random.key(1))[0] for share in (0.0, 0.5)]
    assert losses[0] == losses[1]


def test_a_stage_learns_to_follow_the_melody_and_to_do_without():
    """Two tunes, which the melody tells apart and nothing else does."""
    fast = melody_task(optimizer=FAST, optional_dropout=0.5)
    given = batch(size=8)
    tune = np.arange(8) % 2
    given |= {
        "mulan": given["mulan"] * 0,
        "semantic": given["semantic"][:2][tune],
        "melody": np.stack([np.zeros((2, 2)), np.ones((2, 2))])[tune].astype(np.int32),
    }
    state, step = jax.jit(fast.init_state)(jax.random.key(0)), jax.jit(fast.train_step)
    for i in range(120):
        state, _ = step(state, given, jax.random.fold_in(jax.random.key(1), i))
    loss = lambda melody: float(fast.eval_step(state, {**given, "melody": melody}, jax.random.key(2))["loss"])  # noqa: E731
    right, other, absent = (loss(melody) for melody in (given["melody"], 1 - given["melody"], np.full_like(given["melody"], ABSENT)))
    # Without a melody, the first token is a guess between two.
    assert right < 0.05 and 0.8 * np.log(2) / 5 < absent < 1.5 * np.log(2) / 5 and other > 3 * absent


def pieces(seed: int, size: int = 32) -> dict[str, np.ndarray]:
    """Crops of 8 steps, one a second here: code 1 until the piece ends, then code 0. The timing says where that is, and nothing else does."""
    rng = np.random.default_rng(seed)
    start = rng.integers(6, size=size)
    total = start + rng.integers(1, 9, size=size)
    tokens = (start[:, None] + np.arange(8) < total[:, None]).astype(np.int32)
    return {"mulan": np.zeros((size, 3), np.int32), "timing": np.stack([start, total], axis=1).astype(np.int32), "semantic": tokens}


def test_a_stage_learns_to_end_where_the_timing_says():
    streams = {**make_streams(), "timing": TimingConfig(num_codes=16).stream}
    spec = StageSpec("semantic", Levels("semantic"), (Levels("timing"), Levels("mulan")))
    fast = task(layout=spec.layout(streams), optimizer=FAST, optional_dropout=0.2)
    state, step = jax.jit(fast.init_state)(jax.random.key(0)), jax.jit(fast.train_step)
    for i in range(300):
        state, _ = step(state, pieces(i), jax.random.fold_in(jax.random.key(1), i))
    test = pieces(1000, size=200)
    loss = lambda timing: float(fast.eval_step(state, {**test, "timing": timing}, jax.random.key(2))["loss"])  # noqa: E731
    right, other, absent = (loss(timing) for timing in (test["timing"], np.roll(test["timing"], 1, axis=0), np.full_like(test["timing"], ABSENT)))
    assert right < 0.4 * absent and other > 2 * absent, (right, other, absent)
