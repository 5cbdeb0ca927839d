"""Checks that two processes of four virtual CPU devices train what one process of eight does: `python checks/hosts.py [FOLDER]`.

First every kind of task, for eight steps, with parameters and batches over both processes; then a whole fit of `--size test` on six clips, by one process,
and by two, of which the second is killed in the middle of w2v-BERT's training; both are started again. It prints how far losses, weights and tokens differ.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import safetensors.numpy

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from host_runs import environment, free_port, losses, train_together  # noqa: E402
from tiny_parts import write_clips  # noqa: E402

TASKS = ("spectral_codec", "soundstream", "w2v_bert", "mulan", "stage", "melody")
PARTS = ("CodecPart", "W2vBertPart", "MuLanPart", "RerankerPart", "SemanticRerankerPart", "semantic/StagePart", "coarse/StagePart", "fine/StagePart")


def check_tasks(folder: Path) -> None:
    for name in TASKS:
        for processes in (1, 2):
            runs = train_together(folder / str(processes), name, processes=processes)
            assert not any(status for status, _, _ in runs), runs
        ours, theirs = (np.load(folder / processes / f"{name}.npz") for processes in ("1", "2"))
        one, two = (np.array(losses(folder / processes / name)) for processes in ("1", "2"))
        print(f"{name}: losses differ by {np.max(np.abs(two / one - 1)):.1g} of themselves, weights by {largest(ours, theirs):.1g}", flush=True)


def largest(ours, theirs) -> float:
    """The largest difference of the numbers of two dicts of arrays."""
    assert list(ours) == list(theirs)
    return max(float(np.max(np.abs(ours[name].astype(float) - theirs[name].astype(float)), initial=0)) for name in ours)


def start(folder: Path, work: str, *, processes: int) -> list[subprocess.Popen]:
    """A fit in so many processes with eight devices in all. FOLDER/WORK-PROCESS.log gets their output."""
    address = f"127.0.0.1:{free_port()}"
    bindings = [f"--gin.{part}.batch_size=8" for part in PARTS]
    command = [sys.executable, "-m", "musiclm_jax.cli.main", "fit", str(folder / "clips"), "--size", "test", "--workdir", str(folder / work), *bindings]
    each = [["--coordinator", address, "--num_processes", str(processes), "--process_id", str(process)] for process in range(processes)]
    logs = [(folder / f"{work}-{process}.log").open("a") for process in range(processes)]
    env = environment(8 // processes, folder / "compiled")
    return [subprocess.Popen([*command, *of_one], env=env, stdout=log, stderr=log) for of_one, log in zip(each, logs, strict=True)]


def finish(running: list[subprocess.Popen]) -> None:
    assert [process.wait() for process in running] == [0] * len(running), "a fit failed: see its log"


def check_fit(folder: Path) -> None:
    write_clips(folder / "clips", number=6)
    finish(start(folder, "one", processes=1))
    running = start(folder, "two", processes=2)
    while not (folder / "two" / "w2v_bert" / "checkpoints" / "2").exists():
        assert all(process.poll() is None for process in running)
        time.sleep(0.05)
    running[1].kill()
    print(f"one of two killed: the other ended with status {running[0].wait()}", flush=True)
    finish(start(folder, "two", processes=2))
    for path in sorted((folder / "one" / "export" / "bundle").glob("*.safetensors")):
        arrays = [safetensors.numpy.load_file(folder / work / "export" / "bundle" / path.name) for work in ("one", "two")]
        print(f"fit, {path.stem}: weights differ by {largest(*arrays):.1g}", flush=True)
    for path in ("acoustic_tokens/acoustic.npy", "semantic_tokens/semantic.npy", "rvq/texts.npy"):
        ours, theirs = (np.load(folder / work / path) for work in ("one", "two"))
        print(f"fit, {path}: {np.mean(ours != theirs):.1%} of {ours.size} tokens differ", flush=True)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="hosts-"))
    folder.mkdir(parents=True, exist_ok=True)
    check_tasks(folder / "tasks")
    check_fit(folder)
