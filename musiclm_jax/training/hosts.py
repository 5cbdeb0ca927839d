"""Several processes that train as one: their start, what process 0 does for all, and their common stop.

Each process runs the same program on its own devices, and JAX's runtime connects them (`jax.distributed`). Arrays that are split over all devices are
computed by all processes together; files are written by process 0 alone (`first`). With a single process every function here is as if it were not there.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from musiclm_jax.errors import UserError

Result = TypeVar("Result")

# The calls of `stopping`, which all processes make in the same order.
_calls = itertools.count(1)
# Whether process 0 is within `first`.
_on_its_own = False


def start(*, coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None, timeout: int = 300) -> None:
    """Connects this process with the others, before any device is used. Does nothing for a single process.

    Without arguments JAX finds the processes on TPU slices, under SLURM and under Open MPI.

    Args:
        coordinator: "HOST:PORT" of process 0, with a free port.
        num_processes: the number of processes.
        process_id: the number of this one, from 0 on.
        timeout: seconds to wait for the others. Then the process prints one line and ends with status 2. Later, a process that is silent for so long, at most
            100 s, counts as lost, and JAX ends the others.

    Raises:
        UserError: some of the three arguments are missing, or they are nonsense.
    """
    given = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UserError(f"{missing[0]} is missing: give --coordinator HOST:PORT, --num_processes and --process_id together")
    if not missing:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UserError(f"--coordinator {coordinator}: expected HOST:PORT, the address of process 0 and a free port of it")
        if not 0 <= process_id < num_processes:
            raise UserError(f"--process_id {process_id} of --num_processes {num_processes}: number the processes from 0 to {num_processes - 1}")
    if num_processes == 1 or (missing and not _found_by_jax()):
        return
    whom = f"the coordinator {coordinator}, process 0" if process_id else "all other processes"
    line = f"musiclm: {whom}: not reached within {timeout} s: start all processes, with the same address, or raise --timeout\n"
    # JAX would abort with a stack trace; this ends before.
    watchdog = threading.Timer(timeout, lambda: (os.write(2, line.encode()), os._exit(2)))
    watchdog.daemon = True
    watchdog.start()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    timeouts = {"initialization_timeout": timeout + 60, "heartbeat_timeout_seconds": min(timeout, 100)}
    jax.distributed.initialize(coordinator, num_processes, process_id, **timeouts)
    watchdog.cancel()


def _found_by_jax() -> bool:
    """Whether JAX recognizes a cluster, with more than one process, of which this is one."""
    from jax._src.clusters import ClusterEnv  # `jax.distributed.initialize` alone would also start a single process.

    kinds = (kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method and kind.is_env_present())
    return any(kind.get_process_count() > 1 for kind in itertools.islice(kinds, 1))


def leave(error: BaseException) -> None:
    """Ends a process that failed with `error` at once, without waiting for the others, which miss it and end too.

    Does nothing for a single process, and where all processes leave together after a stop signal.
    """
    status = error.code if isinstance(error, SystemExit) else 1
    if status not in (1, 2) or not jax.distributed.is_initialized():
        return
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first():  # The others end with it; where all fail alike, they shall say why before.
        time.sleep(1)
    os._exit(status)


def is_first() -> bool:
    """Whether this is process 0."""
    return jax.process_index() == 0


def first(make: Callable[[], Result]) -> Result:
    """Process 0 calls `make`; all processes wait for it, and return its result or raise its UserError.

    make: returns JSON types. Within it, process 0 is on its own: further calls of `first` and `wait` do not involve the others.

    All processes must call `first`, `wait`, `gather` and `stopping` in the same order.
    """
    global _on_its_own
    if jax.process_count() == 1 or _on_its_own:
        return make()
    answer: dict[str, Any] = {}
    if is_first():
        _on_its_own = True
        try:
            answer = {"result": make()}
        except UserError as error:
            answer = {"error": str(error)}
        finally:
            _on_its_own = False
    answer = json.loads(_broadcast(json.dumps(answer).encode()))
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["result"]


def say(line: str) -> None:
    """Prints a line, if this is process 0."""
    if is_first():
        print(line, flush=True)


def wait() -> None:
    """Waits until all processes call it."""
    if jax.process_count() > 1 and not _on_its_own:
        multihost_utils.sync_global_devices("wait")


def _broadcast(data: bytes) -> bytes:
    """The data of process 0."""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(size, np.uint8)
    if is_first():
        padded[:] = np.frombuffer(data, np.uint8)
    return multihost_utils.broadcast_one_to_all(padded).tobytes()


def check_agreement(what: Mapping[str, bytes]) -> None:
    """Compares digests of 32 bytes over the processes, by the name of what they stand for. Raises UserError where a process differs from process 0."""
    if jax.process_count() == 1:
        return
    digests = np.stack([np.frombuffer(digest, np.uint8) for digest in what.values()])
    everywhere = multihost_utils.process_allgather(digests)  # [processes, names, bytes]
    differs = (everywhere != everywhere[0]).any(axis=-1)
    for process, name in np.argwhere(differs):
        raise UserError(f"process {process} has another {list(what)[name]} than process 0: start the same command, with the same files, on all hosts")


def compile_together(program: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """The jitted `program`, compiled for such arguments by all processes before the first of them runs it.

    Gloo, which connects CPUs, gives the processes 30 s to meet in a program, less than their compilation may differ.
    """
    if jax.process_count() == 1:
        return program
    compiled = program.lower(*arguments).compile()
    wait()
    return compiled


def gather(tree: Any) -> Any:
    """The whole arrays of a tree, on the host, as NumPy arrays. Those that a process has by itself are its own."""
    whole = lambda leaf: leaf.is_fully_addressable if isinstance(leaf, jax.Array) else True  # noqa: E731
    return jax.tree.map(lambda leaf: jax.device_get(leaf) if whole(leaf) else multihost_utils.process_allgather(leaf, tiled=True), tree)


def stopping() -> bool:
    """Whether all processes shall stop now: true at the same call on all of them, soon after one has received SIGTERM.

    All processes must call it equally often, several times a second. False for a single process, whose signals it leaves alone.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(next(_calls))


def stop_all() -> None:
    """Makes `stopping` true on all processes, as SIGTERM does."""
    os.kill(os.getpid(), signal.SIGTERM)
