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
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from musiclm_jax.checks import SEED, STEPS, check_numbers
from musiclm_jax.data.prefetch import Source, prefetch
from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath, as_path
from musiclm_jax.training import sharding
from musiclm_jax.training.checkpoints import Checkpoints, Lengths, trained_on
from musiclm_jax.training.log import REMEDY, Log, read_metrics
from musiclm_jax.training.task import Task, TrainState

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
    mesh: sharding.MeshConfig = sharding.MeshConfig()

    def __post_init__(self):
        some = (1, STEPS[1])
        check_numbers(self, seed=SEED, log_every=some, eval_batches=some, keep_checkpoints=some, eval_every=STEPS, save_every=STEPS)


@dataclasses.dataclass(frozen=True)
class Trained:
    """The result of a training."""

    # After the last step, unboxed.
    state: TrainState
    # The lengths that the run has had, as [first step, num_steps]: under a cosine schedule the weights depend on them.
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
) -> Trained:
    """Trains `task` to its last step.

    Continues from the newest checkpoint in `workdir`, where the log (`metrics.jsonl`) and the checkpoints go. SIGTERM and Ctrl-C save a
    checkpoint and leave with SystemExit.

    Args:
        task: the model and its recipe, with the number of steps.
        source: step -> batch of NumPy arrays with a leading batch axis; a pure function, called from another thread.
        workdir: folder of this run alone.
        config: how often to log, evaluate and save.
        identity: hash of all that decides the result, except the length. Checkpoints of another identity are refused.
        eval_source: index -> held-out batch. None: no evaluation.
        warm_start: applied to the initial state.

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
        stop_signals = stack.enter_context(_stop_signals())
        checkpoints = stack.enter_context(Checkpoints(workdir, identity=identity, keep=config.keep_checkpoints))
        state, lengths = checkpoints.restore(abstract_state, num_steps=task.num_steps) or (init(init_key), [])
        start = int(state.step)
        lengths = trained_on(lengths, start=start, num_steps=task.num_steps)
        log = Log(workdir, task.name, source, start=start, num_steps=task.num_steps)
        log.banner(state)

        # ------------------------------------------------------------ When to log, evaluate and save. The last step does all three.
        def due(every: int, step: int) -> bool:
            return step == task.num_steps or bool(every and step and step % every == 0)

        def evaluate(state) -> None:
            """Logs the mean over the held-out batches. A stop signal ends it early; the next run repeats it."""
            with log.paused(), contextlib.closing(prefetch(eval_source, start=0, stop=config.eval_batches)) as batches:
                metrics = []
                for index, batch in enumerate(batches):
                    if stop_signals:
                        return
                    metrics.append(jax.device_get(eval_step(state, sharding.put_batch(batch, mesh), eval_key, index)))
            log.evaluation(metrics)

        # ------------------------------------------------------------ Before the first step.
        if eval_source and due(config.eval_every, start) and not log.start_is_evaluated:
            evaluate(state)
        if start < task.num_steps:
            task.check_batch(source(start))
        if stop_signals:
            _leave(task.name, start, stop_signals[0])

        # ------------------------------------------------------------ The loop.
        batches = stack.enter_context(contextlib.closing(prefetch(source, start=start, stop=task.num_steps)))
        for step, batch in enumerate(batches, start=start + 1):  # `step` counts finished steps.
            state, metrics = train_step(state, sharding.put_batch(batch, mesh), step_key)
            log.step(step, metrics, batch)
            evaluating, saving = eval_source and due(config.eval_every, step), due(config.save_every, step)

            # -------------------------------------------------------- Log.
            if step % config.log_every == 0 or evaluating or saving:
                log.line()

            # -------------------------------------------------------- Evaluate.
            if evaluating:
                evaluate(state)

            # -------------------------------------------------------- Save.
            stopping = list(stop_signals)  # Once per step: a signal may arrive at any line.
            if saving or stopping:
                log.line()
                if not _all_finite(state):
                    raise UserError(f"{task.name}: weights are not finite after step {step}; nothing was saved. {REMEDY}")
                checkpoints.save(step, state, lengths)
            if stopping:
                _leave(task.name, step, stopping[0])
    return Trained(state, lengths, read_metrics(workdir))


# -------------------------------------------------------------------- Helpers of the loop, in its order.


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that receives SIGTERM or SIGINT. A second signal has the effect that it had before.

    Outside the main thread signals cannot be caught, and keep their effect.
    """
    received: list[int] = []
    previous = {}

    def handler(number, frame):
        if received:
            signal.signal(number, previous[number])
            return os.kill(os.getpid(), number)
        received.append(number)
        os.write(2, b"\nstopping after this step, or once it is compiled; a second Ctrl-C stops at once, and loses the steps since the last checkpoint\n")

    with contextlib.suppress(ValueError):
        previous |= {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _leave(name: str, step: int, number: int) -> None:
    stopped = f"stopped after step {step}, which is saved; the same command continues there" if step else "stopped before the first step"
    print(f"{name}: {stopped}", flush=True)
    raise SystemExit(128 + number)


@jax.jit
def _tree_is_finite(leaves):
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))


def _all_finite(state: TrainState) -> bool:
    leaves = [x for x in jax.tree.leaves((state.params, state.stats)) if jnp.issubdtype(x.dtype, jnp.floating)]
    return bool(_tree_is_finite(leaves)) if leaves else True
