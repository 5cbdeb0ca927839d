"""The training loop, once, for every task. It does not know what it trains; `tasks/task.py` says all that it asks of a task.

The state after step n is a pure function of (task, seed, n): the batch is source(n), the key is fold_in(seed, n). So a run that was killed
continues bit-exactly from its last checkpoint, and no iterator needs saving.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.data.prefetch import Source, prefetch
from musiclm_jax.errors import UserError
from musiclm_jax.records import to_dict, write_text
from musiclm_jax.training import sharding
from musiclm_jax.training.checkpoints import Checkpoints
from musiclm_jax.training.optim import OptimizerConfig
from musiclm_jax.training.task import Task, TrainState


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    # Steps of the whole run. May be raised later to train on.
    num_steps: int = 1000
    seed: int = 0
    # Steps between lines of the log, each the mean since the last one.
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
        for name in ("num_steps", "log_every", "eval_batches", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: choose 1 or more")
        for name in ("eval_every", "save_every"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: choose 1 or more, or 0 for only at the end")


def train(
    task: Task,
    source: Source,
    *,
    workdir: Path | str,
    config: TrainConfig,
    eval_source: Source | None = None,
    warm_start: Callable[[TrainState], TrainState] = lambda state: state,
) -> TrainState:
    """Trains `task` to step `config.num_steps` and returns its state, unboxed.

    Continues from the newest checkpoint in `workdir`, where the log (`metrics.jsonl`) and the checkpoints go. SIGTERM and Ctrl-C save a
    checkpoint and leave with SystemExit.

    Args:
        task: what to train.
        source: step -> batch of NumPy arrays with a leading batch axis; a pure function, called from another thread.
        workdir: folder of this run.
        config: how long, how often.
        eval_source: index -> held-out batch. None: no evaluation.
        warm_start: changes a fresh state, before the first step.

    Raises:
        UserError: the checkpoints belong to another task or seed; the loss is not finite.
    """
    # ---------------------------------------------------------------- Devices, shapes, shardings: nothing is allocated yet.
    workdir = Path(workdir)
    mesh = sharding.make_mesh(config.mesh)
    init_key, step_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)
    boxed_shapes = jax.eval_shape(task.init_state, init_key)
    shardings = sharding.state_shardings(boxed_shapes, mesh)
    abstract_state = jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), sharding.unbox(boxed_shapes), shardings)

    # ---------------------------------------------------------------- The three programs: init, train step, eval step.
    # Init runs once: on the CPU, where XLA compiles slowly, unoptimized code is there four times sooner.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(lambda key: warm_start(sharding.unbox(task.init_state(key))), out_shardings=shardings, compiler_options=quick)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, None))
    def train_step(state, batch, key):
        return task.train_step(state, batch, jax.random.fold_in(key, state.step))

    @jax.jit
    def eval_step(state, batch, key, index):
        return task.eval_step(state, batch, jax.random.fold_in(key, index))

    def evaluate(state) -> dict[str, float]:
        batches = prefetch(eval_source, start=0, stop=config.eval_batches)
        metrics = [eval_step(state, sharding.put_batch(batch, mesh), eval_key, index) for index, batch in enumerate(batches)]
        return {f"eval_{name}": value for name, value in _mean(metrics).items() if name != "tokens"}

    # ---------------------------------------------------------------- The state: restored, or made where it will live.
    identity = {"task": _identity(task), "seed": config.seed}
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", config=identity, keep=config.keep_checkpoints))
        state = checkpoints.restore(abstract_state)
        state = init(init_key) if state is None else state
        start = int(state.step)
        report = _Log(workdir / "metrics.jsonl", task.name, start, config.num_steps)
        report.banner(state)

        # ------------------------------------------------------------ The loop.
        stop_signal = stack.enter_context(_stop_signals())
        pending: list[Any] = []  # Metrics of the steps since the last line, still on the device.
        batches = stack.enter_context(contextlib.closing(prefetch(source, start=start, stop=config.num_steps)))
        for step, batch in enumerate(batches, start=start + 1):  # `step` counts finished steps.
            state, metrics = train_step(state, sharding.put_batch(batch, mesh), step_key)
            pending.append(metrics)
            if len(pending) > _AHEAD:
                jax.block_until_ready(pending[-1 - _AHEAD])
            stopping = list(stop_signal)  # Once per step: it may arrive at any line.
            last = step == config.num_steps or bool(stopping)
            report.first_step_done(step, metrics)

            # -------------------------------------------------------- Log.
            save = last or (config.save_every and step % config.save_every == 0)
            if step % config.log_every == 0 or save:
                report.line(step, _set_aside_skipped(jax.device_get(pending), step, task.name, source, workdir), batch)
                pending = []

            # -------------------------------------------------------- Evaluate.
            if eval_source and (step == config.num_steps or (config.eval_every and step % config.eval_every == 0)):
                with report.paused():
                    report.evaluation(step, evaluate(state))

            # -------------------------------------------------------- Save.
            if save:
                if not _all_finite(state):
                    raise UserError(f"{task.name}: weights are not finite after step {step}; nothing was saved. {_REMEDY}")
                checkpoints.save(step, state)
            if stopping:
                print(f"{task.name}: stopped after step {step}, which is saved; the same command continues there", flush=True)
                raise SystemExit(128 + stopping[0])
    return state


# How many steps the host hands out before it waits: enough to keep the device busy, few enough to stop soon when told to.
_AHEAD = 2


# -------------------------------------------------------------------- Helpers of the loop, in its order.


# The same command would come to the same end, and a checkpoint continues only under its own config.
_REMEDY = "Lower the learning rate or raise warmup_steps, and start this part anew in an empty folder"


def _identity(task: Task) -> Any:
    """What must be equal for a checkpoint to be continued. The length of a schedule need not be: what was trained may be trained for longer, and its
    learning rate goes on where a run of the new length would be."""
    if not dataclasses.is_dataclass(task):
        return {"name": task.name}
    identity = to_dict(task)
    for field in dataclasses.fields(task):
        if isinstance(getattr(task, field.name), OptimizerConfig):
            del identity[field.name]["total_steps"]
    return identity


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that receives SIGTERM or SIGINT. Outside the main thread signals cannot be caught, and stay as they were."""
    received: list[int] = []

    def handler(number, frame):
        if received:  # The second one means it.
            raise KeyboardInterrupt
        received.append(number)

    try:
        previous = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:
        previous = {}
    try:
        yield received
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _mean(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """The mean of each metric over steps."""
    metrics = jax.device_get(metrics)
    return {name: float(np.mean([each[name] for each in metrics])) for name in metrics[0]}


def _set_aside_skipped(metrics: list[dict[str, Any]], step: int, name: str, source: Source, workdir: Path) -> list[dict[str, Any]]:
    """The metrics of the steps up to `step` without those that were skipped, whose batches are written to `workdir`/skipped for a look at them."""
    good = []
    for at, each in enumerate(metrics, start=step - len(metrics) + 1):
        if not each.get("skipped", 0.0):
            if not math.isfinite(each["loss"]):
                raise UserError(f"{name}: the loss is {float(each['loss'])} at step {at}; nothing after the last checkpoint was saved. {_REMEDY}")
            good.append(each)
            continue
        path = workdir / "skipped" / f"{at}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **source(at - 1))
        print(f"{name}: step {at} was skipped, its loss or gradient is not finite; its batch is in {path}", flush=True)
    if not good or 2 * len(good) < len(metrics):
        raise UserError(f"{name}: {len(metrics) - len(good)} of the last {len(metrics)} steps were skipped, as their loss or gradient is not finite. {_REMEDY}")
    return good


@jax.jit
def _tree_is_finite(leaves):
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))


def _all_finite(state: TrainState) -> bool:
    leaves = [x for x in jax.tree.leaves((state.params, state.stats)) if jnp.issubdtype(x.dtype, jnp.floating)]
    return bool(_tree_is_finite(leaves)) if leaves else True


class _Log:
    """Lines for people on the console, the same numbers for programs in metrics.jsonl."""

    def __init__(self, path: Path, name: str, start: int, num_steps: int):
        self._path, self._name, self._start, self._num_steps = path, name, start, num_steps
        self._clock_step, self._clock = start, time.perf_counter()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():  # Steps after the restored checkpoint are about to be taken again.
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= start]
            write_text(path, "".join(f"{line}\n" for line in kept))

    def banner(self, state: TrainState) -> None:
        millions = sum(x.size for x in jax.tree.leaves(state.params)) / 1e6
        begin = f"from step {self._start} " if self._start else ""
        print(f"{self._name}: {millions:.3g}M parameters, {begin}to step {self._num_steps} on {len(jax.devices())} {jax.devices()[0].platform}", flush=True)

    def first_step_done(self, step: int, metrics: Any) -> None:
        """Starts the clock after compilation, so that rates are those of the run."""
        if step == self._start + 1:
            jax.block_until_ready(metrics)
            self._clock_step, self._clock = step, time.perf_counter()

    def line(self, step: int, metrics: list[dict[str, Any]], batch: dict[str, np.ndarray]) -> None:
        numbers = _mean(metrics)
        now = time.perf_counter()
        if step > self._clock_step:
            rate = (step - self._clock_step) / (now - self._clock)
            numbers["steps_per_sec"] = rate
            numbers["examples_per_sec"] = rate * len(next(iter(batch.values())))
            if "tokens" in numbers:
                numbers["tokens_per_sec"] = rate * numbers.pop("tokens")
            numbers["sec_left"] = (self._num_steps - step) / rate
        self._clock_step, self._clock = step, now
        self._write(step, numbers)

    def evaluation(self, step: int, numbers: dict[str, float]) -> None:
        self._write(step, numbers)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count as training."""
        begin = time.perf_counter()
        yield
        self._clock += time.perf_counter() - begin

    def _write(self, step: int, numbers: dict[str, float]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        # The loss first, speed last.
        order = sorted(numbers, key=lambda name: ("loss" not in name, name.endswith("_per_sec"), name))
        shown = {name: numbers[name] for name in order if name != "sec_left"}
        left = f"  {_duration(numbers['sec_left'])} left" if numbers.get("sec_left") else ""
        print(f"{self._name} {step}/{self._num_steps}  " + "  ".join(f"{k} {v:.4g}" for k, v in shown.items()) + left, flush=True)


def _step_of(line: str) -> int | float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # A line cut short by a kill.
        return math.inf


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


def read_metrics(workdir: Path | str) -> dict[str, int | float]:
    """The last value of every metric that a run has logged."""
    numbers: dict[str, int | float] = {}
    path = Path(workdir) / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        numbers.update(json.loads(line))
    return numbers
