"""Faults by injection: after many bad batches a run goes back and continues with others, whoever stops or kills it; in the end it gives up."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest
from tiny_task import TinyTask, source, tiny

from musiclm_jax.errors import UserError
from musiclm_jax.training.loop import TrainConfig, train
from musiclm_jax.training.task import gradient_step


@pytest.fixture(autouse=True, scope="module")
def compiled_once(tmp_path_factory):
    """All runs of this file have the same few programs."""
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")}
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("cache")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


# Checkpoints of steps 4, 8, 12, ...; three skipped steps in a row are enough.
CONFIG = TrainConfig(log_every=3, eval_every=0, save_every=4)


class Guarded(TinyTask):
    """A TinyTask whose steps are guarded as those of real tasks."""

    def train_step(self, state, batch, rng):
        def loss(params):
            value = self._loss(params, batch, rng)
            return value, {"loss": value}

        return gradient_step(state, loss, self.recipe)


def guarded(num_steps, **recipe):
    return Guarded(dataclasses.replace(tiny(num_steps, schedule="constant").recipe, **{"rollback_after": 3} | recipe))


def broken(*steps, by=np.nan, before=source):
    """The source with batches of these steps (from 1) multiplied by a number."""
    return lambda index: {name: array * by if index + 1 in steps else array for name, array in before(index).items()}


def run(workdir, source, *, steps=20, config=CONFIG, **recipe):
    return train(guarded(steps, **recipe), source, workdir=workdir, config=config, identity="tiny")


def equal(ours, theirs):
    return jax.tree.all(jax.tree.map(np.array_equal, jax.device_get(ours), jax.device_get(theirs)))


def lines(workdir):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "sec" not in name} for line in found]


BAD = broken(10, 11, 12)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run whose batches 10 to 12 are bad, and its folder."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    return run(workdir, BAD), workdir


def test_a_run_goes_back_and_continues_with_other_batches(undisturbed, tmp_path):
    trained, workdir = undisturbed
    # Two further steps were under way when the third bad one was known. The weights are those of step 8, the batches those from 15 on.
    assert trained.lengths == [[0, 20], [14, 20, 8]] and int(trained.state.step) == 20
    assert sorted(int(path.stem) for path in (workdir / "skipped").iterdir()) == [10, 11, 12, 13, 14]
    # As a training that had stopped at step 8 and went on with the batches 15 to 20 under the same keys.
    task, key = guarded(20), jax.random.split(jax.random.key(0), 3)[1]
    stopped = train(guarded(8), source, workdir=tmp_path, config=CONFIG, identity="tiny").state
    for step in range(15, 21):
        stopped, _ = jax.jit(task.train_step)(stopped.replace(step=np.int32(step - 1)), source(step - 1), jax.random.fold_in(key, step - 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), trained.state, stopped)


class Killed(Exception):
    pass


# Among the bad batches, between them and the return, after it and before the next checkpoint.
@pytest.mark.parametrize("how, at", [("stop", 10), ("kill", 13), ("stop", 13), ("stop", 14), ("kill", 17)])
def test_who_stops_or_kills_it_changes_nothing(undisturbed, tmp_path, how, at):
    def disturbed(index):
        if index == at:
            if how == "kill":
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)
        return BAD(index)

    with pytest.raises(Killed if how == "kill" else SystemExit):
        run(tmp_path, disturbed)
    trained = run(tmp_path, BAD)
    assert trained.lengths == undisturbed[0].lengths and equal(trained.state, undisturbed[0].state)
    assert how == "stop" or lines(tmp_path) == lines(undisturbed[1])  # Before it stops, a run logs.


def test_a_spike_is_skipped_and_several_send_the_run_back(tmp_path, capsys):
    steps = (60, 70, 71, 72)
    trained = run(tmp_path, broken(*steps, by=np.float32(1e3)), steps=80, spike_factor=20.0)
    assert trained.lengths == [[0, 80], [74, 80, 68]]
    assert sorted(int(path.stem) for path in (tmp_path / "skipped").iterdir()) == [60, *range(70, 75)]
    assert np.load(tmp_path / "skipped" / "60.npz")["x"].max() > 500
    out = capsys.readouterr().out
    assert "step 60 was skipped (loss" in out and "after 3 skipped steps in a row, step 74 continues with the weights of step 68" in out
    harmless = run(tmp_path / "off", broken(*steps, by=np.float32(1e3)), steps=80)
    assert harmless.lengths == [[0, 80]] and not (tmp_path / "off" / "skipped").exists()


def test_weights_that_were_left_are_not_gone_back_to(tmp_path):
    # Step 12 and 16 are saved among skipped steps, and are no way out.
    trained = run(tmp_path, broken(10, 11, 12, 15, 16, 17, 23, 24, 25), steps=30)
    assert trained.lengths == [[0, 30], [14, 30, 8], [19, 30, 8], [27, 30, 20]]


def test_a_run_that_must_go_back_too_often_gives_up(tmp_path):
    with pytest.raises(UserError) as error:
        run(tmp_path, broken(*range(9, 99)), steps=40)
    assert str(error.value).startswith("tiny: all steps from 24 to 28 were skipped; their batches are in the folder skipped, after 3 returns to the checkpoint")
    assert "Lower the learning rate" in str(error.value)


def test_without_a_checkpoint_there_is_no_way_back(tmp_path):
    with pytest.raises(UserError, match="tiny: all steps from 2 to 6 were skipped; .* and there is no checkpoint before them. Lower"):
        run(tmp_path / "early", broken(2, 3, 4))
    with pytest.raises(UserError, match="no checkpoint before them"):
        run(tmp_path / "never", BAD, config=dataclasses.replace(CONFIG, save_every=0))


def test_a_damaged_checkpoint_is_not_gone_back_to(tmp_path, caplog):
    def damaging(index):
        if index == 12:
            array = max((tmp_path / "checkpoints" / "8" / "state").glob("**/d/*"), key=lambda path: path.stat().st_size)
            array.write_bytes(bytes(array.stat().st_size))
        return BAD(index)

    config = dataclasses.replace(CONFIG, keep_checkpoints=3)
    assert run(tmp_path, damaging, config=config).lengths == [[0, 20], [14, 20, 4]]
    assert (tmp_path / "damaged" / "8").is_dir() and "training continues from step 4" in caplog.text


def test_going_back_can_be_turned_off(tmp_path):
    trained = run(tmp_path, BAD, config=dataclasses.replace(CONFIG, log_every=20, save_every=0), rollback_after=0)
    assert trained.lengths == [[0, 20]]
    with pytest.raises(UserError, match="of the last 3 steps were skipped"):
        run(tmp_path / "short lines", BAD, rollback_after=0)
