"""The loop: resume is exact, a signal saves, nothing bad is saved."""

import json
import os
import signal
import threading

import jax
import numpy as np
import pytest
from tiny_task import TinyTask, source

from musiclm_jax.data.prefetch import prefetch
from musiclm_jax.errors import UserError
from musiclm_jax.training.loop import TrainConfig, read_metrics, train
from musiclm_jax.training.optim import OptimizerConfig
from musiclm_jax.training.task import gradient_step

CONFIG = TrainConfig(num_steps=11, log_every=3, eval_every=5, eval_batches=2, save_every=4)


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


class Killed(Exception):
    pass


def killed_at(step):
    def dying(index):
        if index == step:
            raise Killed
        return source(index)

    return dying


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path):
    whole = train(TinyTask(), source, workdir=tmp_path / "whole", config=CONFIG, eval_source=source)
    assert int(whole.step) == 11
    for step in (2, 7, 10):  # Before any checkpoint, between two, before the last step.
        with pytest.raises(Killed):
            train(TinyTask(), killed_at(step), workdir=tmp_path / "parts", config=CONFIG, eval_source=source)
    parts = train(TinyTask(), source, workdir=tmp_path / "parts", config=CONFIG, eval_source=source)
    assert_equal(whole, parts)
    steady = lambda workdir: [{k: v for k, v in line.items() if "sec" not in k} for line in lines(workdir)]  # noqa: E731
    evals = lambda workdir: [line for line in steady(workdir) if "eval_loss" in line]  # noqa: E731
    assert evals(tmp_path / "whole") == evals(tmp_path / "parts") and [line["step"] for line in evals(tmp_path / "parts")] == [5, 10, 11]
    steps = [line["step"] for line in lines(tmp_path / "parts")]
    assert steps == sorted(steps)  # Steps that were taken twice are logged once.


def test_a_finished_run_takes_no_step_and_a_longer_one_goes_on(tmp_path):
    first = train(TinyTask(), source, workdir=tmp_path, config=CONFIG)
    again = train(TinyTask(), killed_at(0), workdir=tmp_path, config=CONFIG)
    assert_equal(first, again)
    longer = train(TinyTask(), source, workdir=tmp_path, config=TrainConfig(num_steps=13))
    assert_equal(longer, train(TinyTask(), source, workdir=tmp_path / "whole", config=TrainConfig(num_steps=13)))


def test_a_schedule_may_grow_and_nothing_else_of_the_config_may_change(tmp_path):
    def run(steps, rate=0.1):
        task = TinyTask(optimizer=OptimizerConfig(learning_rate=rate, schedule="cosine", warmup_steps=1, total_steps=steps))
        return train(task, source, workdir=tmp_path, config=TrainConfig(num_steps=steps, save_every=2))

    run(4)
    assert int(run(6).step) == 6
    with pytest.raises(UserError, match="another config"):
        run(8, rate=0.2)


def test_seed_and_step_decide_the_noise(tmp_path):
    runs = [train(TinyTask(), source, workdir=tmp_path / str(i), config=TrainConfig(num_steps=2, seed=i)) for i in range(2)]
    assert not np.allclose(runs[0].params["up"], runs[1].params["up"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(tmp_path, number):
    def signalling(step):
        if step == 5:
            os.kill(os.getpid(), number)
        return source(step)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as exit_:
        train(TinyTask(), signalling, workdir=tmp_path / "parts", config=TrainConfig(num_steps=200, log_every=1000, save_every=0))
    assert exit_.value.code == 128 + number
    assert signal.getsignal(number) is before
    (saved,) = [int(path.name) for path in (tmp_path / "parts" / "checkpoints").iterdir()]
    assert saved < 200
    parts = train(TinyTask(), source, workdir=tmp_path / "parts", config=TrainConfig(num_steps=200))
    assert_equal(parts, train(TinyTask(), source, workdir=tmp_path / "whole", config=TrainConfig(num_steps=200)))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"tiny: the loss is nan at step 7; .* Lower the learning rate"):
        train(TinyTask(break_at=6), source, workdir=tmp_path, config=CONFIG)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]


def test_a_bad_batch_is_skipped_and_set_aside(tmp_path, capsys):
    def one_bad(step):
        batch = source(step)
        return {**batch, "x": np.full_like(batch["x"], np.nan)} if step == 5 else batch

    class Guarded(TinyTask):
        def train_step(self, state, batch, rng):
            new, metrics = gradient_step(state, lambda params: (self._loss(params, batch, rng), {"loss": self._loss(params, batch, rng)}), self.optimizer)
            return new, metrics

    state = train(Guarded(), one_bad, workdir=tmp_path / "one", config=CONFIG)
    assert int(state.step) == 11 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    (path,) = (tmp_path / "one" / "skipped").iterdir()
    assert path.name == "6.npz" and np.isnan(np.load(path)["x"]).all() and np.load(path)["y"].shape == (8, 4)
    assert "step 6 was skipped" in capsys.readouterr().out
    assert np.isfinite(read_metrics(tmp_path / "one")["loss"])
    with pytest.raises(UserError, match=r"of the last \d+ steps were skipped.* Lower the learning rate"):
        train(Guarded(), lambda step: one_bad(5), workdir=tmp_path / "all", config=CONFIG)


def test_metrics_and_rates_are_logged(tmp_path, capsys):
    train(TinyTask(), source, workdir=tmp_path, config=CONFIG, eval_source=source)
    numbers = read_metrics(tmp_path)
    assert {"loss", "eval_loss", "steps_per_sec", "examples_per_sec", "tokens_per_sec"} <= numbers.keys()
    assert numbers["tokens_per_sec"] == pytest.approx(5 * numbers["steps_per_sec"])
    out = capsys.readouterr().out
    assert "tiny: 0.000147M parameters, to step 11 on 1 cpu" in out and "left" in out and "tiny 11/11" in out


@pytest.mark.parametrize("wrong", [{"num_steps": 0}, {"log_every": 0}, {"save_every": -1}])
def test_train_config_rejects_nonsense(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        TrainConfig(**wrong)


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
