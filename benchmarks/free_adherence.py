"""Whether music has what people expect of prompts in their own words: `python benchmarks/free_adherence.py CORPUS [--model BUNDLE] [--clips OUT]`.

One clip of 10 s is generated for each of the 100 prompts of free_prompts.json, which lists what one would expect of each: the family of the lead, drums or
none, mode and tempo, or nothing where the prompt leaves it open. The estimators of `musiclm evaluate adherence`, fitted on training clips of CORPUS, a sampled
corpus, judge the clips. Rows: the share of clips as expected; chance, the same clips with what is expected of other prompts; the ceiling, the share of held-out
clips of CORPUS that the estimators judge right; and the way from chance to the ceiling.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from musiclm_jax import audio
from musiclm_jax.evaluation.adherence import in_band
from musiclm_jax.evaluation.clips import ClipFile, read_clips, with_ground_truth
from musiclm_jax.evaluation.estimators import SAMPLE_RATE_HZ, Estimate, fit_estimators, lead
from musiclm_jax.musiclm import MusicLM

SEED, SECONDS, BATCH, FIT_CLIPS, HELD_OUT = 0, 10, 10, 1000, 200
ATTRIBUTES = ("family", "drums", "mode", "tempo")


def is_as(estimate: Estimate, name: str, wanted) -> bool:
    """Whether an attribute has the value that is wanted, or one of several."""
    found = {"family": estimate.instrument, "drums": estimate.drums, "mode": estimate.mode}
    wanted = wanted if isinstance(wanted, list) else [wanted]
    return any(in_band(estimate.tempo_bpm, value) if name == "tempo" else found[name] == value for value in wanted)


def generate(model: str, texts: list[str], out: Path) -> list[np.ndarray]:
    """The clips, of which those are made that are not there yet."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{i:03d}.wav" for i in range(len(texts))]
    missing = [i for i, file in enumerate(files) if not file.exists()]
    musiclm = MusicLM.from_pretrained(model) if missing else None
    for start in range(0, len(missing), BATCH):
        some = missing[start : start + BATCH]
        music = musiclm.generate([texts[i] for i in some], seconds=SECONDS, seed=SEED)
        for i, wave in zip(some, np.asarray(music.wave)):
            audio.write_wav(files[i], wave, music.sample_rate_hz)
    return [audio.read(file) for file in files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--clips", type=Path, default=Path("free_clips"))
    options = parser.parse_args()
    prompts = json.loads(Path(__file__).with_name("free_prompts.json").read_text(encoding="utf-8"))
    folder, rng = read_clips(options.corpus), np.random.default_rng(SEED)
    clips = with_ground_truth(folder)
    read = lambda clip: ClipFile.of(folder, clip).read()[: SECONDS * SAMPLE_RATE_HZ]  # noqa: E731
    train, test = ([clip for clip in clips if clip.split == split][:most] for split, most in (("train", FIT_CLIPS), ("test", HELD_OUT)))
    estimators = fit_estimators([read(clip) for clip in train], [clip.attributes for clip in train], rng=rng)
    real = [(estimators.estimate(read(clip)), {**clip.attributes, "family": lead(clip.attributes)}) for clip in test]
    made = [estimators.estimate(wave) for wave in generate(options.model, [prompt["text"] for prompt in prompts], options.clips)]
    print(f"{'':8}prompts  as expected  chance  ceiling  chance to ceiling")
    for name in ATTRIBUTES:
        rows = [i for i, prompt in enumerate(prompts) if prompt[name] is not None]
        right = np.array([[is_as(made[i], name, prompts[j][name]) for j in rows] for i in rows])
        own, ceiling = np.diag(right).mean(), np.mean([is_as(estimate, name, truth[name]) for estimate, truth in real])
        chance = (right.sum() - np.diag(right).sum()) / (len(rows) * (len(rows) - 1))
        print(f"{name:8}{len(rows):7}  {own:11.2f}  {chance:6.2f}  {ceiling:7.2f}  {(own - chance) / (ceiling - chance):17.2f}")


if __name__ == "__main__":
    main()
