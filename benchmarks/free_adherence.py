"""Whether music has what people expect of prompts in their own words: `python benchmarks/free_adherence.py CORPUS [--model BUNDLE] [--clips OUT]`.

One clip of 10 s is generated for each of the 100 prompts of free_prompts.json, which lists what one would expect of each: the family of the lead, drums or
none, mode and tempo, or nothing where the prompt leaves it open. The estimators of `musiclm evaluate adherence`, fitted on training clips of CORPUS, which
should be the kind of corpus that the model was trained on, judge the clips. A synthesized corpus has instruments for families: the nearest ones are expected.
Rows: the share of clips as expected; chance, the same clips with what is expected of other prompts; the ceiling, the share of held-out
clips of CORPUS that the estimators judge right; and the way from chance to the ceiling.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from free_prompts import nearest, read_prompts, values

from musiclm_jax import audio
from musiclm_jax.evaluation.adherence import in_band
from musiclm_jax.evaluation.clips import ClipFile, read_clips, with_ground_truth
from musiclm_jax.evaluation.estimators import SAMPLE_RATE_HZ, Estimate, fit_estimators, lead
from musiclm_jax.evaluation.generated import Wanted, generate_clips
from musiclm_jax.musiclm import MusicLM

SEED, SECONDS, FIT_CLIPS, HELD_OUT = 0, 10, 1000, 200
ATTRIBUTES = ("family", "drums", "mode", "tempo")


def is_as(estimate: Estimate, name: str, wanted) -> bool:
    """Whether an attribute has the value that is wanted, or one of several."""
    found = {"family": estimate.instrument, "drums": estimate.drums, "mode": estimate.mode}
    return any(in_band(estimate.tempo_bpm, value) if name == "tempo" else found[name] == value for value in values(wanted))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--clips", type=Path, default=Path("free_clips"))
    options = parser.parse_args()
    prompts = read_prompts()
    folder, rng = read_clips(options.corpus), np.random.default_rng(SEED)
    clips = with_ground_truth(folder)
    read = lambda clip: ClipFile.of(folder, clip).read()[: SECONDS * SAMPLE_RATE_HZ]  # noqa: E731
    train, test = ([clip for clip in clips if clip.split == split][:most] for split, most in (("train", FIT_CLIPS), ("test", HELD_OUT)))
    estimators = fit_estimators([read(clip) for clip in train], [clip.attributes for clip in train], rng=rng)
    if "family" not in train[0].attributes:
        prompts = [prompt | {"family": nearest(prompt["family"])} for prompt in prompts]
    real = [(estimators.estimate(read(clip)), {**clip.attributes, "family": lead(clip.attributes)}) for clip in test]
    wanted = [Wanted(f"{i:03d}.wav", prompt["text"]) for i, prompt in enumerate(prompts)]
    generate_clips(MusicLM.from_pretrained(options.model), wanted, options.clips, seconds=SECONDS, seed=SEED, progress=print)
    made = [estimators.estimate(audio.read(options.clips / each.file_name)) for each in wanted]
    print(f"{'':8}prompts  as expected  chance  ceiling  chance to ceiling")
    for name in ATTRIBUTES:
        rows = [i for i, prompt in enumerate(prompts) if prompt[name] is not None]
        right = np.array([[is_as(made[i], name, prompts[j][name]) for j in rows] for i in rows])
        own, ceiling = np.diag(right).mean(), np.mean([is_as(estimate, name, truth[name]) for estimate, truth in real])
        chance = (right.sum() - np.diag(right).sum()) / (len(rows) * (len(rows) - 1))
        print(f"{name:8}{len(rows):7}  {own:11.2f}  {chance:6.2f}  {ceiling:7.2f}  {(own - chance) / (ceiling - chance):17.2f}")


if __name__ == "__main__":
    main()
