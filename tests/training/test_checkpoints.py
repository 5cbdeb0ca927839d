"""Checkpoints: round trips, other trainings, damage of every kind of file, disks that fail or are full."""

import errno
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from musiclm_jax.errors import UserError
from musiclm_jax.training.checkpoints import Checkpoints, latest_lengths, trained_on

STATE = {"a": jnp.arange(5.0), "b": {"c": jnp.int32(3), "empty": {}}, "d": (None, jnp.ones((2, 3), jnp.bfloat16))}


def abstract(state=STATE):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def filled(step):
    return jax.tree.map(lambda x: jnp.full_like(x, step), STATE)


def save(workdir, *steps, identity="ours", keep=2):
    with Checkpoints(workdir, identity=identity, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, filled(step), [[0, step], [step, 9]])


def restore(workdir, *, identity="ours", num_steps=9, state=STATE):
    with Checkpoints(workdir, identity=identity) as checkpoints:
        return checkpoints.restore(abstract(state), num_steps=num_steps)


def assert_is(found, step):
    state, lengths = found
    jax.tree.map(np.testing.assert_array_equal, state, filled(step))
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, STATE)
    assert lengths == [[0, step], [step, 9]]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A work folder with the checkpoints 1 and 2."""
    workdir = tmp_path_factory.mktemp("template")
    save(workdir, 1, 2)
    return workdir


@pytest.fixture
def workdir(template, tmp_path):
    return shutil.copytree(template, tmp_path / "run")


def test_the_newest_comes_back_and_the_last_two_are_kept(tmp_path):
    assert restore(tmp_path) is None
    save(tmp_path, 1, 2, 3)
    assert_is(restore(tmp_path), 3)
    assert names(tmp_path) == ["checkpoints"] and names(tmp_path / "checkpoints") == ["2", "3"]


def test_the_best_is_kept_too_and_what_does_not_last_only_while_it_is_the_newest(tmp_path):
    kept, losses, passing = [], {1: 0.5, 2: 0.3, 4: 0.3, 5: 0.4, 7: 0.2, 8: 0.9}, (5, 7)
    with Checkpoints(tmp_path, identity="ours", keep=2, keep_best=True) as checkpoints:
        for step in range(1, 9):
            checkpoints.save(step, filled(step), [[0, step], [step, 9]], lasting=step not in passing, eval_loss=losses.get(step))
            kept.append("".join(names(tmp_path / "checkpoints")))
        assert checkpoints.lasting() == [6, 8]
    assert kept == ["1", "12", "23", "234", "2345", "246", "467", "678"]
    assert_is(restore(tmp_path), 8)


def test_some_may_be_chosen_from(workdir):
    with Checkpoints(workdir, identity="ours") as checkpoints:
        assert_is(checkpoints.restore(abstract(), num_steps=9, among=[1]), 1)
        assert checkpoints.restore(abstract(), num_steps=9, among=[]) is None


def test_steps_are_numbers_and_not_words(tmp_path):
    save(tmp_path, 9, 10)
    assert_is(restore(tmp_path, num_steps=10), 10)


def test_a_step_that_exists_is_left_alone(workdir):
    before = (workdir / "checkpoints" / "2" / "checkpoint.json").stat()
    save(workdir, 2)
    assert (workdir / "checkpoints" / "2" / "checkpoint.json").stat() == before


def test_another_training_is_refused_and_nothing_moves(workdir):
    with pytest.raises(UserError, match=rf"{workdir}/checkpoints/2 belongs to another training.* than {workdir}, .*move {workdir}/checkpoints away"):
        restore(workdir, identity="theirs")
    assert names(workdir) == ["checkpoints"] and names(workdir / "checkpoints") == ["1", "2"]


def test_a_checkpoint_beyond_the_end_of_the_run_is_refused(workdir):
    assert_is(restore(workdir, num_steps=2), 2)
    with pytest.raises(UserError, match=r"checkpoints/2 is beyond num_steps=1: choose 2 or more, or move .*/checkpoints away"):
        restore(workdir, num_steps=1)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "flipped": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n0"),
    "missing": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_to_any_file_is_found_and_the_checkpoint_before_is_taken(workdir, caplog, damage):
    newest = workdir / "checkpoints" / "2"
    files = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    assert {"checkpoint.json", "_METADATA", "manifest.ocdbt"} <= {path.name for path in files}
    assert any(path.parent.name == "d" for path in files)  # Arrays.
    for number, file in enumerate(files, start=1):
        shutil.copytree(newest, workdir / "copy")
        damage(newest / file)
        caplog.clear()
        assert_is(restore(workdir), 1)
        (line,) = caplog.messages
        aside = workdir / "damaged" / ("2" if number == 1 else f"2-{number}")
        assert file.name in line and str(aside) in line and "continues from step 1" in line and "\n" not in line
        assert aside.is_dir() and names(workdir / "checkpoints") == ["1"]
        (workdir / "copy").rename(newest)
    save(workdir, 3)
    assert_is(restore(workdir), 3)


def test_a_damaged_step_can_be_saved_again(workdir):
    flip(workdir / "checkpoints" / "2" / "state" / "manifest.ocdbt")
    restore(workdir)
    save(workdir, 2)
    assert_is(restore(workdir), 2)


def test_where_all_are_damaged_nothing_moves(workdir):
    for step in "12":
        flip(workdir / "checkpoints" / step / "state" / "_METADATA")
    with pytest.raises(UserError, match=r"all checkpoints in .* are damaged \(2: state/_METADATA has changed; 1: state/_METADATA has changed\): restore them"):
        restore(workdir)
    assert names(workdir) == ["checkpoints"] and names(workdir / "checkpoints") == ["1", "2"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("file", ["checkpoint.json", "state/_METADATA", "state"])
def test_a_disk_that_fails_is_no_damage(workdir, monkeypatch, number, file):
    path, error = workdir / "checkpoints" / "2" / file, OSError(number, os.strerror(number))
    if file == "state":  # While Orbax reads it.
        monkeypatch.setattr(ocp.StandardCheckpointer, "restore", lambda *args: (_ for _ in ()).throw(error))
    else:
        real = Path.open
        monkeypatch.setattr(Path, "open", lambda self, *args, **options: (_ for _ in ()).throw(error) if self == path else real(self, *args, **options))
    with pytest.raises(UserError, match=rf"checkpoints/2 cannot be read, {os.strerror(number)}: .*; or move it away, and training continues"):
        restore(workdir)
    monkeypatch.undo()
    assert names(workdir) == ["checkpoints"]
    assert_is(restore(workdir), 2)


def test_a_state_that_the_task_cannot_use_is_no_damage(workdir):
    with pytest.raises(UserError, match=r"checkpoints/2 is intact but cannot be restored here \(.+\): use the package version"):
        restore(workdir, state={**STATE, "a": jnp.arange(7.0)})
    assert names(workdir) == ["checkpoints"]


def test_what_a_kill_left_behind_does_not_count(workdir):
    shutil.copytree(workdir / "checkpoints" / "2", workdir / "checkpoints" / "3.unfinished")
    assert_is(restore(workdir), 2)
    assert names(workdir / "checkpoints") == ["1", "2"]


def test_the_latest_lengths_are_read_without_the_state(workdir):
    shutil.rmtree(workdir / "checkpoints" / "2" / "state")
    assert latest_lengths(workdir) == (2, [[0, 2], [2, 9]])
    (workdir / "checkpoints" / "2" / "checkpoint.json").write_bytes(b"{")
    assert latest_lengths(workdir) == (1, [[0, 1], [1, 9]])
    assert latest_lengths(workdir / "nowhere") is None


def test_lengths_tell_where_the_length_of_a_run_changed():
    assert trained_on([], start=0, num_steps=4) == [[0, 4]]
    assert trained_on([[0, 4]], start=3, num_steps=4) == [[0, 4]]
    assert trained_on([[0, 4]], start=3, num_steps=8) == [[0, 4], [3, 8]]


def test_all_of_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.readlink(f"/proc/self/fd/{descriptor}")), fsync(descriptor)))
    save(tmp_path, 4)
    unfinished, folder = tmp_path / "checkpoints" / "4.unfinished", tmp_path / "checkpoints" / "4"
    everything = {str(unfinished / path.relative_to(folder)) for path in folder.rglob("*")}
    written = {re.sub(r"\.(checkpoint\.json)\.[^/]*\.tmp$", r"\1", name) for name in synced}  # Written under another name and renamed.
    assert everything <= written and len(everything) > 8
    assert synced[-2:] == [str(unfinished), str(tmp_path / "checkpoints")]
    record = json.loads((folder / "checkpoint.json").read_text())
    assert set(record["files"]) == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {"checkpoint.json"}


@pytest.mark.parametrize("number, reason", [(errno.ENOSPC, "the disk is full: free some space"), (errno.EIO, "Input/output error: check")])
def test_a_disk_that_refuses_is_one_line_and_what_was_there_stays(workdir, monkeypatch, number, reason):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    with Checkpoints(workdir, identity="ours") as checkpoints:
        checkpoints.restore(abstract(), num_steps=9)
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(UserError, match=rf"^{workdir}/checkpoints cannot be written, {reason}.*; the training continues from step 2$"):
            checkpoints.save(3, filled(3), [])
        monkeypatch.undo()
    assert names(workdir / "checkpoints") == ["1", "2"]
    save(workdir, 3)
    assert_is(restore(workdir), 3)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("free", [0, 5_000, 50_000])  # Nothing; what fits some files; all but the largest.
def test_a_full_disk(small_disk, free, caplog):
    save(small_disk, 1)
    large = {"a": jax.random.normal(jax.random.key(0), (53, 997))}
    usage = shutil.disk_usage(small_disk)
    (small_disk / "other").write_bytes(bytes(usage.free - free))
    with Checkpoints(small_disk, identity="ours") as checkpoints:
        assert_is(checkpoints.restore(abstract(), num_steps=9), 1)
        with pytest.raises(UserError, match="checkpoints cannot be written, the disk is full: free .* and run .* again; the training continues from step 1"):
            checkpoints.save(2, large, [])
    assert not caplog.messages
    assert names(small_disk / "checkpoints") == ["1"]
    assert_is(restore(small_disk), 1)
    (small_disk / "other").unlink()
    save(small_disk, 2)
    assert_is(restore(small_disk), 2)


def test_in_the_background_a_save_is_as_good(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    save(tmp_path, 1, 2, 3)
    assert names(tmp_path / "checkpoints") == ["2", "3"]
    assert_is(restore(tmp_path), 3)
    with Checkpoints(tmp_path, identity="ours") as checkpoints:
        checkpoints.restore(abstract(), num_steps=9)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
            checkpoints.save(4, filled(4), [])
            with pytest.raises(UserError, match="the disk is full.*; the training continues from step 3"):
                checkpoints.save(5, filled(5), [])
    assert_is(restore(tmp_path), 3)
