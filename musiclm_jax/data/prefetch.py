"""The next batches, made in a thread while the accelerator works."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import numpy as np

Source = Callable[[int], dict[str, np.ndarray]]


def prefetch(source: Source, *, start: int, stop: int, depth: int = 2) -> Iterator[dict[str, np.ndarray]]:
    """source(start), ..., source(stop - 1), up to `depth` of them ahead of the caller. An error in `source` is raised here, in its turn."""
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
        except BaseException as error:  # Handed to the caller, whose error it is.
            put((None, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        for _ in range(start, stop):
            batch, error = batches.get()
            if error is not None:
                raise error
            yield batch
    finally:  # The caller stopped early: let the thread end.
        closed.set()
        thread.join()
