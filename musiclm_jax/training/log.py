"""The log of a training run: lines on the console, and the same numbers as JSON lines in WORKDIR/metrics.jsonl."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from musiclm_jax.data.prefetch import Source
from musiclm_jax.errors import UserError, unreadable
from musiclm_jax.files import AnyPath, append_line, as_path, atomic_path, write_text
from musiclm_jax.training.task import TrainState

# The remedy for numbers that are not finite. The same command would fail again, and a checkpoint cannot continue with other settings.
REMEDY = "Lower the learning rate or raise warmup_steps, and start this part anew in an empty folder"

# Steps that the host dispatches ahead of the device: enough to keep the device busy, few enough to stop soon after a signal.
_AHEAD = 2


class Log:
    """The log of a run that starts or continues after step `start`. Lines of later steps are dropped, since the run repeats those steps.

    source: step -> batch, from which the batches of skipped steps are written.
    """

    def __init__(self, workdir: AnyPath, name: str, source: Source, *, start: int, num_steps: int):
        self._workdir, self._name, self._source, self._start, self._num_steps = workdir, name, source, start, num_steps
        self._path = workdir / "metrics.jsonl"
        self._clock_step, self._clock = start, time.perf_counter()
        self._pending: list[Any] = []  # Metrics of the steps since the last line, still on the device.
        self._step, self._examples = start, 0
        kept = [line for line in _read_lines(self._path) if line["step"] <= start]
        # Whether the state that the run starts from has been evaluated.
        self.start_is_evaluated = any(line["step"] == start and any(key.startswith("eval_") for key in line) for line in kept)
        write_text(self._path, "".join(f"{json.dumps(line)}\n" for line in kept))

    def banner(self, state: TrainState) -> None:
        millions = sum(x.size for x in jax.tree.leaves(state.params)) / 1e6
        begin = f"from step {self._start} " if self._start else ""
        print(f"{self._name}: {millions:.3g}M parameters, {begin}to step {self._num_steps} on {len(jax.devices())} {jax.devices()[0].platform}", flush=True)

    def step(self, step: int, metrics: dict[str, jax.Array], batch: dict[str, np.ndarray]) -> None:
        """Records the metrics of a step, which may still be running. Waits where the device is too far behind."""
        self._pending.append(metrics)
        self._step, self._examples = step, len(next(iter(batch.values())))
        if len(self._pending) > _AHEAD:
            jax.block_until_ready(self._pending[-1 - _AHEAD])
        if step == self._start + 1:  # The clock starts after the first step, so that rates exclude compilation.
            jax.block_until_ready(metrics)
            self._clock_step, self._clock = step, time.perf_counter()

    def line(self) -> None:
        """Writes the mean over the steps since the last line, if there were any.

        Raises:
            UserError: a loss is not finite, most of the steps were skipped, or the log cannot be written.
        """
        if not self._pending:
            return
        numbers = _mean(self._without_skipped(jax.device_get(self._pending)))
        self._pending = []
        now, tokens = time.perf_counter(), numbers.pop("tokens", None)  # Per step.
        if self._step > self._clock_step:
            rate = (self._step - self._clock_step) / (now - self._clock)
            numbers["steps_per_sec"] = rate
            numbers["examples_per_sec"] = rate * self._examples
            if tokens is not None:
                numbers["tokens_per_sec"] = rate * tokens
            numbers["sec_left"] = (self._num_steps - self._step) / rate
        self._clock_step, self._clock = self._step, now
        self._write(numbers)

    def evaluation(self, metrics: list[dict[str, Any]]) -> None:
        """Writes the means over held-out batches, with names that begin with "eval_"."""
        self._write({f"eval_{name}": value for name, value in _mean(metrics).items() if name != "tokens"})

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time within the block from the training rates."""
        begin = time.perf_counter()
        yield
        self._clock += time.perf_counter() - begin

    def _without_skipped(self, metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The metrics of the steps that were not skipped. Writes the batches of skipped steps to WORKDIR/skipped, for inspection."""
        good = []
        for step, each in enumerate(metrics, start=self._step - len(metrics) + 1):
            if not each.get("skipped", 0.0):
                if not math.isfinite(each["loss"]):
                    raise UserError(f"{self._name}: the loss is {float(each['loss'])} at step {step}; nothing after the last checkpoint was saved. {REMEDY}")
                good.append(each)
                continue
            path = self._workdir / "skipped" / f"{step}.npz"
            batch = self._source(step - 1)
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **batch)
            print(f"{self._name}: step {step} was skipped, since its loss or gradient is not finite; its batch is in {path}", flush=True)
        if 2 * len(good) < len(metrics):
            skipped = f"{len(metrics) - len(good)} of the last {len(metrics)} steps were skipped, since their loss or gradient is not finite"
            raise UserError(f"{self._name}: {skipped}. {REMEDY}")
        return good

    def _write(self, numbers: dict[str, float]) -> None:
        append_line(self._path, json.dumps({"step": self._step, **numbers}))
        # The loss first, speed last.
        order = sorted(numbers, key=lambda name: ("loss" not in name, name.endswith("_per_sec"), name))
        shown = {name: numbers[name] for name in order if name != "sec_left"}
        left = f"  {_duration(numbers['sec_left'])} left" if numbers.get("sec_left") else ""
        print(f"{self._name} {self._step}/{self._num_steps}  " + "  ".join(f"{k} {v:.4g}" for k, v in shown.items()) + left, flush=True)


def read_metrics(workdir: AnyPath | str) -> dict[str, int | float]:
    """The last value of every metric that the run in `workdir` has logged; empty where there is no log. Raises UserError where it cannot be read."""
    numbers: dict[str, int | float] = {}
    for line in _read_lines(as_path(workdir) / "metrics.jsonl"):
        numbers.update(line)
    return numbers


def _read_lines(path: AnyPath) -> list[dict[str, Any]]:
    """The complete lines of a log. A kill or a full disk may have truncated the last one."""
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(path, error) from error
    lines = []
    for line in text.split("\n"):
        with contextlib.suppress(ValueError):
            numbers = json.loads(line)
            if isinstance(numbers, dict) and isinstance(numbers.get("step"), int):
                lines.append(numbers)
    return lines


def _mean(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """The mean of each metric over steps."""
    return {name: float(np.mean([each[name] for each in metrics])) for name in metrics[0]}


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
