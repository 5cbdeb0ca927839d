"""Token sets: how fast batches come out of one, and what Apache Beam adds to making one. Needs the extra tfdata.

    python benchmarks/tokens.py CLIPS --model demo

The first ratio is to the records read alone, the second to a plain loop over the same shards in the same process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from musiclm_jax.data.beam import run_jobs
from musiclm_jax.data.token_crops import SetCrops
from musiclm_jax.data.token_set import TokenSet
from musiclm_jax.tokenizing import run, shards

_REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips")
    parser.add_argument("--model", default="demo")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out, jobs = Path(folder) / "tokens", []
        run.run_jobs = lambda pending, work, flags=(): (jobs.extend(pending), [work(job) for job in pending])
        tokens = run.tokenize(arguments.clips, out, model=arguments.model)
        _reading(tokens)
        _making(jobs, tokens.info.hours * 3600)


def _reading(tokens: TokenSet) -> None:
    """Batches of crops as long as a record, whole and with one stream, beside the records alone."""
    length, records = tokens.info.record_sec, tokens.records("train")
    size = int(sum(each.size for name, each in records[0].items() if name in ("semantic", "acoustic")))
    count = 64
    plain = _median(lambda: [records[i % len(records)] for i in range(count)])
    print(f"records alone: {count / plain:,.0f} a second, {count * size / plain / 1e6:.1f} million tokens a second")
    for streams in (("semantic", "acoustic"), ("semantic",)):
        source = SetCrops(tokens, streams, lambda embeddings: np.zeros((len(embeddings), 1), np.int32)).source(
            split="train", crop_sec=length, batch_size=count, seed=0
        )
        tokens_each = sum(each[0].size for each in source(0).values())
        seconds = _median(lambda source=source: source(1))
        print(f"batches of {' and '.join(streams)}: {count * tokens_each / seconds / 1e6:.1f} million tokens a second, {seconds / plain:.2f} times as long")


def _making(jobs: list[shards.ShardJob], seconds: float) -> None:
    loop, beam = [], []
    for _ in range(_REPEATS):
        for times, go in ((loop, lambda: [shards.make_shard(job) for job in jobs]), (beam, lambda: run_jobs(jobs, shards.make_shard))):
            for job in jobs:
                job.report_file.unlink()
            clock = time.perf_counter()
            go()
            times.append(time.perf_counter() - clock)
    plain, other = statistics.median(loop), statistics.median(beam)
    print(f"{len(jobs)} shards, {seconds:.0f} s of audio: a loop {seconds / plain:.1f} times real time, Beam {other / plain:.3f} times as long as the loop")


def _median(work) -> float:
    times = []
    for _ in range(_REPEATS):
        clock = time.perf_counter()
        work()
        times.append(time.perf_counter() - clock)
    return statistics.median(times)


if __name__ == "__main__":
    main()
