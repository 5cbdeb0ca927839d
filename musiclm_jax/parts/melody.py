"""The melody embedder and its quantizer. They are not in bundles yet: no stage is conditioned on a melody."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.data.clips import crop_samples
from musiclm_jax.data.pairs import pair_source, renderings
from musiclm_jax.data.prefetch import Source
from musiclm_jax.errors import UserError
from musiclm_jax.files import write_json
from musiclm_jax.models import melody
from musiclm_jax.models.melody import MelodyConfig
from musiclm_jax.parts.encode import embed_clips
from musiclm_jax.parts.part import MELODIES, SPLITS, FitConfig, Run
from musiclm_jax.parts.shards import clear
from musiclm_jax.parts.trained import TrainedPart, wave_shapes
from musiclm_jax.records import to_dict
from musiclm_jax.tasks.melody import MelodyRecipe, MelodyTask
from musiclm_jax.training import hosts


@dataclasses.dataclass(frozen=True)
class MelodyPart(TrainedPart):
    """Trains the melody embedder on pairs: the same seconds of one melody in two renderings. A crop is one window."""

    crop_sec: float | int = 4.0
    # Here, and not in `FitConfig.model`, since it is not in bundles.
    model: MelodyConfig = MelodyConfig()
    recipe: MelodyRecipe = MelodyRecipe()

    @property
    def name(self) -> str:
        return "melody"

    def task(self, fit: FitConfig) -> MelodyTask:
        rate = fit.model.audio.sample_rate_hz
        if self.model.mel.sample_rate_hz != rate or self.model.window_samples != crop_samples(self.crop_sec, rate):
            raise UserError(
                f"melody: crop_sec={self.crop_sec:g} at {rate} Hz, window_sec={self.model.window_sec:g} at {self.model.mel.sample_rate_hz} Hz: "
                "make both equal, and the seconds a multiple of 0.04"
            )
        return MelodyTask(self.model, self.recipe)

    def batch_shapes(self, fit: FitConfig) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = wave_shapes(self, fit)
        return shapes | {"other_wave": shapes["wave"], "melody": jax.ShapeDtypeStruct((self.batch_size,), np.int32)}

    def source(self, run: Run, split: str, seed: int) -> Source:
        return pair_source(run.clips, split=split, crop_sec=self.crop_sec, batch_size=self.batch_size, seed=seed)

    def reads(self, fit: FitConfig) -> tuple[str, ...]:
        return (SPLITS, MELODIES)

    def example_sec(self, fit: FitConfig) -> float:
        return 2 * self.crop_sec

    def has_held_out(self, run: Run) -> bool:
        return bool(renderings(run.clips, "test"))

    def outputs(self) -> tuple[str, ...]:
        return ("config.json",)

    def settings(self, fit: FitConfig) -> dict[str, Any]:
        return {"quantizer_seed": fit.seed}

    def finish(self, run: Run, variables: dict[str, Any], results: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fits the residual quantizer to the embeddings of all windows of training melodies."""
        folder = run.folder(self.name)
        # Makes the weights usable without the FitConfig.
        hosts.first(lambda: write_json(folder / "config.json", to_dict(self.model)))
        clips = list(itertools.chain(*renderings(run.clips, "train")))
        windows, _ = embed_clips(run, folder, clips, melody.embed, self.model, variables["params"])
        quantizer = melody.fit_quantizer(jnp.asarray(windows), rng=jax.random.key(run.config.seed), config=self.model)
        clear(folder / "shards")
        return variables | {"quantizer": quantizer}, results | {"windows": len(windows)}
