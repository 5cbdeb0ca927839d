"""The training loop of all tasks. `task.py` defines what it requires of a task.

The state after step n is a pure function of (task, seed, n) and of the lengths that the run has had: the batch is source(n), the key is
fold_in(seed, n). So a killed run continues bit-exactly from its last checkpoint, without saved iterators.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax.checks import SEED, STEPS, check_choices, check_numbers
from musiclm_jax.data.prefetch import Source, make_batch, prefetch
from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath, as_path
from musiclm_jax.training import hosts, sharding
from musiclm_jax.training.checkpoints import Checkpoints, Lengths, trained_on
from musiclm_jax.training.cost import ideal_step_sec
from musiclm_jax.training.faults import Faults
from musiclm_jax.training.log import REMEDY, Log, read_metrics
from musiclm_jax.training.profile import tracing
from musiclm_jax.training.task import Task, TrainState
from musiclm_jax.training.trackers import Sample, check_trackers, open_trackers

__all__ = ["TrainConfig", "Trained", "read_metrics", "train"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    seed: int = 0
    # Steps between lines of the log; a line is the mean since the last one.
    log_every: int = 50
    # Steps between evaluations. 0: only after the last step.
    eval_every: int = 500
    # Held-out batches per evaluation, always the same ones.
    eval_batches: int = 4
    # Steps between checkpoints. 0: only after the last step.
    save_every: int = 500
    # Checkpoints kept; older ones are deleted.
    keep_checkpoints: int = 2
    # Whether the checkpoint with the lowest eval_loss is kept, too, of those that were written at an evaluation.
    keep_best: bool = True
    # Where the log goes beside the console and metrics.jsonl, with samples made at evaluations: "tensorboard" and "wandb", each needs a package.
    trackers: tuple[str, ...] = ()
    # Whether steps 10 to 15 of each call are traced for a profiler, to the folder profile.
    profile: bool = False
    mesh: sharding.MeshConfig = sharding.MeshConfig()

    def __post_init__(self):
        some = (1, STEPS[1])
        check_numbers(self, seed=SEED, log_every=some, eval_batches=some, keep_checkpoints=some, eval_every=STEPS, save_every=STEPS)
        check_choices(self, keep_best=(True, False), profile=(True, False))
        check_trackers(self.trackers)


@dataclasses.dataclass(frozen=True)
class Trained:
    """The result of a training."""

    # After the last step, unboxed.
    state: TrainState
    # The lengths that the run has had (`checkpoints.Lengths`): under a cosine schedule the weights depend on them.
    lengths: Lengths
    # The last value of every metric in the log.
    metrics: dict[str, int | float]


def train(
    task: Task,
    source: Source,
    *,
    workdir: AnyPath | str,
    config: TrainConfig,
    identity: str,
    eval_source: Source | None = None,
    warm_start: Callable[[TrainState], TrainState] = lambda state: state,
    samples: Callable[[dict[str, Any]], Mapping[str, Sample]] = lambda variables: {},
) -> Trained:
    """Trains `task` to its last step.

    Continues from the newest checkpoint in `workdir`, where the log (`metrics.jsonl`) and the checkpoints go. SIGTERM and Ctrl-C save a
    checkpoint and leave with SystemExit. Where several processes train as one (`hosts.py`), all call this function, with the same arguments; a signal to
    one of them stops all after the same step.

    Args:
        task: the model and its recipe, with the number of steps.
        source: step -> batch of NumPy arrays with a leading batch axis; a pure function, called from another thread. With several processes it is also
            asked for some rows of a batch (`data.prefetch.Source`).
        workdir: folder of this run alone, shared by all processes.
        config: how often to log, evaluate and save.
        identity: hash of all that decides the result, except the length. Checkpoints of another identity are refused.
        eval_source: index -> held-out batch, as `source`. None: no evaluation.
        warm_start: applied to the initial state.
        samples: variables (`Task.variables`) -> {name: sample}, for trackers, at evaluations.

    Raises:
        UserError: the newest checkpoint belongs to another training, is beyond the last step or cannot be read; the first batch does not fit
            the task; the loss is not finite; the disk is full.
    """
    # ---------------------------------------------------------------- Devices, shapes, shardings: nothing is allocated yet.
    workdir = as_path(workdir)
    mesh = sharding.make_mesh(config.mesh)
    init_key, step_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)
    boxed_shapes = jax.eval_shape(task.init_state, init_key)
    shardings = sharding.state_shardings(boxed_shapes, mesh)
    abstract_state = jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), sharding.unbox(boxed_shapes), shardings)

    # ---------------------------------------------------------------- The three programs: init, train step, eval step.
    # Init runs once: on CPU, where compilation dominates, unoptimized code compiles four times faster.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(lambda key: warm_start(sharding.unbox(task.init_state(key))), out_shardings=shardings, compiler_options=quick)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, None))
    def train_step(state, batch, key):
        return task.train_step(state, batch, jax.random.fold_in(key, state.step))

    @jax.jit
    def eval_step(state, batch, key, index):
        return task.eval_step(state, batch, jax.random.fold_in(key, index))

    with contextlib.ExitStack() as stack:
        stack.enter_context(sharding.activate(mesh))
        # ------------------------------------------------------------ The state: restored, or initialized with its shardings.
        stop_signal = stack.enter_context(_stop_signals())
        checkpoints = stack.enter_context(Checkpoints(workdir, identity=identity, keep=config.keep_checkpoints, keep_best=config.keep_best))
        state, lengths = checkpoints.restore(abstract_state, num_steps=task.num_steps) or (init(init_key), [])
        start = int(state.step)
        lengths = trained_on(lengths, start=start, num_steps=task.num_steps)
        faults = Faults(task, state)
        trackers = open_trackers(config.trackers, workdir, task.name, start=start)
        log = Log(workdir, task.name, source, start=start, num_steps=task.num_steps, goes_back=bool(task.recipe.rollback_after), trackers=trackers)
        stack.enter_context(contextlib.closing(log)).banner(state)
        source = sharding.local_source(source, mesh)
        eval_source = eval_source and sharding.local_source(eval_source, mesh)

        # ------------------------------------------------------------ When to log, evaluate and save. The last step does all three.
        def due(every: int, step: int) -> bool:
            return step == task.num_steps or bool(every and step and step % every == 0)

        eval_program = None

        def evaluate(state) -> float | None:
            """Logs the mean over the held-out batches, and returns the loss. A stop signal ends it early (None); the next run repeats it."""
            nonlocal eval_program
            with log.paused(), contextlib.closing(prefetch(eval_source, start=0, stop=config.eval_batches)) as batches:
                metrics = []
                for index, batch in enumerate(batches):
                    if stop_signal():
                        return None
                    placed = sharding.put_batch(batch, mesh)
                    eval_program = eval_program or hosts.compile_together(eval_step, state, placed, eval_key, index)
                    metrics.append(jax.device_get(eval_program(state, placed, eval_key, index)))
                log.samples(lambda: samples(jax.device_get(task.variables(state))))
            return log.evaluation(metrics).get("eval_loss")

        # ------------------------------------------------------------ Before the first step.
        if eval_source and due(config.eval_every, start) and not log.start_is_evaluated:
            evaluate(state)
        if start < task.num_steps:
            task.check_batch(first := make_batch(source, start))
            sharding.check_batch(placed := sharding.put_batch(first, mesh), mesh, task.recipe.accumulate)
            log.ideal_step_sec = ideal_step_sec(task, abstract_state, placed)
        if stopping := stop_signal():
            _leave(task.name, start, stopping)

        # ------------------------------------------------------------ The loop.
        trace = stack.enter_context(tracing(workdir / "profile" if config.profile else None, start=start))
        batches = stack.enter_context(contextlib.closing(prefetch(source, start=start, stop=task.num_steps)))
        for step, batch in enumerate(batches, start=start + 1):  # `step` counts finished steps.
            placed = sharding.put_batch(batch, mesh)
            if step == start + 1:
                train_step = hosts.compile_together(train_step, state, placed, step_key)
            state, metrics = train_step(state, placed, step_key)
            log.step(step, metrics, placed)
            trace(step, state)
            evaluating, saving = eval_source and due(config.eval_every, step), due(config.save_every, step)

            # -------------------------------------------------------- Go back after many skipped steps.
            if faults.is_due(step, metrics):
                log.line()
                now, state = state.step, None  # Frees the memory of the state.
                with log.paused():
                    state, lengths = faults.go_back(checkpoints, abstract_state, lengths, step)
                state = state.replace(step=now)

            # -------------------------------------------------------- Log.
            if step % config.log_every == 0 or evaluating or saving:
                log.line()

            # -------------------------------------------------------- Evaluate.
            eval_loss = evaluate(state) if evaluating else None

            # -------------------------------------------------------- Save.
            stopping = stop_signal()  # Once per step: a signal may arrive at any line.
            if saving or stopping:
                log.line()
                if not _all_finite(state):
                    raise UserError(f"{task.name}: weights are not finite after step {step}; nothing was saved. {REMEDY}")
                checkpoints.save(step, state, lengths, lasting=saving and not state.guard.skipped_in_a_row, eval_loss=eval_loss)
            if stopping:
                _leave(task.name, step, stopping)
    return Trained(state, lengths, hosts.first(lambda: read_metrics(workdir)))


# -------------------------------------------------------------------- Helpers of the loop, in its order.


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], int]]:
    """Catches the first SIGTERM or SIGINT. A second signal has the effect that it had before.

    Yields a function that returns the signal's number, 0 before. With several processes it returns SIGTERM at the same call on all of them, soon after one
    has received a signal. Outside the main thread signals cannot be caught, and keep their effect.
    """
    received: list[int] = []
    previous = {}
    alone = jax.process_count() == 1

    def handler(number, frame):
        if received:
            signal.signal(number, previous[number])
            return os.kill(os.getpid(), number)
        received.append(number)
        os.write(2, b"\nstopping after this step, or once it is compiled; a second Ctrl-C stops at once, and loses the steps since the last checkpoint\n")
        if not alone:
            hosts.stop_all()

    def stop_signal() -> int:
        if alone:
            return received[0] if received else 0
        return signal.SIGTERM if hosts.stopping() else 0

    with contextlib.suppress(ValueError):  # JAX catches SIGTERM where there are several processes.
        previous |= {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)[: 1 + alone]}
    try:
        yield stop_signal
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _leave(name: str, step: int, number: int) -> None:
    stopped = f"stopped after step {step}, which is saved; the same command continues there" if step else "stopped before the first step"
    hosts.say(f"{name}: {stopped}")
    raise SystemExit(128 + number)


@jax.jit
def _tree_is_finite(leaves):
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))


def _all_finite(state: TrainState) -> bool:
    leaves = [x for x in jax.tree.leaves((state.params, state.stats)) if jnp.issubdtype(x.dtype, jnp.floating)]
    return bool(_tree_is_finite(leaves)) if leaves else True
