"""Work in background threads: batches prepared while the accelerator computes, and files read in parallel."""

from __future__ import annotations

import collections
import concurrent.futures
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

# Which rows of a batch to make: the number of rows of the batch -> the numbers of the rows, ascending. np.arange: all.
Rows = Callable[[int], np.ndarray]
# source(step) is the batch of a step, NumPy arrays with a leading batch axis; source(step, rows) has only those rows of it, and reads only what they need.
Source = Callable[..., dict[str, np.ndarray]]
Item, Result = TypeVar("Item"), TypeVar("Result")


def map_ahead(fn: Callable[[Item], Result], items: Iterable[Item], *, workers: int | None = None) -> Iterator[tuple[Item, Result]]:
    """Yields (item, fn(item)) for each item, in order, computed by `workers` threads.

    At most twice as many results as threads wait for the caller. If the caller stops early, calls that have not begun are cancelled.

    Args:
        workers: number of threads. None: the number of processors.
    """
    workers = workers or os.cpu_count() or 1
    waiting: collections.deque = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append((item, pool.submit(fn, item)))
            if len(waiting) == 2 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def prefetch(source: Source, *, start: int, stop: int, depth: int = 2) -> Iterator[dict[str, np.ndarray]]:
    """Yields source(start), ..., source(stop - 1), computed by a thread up to `depth` batches ahead. An error in `source` is raised at its batch."""
    batches: queue.Queue = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def put(item) -> bool:
        while not closed.is_set():
            try:
                batches.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work():
        try:
            for step in range(start, stop):
                if not put((source(step), None)):
                    return
        except BaseException as error:  # Raised in the caller's thread.
            put((None, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        for _ in range(start, stop):
            batch, error = batches.get()
            if error is not None:
                raise error
            yield batch
    finally:  # Ends the thread if the caller stopped early.
        closed.set()
        thread.join()


def make_batch(source: Source, step: int) -> dict[str, np.ndarray]:
    """source(step), computed by a thread as in `prefetch`: a source that uses JAX does not see the device mesh of the caller."""
    return next(prefetch(source, start=step, stop=step + 1))
