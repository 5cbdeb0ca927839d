"""The training of any stage, as its `StageSpec` defines it, on the tokens of the clips."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from musiclm_jax.arrays import Bool
from musiclm_jax.checks import SHARE, SIZE, check_numbers
from musiclm_jax.data.prefetch import Source
from musiclm_jax.data.token_crops import SetCrops, StoreCrops, TokenCrops
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.ngrams import ngram_nats
from musiclm_jax.generation.devices import Weights
from musiclm_jax.generation.request import clip_keys
from musiclm_jax.generation.stages import StageSpec, generate_stage
from musiclm_jax.models.stage import StageDecoder, start_from_codebooks
from musiclm_jax.parts import codec
from musiclm_jax.parts.mulan import quantize_audio
from musiclm_jax.parts.part import PREPARE, FitConfig, Run, TokenStream
from musiclm_jax.parts.trained import TrainedPart
from musiclm_jax.tasks.stage import StageRecipe, StageTask
from musiclm_jax.tokens import StageLayout
from musiclm_jax.training import hosts
from musiclm_jax.training.task import TrainState
from musiclm_jax.training.trackers import SAMPLE_SEC, Clip, Sample, codes_by_level


@dataclasses.dataclass(frozen=True)
class StagePart(TrainedPart):
    """Trains one stage, on crops as long as its window."""

    # Name of the stage.
    stage: str = "semantic"
    # None: the stage of that name in the model. Otherwise a stage that is not in the bundle.
    spec: StageSpec | None = None
    # None: the window of the stage; no other value is valid.
    crop_sec: float | int | None = None
    recipe: StageRecipe = StageRecipe()
    # Whether embedding and head are initialized from the tokenizers' codebooks (`models.stage.start_from_codebooks`). Ours; the paper's are random.
    codebook_init: bool = False
    # Share of examples whose MuLan tokens come from a caption instead of the audio. The paper trains without text: 0.
    text_share: float | int = 0.0
    # Share of examples that are the end of their clip, so that a stage that reads the timing sees endings more often.
    end_share: float | int = 0.0

    def __post_init__(self):
        check_numbers(self, batch_size=SIZE, text_share=SHARE, end_share=SHARE)

    @property
    def name(self) -> str:
        return self.stage

    def spec_of(self, fit: FitConfig) -> StageSpec:
        spec = fit.model.stage(self.stage) if self.spec is None else self.spec
        if spec.name != self.stage:
            raise UserError(f"stage {self.stage!r} has a spec named {spec.name!r}: make the names equal")
        if self.crop_sec not in (None, spec.window_sec):
            raise UserError(f"{self.stage}: crop_sec={self.crop_sec}, window_sec={spec.window_sec}: a stage is trained on its window; leave crop_sec out")
        return spec

    def layout(self, fit: FitConfig) -> StageLayout:
        return self.spec_of(fit).layout({name: each.stream for name, each in fit.streams.items()})

    def token_streams(self, fit: FitConfig) -> dict[str, TokenStream]:
        """The streams that the stage reads and writes."""
        return {segment.stream: fit.streams[segment.stream] for segment in self.layout(fit).segments}

    def task(self, fit: FitConfig) -> StageTask:
        spec = self.spec_of(fit)
        return StageTask(spec.name, spec.model, self.layout(fit), self.recipe, spec.prefix_dropout)

    def needs(self, fit: FitConfig) -> tuple[str, ...]:
        return (PREPARE, *dict.fromkeys(step for each in self.token_streams(fit).values() for step in each.needs))

    def _has_texts(self, fit: FitConfig) -> bool:
        """Whether a stream of the prefix may come from captions."""
        return any(segment.stream == "mulan" for segment in self.layout(fit).prefix)

    def settings(self, fit: FitConfig) -> dict[str, Any]:
        return {
            "crop_sec": self.spec_of(fit).window_sec,
            "codebook_init": self.codebook_init,
            "text_share": self.text_share if self._has_texts(fit) else 0.0,
            "init_seed": fit.seed,
        } | ({"end_share": self.end_share} if self.end_share else {})

    def batch_shapes(self, fit: FitConfig) -> dict[str, jax.ShapeDtypeStruct]:
        spec, shapes = self.spec_of(fit), {}
        for name, each in self.token_streams(fit).items():
            stream = each.stream
            steps = [round(spec.window_sec * stream.rate_hz)] if stream.rate_hz else [stream.steps] if stream.steps > 1 else []
            levels = [] if stream.rate_hz and stream.levels == 1 else [stream.levels]
            shapes[name] = jax.ShapeDtypeStruct((self.batch_size, *steps, *levels), np.int32)
        return shapes

    def example_sec(self, fit: FitConfig) -> float:
        return self.spec_of(fit).window_sec

    def tokens_per_example(self, fit: FitConfig) -> tuple[int, int]:
        layout, seconds = self.layout(fit), self.spec_of(fit).window_sec
        return layout.num_target_tokens(seconds), layout.num_tokens(seconds)

    def source(self, run: Run, split: str, seed: int) -> Source:
        crop_sec = self.spec_of(run.config).window_sec
        shares = {"text_share": self.text_share, "end_share": self.end_share}
        return self._crops(run).source(split=split, crop_sec=crop_sec, batch_size=self.batch_size, seed=seed, **shares)

    def _crops(self, run: Run) -> TokenCrops:
        streams = self.token_streams(run.config)
        if run.tokens is None:
            return StoreCrops(run.clips, {name: each.tokens(run) for name, each in streams.items()}, run.config.model.audio)
        return SetCrops(run.tokens, tuple(streams), quantize_audio(run))

    def _long(self, run: Run, split: str) -> Bool[np.ndarray, "n"]:
        """Whether each clip of a split, or each record of a token set, is as long as the window."""
        spec = run.config.model.audio
        return run.music_tokens(split) >= spec.semantic_tokens(self.spec_of(run.config).window_sec)

    def check(self, run: Run) -> None:
        crop_sec, long = self.spec_of(run.config).window_sec, self._long(run, "train")
        if not long.any():
            longest = max(run.music_tokens("train"), default=0) / run.config.model.audio.semantic_rate_hz
            raise UserError(
                f"no training clip is as long as the {self.stage} stage's window of {crop_sec:g} s (the longest: {longest:g} s): give longer clips, or "
                f"lower window_sec and hop_sec of the stage"
            )
        both = np.concatenate([long, self._long(run, "test")])
        if not both.all():
            hosts.say(f"{self.stage}: {np.sum(~both)} of {len(both)} clips are shorter than its window of {crop_sec:g} s, and are not used")

    def has_held_out(self, run: Run) -> bool:
        return bool(self._long(run, "test").any())

    def samples(self, run: Run, variables: dict[str, Any]) -> dict[str, Sample]:
        """The codes that the stage draws under the conditions of a held-out clip; of an acoustic stage also the decoded wave."""
        spec, layout, target = self.spec_of(run.config), self.layout(run.config), self.layout(run.config).target
        batch = self.source(run, "test", self.loop.seed + 1)(0)
        streams = {name: each[:1] for name, each in batch.items()}
        decoder = StageDecoder(spec.model, layout)
        steps, keys = target.steps(min(SAMPLE_SEC, spec.window_sec)), clip_keys([spec.name], seed=self.loop.seed)
        codes = generate_stage(spec, decoder, Weights(decoder.prepare(variables["params"])), streams, steps=steps, keys=keys)
        samples = codes_by_level(codes[0], target.codes)
        if target.stream == "acoustic":
            coarser = streams["acoustic"][:, :steps, : target.first_level]
            wave = codec.tokenizer(run).decode(np.concatenate([coarser, codes], axis=2))[0]
            samples["generated"] = Clip(wave, run.config.model.audio.sample_rate_hz)
        return samples

    def warm_start(self, run: Run) -> Callable[[TrainState], TrainState] | None:
        if not self.codebook_init:
            return None
        streams = self.token_streams(run.config)
        codebooks = {name: each.codebooks(run) for name, each in streams.items() if each.codebooks is not None}
        rng = jax.random.fold_in(jax.random.key(run.config.seed), zlib.crc32(self.name.encode()))
        layout = self.layout(run.config)
        return lambda state: state.replace(params=start_from_codebooks(state.params, layout, codebooks, rng=rng))

    def finish(self, run: Run, variables: dict[str, Any], results: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        target = self.layout(run.config).target
        chunks = functools.partial(self._crops(run).chunks, target.stream, levels=slice(target.first_level, target.first_level + target.levels))
        if "eval_loss" not in results or chunks("train") is None:
            return variables, results
        unigram, bigram = ngram_nats(chunks("train"), chunks("test"), num_codes=target.codes)
        if results["eval_loss"] > bigram.mean():
            beaten = f"{results['eval_loss']:.3f} nats per token, where a bigram model has {bigram.mean():.3f}"
            hosts.say(f"{self.name}: {beaten}: it has hardly learned; train it longer")
        by_level = {f"eval_bigram_level_{level}": float(value) for level, value in enumerate(bigram)} if len(bigram) > 1 else {}
        return variables, results | {"eval_unigram": float(unigram.mean()), "eval_bigram": float(bigram.mean())} | by_level
