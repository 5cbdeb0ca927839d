"""A stage that reads the timing, as a step of `fit`."""

import dataclasses
import functools

import numpy as np
from test_melody_part import OtherTokens
from tiny_parts import write_clips

from musiclm_jax import bundle
from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.parts.fit import run_step
from musiclm_jax.parts.part import PREPARE
from musiclm_jax.tasks.stage import StageRecipe
from musiclm_jax.training.optim import OptimizerConfig


@functools.cache
def config():
    config = load_config("test", ["runs/with_timing.gin"])
    fast = StageRecipe(num_steps=4, optimizer=OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup_steps=1))
    stage = dataclasses.replace(config.part("semantic"), recipe=fast)
    return dataclasses.replace(config, parts=(config.part(PREPARE), OtherTokens(), stage))


def test_a_stage_is_trained_with_timing(tmp_path):
    data = write_clips(tmp_path / "data", number=4, split="train")
    (tmp_path / "data" / "metadata.jsonl").write_text((tmp_path / "data" / "metadata.jsonl").read_text().replace('"train"', '"test"', 1))
    results = {step: run_step(step, data, config=config(), workdir=tmp_path / "work") for step in ("random", "semantic")}
    assert np.isfinite(results["semantic"]["eval_loss"])
    weights, _ = bundle.read_arrays(tmp_path / "work" / "semantic" / "variables.safetensors")
    # Two tables of seconds, the codes of MuLan and of w2v-BERT, and the mask.
    assert weights["params"]["embed"]["embedding"].shape == (2 * 512 + 2 * 3 + 7 + 1, 8)


def test_no_step_of_a_model_without_timing_changes():
    plain, timed = load_config("test"), load_config("test", ["runs/with_timing.gin"])
    assert list(plain.steps) == list(timed.steps)  # None is added: the tokens follow from the clips.
    changed = [name for name in plain.steps if plain.steps[name].settings != timed.steps[name].settings]
    assert {*changed} == {"semantic", "tokenizers", "export"} and "timing" not in repr([step.settings for step in plain.steps.values()])
    shapes = {name: value.shape for name, value in timed.part("semantic").batch_shapes(timed).items()}
    assert shapes == {"timing": (2, 2), "mulan": (2, 2), "semantic": (2, 50)}
