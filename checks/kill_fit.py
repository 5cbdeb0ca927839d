"""Checks that a fit which is killed at random times gives the same result as an undisturbed one: `python checks/kill_fit.py [KILLS] [SEED]`.

Runs a fit of `--size test`, in which the codec is SoundStream with its discriminators, on twelve clips twice: once undisturbed, and once killed at random
times, KILLS times (default 20) by SIGKILL and after every third of these once by SIGTERM, and restarted each time. Then all files of the two bundles must have
the same bytes, and the two work folders must contain the same files. The exit status is 1 if they differ, if the fit ends before the last kill, or if no kill
met the codec or none a stage. Times are of processors, not of clocks, so that other work on the machine does not matter. Needs Linux.
"""

import collections
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from musiclm_jax.files import sha256_file

# Files that contain times, and so differ between runs.
TIMED = ("metrics.jsonl", "done.json", "step.json", "hashes.json", "checkpoint.json")


def write_clips(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        seconds = np.arange(round(24_000 * (4 + 0.3 * i))) / 24_000
        soundfile.write(folder / f"{i:02d}.wav", 0.3 * np.sin(2 * np.pi * 220 * 2 ** (i / 12) * seconds) + 0.02 * rng.standard_normal(len(seconds)), 24_000)
        (folder / f"{i:02d}.txt").write_text(f"a {('calm', 'fast')[i % 2]} {('piano', 'guitar', 'flute')[i % 3]} melody\n")


def start(folder: Path, work: str, log: Path) -> subprocess.Popen:
    # Much is compiled here, and little computed.
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    env = {"XLA_FLAGS": flags, **os.environ, "MUSICLM_CACHE_DIR": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "musiclm_jax.cli.main", "fit", str(folder / "clips"), "--size", "test", "--workdir", str(folder / work)]
    return subprocess.Popen(command, env=env, stdout=log.open("a"), stderr=subprocess.STDOUT)


def used_sec(process: subprocess.Popen) -> float:
    """Seconds of a processor that a running process has taken."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def where(work: Path) -> str:
    """The name of the step that was running."""
    begun = [path for path in work.glob("*/step.json") if not (path.parent / "done.json").exists()]
    return begun[0].parent.name if begun else "between steps"


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and not {".locks", "checkpoints"} & {*path.parts}}


def main(kills: int = 20, seed: int = 0) -> None:
    rng, folder = random.Random(seed), Path(tempfile.mkdtemp(prefix="kill_fit-"))
    write_clips(folder / "clips")
    seconds = {}
    # The first fit fills the cache of compiled programs; the last one has nothing to do.
    for run, work in (("cold", "cold"), ("whole", "whole"), ("idle", "whole")):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert start(folder, work, folder / f"{work}.log").wait() == 0, (folder / f"{work}.log").read_text()[-2000:]
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds[run] = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    print(f"undisturbed: {seconds['whole']:.0f} s of a processor, of which {seconds['idle']:.0f} s are the start", flush=True)
    done, met = 0, collections.Counter()
    while True:
        process = start(folder, "killed", folder / "killed.log")
        # One kill in ten comes during the start. The others leave a twentieth of the work to each run on average.
        work_sec = rng.uniform(0, 0.1) * (seconds["whole"] - seconds["idle"])
        delay = rng.uniform(0, seconds["idle"]) if rng.random() < 0.1 else seconds["idle"] + work_sec
        while process.poll() is None and (done >= kills or used_sec(process) < delay):
            time.sleep(0.02)
        if process.poll() == 0:
            break
        if process.poll() is not None:
            sys.exit(f"the fit failed by itself, in {folder}: {(folder / 'killed.log').read_text()[-2000:]}")
        number = signal.SIGTERM if met.total() % 4 == 3 else signal.SIGKILL
        process.send_signal(number)
        process.wait()
        done += number == signal.SIGKILL
        met[where(folder / "killed")] += 1
        print(f"kill {done}: {number.name} after {delay:.1f} s, at {where(folder / 'killed')}", flush=True)
    enough = done >= kills and met["codec"] and any(met[stage] for stage in ("semantic", "coarse", "fine"))
    print(f"killed at: {', '.join(f'{step} {count}' for step, count in met.items())}{'' if enough else '; too few: choose another seed'}")
    whole, killed = folder / "whole", folder / "killed"
    different = [name for name in sorted(listing(whole) & listing(killed)) if Path(name).name not in TIMED]
    different = [name for name in different if sha256_file(whole / name) != sha256_file(killed / name)]
    bundles = [{path.name: sha256_file(path) for path in (each / "export" / "bundle").iterdir()} for each in (whole, killed)]
    print(f"bundles: {len(bundles[0])} files, {'the same bytes' if bundles[0] == bundles[1] else 'DIFFERENT'}")
    print(f"other files that differ: {different or 'none'}")
    stray, lost = sorted(listing(killed) - listing(whole)), sorted(listing(whole) - listing(killed))
    print(f"files only in the killed fit: {stray}; only in the undisturbed one: {lost}")
    sys.exit(not (bundles[0] == bundles[1] and not different and listing(whole) == listing(killed) and enough))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
