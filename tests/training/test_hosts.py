"""Two processes of four devices train as one process of eight does; they stop together, and continue where they were.

`checks/hosts.py` does the same with all tasks and with a whole `fit`.
"""

import re
import signal

import numpy as np
import pytest
from host_runs import free_port, losses, run_together, train_together

from musiclm_jax.errors import UserError
from musiclm_jax.training import hosts

CLI = ["-m", "musiclm_jax.cli.main"]


def weights(path):
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays]


def checkpoints(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a training in two processes that nothing interrupted, and what each printed."""
    folder = tmp_path_factory.mktemp("hosts") / "whole"
    (status, out, error), (other_status, other_out, _) = train_together(folder, "stage")
    assert (status, other_status) == (0, 0), error
    return folder, out, other_out


def test_two_processes_train_as_one(whole):
    folder, out, other_out = whole
    one = folder.parent / "one"
    ((status, _, error),) = train_together(one, "stage", processes=1)
    assert status == 0, error
    assert losses(folder / "stage") == pytest.approx(losses(one / "stage"), rel=1e-5) and len(losses(one / "stage")) == 9
    for ours, theirs in zip(weights(folder / "stage.npz"), weights(one / "stage.npz"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert "to step 8 on 8 cpu" in out and "semantic 8/8" in out
    # Process 0 alone prints. Threads of Gloo may tear each other's lines.
    assert not [line for line in other_out.splitlines() if line and not re.search(r"\[Gloo\]|peer ranks", line)]
    assert len(list((folder / "stage" / "checkpoints" / "8" / "state").glob("ocdbt.process_*"))) == 2  # Both wrote a part of the state.


def test_killed_and_started_again_ends_bit_for_bit_the_same(whole):
    folder = whole[0].parent / "killed"
    (killed, _, _), (status, _, error) = train_together(folder, "stage", kill_at=6)
    assert killed == -signal.SIGKILL and status in (-signal.SIGABRT, 1), error  # By JAX, or by an error where it computes.
    assert 2 <= checkpoints(folder / "stage")[-1] < 8 and not (folder / "stage.npz").exists()
    assert [status for status, _, _ in train_together(folder, "stage")] == [0, 0]
    for ours, theirs in zip(weights(folder / "stage.npz"), weights(whole[0] / "stage.npz"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert losses(folder / "stage") == losses(whole[0] / "stage")


def test_a_stop_signal_to_one_process_stops_both_after_the_same_step(tmp_path):
    (status, out, error), (other_status, _, _) = train_together(tmp_path / "run", "tiny", stop_at=3, save_every=0, num_steps=100_000)
    assert status == other_status == 128 + signal.SIGTERM, error
    (step,) = checkpoints(tmp_path / "run" / "tiny")
    assert f"tiny: stopped after step {step}, which is saved" in out


def test_hosts_that_disagree_end_before_anything_is_computed(tmp_path):
    """Found through the variables of SLURM."""
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.wav").write_bytes(b"")
    (tmp_path / "1" / "b.wav").write_bytes(b"")
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
    command = lambda data, *changes: [*CLI, "fit", str(tmp_path / data), *changes, "--size", "test", "--workdir", str(tmp_path / "work")]  # noqa: E731
    for other, what in ((command("1"), "list of files"), (command("0", "--gin.FitConfig.seed=3"), "config")):
        for status, _, error in run_together([command("0"), other], devices=4, JAX_COORDINATOR_PORT=str(free_port()), **slurm):
            assert status == 2 and f"musiclm: process 1 has another {what}" in error, error
    assert [path.name for path in (tmp_path / "work").iterdir()] == [".hosts"]


def test_a_coordinator_that_never_comes_is_one_line(tmp_path):
    missing = ["--coordinator", f"127.0.0.1:{free_port()}", "--num_processes", "2", "--process_id", "1", "--timeout", "2"]
    ((status, _, error),) = run_together([[*CLI, "fit", str(tmp_path), "--size", "test", "--workdir", str(tmp_path / "work"), *missing]], devices=1)
    assert status == 2 and error.startswith("musiclm: the coordinator 127.0.0.1:") and "not reached within 2 s" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"coordinator": "a:1"}, "--num_processes is missing"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "expected HOST:PORT"),
        ({"coordinator": "a:99999", "num_processes": 2, "process_id": 0}, "expected HOST:PORT"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "from 0 to 1"),
    ],
)
def test_nonsense_is_named(wrong, line):
    with pytest.raises(UserError, match=line):
        hosts.start(**wrong)


def test_a_single_process_is_alone():
    hosts.start()
    hosts.start(coordinator="a:1", num_processes=1, process_id=0)
    assert hosts.first(lambda: "x") == "x" and hosts.is_first() and not hosts.stopping()
    hosts.check_agreement({"config": bytes(32)})
