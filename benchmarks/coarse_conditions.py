"""How much the coarse stage uses its conditions: `python benchmarks/coarse_conditions.py CORPUS [BUNDLE]`.

Prints nats per token of held-out crops with the right conditions, with those of other clips, and with semantic tokens shifted in time. The loss of a stage
that uses the time of each semantic token rises much with the shift; that of a stage that uses them only as a summary, for example of timbre, does not.
"""

import sys
from pathlib import Path

import jax
import numpy as np

from musiclm_jax import MusicLM, audio
from musiclm_jax.evaluation.clips import choose_prompts, read_clips, with_ground_truth
from musiclm_jax.tasks.stage import StageRecipe, StageTask
from musiclm_jax.training.task import TrainState

NUM_CLIPS, START_SEC = 64, 10.0


def main(data: Path, bundle: str = "demo") -> None:
    model = MusicLM.from_pretrained(bundle)
    config = model.config
    prompts = choose_prompts(with_ground_truth(read_clips(data)), num_captions=NUM_CLIPS, rng=np.random.default_rng(0))
    first, length = (round(seconds * config.audio.sample_rate_hz) for seconds in (START_SEC, config.stage("coarse").window_sec))
    waves = np.stack([audio.read(data / prompt.file_name)[first : first + length] for prompt in prompts])
    mulan = model.mulan.text_tokens([prompt.caption for prompt in prompts])
    semantic, acoustic = model.semantic.encode(waves), model.acoustic.encode(waves)

    task = StageTask("coarse", config.stage("coarse").model, config.layout("coarse"), StageRecipe())
    state = TrainState(np.int32(0), model.variables("coarse")["params"], {}, {})
    evaluate = jax.jit(lambda **batch: task.eval_step(state, batch, jax.random.key(0)))
    right = {"mulan": mulan, "semantic": semantic, "acoustic": acoustic}
    changes = {
        "the right conditions": {},
        "caption of another clip": {"mulan": np.roll(mulan, 1, axis=0)},
        "semantic tokens of another clip": {"semantic": np.roll(semantic, 1, axis=0)},
        **{f"semantic tokens {40 * n} ms early": {"semantic": np.roll(semantic, -n, axis=1)} for n in (1, 4, 16)},
    }
    levels = [f"loss_level_{level}" for level in range(config.coarse_levels)]
    print(f"{'nats per token, level':32} " + "".join(f"{level:>8}" for level in range(1, len(levels) + 1)))
    for title, change in changes.items():
        metrics = evaluate(**(right | change))
        print(f"{title:32} " + "".join(f"{float(metrics[level]):8.3f}" for level in levels), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
