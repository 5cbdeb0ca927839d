"""The packaged model as parts of a training, for benchmarks that continue its semantic stage with one more condition."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax import MusicLM, bundle, pretrained
from musiclm_jax.configs import MusicLMConfig
from musiclm_jax.data.token_store import TokenArray
from musiclm_jax.files import AnyPath
from musiclm_jax.generation.selection import SelectionConfig
from musiclm_jax.models import mulan
from musiclm_jax.models.text import TextTokenizer
from musiclm_jax.models.tokenizers import MuLanTokenizer, SemanticTokenizer
from musiclm_jax.parts.encode import embed_clips, tokenize
from musiclm_jax.parts.mulan import QUANTIZER, MuLanTokens
from musiclm_jax.parts.part import FitConfig, Part, Run, Step, TokenStream, Work, save_array
from musiclm_jax.parts.shards import clear
from musiclm_jax.parts.stage import StagePart
from musiclm_jax.tokens import Levels
from musiclm_jax.training.task import TrainState

HOP_SEC = 5.0


@dataclasses.dataclass(frozen=True)
class PackagedPart(Part):
    """The packaged model's codec, w2v-BERT and MuLan, and their tokens of all clips."""

    @property
    def name(self) -> str:
        return QUANTIZER

    def steps(self, fit: FitConfig) -> tuple[Step, ...]:
        return (Step(QUANTIZER, "tokens by the packaged model", self._tokens, ("windows.npy", "texts.npy", "semantic.npy"), {"hop_sec": HOP_SEC}),)

    def models(self) -> dict[str, Callable[[], dict[str, Any]]]:
        return {name: functools.partial(packaged, name) for name in ("codec", "w2v_bert", "mulan")}

    def streams(self, fit: FitConfig) -> tuple[TokenStream, ...]:
        windows, stream = dataclasses.replace(fit.model.mulan, hop_sec=HOP_SEC), fit.model.streams["semantic"]
        path = lambda run: run.folder(QUANTIZER) / "semantic.npy"  # noqa: E731
        semantic = lambda run: TokenArray.open(path(run), run.clips, rate_hz=stream.rate_hz, spec=fit.model.audio)  # noqa: E731
        codebooks = lambda run: run.saved("w2v_bert")["kmeans"]["centroids"][None]  # noqa: E731
        return (
            TokenStream(stream, (QUANTIZER,), semantic, codebooks),
            TokenStream(fit.model.streams["mulan"], (QUANTIZER,), lambda run: MuLanTokens(run, windows)),
        )

    def _tokens(self, run: Run, work: Work) -> dict[str, Any]:
        model, clips = run.config.model, run.clips.clips
        windows = dataclasses.replace(model.mulan, hop_sec=HOP_SEC)
        embeddings, _ = embed_clips(run, work.folder, clips, mulan.embed_audio, windows, run.weights("mulan")["params"])
        clear(work.folder / "shards")
        text = MuLanTokenizer(model.mulan, run.weights("mulan"), vocabulary())
        save_array(work.folder / "windows.npy", embeddings.astype(np.float16))
        save_array(work.folder / "texts.npy", text.text_tokens([caption for clip in clips for caption in clip.captions]).astype(np.int16))
        encode = SemanticTokenizer(model.w2v_bert, run.weights("w2v_bert")).encode
        tokenize(run, work, encode, rate_hz=model.audio.semantic_rate_hz, file="semantic.npy")
        return {"windows": len(embeddings)}


@dataclasses.dataclass(frozen=True)
class ContinuedStage(StagePart):
    """The packaged semantic stage, with optional streams before its other conditions."""

    def warm_start(self, run: Run) -> Callable[[TrainState], TrainState]:
        start, old = super().warm_start(run), packaged("semantic")["params"]

        def graft(state: TrainState) -> TrainState:
            state = start(state)
            put = lambda new, old, axis=0: jnp.concatenate([jax.lax.slice_in_dim(new, 0, new.shape[axis] - old.shape[axis], axis=axis), old], axis)  # noqa: E731
            new = state.params
            embed = {"embedding": put(new["embed"]["embedding"], old["embed"]["embedding"])}
            bias = {"table": put(new["time_bias"]["table"], old["time_bias"]["table"], 1)}
            return state.replace(params={**old, "embed": embed, "head": put(new["head"], old["head"]), "time_bias": bias})

        return graft


@functools.cache
def opened() -> bundle.Bundle:
    return pretrained.open_pretrained("demo")


@functools.cache
def packaged(name: str) -> dict[str, Any]:
    return pretrained.load(opened(), pretrained.read_config(opened()), name)


@functools.cache
def vocabulary() -> TextTokenizer:
    return pretrained.load_vocabulary(opened())


def continued(stage: StagePart) -> ContinuedStage:
    """A semantic stage whose training begins with the packaged weights."""
    return ContinuedStage(**{field.name: getattr(stage, field.name) for field in dataclasses.fields(StagePart)})


def with_stream(name: str, **fields: Any) -> MusicLMConfig:
    """The packaged model's config with one more stream, which its semantic stage reads first. fields: further fields to change."""
    old = pretrained.read_config(opened())
    semantic, *others = old.stages
    stages = (dataclasses.replace(semantic, prefix=(Levels(name), *semantic.prefix)), *others)
    return dataclasses.replace(old, stages=stages, selection=SelectionConfig(), **fields)


def with_trained(model: MusicLMConfig, work: AnyPath, *names: str) -> MusicLM:
    """The packaged model with some models from a work folder in the place of its own."""
    trained = {name: bundle.read_arrays(work / name / "variables.safetensors")[0] for name in names}
    return MusicLM(model, {name: packaged(name) for name in model.models if name not in trained} | trained, vocabulary())
