"""How far could perfect stages go? Adherence of real held-out clips after the codec: `python benchmarks/adherence_limits.py CORPUS [BUNDLE]`.

With all levels of codes, and with those of the coarse stage alone. What the codec loses no stage can bring back.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from musiclm_jax import MusicLM, audio
from musiclm_jax.evaluation.adherence import choose_prompts, evaluate_adherence, format_report, read_metadata

NUM_CAPTIONS, SECONDS, SEED = 100, 10.0, 0


@dataclasses.dataclass(frozen=True)
class Coded:
    wave: Any
    sample_rate_hz: int = 24_000


class PerfectStages:
    """A generator that "finds" the codes of the very clip that a caption describes."""

    def __init__(self, model: MusicLM, data: Path, num_levels: int):
        prompts = choose_prompts(read_metadata(data), num_captions=NUM_CAPTIONS, rng=np.random.default_rng([SEED, 0]))
        self.clips = {prompt.caption: data / prompt.file_name for prompt in prompts}
        self.codec, self.num_levels = model.acoustic, num_levels

    def generate(self, prompts: list[str], *, seconds: float, seed: int) -> Coded:
        waves = np.stack([audio.read(self.clips[prompt])[: round(seconds * 24_000)] for prompt in prompts])
        return Coded(self.codec.decode(self.codec.encode(waves)[..., : self.num_levels]))


def main(data: Path, bundle: str = "demo") -> None:
    model = MusicLM.from_pretrained(bundle)
    for num_levels in (model.config.coarse_levels, model.config.tokens.acoustic_levels):
        report = evaluate_adherence(PerfectStages(model, data, num_levels), data, num_captions=NUM_CAPTIONS, seconds=SECONDS, seed=SEED)
        print(f"{num_levels} levels\n{format_report(report)}\n", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
