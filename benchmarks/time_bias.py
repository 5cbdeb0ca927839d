"""The effect of a bias by time on the loss of a stage: `python benchmarks/time_bias.py CORPUS [BUNDLE] [STAGE] [STEPS] [SEEDS]`.

T5's relative positions count tokens, and distances beyond 128 share one bucket. In the coarse stage's window of 10 s, frame f and the semantic token f // 2
of the same time are always further apart than that; so are, in the fine stage's window of 3 s, the coarse and the fine codes of a frame. This trains small
stages on windows of the bundle's tokens, without and with `StageConfig.time_bias`, from the same seeds and on the same batches. It prints nats per token
of held-out windows, in all and for each level. docs/sizes.md has the results.
"""

import sys
from pathlib import Path

import jax
import numpy as np

from musiclm_jax import MusicLM, audio
from musiclm_jax.evaluation.clips import read_clips
from musiclm_jax.models.stage import StageConfig
from musiclm_jax.tasks.stage import StageRecipe, StageTask
from musiclm_jax.training.optim import OptimizerConfig

SIZE = dict(dim=128, num_layers=3, num_heads=2, mlp_dim=512, dropout=0.0)  # All other fields are the paper's.
RECIPE = StageRecipe(optimizer=OptimizerConfig(learning_rate=1.5e-3, schedule="constant", warmup_steps=50))
CROP_SEC, STARTS_SEC, BATCH, EVALUATIONS = {"coarse": 10, "fine": 3}, (0, 5, 10, 15, 20), 2, 4


def tokenize(model: MusicLM, data: Path, split: str, seconds: int) -> dict[str, np.ndarray]:
    """The token streams of all windows of a split, clip by clip. The MuLan tokens are those of the audio."""
    rate, windows = model.config.audio.sample_rate_hz, []
    for clip in read_clips(data).entries:
        if clip.split == split:
            wave = audio.read(data / clip.file_name)
            crops = np.stack([wave[start * rate : (start + seconds) * rate] for start in STARTS_SEC])
            windows.append((model.mulan.audio_tokens(crops), model.semantic.encode(crops), model.acoustic.encode(crops)))
    return {name: np.concatenate(parts) for name, parts in zip(("mulan", "semantic", "acoustic"), zip(*windows), strict=True)}


def measure(task: StageTask, train: dict, held_out: dict, *, steps: int, seed: int):
    """Trains a stage. Yields (step, [loss of held-out windows, loss of each level]) every steps / EVALUATIONS steps."""
    train_step, eval_step = jax.jit(task.train_step, donate_argnums=0), jax.jit(task.eval_step)
    state = jax.tree.map(jax.numpy.array, task.init_state(jax.random.key(seed)))
    for step in range(1, steps + 1):
        rows = np.random.default_rng([seed, step]).choice(len(train["semantic"]), BATCH, replace=False)
        state, _ = train_step(state, {name: codes[rows] for name, codes in train.items()}, jax.random.fold_in(jax.random.key(seed), step))
        if step % max(steps // EVALUATIONS, 1) == 0:
            count = len(held_out["semantic"]) // BATCH * BATCH
            batches = [{name: codes[i : i + BATCH] for name, codes in held_out.items()} for i in range(0, count, BATCH)]
            metrics = [eval_step(state, batch, jax.random.key(0)) for batch in batches]
            names = ["loss", *(f"loss_level_{level}" for level in range(task.layout.target.levels))]
            yield step, [float(np.mean([each[name] for each in metrics])) for name in names]


def main(data: Path, bundle: str = "demo", stage: str = "coarse", steps: int = 500, seeds: int = 2) -> None:
    model = MusicLM.from_pretrained(bundle)
    train, held_out = (tokenize(model, data, split, CROP_SEC[stage]) for split in ("train", "test"))
    held_out = {name: codes[:: len(STARTS_SEC)] for name, codes in held_out.items()}  # One window of each clip.
    print(f"{len(train['semantic'])} windows, {len(held_out['semantic'])} held out", flush=True)
    for seed in range(seeds):
        for time_bias in (False, True):
            task = StageTask(stage, StageConfig(**SIZE, time_bias=time_bias), model.config.layout(stage), RECIPE)
            for step, (loss, *levels) in measure(task, train, held_out, steps=steps, seed=seed):
                print(f"seed {seed}  time_bias {time_bias!s:5}  step {step:5}  {loss:.3f} nats, by level " + " ".join(f"{x:.3f}" for x in levels), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:4], *map(int, sys.argv[4:]))
