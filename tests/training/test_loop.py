"""The loop: resume is exact, a signal saves, nothing bad is saved, and the length of a run is no secret."""

import dataclasses
import json
import os
import signal
import threading

import jax
import numpy as np
import pytest
from tiny_task import TinyTask, source, tiny

from musiclm_jax.data.prefetch import prefetch
from musiclm_jax.errors import UserError
from musiclm_jax.training.loop import TrainConfig, read_metrics
from musiclm_jax.training.loop import train as train_task
from musiclm_jax.training.task import gradient_step

CONFIG = TrainConfig(log_every=3, eval_every=5, eval_batches=2, save_every=4)


def train(task, source, *, workdir, config=CONFIG, identity="tiny", **options):
    return train_task(task, source, workdir=workdir, config=config, identity=identity, **options)


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def lines(workdir):
    """Of the log, without what a clock says."""
    kept = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "sec" not in name} for line in kept]


def saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


class Killed(Exception):
    pass


def killed_at(step):
    def dying(index):
        if index == step:
            raise Killed
        return source(index)

    return dying


def train_until(step, task, **options):
    """As a run that ends after that step, without a chance to save."""
    with pytest.raises(Killed):
        train(task, killed_at(step), **options)


def signalling(number, step):
    def stopping(index):
        if index == step:
            os.kill(os.getpid(), number)
        return source(index)

    return stopping


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 11 steps that nothing interrupted, and its folder."""
    workdir = tmp_path_factory.mktemp("whole")
    return train(tiny(11), source, workdir=workdir, eval_source=source), workdir


# -------------------------------------------------------------------- Resume


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, whole):
    assert int(whole[0].state.step) == 11 and whole[0].lengths == [[0, 11]]
    for step in (2, 7, 10):  # Before any checkpoint, between two, before the last step.
        train_until(step, tiny(11), workdir=tmp_path, eval_source=source)
    parts = train(tiny(11), source, workdir=tmp_path, eval_source=source)
    assert_equal(whole[0].state, parts.state)
    assert lines(tmp_path) == lines(whole[1]) and parts.lengths == [[0, 11]]
    assert [line["step"] for line in lines(tmp_path) if "eval_loss" in line] == [5, 10, 11]
    assert [line["step"] for line in lines(tmp_path) if "loss" in line] == [3, 4, 5, 6, 8, 9, 10, 11]


def test_a_finished_run_takes_no_step_and_returns_the_same(whole):
    again = train(tiny(11), killed_at(0), workdir=whole[1], eval_source=killed_at(0))
    assert_equal(whole[0].state, again.state)
    assert again.lengths == whole[0].lengths and again.metrics == whole[0].metrics == read_metrics(whole[1])
    assert {"loss", "eval_loss", "steps_per_sec"} <= again.metrics.keys()


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_run_that_is_trained_on_says_so(tmp_path, schedule):
    run = lambda steps, name="run", **options: train(tiny(steps, schedule=schedule), source, workdir=tmp_path / name, **options)  # noqa: E731
    assert run(4).lengths == [[0, 4]]
    longer = run(6)
    assert int(longer.state.step) == 6 and longer.lengths == [[0, 4], [4, 6]] == run(6).lengths
    at_once = run(6, "at once")
    assert at_once.lengths == [[0, 6]]
    equal = all(jax.tree.leaves(jax.tree.map(np.array_equal, longer.state.params, at_once.state.params)))
    assert equal == (schedule == "constant")


def test_the_length_of_a_run_may_change_where_it_was_interrupted(tmp_path):
    every = dataclasses.replace(CONFIG, save_every=3)
    train_until(3, tiny(4), workdir=tmp_path / "same", config=every)
    assert train(tiny(4), source, workdir=tmp_path / "same", config=every).lengths == [[0, 4]]
    train_until(3, tiny(4), workdir=tmp_path / "other", config=every)
    train_until(5, tiny(7), workdir=tmp_path / "other", config=every)  # Nothing was saved under this length.
    assert train(tiny(8), source, workdir=tmp_path / "other", config=every).lengths == [[0, 4], [3, 8]]


def test_a_longer_run_is_not_cut_to_the_length_that_is_asked_for(tmp_path):
    train(tiny(8), source, workdir=tmp_path)
    with pytest.raises(UserError, match="checkpoints/8 is beyond num_steps=4: choose 8 or more"):
        train(tiny(4), source, workdir=tmp_path)  # Although there is a checkpoint of step 4.
    assert saved(tmp_path) == [4, 8]


def test_a_checkpoint_at_the_end_of_a_shorter_run_tells_that_it_was_to_be_longer(tmp_path):
    train_until(5, tiny(8), workdir=tmp_path)
    assert train(tiny(4), killed_at(4), workdir=tmp_path).lengths == [[0, 8], [4, 4]]


def test_another_training_is_refused(tmp_path):
    train(tiny(4), source, workdir=tmp_path)
    with pytest.raises(UserError, match=r"checkpoints/4 belongs to another training"):
        train(tiny(4), source, workdir=tmp_path, identity="another")
    assert saved(tmp_path) == [4]


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(tmp_path, whole, caplog):
    train_until(9, tiny(11), workdir=tmp_path, eval_source=source)
    array = max((tmp_path / "checkpoints" / "8" / "state").glob("**/d/*"), key=lambda path: path.stat().st_size)
    array.write_bytes(bytes(array.stat().st_size))
    assert_equal(train(tiny(11), source, workdir=tmp_path, eval_source=source).state, whole[0].state)
    assert lines(tmp_path) == lines(whole[1])
    assert (tmp_path / "damaged" / "8").is_dir() and "training continues from step 4" in caplog.text


def test_seed_and_step_decide_the_noise(tmp_path):
    runs = [train(tiny(2), source, workdir=tmp_path / str(seed), config=TrainConfig(seed=seed)).state for seed in range(2)]
    assert not np.allclose(runs[0].params["up"], runs[1].params["up"])


@pytest.mark.parametrize("keep_best", [True, False])
def test_the_best_weights_are_kept(tmp_path, keep_best):
    class Worse(TinyTask):
        def eval_step(self, state, batch, rng):
            return {"loss": jax.numpy.abs(state.step - 4.0)}

    config = TrainConfig(log_every=20, eval_every=2, eval_batches=1, save_every=2, keep_best=keep_best)
    state = train(Worse(tiny(12).recipe), source, workdir=tmp_path, config=config, eval_source=source).state
    assert int(state.step) == 12 and saved(tmp_path) == ([4] if keep_best else []) + [10, 12]


# -------------------------------------------------------------------- Stop signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(tmp_path, capsys, number):
    config, before = TrainConfig(log_every=1000, save_every=0), signal.getsignal(number)
    with pytest.raises(SystemExit) as exit_:
        train(tiny(200), signalling(number, 5), workdir=tmp_path / "parts", config=config)
    assert exit_.value.code == 128 + number
    assert signal.getsignal(number) is before
    (step,) = saved(tmp_path / "parts")
    assert step < 200 and f"stopped after step {step}, which is saved" in capsys.readouterr().out
    parts = train(tiny(200), source, workdir=tmp_path / "parts", config=config)
    assert_equal(parts.state, train(tiny(200), source, workdir=tmp_path / "whole", config=config).state)


@pytest.mark.parametrize("when", [5, 11])  # In the middle; after the last step, whose evaluation is what the run is judged by.
def test_a_signal_during_an_evaluation_is_obeyed_and_the_next_run_evaluates(tmp_path, whole, when):
    evaluations = []

    def stopping(index):
        evaluations.append(index)
        if index == 0 and evaluations.count(0) == {5: 1, 11: 3}[when]:
            os.kill(os.getpid(), signal.SIGTERM)
        return source(index)

    with pytest.raises(SystemExit):
        train(tiny(11), source, workdir=tmp_path, eval_source=stopping)
    assert saved(tmp_path)[-1] == when
    assert [line["step"] for line in lines(tmp_path) if "eval_loss" in line] == [step for step in (5, 10, 11) if step < when]
    resumed = train(tiny(11), source, workdir=tmp_path, eval_source=source)
    assert_equal(resumed.state, whole[0].state)
    assert lines(tmp_path) == lines(whole[1])
    assert resumed.metrics["eval_loss"] == whole[0].metrics["eval_loss"]


@pytest.mark.parametrize("steps_before", [0, 4])
def test_a_signal_before_the_first_step_leaves_without_one(tmp_path, capsys, steps_before):
    if steps_before:
        train_until(5, tiny(11), workdir=tmp_path)
    calls = []

    def stopping(index):
        calls.append(index)
        os.kill(os.getpid(), signal.SIGTERM)
        return source(index)

    with pytest.raises(SystemExit) as exit_:
        train(tiny(11), stopping, workdir=tmp_path)
    assert exit_.value.code == 128 + signal.SIGTERM and calls == [steps_before]
    assert saved(tmp_path) == [steps_before][: steps_before and 1]
    assert ("stopped after step 4, which is saved" if steps_before else "stopped before the first step") in capsys.readouterr().out


def test_a_signal_while_the_state_is_made_leaves_too(tmp_path):
    def signal_and_keep(state):
        os.kill(os.getpid(), signal.SIGINT)
        return state

    with pytest.raises(SystemExit):
        train(tiny(11), killed_at(1), workdir=tmp_path, warm_start=signal_and_keep)


def test_a_second_signal_has_the_effect_that_it_had_before(tmp_path):
    effects = []
    before = signal.signal(signal.SIGINT, lambda *args: effects.append(args[0]))

    def twice(state):
        os.kill(os.getpid(), signal.SIGINT)
        assert effects == []
        os.kill(os.getpid(), signal.SIGINT)
        return state

    try:
        with pytest.raises(SystemExit):
            train(tiny(11), killed_at(1), workdir=tmp_path, warm_start=twice)
    finally:
        signal.signal(signal.SIGINT, before)
    assert effects == [signal.SIGINT]


# -------------------------------------------------------------------- Batches and numbers that are of no use


def test_the_first_batch_is_checked_before_any_step(tmp_path):
    class Picky(TinyTask):
        def check_batch(self, batch):
            assert isinstance(batch["x"], np.ndarray)
            if np.array_equal(batch["x"], source(4)["x"]):
                raise UserError("codes out of range")

    train(Picky(tiny(4).recipe), source, workdir=tmp_path)
    with pytest.raises(UserError, match="codes out of range"):
        train(Picky(tiny(11).recipe), source, workdir=tmp_path)
    assert saved(tmp_path) == [4]
    train(Picky(tiny(4).recipe), source, workdir=tmp_path)  # Takes no step, needs no batch.


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"tiny: the loss is nan at step 7; .* Lower the learning rate"):
        train(tiny(11, break_at=6), source, workdir=tmp_path)
    assert saved(tmp_path) == [4]


def one_bad(step):
    batch = source(step)
    return {**batch, "x": np.full_like(batch["x"], np.nan)} if step == 5 else batch


class Guarded(TinyTask):
    def train_step(self, state, batch, rng):
        return gradient_step(state, lambda params: (self._loss(params, batch, rng), {"loss": self._loss(params, batch, rng)}), self.recipe)


GUARDED = Guarded(tiny(11).recipe)


def test_a_bad_batch_is_skipped_and_set_aside(tmp_path, capsys):
    state = train(GUARDED, one_bad, workdir=tmp_path / "one").state
    assert int(state.step) == 11 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    (path,) = (tmp_path / "one" / "skipped").iterdir()
    assert path.name == "6.npz" and np.isnan(np.load(path)["x"]).all() and np.load(path)["y"].shape == (8, 4)
    assert "step 6 was skipped" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"of the last \d+ steps were skipped.* Lower the learning rate"):
        train(GUARDED, lambda step: one_bad(5), workdir=tmp_path / "all")


@pytest.mark.parametrize("wrong", [{"log_every": 0}, {"eval_batches": 0}, {"keep_checkpoints": 0}, {"save_every": -1}])
def test_train_config_rejects_nonsense(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        TrainConfig(**wrong)


# -------------------------------------------------------------------- The log


def test_metrics_and_rates_are_logged(tmp_path, capsys):
    numbers = train(tiny(11), source, workdir=tmp_path, eval_source=source).metrics
    assert {"loss", "eval_loss", "steps_per_sec", "examples_per_sec", "tokens_per_sec"} <= numbers.keys()
    assert numbers["tokens_per_sec"] == pytest.approx(5 * numbers["steps_per_sec"])
    out = capsys.readouterr().out
    assert f"tiny: 0.000147M parameters, to step 11 on {jax.device_count()} cpu" in out and "left" in out and "tiny 11/11" in out


def test_a_log_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "read" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match="metrics.jsonl cannot be read, Is a directory"):
        train(tiny(11), source, workdir=tmp_path / "read")

    def unlink(index):
        if index == 5:  # The log becomes a folder while the run writes it.
            (tmp_path / "write" / "metrics.jsonl").unlink()
            (tmp_path / "write" / "metrics.jsonl").mkdir()
        return source(index)

    with pytest.raises(UserError, match="metrics.jsonl cannot be written, Is a directory"):
        train(tiny(11), unlink, workdir=tmp_path / "write")
    (tmp_path / "skip").mkdir()
    (tmp_path / "skip" / "skipped").write_text("")
    with pytest.raises(UserError, match="skipped/6.npz cannot be written, something in this path is a file"):
        train(GUARDED, one_bad, workdir=tmp_path / "skip")


# -------------------------------------------------------------------- Prefetch


def test_prefetch_yields_in_order_and_hands_errors_over_in_their_turn():
    assert list(prefetch(lambda step: {"step": np.array(step)}, start=3, stop=6)) == [{"step": 3}, {"step": 4}, {"step": 5}]
    batches = prefetch(killed_at(1), start=0, stop=3)
    next(batches)
    with pytest.raises(Killed):
        next(batches)


def test_prefetch_ends_its_thread_when_the_caller_stops():
    batches = prefetch(source, start=0, stop=1000)
    next(batches)
    batches.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
