"""What all tasks share: recipes, and steps that are skipped."""

import jax
import jax.numpy as jnp
import pytest
from tiny_task import TinyTask, tiny

from musiclm_jax.errors import UserError
from musiclm_jax.training.task import Recipe, Task, TrainState, keep_finite


def state(step, value):
    return TrainState(jnp.int32(step), {"a": jnp.full(3, value)}, (jnp.float32(value), None), {"b": jnp.full((2, 5), value)})


def same(ours, theirs):
    return jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), ours, theirs))


@pytest.mark.parametrize("numbers", [(1.0,), (0.0, -2.0), (3e38, 3e38)])
def test_a_step_with_finite_numbers_is_kept(numbers):
    after, skipped = keep_finite(state(6, 1.0), state(6, 2.0), *map(jnp.float32, numbers))
    assert same(after, state(7, 2.0)) and skipped == 0 and skipped.dtype == jnp.float32


@pytest.mark.parametrize("numbers", [(jnp.nan,), (1.0, jnp.inf), (-jnp.inf, 1.0, jnp.inf)])
def test_a_step_with_others_changes_only_the_number_of_the_step(numbers):
    after, skipped = keep_finite(state(6, 1.0), state(6, jnp.nan), *map(jnp.float32, numbers))
    assert same(after, state(7, 1.0)) and skipped == 1


def test_a_recipe_has_a_length_and_a_task_has_its_recipes():
    with pytest.raises(UserError, match="num_steps=0: choose a whole number from 1"):
        Recipe(num_steps=0)
    assert tiny(7).num_steps == 7 and isinstance(TinyTask(), Task)
    assert TinyTask().check_batch({"x": jnp.zeros(3)}) is None
