"""A part and a stage from outside the package: it is not touched, and trains and samples both.

The part writes a stream of its own, "level": how loud each 40 ms are, as one of 5 codes, by a table that a training learns. The stage draws it for MuLan
tokens, and a second one is conditioned on it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_parts import write_clips

from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.data.clips import wave_source
from musiclm_jax.data.token_store import TokenArray
from musiclm_jax.errors import UserError
from musiclm_jax.generation.devices import Weights
from musiclm_jax.generation.request import clip_keys
from musiclm_jax.generation.stages import StageSpec, generate_stage
from musiclm_jax.models.stage import StageConfig, StageDecoder
from musiclm_jax.parts.encode import encode_settings, tokenize
from musiclm_jax.parts.fit import run_step
from musiclm_jax.parts.part import PREPARE, Run, Step, TokenStream, Work
from musiclm_jax.parts.stage import StagePart
from musiclm_jax.parts.trained import TrainedPart, wave_shapes
from musiclm_jax.specs import Stream
from musiclm_jax.tasks.stage import StageRecipe
from musiclm_jax.tokens import Levels
from musiclm_jax.training.optim import OptimizerConfig
from musiclm_jax.training.task import Recipe, Task, fresh_state, gradient_step

FAST = OptimizerConfig(learning_rate=0.05, schedule="constant", warmup_steps=1, weight_decay=0.0)


def decibels(wave):
    """[B, N] -> [B, N / 960], of each 40 ms."""
    frames = wave[:, : wave.shape[1] // 960 * 960].reshape(len(wave), -1, 960)
    return 10 * jnp.log10(jnp.mean(jnp.square(frames), axis=-1) + 1e-6)


@dataclasses.dataclass(frozen=True)
class LevelTask(Task):
    """Learns 5 levels in dB near which the clips are."""

    recipe: Recipe
    name: str = "level"

    def init_state(self, rng):
        return fresh_state({"centers": jnp.linspace(-40.0, 0.0, 5)}, self.recipe)

    def _loss(self, params, batch):
        loss = jnp.mean(jnp.min(jnp.square(decibels(jnp.asarray(batch["wave"]))[..., None] - params["centers"]), axis=-1))
        return loss, {"loss": loss}

    def train_step(self, state, batch, rng):
        return gradient_step(state, lambda params: self._loss(params, batch), self.recipe)

    def eval_step(self, state, batch, rng):
        return self._loss(state.params, batch)[1]

    def variables(self, state):
        return {"centers": state.params["centers"]}


@dataclasses.dataclass(frozen=True)
class LevelPart(TrainedPart):
    batch_size: int = 2
    crop_sec: float = 1.0
    recipe: Recipe = Recipe(num_steps=4, optimizer=FAST)

    @property
    def name(self):
        return "level"

    def task(self, fit):
        return LevelTask(self.recipe)

    def batch_shapes(self, fit):
        return wave_shapes(self, fit)

    def source(self, run, split, seed):
        return wave_source(run.clips, split=split, seed=seed, crop_sec=self.crop_sec, batch_size=self.batch_size)

    def steps(self, fit):
        return (self.training(fit), Step("level_tokens", "tokenizing", self._tokenize, ("level.npy",), encode_settings(fit), (PREPARE, "level")))

    def streams(self, fit):
        tokens = lambda run: TokenArray.open(run.folder("level_tokens") / "level.npy", run.clips, rate_hz=25, spec=fit.model.audio)  # noqa: E731
        return (TokenStream(Stream("level", 1, 5, 25), ("level_tokens",), tokens),)

    def _tokenize(self, run: Run, work: Work):
        centers = run.weights("level")["centers"]
        encode = lambda wave: jnp.argmin(jnp.abs(decibels(jnp.asarray(wave))[..., None] - centers), axis=-1)  # noqa: E731
        return {"tokens": len(tokenize(run, work, encode, rate_hz=25, file="level.npy"))}


MODEL = StageConfig(dim=8, num_layers=1, num_heads=2, head_dim=4, mlp_dim=8, dropout=0.0)
WINDOWS = {"model": MODEL, "window_sec": 0.8, "hop_sec": 0.4}
FROM_MULAN = StageSpec("level_from_mulan", Levels("level"), (Levels("mulan"),), **WINDOWS)
FROM_LEVEL = StageSpec("acoustic_from_level", Levels("acoustic", 0, 2), (Levels("level"),), **WINDOWS)
RECIPE = StageRecipe(num_steps=4, optimizer=FAST)


@pytest.fixture(scope="module")
def config():
    config = load_config("test")
    stages = tuple(StagePart(stage=spec.name, spec=spec, recipe=RECIPE, batch_size=2) for spec in (FROM_MULAN, FROM_LEVEL))
    return dataclasses.replace(config, parts=(*config.parts, LevelPart(), *stages))


def test_a_part_and_stages_of_ones_own_train_and_sample(config, tmp_path):
    data, work = write_clips(tmp_path / "data"), tmp_path / "work"
    step = lambda name: run_step(name, data, config=config, workdir=work)  # noqa: E731
    with pytest.raises(UserError, match="level_from_mulan needs the output of mulan"):
        step("level_from_mulan")
    for name in ("codec", "acoustic_tokens", "mulan", "rvq", "level", "level_tokens"):
        step(name)
    assert [each.name for each in config.steps_to("acoustic_from_level")] == [
        "prepare", "codec", "acoustic_tokens", "level", "level_tokens", "acoustic_from_level",
    ]  # fmt: skip
    for name in ("level_from_mulan", "acoustic_from_level"):
        results = step(name)
        assert np.isfinite(results["eval_loss"]) and {"eval_unigram", "eval_bigram"} <= results.keys()
        assert results == step(name)  # Done.

    # Both drawn one after the other, as `generate` does with the stages of a bundle.
    run, streams = Run(config, data, work), {"mulan": np.array([[0, 2], [1, 1]], np.int32)}
    for spec, steps in ((FROM_MULAN, 40), (FROM_LEVEL, 60)):
        layout = config.part(spec.name).layout(config)
        decoder = StageDecoder(spec.model, layout)
        weights = Weights(decoder.prepare(jax.tree.map(jnp.asarray, run.weights(spec.name)["params"])))
        drawn = generate_stage(spec, decoder, weights, streams, steps=steps, keys=clip_keys(["a", "b"], seed=0))
        assert drawn.shape == (2, steps, layout.target.levels) and 0 <= drawn.min() and drawn.max() < layout.target.codes
        streams[spec.target.stream] = drawn
    # The stage learned: the training lowers the held-out loss from its start near log 5.
    assert np.log(5) * 1.3 > run_step("level_from_mulan", data, config=config, workdir=work)["eval_loss"]


def test_the_rest_of_fit_does_not_notice(config):
    plain = load_config("test")
    assert [step.name for step in config.steps_to("export")] == [step.name for step in plain.steps_to("export")]
    assert config.steps["semantic"].settings == plain.steps["semantic"].settings
