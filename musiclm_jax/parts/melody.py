"""The melody embedder with its quantizer, and the melody tokens of crops, on which stages are conditioned."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.arrays import Int
from musiclm_jax.checks import SECONDS, check_numbers
from musiclm_jax.data.clips import Clip, crop_samples, load_array
from musiclm_jax.data.pairs import other_renderings, pair_source, renderings
from musiclm_jax.data.prefetch import Source
from musiclm_jax.data.token_store import offsets
from musiclm_jax.errors import UserError
from musiclm_jax.files import write_json
from musiclm_jax.models import melody
from musiclm_jax.models.melody import MelodyConfig
from musiclm_jax.parts.encode import embed_clips, in_batches, perplexities
from musiclm_jax.parts.part import MELODIES, PREPARE, SPLITS, FitConfig, Run, Step, TokenStream, Work, deciding, save_array
from musiclm_jax.parts.shards import clear
from musiclm_jax.parts.trained import TrainedPart, wave_shapes
from musiclm_jax.records import to_dict
from musiclm_jax.tasks.melody import MelodyRecipe, MelodyTask
from musiclm_jax.tokens import ABSENT
from musiclm_jax.training import hosts

TOKENS = "melody_tokens"
_FILE = "melody.npy"


@dataclasses.dataclass(frozen=True)
class MelodyPart(TrainedPart):
    """Trains the melody embedder on pairs: the same seconds of one melody in two renderings. A crop is one window.

    If the model has a melody embedder, its tokens of all clips are computed, too.
    """

    crop_sec: float | int = 4.0
    # What is trained for a model without a melody embedder, by `musiclm train melody`; else it is `MusicLMConfig.melody`.
    model: MelodyConfig = MelodyConfig()
    recipe: MelodyRecipe = MelodyRecipe()
    # Seconds between the windows of a clip whose tokens are computed for the stages. The windows of a crop are off by up to half of it. Costs grow with their
    # number.
    condition_hop_sec: float | int = 0.2

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self, condition_hop_sec=SECONDS)

    @property
    def name(self) -> str:
        return "melody"

    def config(self, fit: FitConfig) -> MelodyConfig:
        """The config of the embedder that is trained."""
        return self.model if fit.model.melody is None else fit.model.melody

    def windows(self, fit: FitConfig) -> MelodyConfig:
        """The config with a window each `condition_hop_sec`."""
        return dataclasses.replace(self.config(fit), hop_sec=float(self.condition_hop_sec))

    def task(self, fit: FitConfig) -> MelodyTask:
        rate, model = fit.model.audio.sample_rate_hz, self.config(fit)
        if model.mel.sample_rate_hz != rate or model.window_samples != crop_samples(self.crop_sec, rate):
            raise UserError(
                f"melody: crop_sec={self.crop_sec:g} at {rate} Hz, window_sec={model.window_sec:g} at {model.mel.sample_rate_hz} Hz: "
                "make both equal, and the seconds a multiple of 0.04"
            )
        return MelodyTask(model, self.recipe)

    def check(self, run: Run) -> None:
        super().check(run)
        config = self.config(run.config)
        melody.check_quantizer(config, num_windows=sum(melody.num_windows(config, clip.length) for clip in _training_clips(run)))

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

    def steps(self, fit: FitConfig) -> tuple[Step, ...]:
        if fit.model.melody is None:
            return (self.training(fit),)
        settings = {"model": deciding(self.windows(fit))}
        tokens = Step(TOKENS, "melody tokens of all clips", self._tokenize, (_FILE,), settings, (PREPARE, self.name))
        return (self.training(fit), tokens)

    def streams(self, fit: FitConfig) -> tuple[TokenStream, ...]:
        if fit.model.melody is None:
            return ()
        codebooks = lambda run: run.saved(self.name)["quantizer"]["codebooks"]  # noqa: E731
        return (TokenStream(fit.model.streams["melody"], (self.name, TOKENS), self.tokens, codebooks),)

    def tokens(self, run: Run) -> MelodyTokens:
        config, clips = self.windows(run.config), run.clips
        at = offsets(melody.num_windows(config, clip.length) for clip in clips.clips)
        codes = load_array(run.folder(TOKENS) / _FILE)
        return MelodyTokens(self.config(run.config), config.hop_sec, codes, at, other_renderings(clips))

    def finish(self, run: Run, variables: dict[str, Any], results: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fits the residual quantizer to the embeddings of all windows of training melodies."""
        folder, config = run.folder(self.name), self.config(run.config)
        # Makes the weights usable without the FitConfig.
        hosts.first(lambda: write_json(folder / "config.json", to_dict(config)))
        windows, _ = embed_clips(run, folder, _training_clips(run), melody.embed, config, variables["params"])
        quantizer = melody.fit_quantizer(jnp.asarray(windows), rng=jax.random.key(run.config.seed), config=config)
        clear(folder / "shards")
        return variables | {"quantizer": quantizer}, results | {"windows": len(windows)}

    def _tokenize(self, run: Run, work: Work) -> dict[str, Any]:
        config, variables = self.windows(run.config), run.weights(self.name)
        windows, _ = embed_clips(run, work.folder, run.clips.clips, melody.embed, config, variables["params"])
        quantize = jax.jit(functools.partial(melody.tokens, config, {"quantizer": variables["quantizer"]}))
        tokens = in_batches(quantize, windows, batch_size=1024).astype(np.int16)
        if hosts.is_first():
            save_array(work.folder / _FILE, tokens)
        clear(work.folder / "shards")
        used = perplexities(tokens, config.num_codes)
        return {"windows": len(tokens)} | {f"perplexity_{level + 1}": value for level, value in enumerate(used)}


def _training_clips(run: Run) -> list[Clip]:
    return list(itertools.chain(*renderings(run.clips, "train")))


@dataclasses.dataclass(frozen=True)
class MelodyTokens:
    """The melody tokens of crops, as another rendering of the same melody has them.

    A crop's windows begin at its start and every `hop_sec` after it; those that do not fit into the crop are ABSENT, as they are in generation, where a stage
    has no more of a melody than its own window. Of the clips with the same melody one is drawn for each crop, so that a stage learns the tune from these
    tokens and not the sound; a clip that is the only one of its melody, or that has none, gives its own. Renderings are aligned in time; where the drawn one
    ends before the crop does, its tokens are ABSENT.
    """

    config: MelodyConfig
    # Seconds between the windows in `codes`.
    step_sec: float
    # int16 [sum W, Q], of all windows of all clips, memory-mapped, and the first row of each clip with the total at the end.
    codes: np.ndarray
    at: np.ndarray
    # Of each clip, the other renderings of its melody.
    others: Sequence[tuple[int, ...]]

    def crops(
        self, clips: Sequence[int], starts_sec: Sequence[float], crop_sec: float | int, *, rows: np.ndarray, rng: np.random.Generator, text_share: float
    ) -> Int[np.ndarray, "b W Q"]:
        """int32 [b, W, Q]."""
        del text_share
        drawn = [self._draw(clip, float(chance)) for clip, chance in zip(clips, rng.random(len(clips)), strict=True)]
        return np.stack([self._windows(drawn[row], starts_sec[row], crop_sec) for row in rows])

    def _draw(self, clip: int, chance: float) -> int:
        """A clip with the same melody. chance: uniform in [0, 1)."""
        others = self.others[clip]
        return others[int(chance * len(others))] if others else clip

    def _windows(self, clip: int, start_sec: float, crop_sec: float | int) -> Int[np.ndarray, "W Q"]:
        config, (first, end) = self.config, self.at[clip : clip + 2]
        found = np.full((config.condition_windows, config.num_levels), ABSENT, np.int32)
        for number in range(config.fitting(crop_sec)):
            nearest = round((start_sec + number * config.hop_sec) / self.step_sec)
            # The last window of a clip may begin a little before the crop's.
            if nearest <= end - first:
                found[number] = self.codes[first + min(nearest, end - first - 1)]
        return found
