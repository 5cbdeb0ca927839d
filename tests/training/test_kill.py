"""Runs that are killed at any moment, with SIGKILL, end as a run that nobody disturbed."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

# Every call that changes the disk, and every batch, is a moment at which a run may be killed: they are counted, so that no clock decides.
PROGRAM = """
    import json, os, signal, sys
    import numpy as np
    from pathlib import Path
    import tiny_task
    from musiclm_jax.training.loop import TrainConfig, train

    def run(workdir, kill_at):
        count = 0

        def counted(function):
            def call(*args, **kwargs):
                nonlocal count
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)
            return call

        for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        source = counted(tiny_task.source)
        config = TrainConfig(log_every=2, eval_every=3, eval_batches=2, save_every=2)
        done = train(tiny_task.tiny(7), source, workdir=workdir, config=config, identity="tiny", eval_source=source)
        import jax
        np.savez(workdir / "state.npz", *map(np.asarray, jax.tree.leaves(done.state)))
        (workdir / "done.json").write_text(json.dumps({"calls": count, "lengths": done.lengths}))

    def fork(workdir, kill_at=-1):
        '''True if the run ended by itself. The parent never uses JAX, so that its children may.'''
        child = os.fork()
        if not child:
            try:
                run(workdir, kill_at)
                os._exit(0)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), status
        return status == 0

    root = Path(sys.argv[1])
    assert fork(root / "whole")
    calls = json.loads((root / "whole" / "done.json").read_text())["calls"]
    rng = np.random.default_rng(int(sys.argv[2]))
    kills = [int(at) for at in rng.integers(1, calls // 3, size=int(sys.argv[3]))]
    survived = [fork(root / "killed", at) for at in kills]
    print("RESULT", json.dumps([calls, kills, survived]))
    assert fork(root / "killed")
"""


def steady(workdir):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "sec" not in name} for line in found]


def test_killed_at_any_moment_and_run_again_ends_bit_for_bit_the_same(tmp_path):
    tests = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])}
    arguments = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path), "0", "5"]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    calls, kills, survived = json.loads(done.stdout.split("RESULT ")[1].splitlines()[0])
    assert calls > 60 and survived.count(False) >= 3, (calls, kills, survived)
    whole, killed = (np.load(tmp_path / name / "state.npz") for name in ("whole", "killed"))
    assert whole.files == killed.files and len(whole.files) > 8
    for name in whole.files:
        np.testing.assert_array_equal(whole[name], killed[name], strict=True)
    assert steady(tmp_path / "whole") == steady(tmp_path / "killed")
    assert json.loads((tmp_path / "killed" / "done.json").read_text())["lengths"] == [[0, 7]]
    for name in ("whole", "killed"):
        assert sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir()) == ["6", "7"]
    assert not (tmp_path / "killed" / "damaged").exists()
