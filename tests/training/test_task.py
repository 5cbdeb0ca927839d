"""What all tasks share: recipes, and steps that are skipped."""

import jax
import jax.numpy as jnp
import pytest
from tiny_task import TinyTask, tiny

from musiclm_jax.errors import UserError
from musiclm_jax.training.task import Guard, Recipe, Task, TrainState, keep_good


def state(step, value):
    return TrainState(jnp.int32(step), {"a": jnp.full(3, value)}, (jnp.float32(value), None), {"b": jnp.full((2, 5), value)})


def same(ours, theirs):
    return jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), ours, theirs))


def guard(mean, good, in_a_row):
    return Guard(jnp.float32(mean), jnp.int32(good), jnp.int32(in_a_row))


def take(recipe, norm, *numbers, before=None):
    """(state after a step with that gradient norm, 1.0 if it was skipped), from step 6."""
    before = state(6, 1.0) if before is None else state(6, 1.0).replace(guard=before)
    return keep_good(before, state(6, 2.0), recipe, *map(jnp.float32, numbers), grad_norm=jnp.float32(norm))


@pytest.mark.parametrize("numbers", [(1.0,), (0.0, -2.0), (3e38, 3e38)])
def test_a_step_with_finite_numbers_is_kept(numbers):
    after, skipped = take(Recipe(), *numbers)
    assert same(after, state(7, 2.0).replace(guard=guard(numbers[0], 1, 0))) and skipped == 0 and skipped.dtype == jnp.float32


@pytest.mark.parametrize("numbers", [(jnp.nan,), (1.0, jnp.inf), (-jnp.inf, 1.0, jnp.inf)])
def test_a_step_with_others_changes_only_the_number_of_the_step(numbers):
    after, skipped = take(Recipe(), *numbers, before=guard(2.0, 5, 3))
    assert same(after, state(7, 1.0).replace(guard=guard(2.0, 5, 4))) and skipped == 1


@pytest.mark.parametrize("factor, norm, steps, skipped", [(3, 6.1, 50, 1), (3, 5.9, 50, 0), (3, 6.1, 49, 0), (0, 1e30, 50, 0)])
def test_a_gradient_beyond_the_factor_is_skipped_once_the_mean_is_known(factor, norm, steps, skipped):
    after, found = take(Recipe(spike_factor=factor), norm, before=guard(2.0, steps, 0))
    assert found == skipped
    # The mean of all norms, then of about the last 50; those of skipped steps are no part of it.
    mean = 2.0 if skipped else 2.0 + (norm - 2.0) / min(steps + 1, 50)
    assert after.guard.mean_norm == pytest.approx(mean) and after.guard.good_steps == steps + 1 - skipped


@pytest.mark.parametrize("after, in_a_row, skipped", [(3, 2, 0), (3, 3, 1), (3, 4, 1), (0, 9, 0)])
def test_after_enough_skipped_steps_all_are_skipped(after, in_a_row, skipped):
    state, found = take(Recipe(rollback_after=after), 1.0, before=guard(1.0, 5, in_a_row))
    assert found == skipped and state.guard.skipped_in_a_row == (in_a_row + 1 if skipped else 0)


def test_a_recipe_has_a_length_and_a_task_has_its_recipes():
    with pytest.raises(UserError, match="num_steps=0: choose a whole number from 1"):
        Recipe(num_steps=0)
    with pytest.raises(UserError, match="spike_factor=0.5: choose a factor above 1"):
        Recipe(spike_factor=0.5)
    assert tiny(7).num_steps == 7 and isinstance(TinyTask(), Task)
    assert TinyTask().check_batch({"x": jnp.zeros(3)}) is None
