"""Tags and distances that an outside judge gives generated clips: `python benchmarks/outside.py REAL [--model BUNDLE] [--clips OUT]`.

The judge is musicnn (evaluation/embeddings.py), which was trained on real music and shares nothing with the packaged model. REAL is a folder of real
excerpts of 10 s (benchmarks/real_excerpts.py). 100 prompts, 20 for each lead of LEADS, half of them with drums and half without, slow and fast in turn,
are generated once each with seed 0. Printed are the Fréchet distance of the clips to REAL, beside that of REAL's own halves; the share of clips with a tag
of the lead among the first three of 50; the mean drums tag with drums and without; and the mean fast tag less the slow tag of fast and of slow prompts.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from scipy.special import expit

from musiclm_jax.evaluation.clips import ClipFile, Excerpt
from musiclm_jax.evaluation.embeddings import load_musicnn
from musiclm_jax.evaluation.fad import evaluate_fad, format_fad_report
from musiclm_jax.evaluation.generated import Wanted, generate_clips
from musiclm_jax.musiclm import MusicLM

SEED, SECONDS, TOP = 0, 10, 3
# The name in prompts -> the judge's tags that are right.
LEADS = {"piano": ("piano",), "guitar": ("guitar",), "flute": ("flute",), "string ensemble": ("strings", "violin", "cello"), "synth": ("synth", "electronic")}
MOODS = ("calm", "bright", "melancholic", "energetic", "relaxed", "dreamy", "cheerful", "dark", "warm", "lively")


@dataclasses.dataclass(frozen=True)
class Asked:
    lead: str
    drums: bool
    fast: bool
    text: str


def prompts() -> list[Asked]:
    asked = []
    for lead in LEADS:
        for i in range(20):
            drums, fast, mode = i % 2 == 1, i // 2 % 2 == 1, ("major", "minor")[i // 4 % 2]
            text = f"a {MOODS[i % 10]} {'fast' if fast else 'slow'} {lead} melody in a {mode} key {'with drums' if drums else 'without drums'}"
            asked.append(Asked(lead, drums, fast, text))
    return asked


def judge_tags(asked: list[Asked], out: Path) -> None:
    judge = load_musicnn()
    excerpt = Excerpt(judge.sample_rate_hz, judge.min_samples, None)
    tags = np.stack([expit(judge.logits(excerpt.read(ClipFile(out / f"{i:03d}.wav")))).mean(axis=0) for i in range(len(asked))])
    best = [{judge.labels[k] for k in np.argsort(-row)[:TOP]} for row in tags]
    for lead, right in LEADS.items():
        hits = [bool(best[i] & set(right)) for i, each in enumerate(asked) if each.lead == lead]
        print(f"{lead}: a tag of it among the first {TOP} in {sum(hits)} of {len(hits)}")
    value = lambda tag, keep: float(np.mean([tags[i, judge.labels.index(tag)] for i, each in enumerate(asked) if keep(each)]))  # noqa: E731
    print(f"drums tag: {value('drums', lambda each: each.drums):.3f} with drums, {value('drums', lambda each: not each.drums):.3f} without")
    speed = [value("fast", keep) - value("slow", keep) for keep in (lambda each: each.fast, lambda each: not each.fast)]
    print(f"fast tag less slow tag: {speed[0]:.3f} of fast prompts, {speed[1]:.3f} of slow ones")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("real", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--clips", type=Path, default=Path("outside_clips"))
    options = parser.parse_args()
    asked = prompts()
    wanted = [Wanted(f"{i:03d}.wav", each.text) for i, each in enumerate(asked)]
    generate_clips(MusicLM.from_pretrained(options.model), wanted, options.clips, seconds=SECONDS, seed=SEED, progress=print)
    print(format_fad_report(evaluate_fad(load_musicnn(), options.real, options.clips, seed=SEED)))
    judge_tags(asked, options.clips)


if __name__ == "__main__":
    main()
