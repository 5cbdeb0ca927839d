"""Training the stages on a token set, which `musiclm tokenize` made: all other models are given."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from musiclm_jax import bundle, pretrained
from musiclm_jax.configs import OPTIONAL, RERANKERS, TOKENIZER_MODELS, MusicLMConfig
from musiclm_jax.data.token_set import TokenSet
from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath, write_json
from musiclm_jax.parts.export import ExportPart
from musiclm_jax.parts.part import PREPARE, FitConfig, Part, Run, Step, TokenStream, Work
from musiclm_jax.parts.stage import StagePart
from musiclm_jax.records import to_dict
from musiclm_jax.training import hosts


def trained_on_tokens(config: FitConfig, data: AnyPath | str) -> FitConfig:
    """The config of a `fit` on a token set: its stages and its export, and the tokenizers of the token set in the place of all other models.

    Raises:
        UserError: the token set or its tokenizers are damaged, or have too few levels for a stage, or a stage reads an optional stream.
    """
    for stage, stream in [(stage, stream) for stage in config.model.stages for stream in OPTIONAL if stage.reads(stream)]:
        raise UserError(f"the {stage.name} stage reads {stream}, and {data} has no {stream} tokens: train on the folder of clips, or leave {stream} out")
    tokens = TokenSet.open(data)
    opened = pretrained.open_pretrained(tokens.tokenizers)
    made_by = pretrained.read_config(opened, models=TOKENIZER_MODELS)
    frozen = {name: getattr(made_by, name) for name in ("audio", "codec", "w2v_bert", "mulan")} | dict.fromkeys(OPTIONAL)
    part = TokenSetPart(tokens, opened)
    drafts = {} if "semantic_reranker" in part.models() else {"selection": dataclasses.replace(config.model.selection, num_drafts=1)}
    parts = (part, *(each for each in config.parts if isinstance(each, (StagePart, ExportPart))))
    return dataclasses.replace(config, parts=parts, model=dataclasses.replace(config.model, **frozen, **drafts))


@dataclasses.dataclass(frozen=True)
class TokenSetPart(Part):
    """A token set, and the tokenizers that made it."""

    tokens: TokenSet
    opened: bundle.Bundle

    @property
    def name(self) -> str:
        return PREPARE

    def steps(self, fit: FitConfig) -> tuple[Step, ...]:
        settings = {"tokens": self.tokens.info.sha256}
        return (Step(PREPARE, "opening the tokens", self._describe, ("tokens.json",), settings, needs=()),)

    def _describe(self, run: Run, work: Work) -> dict[str, Any]:
        info = self.tokens.info
        hosts.first(lambda: write_json(work.folder / "tokens.json", to_dict(info)))
        return {name: getattr(info, name) for name in ("clips", "captioned", "held_out", "skipped", "hours")}

    def streams(self, fit: FitConfig) -> tuple[TokenStream, ...]:
        codebooks = {
            "acoustic": lambda run: self._load("codec")["quantizer"]["codebooks"],
            "semantic": lambda run: self._load("w2v_bert")["kmeans"]["centroids"][None],
        }
        return tuple(TokenStream(stream, (PREPARE,), None, codebooks.get(name)) for name, stream in fit.model.streams.items())

    def models(self) -> dict[str, Callable[[], dict[str, Any]]]:
        names = (*TOKENIZER_MODELS, *(name for name in RERANKERS if f"{name}.safetensors" in self.opened.files))
        return {name: functools.partial(self._load, name) for name in names}

    def _load(self, name: str) -> dict[str, Any]:
        return pretrained.load(self.opened, MusicLMConfig.from_dict(self.opened.config), name)
