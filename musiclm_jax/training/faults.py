"""What a run does after many skipped steps in a row: it goes back to earlier weights and continues with the next batches.

`task.keep_good` skips single steps, on the device. Once it has skipped `Recipe.rollback_after` in a row it skips all further ones, and the loop replaces
the weights by those of the newest checkpoint before the skipped steps. The number of the step does not go back, so that the run gets other batches, and
ends after as many. (PaLM, arXiv 2204.02311, section 5.1, restarts about 100 steps before a spike and skips 200 to 500 batches.)

The step at which a run goes back, and where to, depends on the training and on `save_every`, not on when it was stopped or killed: a run that is killed
before it has saved again repeats the same, and checkpoints that a stop signal left do not count. Its lengths record each return, as
[step, num_steps, step of the weights].
"""

from __future__ import annotations

import collections
from typing import Any

import jax

from musiclm_jax.errors import UserError
from musiclm_jax.training import hosts
from musiclm_jax.training.checkpoints import Checkpoints, Lengths
from musiclm_jax.training.log import AHEAD, REMEDY
from musiclm_jax.training.task import Task, TrainState

# Returns to one checkpoint, after which the run gives up.
_RETURNS = 3


class Faults:
    """Counts the skipped steps of a run that starts or continues with `state`."""

    def __init__(self, task: Task, state: TrainState):
        self._name, self._num_steps, self._after = task.name, task.num_steps, task.recipe.rollback_after
        self._unread: collections.deque[Any] = collections.deque()  # Whether each of the last steps was skipped, still on the device.
        self._begin(state)

    def _begin(self, state: TrainState) -> None:
        self._unread.clear()
        self._in_a_row = int(state.guard.skipped_in_a_row)
        # The step with which there were enough skipped ones.
        self._full = int(state.step) - (self._in_a_row - self._after) if self._after and self._in_a_row >= self._after else None

    def is_due(self, step: int, metrics: dict[str, jax.Array]) -> bool:
        """Whether the run shall go back now, after `step`. Reads metrics of AHEAD steps before, which have been computed, so that it waits for none."""
        self._unread.append(metrics.get("skipped", 0.0))
        if len(self._unread) > AHEAD:
            self._in_a_row = self._in_a_row + 1 if float(self._unread.popleft()) else 0
            if self._after and self._in_a_row == self._after:
                self._full = step - AHEAD
        return self._full is not None and step >= self._full + AHEAD

    def go_back(self, checkpoints: Checkpoints, abstract_state: Any, lengths: Lengths, step: int) -> tuple[TrainState, Lengths]:
        """The state of the last checkpoint before the skipped steps, and the lengths that record the return. The caller sets its step.

        Raises:
            UserError: there is no such checkpoint, or the run has gone back to it too often; or it cannot be read.
        """
        last_good = self._full - self._after
        skipped = f"{self._name}: all steps from {last_good + 1} to {step} were skipped; their batches are in the folder skipped"
        candidates = [each for each in checkpoints.lasting() if each <= last_good]
        restored = checkpoints.restore(abstract_state, num_steps=self._num_steps, among=candidates) if candidates else None
        if restored is None:
            raise UserError(f"{skipped}, and there is no checkpoint before them. {REMEDY}")
        state, target = restored[0], int(restored[0].step)
        if [entry[2:] for entry in lengths[-_RETURNS:]] == [[target]] * _RETURNS:
            raise UserError(f"{skipped}, after {_RETURNS} returns to the checkpoint of step {target}. {REMEDY}")
        hosts.say(f"{self._name}: after {self._after} skipped steps in a row, step {step} continues with the weights of step {target}")
        self._begin(state)
        return state, [*lengths, [step, self._num_steps, target]]
