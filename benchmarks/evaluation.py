"""The speed of the judges and of the search for copies: `python benchmarks/evaluation.py [CLIPS] [MODEL]`.

Each embedding that needs no download reads CLIPS clips of 10 s, one thread per core, as `musiclm evaluate fad` does; VGGish has random weights of its full
size. The first clip, which compiles, does not count. Then `fad` with musicnn runs whole, on FLAC files at 24 kHz against saved statistics: decoding,
resampling, embedding, the distance, its limit, its interval and the score of each clip.

Times are wall time, and CPU time of the process over the number of cores: on a busy machine the second is what an idle one would need if both cores could
always work. The line after it extrapolates the CPU time of `fad` from CLIPS to 1,000 clips: what grows with their number, and what does not. The last line is
the search for the closest passage of a clip of 10 s among 100 hours of random tokens.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import soundfile

from musiclm_jax.data.prefetch import map_ahead
from musiclm_jax.evaluation.embeddings import Embedding
from musiclm_jax.evaluation.fad import evaluate_fad
from musiclm_jax.evaluation.judges import load_embedding
from musiclm_jax.evaluation.outside import VggishJudge
from musiclm_jax.evaluation.token_index import TokenIndex, nearest_passage
from musiclm_jax.models import vggish

SECONDS, RATE_HZ, MANY = 10, 24_000, 1000
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def random_vggish() -> VggishJudge:
    rng = np.random.default_rng(0)
    shapes = vggish.variable_shapes(vggish.VggishConfig())
    return VggishJudge(vggish.VggishConfig(), jax.tree.map(lambda x: rng.normal(0, 0.02, x.shape).astype(np.float32), shapes), "vggish")


def music(seed: int, rate_hz: int) -> np.ndarray:
    """10 s of a chord that decays, with noise."""
    rng, at = np.random.default_rng(seed), np.arange(SECONDS * rate_hz) / rate_hz
    chord = sum(np.sin(2 * np.pi * hz * at) for hz in rng.uniform(80, 2000, 4))
    return (0.1 * chord * np.exp(-(at % 0.5)) + 0.01 * rng.standard_normal(len(at))).astype(np.float32)


def spent(call: Callable[[], object]) -> tuple[float, float]:
    """(wall time, CPU time of this process over the number of cores) of a call, in seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, (time.process_time() - cpu) / CORES


def time_embedding(judge: Embedding, num_clips: int) -> tuple[float, float]:
    waves = [music(seed, judge.sample_rate_hz) for seed in range(num_clips)]
    judge.embed(waves[0])
    return spent(lambda: [None for _ in map_ahead(judge.embed, waves)])


def main(num_clips: int = 40, model: str = "demo") -> None:
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "unknown")
    print(f"CPU {cpu}, {CORES} core(s), load {os.getloadavg()[0]:.1f}, jax {jax.__version__}; {num_clips} clips of {SECONDS} s")
    print("| embedding | seconds of audio per second, wall | CPU time over cores |\n|---|---|---|")
    for judge in (*(load_embedding(name, model=model) for name in ("musicnn", "mulan", "w2v-bert", "codec")), random_vggish()):
        wall, over_cores = time_embedding(judge, num_clips)
        print(f"| {judge.name} | {num_clips * SECONDS / wall:.0f} | {num_clips * SECONDS / over_cores:.0f} |", flush=True)

    musicnn = load_embedding("musicnn")
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(num_clips):
            soundfile.write(f"{folder}/{seed}.flac", music(seed, RATE_HZ), RATE_HZ)
        statistics = f"{folder}.npz"
        evaluate_fad(musicnn, folder, folder, num_clips=4, save_to=statistics)
        runs = {count: spent(lambda count=count: evaluate_fad(musicnn, statistics, folder, num_clips=count)) for count in (num_clips // 2, num_clips)}
    Path(statistics).unlink()
    (half, (_, few)), (_, (wall, all_clips)) = runs.items()
    per_clip = (all_clips - few) / (num_clips - half)
    print(f"\nfad with musicnn: {num_clips} clips in {wall:.1f} s wall, {all_clips:.1f} s of CPU time over cores")
    print(f"{MANY} clips at {per_clip * 1000:.0f} ms a clip: {all_clips + per_clip * (MANY - num_clips):.0f} s of CPU time over cores")
    time_search()


def time_search(hours: int = 100, clip_tokens: int = 750) -> None:
    rng, count = np.random.default_rng(0), hours * 90_000 // clip_tokens
    tokens = rng.integers(1024, size=count * clip_tokens).astype(np.int16)
    index = TokenIndex("random", 25, tuple(map(str, range(count))), ((0, 0),) * count, np.full(count, clip_tokens), tokens)
    wall, over_cores = spent(lambda: nearest_passage(index, rng.integers(1024, size=250)))
    print(f"\nclosest passage of 10 s in {hours} hours: {wall:.1f} s wall, {over_cores:.1f} s of CPU time over cores")


if __name__ == "__main__":
    main(*(kind(value) for kind, value in zip((int, str), sys.argv[1:])))
