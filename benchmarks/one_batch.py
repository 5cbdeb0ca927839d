"""Checks that each stage can memorize one batch: `python benchmarks/one_batch.py CORPUS [BUNDLE]`.

Trains the three stages from random weights, with the bundle's sizes and its tokens of eight clips, until the loss is below 0.1 nats per token. A stage that
does not reach this has an error in its conditions, its attention or its loss. A stage whose loss is as low on eight other clips sees the tokens that it
predicts. The exit status is 1 if a stage does not reach 0.1 nats within 2,000 steps.
"""

import sys
from pathlib import Path

import jax
import numpy as np

from musiclm_jax import MusicLM, audio
from musiclm_jax.evaluation.clips import read_clips
from musiclm_jax.tasks.stage import StageRecipe, StageTask
from musiclm_jax.training.optim import OptimizerConfig

NUM_CLIPS, GOAL, MAX_STEPS, REPORT_EVERY = 8, 0.1, 2_000, 10
OPTIMIZER = OptimizerConfig(learning_rate=1.5e-3, schedule="constant", warmup_steps=50)


def main(data: Path, bundle: str = "demo") -> bool:
    model = MusicLM.from_pretrained(bundle)
    config, learned = model.config, True
    clips = [clip for clip in read_clips(data).captioned if clip.split == "train"][: 2 * NUM_CLIPS]
    mulan = model.mulan.text_tokens([clip.captions[0] for clip in clips])
    for spec in config.stages:
        length = round(spec.window_sec * config.audio.sample_rate_hz)
        waves = np.stack([audio.read(data / clip.file_name)[:length] for clip in clips])
        both = {"mulan": mulan, "semantic": model.semantic.encode(waves), "acoustic": model.acoustic.encode(waves)}
        batch, other = ({stream: codes[rows] for stream, codes in both.items()} for rows in (slice(NUM_CLIPS), slice(NUM_CLIPS, None)))
        task = StageTask(spec.name, spec.model, config.layout(spec.name), StageRecipe(num_steps=MAX_STEPS, optimizer=OPTIMIZER))
        state, step = task.init_state(jax.random.key(0)), 0
        train_step = jax.jit(task.train_step, donate_argnums=0)
        loss, line = np.inf, []
        while loss > GOAL and step < MAX_STEPS:
            state, metrics = train_step(state, batch, jax.random.key(step))
            step, loss = step + 1, float(metrics["loss"])
            if step == 1 or step % REPORT_EVERY == 0:
                line.append(f"{step}: {loss:.3f}")
        learned &= loss <= GOAL
        elsewhere = float(jax.jit(task.eval_step)(state, other, jax.random.key(0))["loss"])
        tokens = task.layout.target_codes(batch).size
        print(f"{spec.name:8} {tokens} tokens  {loss:.3f} nats per token after {step} steps ({', '.join(line)}); on others {elsewhere:.3f}", flush=True)
    return learned


if __name__ == "__main__":
    sys.exit(0 if main(Path(sys.argv[1]), *sys.argv[2:]) else 1)
