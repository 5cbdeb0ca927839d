"""The codec, SoundStream or spectral: its training, and the acoustic tokens of all clips."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from musiclm_jax.data.prefetch import Source
from musiclm_jax.data.readers import open_source
from musiclm_jax.data.token_store import TokenArray
from musiclm_jax.errors import UserError
from musiclm_jax.models.soundstream import SoundStreamConfig
from musiclm_jax.models.spectral_codec import SpectralCodecConfig
from musiclm_jax.models.tokenizers import AcousticTokenizer
from musiclm_jax.parts.encode import encode_settings, perplexities, tokenize
from musiclm_jax.parts.part import PREPARE, FitConfig, Run, Step, TokenStream, Work, deciding
from musiclm_jax.parts.trained import TrainedPart, wave_shapes
from musiclm_jax.tasks.soundstream import SoundStreamRecipe, SoundStreamTask
from musiclm_jax.tasks.spectral_codec import SpectralCodecRecipe, SpectralCodecTask
from musiclm_jax.training import hosts
from musiclm_jax.training.task import Task
from musiclm_jax.training.trackers import SAMPLE_SEC, Clip, Sample, codes_by_level

TOKENS = "acoustic_tokens"
_TASKS = {SoundStreamConfig: (SoundStreamTask, SoundStreamRecipe), SpectralCodecConfig: (SpectralCodecTask, SpectralCodecRecipe)}


@dataclasses.dataclass(frozen=True)
class CodecPart(TrainedPart):
    """Trains the codec on random crops."""

    # Of the same kind as the codec of the model.
    recipe: SoundStreamRecipe | SpectralCodecRecipe = SoundStreamRecipe()

    @property
    def name(self) -> str:
        return "codec"

    def task(self, fit: FitConfig) -> Task:
        task, recipe = _TASKS[type(fit.model.codec)]
        if not isinstance(self.recipe, recipe):
            found = f"the model has a {type(fit.model.codec).__name__}, the recipe is a {type(self.recipe).__name__}"
            raise UserError(f"codec: {found}: give the part a {recipe.__name__}")
        return task(fit.model.codec, self.recipe, sample_rate_hz=fit.model.audio.sample_rate_hz)

    def batch_shapes(self, fit: FitConfig) -> dict[str, jax.ShapeDtypeStruct]:
        return wave_shapes(self, fit)

    def source(self, run: Run, split: str, seed: int) -> Source:
        return open_source(run.clips, reader=run.config.reader, split=split, seed=seed, crop_sec=self.crop_sec, batch_size=self.batch_size)

    def settings(self, fit: FitConfig) -> dict[str, Any]:
        return fit.order

    def samples(self, run: Run, variables: dict[str, Any]) -> dict[str, Sample]:
        """The beginning of a held-out clip, its reconstruction, and how often it uses each code of each level."""
        model, clip = run.config.model, run.clips.split("test")[0]
        wave = run.clips.wave(clip, 0, min(clip.length, round(SAMPLE_SEC * run.clips.sample_rate_hz)))
        acoustic = AcousticTokenizer(model.codec, variables)
        codes = acoustic.encode(wave[None])
        clips = {"clip": Clip(wave, model.audio.sample_rate_hz), "reconstruction": Clip(acoustic.decode(codes)[0], model.audio.sample_rate_hz)}
        return clips | codes_by_level(codes[0], model.codec.num_codes)

    def finish(self, run: Run, variables: dict[str, Any], results: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        one, all_levels = results.get("eval_mel_distance_1_level"), results.get("eval_mel_distance")
        if one is not None and one < 1.03 * all_levels:
            hosts.say(f"{self.name}: one level ({one:.3f}) is as good as all ({all_levels:.3f}), so the other levels carry little: train it longer")
        return variables, results

    def steps(self, fit: FitConfig) -> tuple[Step, ...]:
        settings = {"codec": deciding(fit.model.codec), **encode_settings(fit)}
        tokens = Step(TOKENS, "tokenizing the clips", _tokenize, ("acoustic.npy",), settings, needs=(PREPARE, self.name))
        return (self.training(fit), tokens)

    def streams(self, fit: FitConfig) -> tuple[TokenStream, ...]:
        stream = fit.model.streams["acoustic"]
        tokens = lambda run: TokenArray.open(run.folder(TOKENS) / "acoustic.npy", run.clips, rate_hz=stream.rate_hz, spec=fit.model.audio)  # noqa: E731
        return (TokenStream(stream, (TOKENS,), tokens, codebooks=lambda run: run.saved(self.name)["quantizer"]["codebooks"]),)


def tokenizer(run: Run) -> AcousticTokenizer:
    """The trained codec."""
    return AcousticTokenizer(run.config.model.codec, run.weights("codec"))


def _tokenize(run: Run, work: Work) -> dict[str, Any]:
    model = run.config.model
    codes = tokenize(run, work, tokenizer(run).encode, rate_hz=model.audio.frame_rate_hz, file="acoustic.npy")
    sizes = {f"perplexity_{level + 1}": value for level, value in enumerate(perplexities(codes, model.codec.num_codes))}
    return {"seconds_of_audio": round(len(codes) / model.audio.frame_rate_hz, 1)} | sizes
