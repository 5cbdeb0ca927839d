"""The log: lines of steps that are taken again, and lines that a kill has cut, do not stay."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.errors import UserError
from musiclm_jax.training.log import Log, read_metrics

LINES = [{"step": 3, "loss": 0.7}, {"step": 5, "loss": 0.1 + 0.2}, {"step": 5, "eval_loss": 1e-7}, {"step": 8, "loss": 0.4, "late": 1.0}]


def source(step):
    return {"x": np.full((7, 2), step)}


def write(folder, lines, rest=b""):
    (folder / "metrics.jsonl").write_bytes("".join(json.dumps(line) + "\n" for line in lines).encode() + rest)


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def log(folder, start):
    return Log(folder, "tiny", source, start=start, num_steps=20)


@pytest.mark.parametrize("start, kept, evaluated", [(0, 0, False), (3, 1, False), (5, 3, True), (7, 3, False), (8, 4, False)])
def test_lines_of_steps_that_are_taken_again_are_dropped(tmp_path, start, kept, evaluated):
    write(tmp_path, LINES)
    assert log(tmp_path, start).start_is_evaluated == evaluated
    assert read(tmp_path) == LINES[:kept]


@pytest.mark.parametrize("rest", [b'{"step": 8, "lo', b"{", b"\0" * 40, b"7\n", b'{"loss": 3}\n', b"\xff\xfe\n", b'{"step": 8, "loss": 9}'[:-1]])
def test_a_line_that_was_cut_is_not_read_and_not_written_to(tmp_path, rest):
    write(tmp_path, LINES[:3], rest)
    assert read_metrics(tmp_path) == {"step": 5, "loss": 0.1 + 0.2, "eval_loss": 1e-7}
    log(tmp_path, 8).evaluation([{"loss": jnp.float32(3)}])
    assert read(tmp_path) == [*LINES[:3], {"step": 8, "eval_loss": 3.0}]


def test_there_are_no_metrics_where_nothing_ran(tmp_path):
    assert read_metrics(tmp_path / "nowhere") == {}


def test_a_line_is_the_mean_since_the_last_one_and_speeds_are_of_later_steps(tmp_path):
    ours = log(tmp_path, 4)
    for step in (5, 6, 7, 8):
        ours.step(step, {"loss": jnp.float32(step), "tokens": jnp.float32(5)}, source(step))
        if step != 7:
            ours.line()
    ours.line()  # Nothing new.
    found = read(tmp_path)
    assert [(line["step"], line["loss"]) for line in found] == [(5, 5.0), (6, 6.0), (8, 7.5)]
    assert found[0].keys() == {"step", "loss"}  # The first step compiles: it says nothing of speed, and tokens are there for speed.
    for line in found[1:]:
        assert line["examples_per_sec"] == pytest.approx(7 * line["steps_per_sec"])
        assert line["tokens_per_sec"] == pytest.approx(5 * line["steps_per_sec"])
        assert line["sec_left"] == pytest.approx((20 - line["step"]) / line["steps_per_sec"])


def test_skipped_steps_are_left_out_and_their_batches_are_kept(tmp_path, capsys):
    ours = log(tmp_path, 4)
    for step, skipped in ((5, 0.0), (6, 1.0), (7, 0.0)):
        ours.step(step, {"loss": jnp.float32(jnp.nan if skipped else step), "skipped": jnp.float32(skipped)}, source(step - 1))
    ours.line()
    assert read(tmp_path)[0]["loss"] == 6.0 and read(tmp_path)[0]["skipped"] == pytest.approx(1 / 3)
    np.testing.assert_array_equal(np.load(tmp_path / "skipped" / "6.npz")["x"], source(5)["x"])
    assert "step 6 was skipped" in capsys.readouterr().out
    for step in (8, 9, 10):
        ours.step(step, {"loss": jnp.float32(1), "skipped": jnp.float32(step > 8)}, source(step - 1))
    with pytest.raises(UserError, match="2 of the last 3 steps were skipped"):
        ours.line()


def test_a_run_that_goes_back_waits_with_the_error_while_it_skips(tmp_path):
    ours = Log(tmp_path, "tiny", source, start=4, num_steps=20, goes_back=True)
    for step in (5, 6):
        ours.step(step, {"loss": jnp.float32(1), "skipped": jnp.float32(1)}, source(step - 1))
    ours.line()
    assert read(tmp_path) == []
    for step, skipped in ((7, 1.0), (8, 1.0), (9, 0.0)):
        ours.step(step, {"loss": jnp.float32(1), "skipped": jnp.float32(skipped)}, source(step - 1))
    with pytest.raises(UserError, match="2 of the last 3 steps were skipped"):
        ours.line()


def test_a_loss_that_is_not_finite_and_was_not_skipped_is_an_error(tmp_path):
    ours = log(tmp_path, 4)
    ours.step(5, {"loss": jnp.float32(jnp.inf)}, source(4))
    with pytest.raises(UserError, match="tiny: the loss is inf at step 5"):
        ours.line()
