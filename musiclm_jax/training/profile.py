"""A trace of some steps of a training, for TensorBoard's profile plugin, XProf or Perfetto (https://docs.jax.dev/en/latest/profiling.html)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from musiclm_jax.files import AnyPath

# Of the steps that a call takes. Those before compile and fill caches.
FIRST, LAST = 10, 15


@contextlib.contextmanager
def tracing(folder: AnyPath | None, *, start: int) -> Iterator[Callable[[int, Any], None]]:
    """Yields a function for the loop to call after each step, with (step, state), which writes a trace of the steps FIRST to LAST to `folder`.

    folder: None: no trace. start: the step after which the run starts or continues.
    """
    active = False

    def after(step: int, state: Any) -> None:
        nonlocal active
        if folder is not None and step - start == FIRST - 1:
            jax.block_until_ready(state)
            jax.profiler.start_trace(folder)
            active = True
        elif active and step - start == LAST:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            active = False
            print(f"{folder}: a trace of steps {start + FIRST} to {step}", flush=True)

    try:
        yield after
    finally:
        if active:
            jax.profiler.stop_trace()
