"""Work folders and trainings on object stores: as on the disk, and nothing is lost by a kill."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_gcs import STORE, Killed
from tiny_parts import tiny_parts, write_clips
from tiny_task import source, tiny

from musiclm_jax import files
from musiclm_jax.data.clips import load_array
from musiclm_jax.errors import UserError
from musiclm_jax.parts.fit import fit, plan
from musiclm_jax.parts.part import FitConfig
from musiclm_jax.parts.shards import clear, in_shards, save_joined
from musiclm_jax.training.checkpoints import Checkpoints, latest_lengths
from musiclm_jax.training.loop import TrainConfig, train

# What metrics say of the machine.
TIMES = ("steps_per_sec", "examples_per_sec", "tokens_per_sec", "sec_left")

# ------------------------------------------------------------------------------------------------- work folders


def outcome(data, workdir, **changes) -> tuple[list[str], list[str]]:
    """(the steps that ran, the actions planned before)."""
    log, steps = [], ("a", "b", "export")
    config = FitConfig(parts=tiny_parts(log, **changes))
    actions = [f"{each.step.name}: {each.action}" for each in plan(data, config=config, workdir=workdir)]
    fit(data, config=config, workdir=workdir)
    assert set(log) <= set(steps)
    return log, actions


def test_a_work_folder_on_a_bucket_is_that_of_the_disk(any_bucket, tmp_path):
    data = write_clips(tmp_path / "data", number=3)
    where = str(any_bucket)
    for changes in ({}, {}, {"b": {"text": "y"}}, {"b": {"text": "x"}}, {"a": {"num_steps": 6}}):
        assert outcome(data, where, **changes) == outcome(data, tmp_path / "local", **changes)
    same = lambda name: not name.startswith(".locks") and not name.endswith((".json", ".log", "WHY.txt"))  # noqa: E731
    local = {name: (tmp_path / "local" / name).read_bytes() for name in files.list_files(tmp_path / "local") if same(name)}
    assert {name: found for name, found in STORE.folder("gs://bucket/run").items() if same(name)} == local and len(local) == 8
    # A damaged output is set aside and made again.
    STORE.write("bucket/run/b/out", b"zz")
    assert outcome(data, where, a={"num_steps": 6})[0] == ["b"] and STORE.folder("gs://bucket/run")["b/damaged/out"] == b"zz"


def test_nothing_is_lost_or_made_again_when_a_move_is_killed(bucket, tmp_path):
    data, log, left = write_clips(tmp_path / "data", number=2), [], 0

    def kill(entry):
        nonlocal left
        if entry.startswith(("write ", "delete ")) and ("/run/b/" in entry or "/superseded/b-" in entry):
            left -= 1
            if left == 0:
                raise Killed

    def finish(**changes) -> int:
        """Runs until it is done, killed at the first write or deletion of b, at the second one after that, ... Returns the number of kills."""
        nonlocal left
        for kills in range(40):
            left, STORE.before = kills + 1, kill
            try:
                fit(data, config=FitConfig(parts=tiny_parts(log, **changes)), workdir=bucket)
                return kills
            except Killed:
                continue
            finally:
                STORE.before = lambda entry: None
        raise AssertionError("it never ends")

    finish()
    first = STORE.folder("gs://bucket/run")["b/out"]
    assert finish(b={"text": "y"}) > 3 and STORE.folder("gs://bucket/run")["b/out"] != first
    log.clear()
    assert finish() > 3 and log == [] and STORE.folder("gs://bucket/run")["b/out"] == first  # It is back.


# ------------------------------------------------------------------------------------------------- trainings


def test_checkpoints_are_complete_or_none(bucket):
    states = {step: {"x": jnp.arange(5.0) + step} for step in (1, 2, 3)}
    abstract = {"x": jax.ShapeDtypeStruct((5,), jnp.float32, sharding=jnp.zeros(5).sharding)}
    folder, killed_at = "bucket/run/checkpoints", ""

    def kill(entry):
        if killed_at and entry.startswith(killed_at):
            raise Killed

    def run(*steps):
        with Checkpoints(bucket, identity="a", keep=1) as checkpoints:
            found = checkpoints.restore(abstract, num_steps=9)
            for step in steps:
                checkpoints.save(step, states[step], [[0, 9]])
            return found and (int(found[0]["x"][0]), found[1], latest_lengths(bucket))

    assert run(1) is None
    # Killed before the record is written; then while the checkpoint before it is deleted.
    STORE.before = kill
    for number, killed_at in enumerate((f"write {folder}/2/checkpoint.json", f"delete {folder}/1/state")):  # noqa: B007
        with pytest.raises(Killed):
            run(2)
        killed_at = ""
        assert f"{folder}/{number + 1}/state/_METADATA" in STORE.objects
        assert run() == (number + 1, [[0, 9]], (number + 1, [[0, 9]]))
        assert {name.split("/")[3] for name in STORE.objects} == {str(number + 1)}  # What was not complete is gone.

    # One that the store refuses is one line, and the training is as before.
    def refuse(entry):
        if entry.startswith(f"write {folder}/3/state/ocdbt.process_0/d/"):  # By TensorStore.
            raise OSError("Forbidden: no")

    STORE.before = refuse
    with pytest.raises(UserError, match="Forbidden: no: check the path, or write elsewhere; the training continues from step 2$"):
        run(3)
    STORE.before = lambda entry: None
    assert {name.split("/")[3] for name in STORE.objects} == {"2"}
    # A damaged one is set aside.
    run(3)
    name = next(name for name in STORE.objects if f"{folder}/3/state/d/" in name)
    STORE.write(name, STORE.read(name)[:-1] + b"?")
    with pytest.raises(UserError, match="are damaged"):
        run()
    assert name in STORE.objects


def test_a_training_on_a_bucket_is_that_of_the_disk(bucket, tmp_path):
    found = []
    for workdir in (bucket, tmp_path / "local"):
        for num_steps in (3, 5):  # The second one continues.
            config = TrainConfig(log_every=1, save_every=2, eval_every=2, eval_batches=1)
            trained = train(tiny(num_steps), source, workdir=workdir, config=config, identity="a", eval_source=source)
        lines = [{**json.loads(line), **dict.fromkeys(TIMES)} for line in (workdir / "metrics.jsonl").read_bytes().splitlines()]
        found.append((jax.tree.leaves(trained.state), trained.lengths, lines))
    (there, *rest), (local, *local_rest) = found
    assert rest == local_rest and len(rest[1]) > 6
    for a, b in zip(there, local, strict=True):
        np.testing.assert_array_equal(a, b)


def test_shards_survive_a_kill_and_leave_nothing(bucket, tmp_path):
    def run(*, kill_at: int = -1) -> tuple[list[np.ndarray], list[int]]:
        made = []

        def make(some):
            if some[0] == kill_at:
                raise Killed
            made.append(some[0])
            return np.array(some)

        return in_shards(bucket / "shards", range(5), make, shard_items=2, what="numbers", unit="items"), made

    with pytest.raises(Killed):
        run(kill_at=2)
    shards, made = run()
    assert made == [2, 4]
    save_joined(bucket / "all.npy", shards)
    clear(bucket / "shards")
    assert list(STORE.folder("gs://bucket/run")) == ["all.npy"] and load_array(bucket / "all.npy").tolist() == [0, 1, 2, 3, 4]
    assert len(list((tmp_path / "cache").iterdir())) == 1
