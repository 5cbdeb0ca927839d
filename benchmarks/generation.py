"""How long does a clip take, and what do devices and trunks save? `python benchmarks/generation.py [SECONDS] [TURNS]`, with the packaged model.

generate  one clip, as `musiclm generate` makes it: each CPU core is a device, over which rows are split, beside one device, whose products alone XLA splits
          over cores.
drafts    the last round of semantic drafts. What they go on from is kept and read once for all drafts of a sequence (`KVCache.branch`), beside a copy for
          each.

Times are wall-clock seconds of runs in turns, without compilation and loading; the ratio is the median of those of each turn.
"""

import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from musiclm_jax import MusicLM
from musiclm_jax.musiclm import clip_keys
from musiclm_jax.training import sharding

PROMPT = "a calm piano melody in a minor key"


def main(seconds: float = 10.0, turns: int = 5) -> None:
    sharding.use_all_cores()
    model = MusicLM.from_pretrained("demo")
    config, row_mesh = model.config, sharding.row_mesh
    print(f"{len(jax.devices())} x {jax.devices()[0].device_kind}, jax {jax.__version__}; {seconds:g} s, {turns} turns")

    def on_one_device() -> None:
        sharding.row_mesh = lambda rows: row_mesh(1)
        model.generate([PROMPT], seconds=seconds)
        sharding.row_mesh = row_mesh

    compare("generate", "one device", lambda: model.generate([PROMPT], seconds=seconds), on_one_device, turns)

    rows = config.num_candidates * config.num_drafts
    count, known = (config.audio.semantic_tokens(x) for x in (seconds, seconds - config.draft_sec))
    mulan = jnp.repeat(model.mulan.text_tokens([PROMPT]), rows, axis=0)
    options = {"keys": clip_keys([PROMPT] * rows, seed=0), "sampling": {"semantic": config.semantic_sampling}}
    past = model.semantic_tokens(mulan, count=known, **options)[: config.num_candidates]
    round_from = lambda prompt: lambda: model.semantic_tokens(mulan, count=count, prompt=prompt, **options).block_until_ready()  # noqa: E731
    compare("drafts", "copied past", round_from(past), round_from(jnp.repeat(past, config.num_drafts, axis=0)), turns)


def compare(name: str, other: str, run: Callable[[], object], run_other: Callable[[], object], turns: int) -> None:
    for each in (run, run_other):  # compiles
        each()
    times = [(clock(run), clock(run_other)) for _ in range(turns)]
    ours, others = (statistics.median(each) for each in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    print(f"{name}: {ours:.2f} s; {other}: {others:.2f} s; ratio {ratio:.2f}", flush=True)


def clock(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(*(kind(arg) for kind, arg in zip((float, int), sys.argv[1:], strict=False)))
