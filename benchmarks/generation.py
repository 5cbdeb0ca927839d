"""The time of generation with the packaged model, and what devices and shared caches save: `python benchmarks/generation.py [SECONDS] [TURNS]`.

generate  one clip, as `musiclm generate` generates it, with each CPU core as a device over which rows are split; compared with one device, where XLA splits
          each matrix product over cores.
drafts    the last round of semantic drafts, where the drafts that continue the same tokens share one cache of them (`KVCache.branch`); compared with a copy
          of the cache for each draft.
prompts   one clip; compared with one clip for each of four prompts. The ratio is the cost of four prompts in clips.

Times are wall-clock seconds without loading and compilation. The runs alternate; the ratio is the median over these turns.
"""

import statistics
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from musiclm_jax import MusicLM
from musiclm_jax.generation import devices
from musiclm_jax.generation.request import clip_keys

PROMPT = "a calm piano melody in a minor key"
MORE_PROMPTS = [PROMPT, "fast drums and bass", "a slow guitar tune", "a bright flute melody in a major key"]


def main(seconds: float = 10.0, turns: int = 5) -> None:
    devices.use_all_cores()
    model = MusicLM.from_pretrained("demo")
    config, row_mesh = model.config, devices.row_mesh
    print(f"{len(jax.devices())} x {jax.devices()[0].device_kind}, jax {jax.__version__}; {seconds:g} s, {turns} turns")

    def on_one_device() -> None:
        devices.row_mesh = lambda rows: row_mesh(1)
        model.generate([PROMPT], seconds=seconds)
        devices.row_mesh = row_mesh

    compare("generate", "one device", lambda: model.generate([PROMPT], seconds=seconds), on_one_device, turns)

    tries, stage = config.selection, config.stage("semantic")
    rows = tries.num_candidates * tries.num_drafts
    steps, known = (config.audio.semantic_tokens(x) for x in (seconds, seconds - tries.draft_sec))
    mulan, keys = model.mulan.text_tokens([PROMPT]), clip_keys([PROMPT] * rows, seed=0)
    past = model.draw_stage(stage, {"mulan": np.repeat(mulan, tries.num_candidates, axis=0)}, steps=known, keys=keys[:: tries.num_drafts])

    def last_round(copies: int) -> Callable[[], object]:
        streams, prompt = {"mulan": np.repeat(mulan, len(past) * copies, axis=0)}, np.repeat(past, copies, axis=0)
        return lambda: model.draw_stage(stage, streams, steps=steps, keys=keys, prompt=prompt)

    compare("drafts", "copied past", last_round(1), last_round(tries.num_drafts), turns)
    one, four = (lambda prompts=prompts: model.generate(prompts, seconds=seconds) for prompts in ([PROMPT], MORE_PROMPTS))
    compare("one prompt", "four prompts", one, four, turns)


def compare(name: str, other: str, run: Callable[[], object], run_other: Callable[[], object], turns: int) -> None:
    for each in (run, run_other):  # The first call compiles.
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
