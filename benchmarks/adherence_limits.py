"""The adherence that perfect stages would reach: `python benchmarks/adherence_limits.py CORPUS [BUNDLE]`.

Measures the adherence of real held-out clips after the codec, with the levels of the coarse stage alone and with all levels. What the codec loses, no
stage can restore. Prints the report of `musiclm evaluate adherence` for each.
"""

import sys
from pathlib import Path

import numpy as np

from musiclm_jax import MusicLM, audio
from musiclm_jax.evaluation.adherence import evaluate_adherence, format_report
from musiclm_jax.evaluation.clips import choose_prompts, read_clips, with_ground_truth
from musiclm_jax.generation.request import Music

NUM_CAPTIONS, SECONDS, SEED = 100, 10.0, 0


class PerfectStages:
    """A stand-in for MusicLM, whose `generate` returns the decoded codes of the clip that the caption belongs to."""

    def __init__(self, model: MusicLM, data: Path, num_levels: int):
        prompts = choose_prompts(with_ground_truth(read_clips(data)), num_captions=NUM_CAPTIONS, rng=np.random.default_rng([SEED, 0]))
        self.clips = {prompt.caption: data / prompt.file_name for prompt in prompts}
        self.codec, self.sample_rate_hz, self.num_levels = model.acoustic, model.config.audio.sample_rate_hz, num_levels

    def generate(self, prompts: list[str], *, seconds: float, seed: int) -> Music:
        waves = np.stack([audio.read(self.clips[prompt])[: round(seconds * self.sample_rate_hz)] for prompt in prompts])
        decoded = self.codec.decode(self.codec.encode(waves)[..., : self.num_levels])
        return Music(decoded, self.sample_rate_hz, tuple(prompts))


def main(data: Path, bundle: str = "demo") -> None:
    model = MusicLM.from_pretrained(bundle)
    for num_levels in (model.config.coarse_levels, model.config.codec.num_levels):
        report = evaluate_adherence(PerfectStages(model, data, num_levels), data, num_captions=NUM_CAPTIONS, seconds=SECONDS, seed=SEED)
        print(f"{num_levels} levels\n{format_report(report)}\n", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
