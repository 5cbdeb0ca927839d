"""Checkpoints: round trip, another config, damage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.errors import UserError
from musiclm_jax.training.checkpoints import Checkpoints

STATE = {"a": jnp.arange(5.0), "b": {"c": jnp.int32(3), "empty": {}}, "d": (None, jnp.ones((2, 3), jnp.bfloat16))}


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def filled(step):
    return jax.tree.map(lambda x: jnp.full_like(x, step), STATE)


def save(directory, *steps, config):
    with Checkpoints(directory, config=config) as checkpoints:
        for step in steps:
            checkpoints.save(step, filled(step))


def restore(directory, *, config):
    with Checkpoints(directory, config=config) as checkpoints:
        return checkpoints.restore(abstract(STATE))


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_newest_comes_back_and_the_last_two_are_kept(tmp_path):
    assert restore(tmp_path, config=1) is None
    save(tmp_path, 1, 2, 3, config={"model": {"dim": 5}})
    restored = restore(tmp_path, config={"model": {"dim": 5}})
    assert_equal(restored, filled(3))
    assert jax.tree.map(lambda x: x.dtype, restored) == jax.tree.map(lambda x: x.dtype, STATE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_another_config_is_refused_by_name(tmp_path):
    save(tmp_path, 1, config={"model": {"dim": 5, "layers": 2}})
    with pytest.raises(UserError, match=r"another config \(model\.dim: 7, was 5; model\.heads: 3, was None\): go back"):
        restore(tmp_path, config={"model": {"dim": 7, "layers": 2, "heads": 3}})


@pytest.mark.parametrize("damage", ["cut", "missing", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, caplog, damage):
    save(tmp_path, 1, 2, config={})
    files = [path for path in (tmp_path / "2" / "state").rglob("*") if path.is_file()]
    for path in files:
        if damage == "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif damage == "empty":
            path.write_bytes(b"")
        elif "ocdbt" in path.name:
            path.unlink()
    assert_equal(restore(tmp_path, config={}), filled(1))
    assert "cannot be read" in caplog.text and "trying the one before it" in caplog.text
    save(tmp_path, 2, config={})  # Training writes it anew.
    assert_equal(restore(tmp_path, config={}), filled(2))


def test_none_readable_is_an_error_and_deletes_nothing(tmp_path):
    save(tmp_path, 1, config={})
    for path in (tmp_path / "1" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(UserError, match="none of the checkpoints in .* can be read: delete the folder"):
        restore(tmp_path, config={})
    assert (tmp_path / "1").exists()
