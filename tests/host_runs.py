"""Starts several processes that train as one, each with some virtual CPU devices, and reads what they print."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(devices: int, cache: Path | None = None) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    paths = [TESTS.parent, TESTS, TESTS / "tasks", os.environ.get("PYTHONPATH", "")]
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"} if cache else {}
    return {**os.environ, **compiled, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(map(str, paths)), "MUSICLM_CACHE_DIR": ""}


def run_together(commands: list[list[str]], *, devices: int, cache: Path | None = None, **changes: str) -> list[tuple[int, str, str]]:
    """Runs the commands at the same time, with `changes` of the environment. Returns (exit status, stdout, stderr) of each."""
    env = {**environment(devices, cache), **changes}
    start = lambda number, command: subprocess.Popen(  # noqa: E731
        [sys.executable, *command], env=env | {"SLURM_PROCID": str(number)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    processes = [start(number, command) for number, command in enumerate(commands)]
    try:
        outputs = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def train_together(folder: Path, *names: str, processes: int = 2, **options: int) -> list[tuple[int, str, str]]:
    """Runs `host_program.py` in several processes with eight devices in all."""
    address = f"127.0.0.1:{free_port()}"
    program = [str(TESTS / "host_program.py"), str(folder), ",".join(names), json.dumps(options), address, str(processes)]
    return run_together([[*program, str(process)] for process in range(processes)], devices=8 // processes, cache=folder.parent / "compiled")


def losses(workdir: Path) -> list[float]:
    """The losses in the log of a training, those of evaluations included."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line.get("loss", line.get("eval_loss")) for line in lines]
