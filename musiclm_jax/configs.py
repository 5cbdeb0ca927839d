"""The config of a whole MusicLM: its models, the token streams that they write, and its stages.

It is what `config.json` of a bundle holds. How each part is trained is `parts.fit.FitConfig`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax.errors import UserError
from musiclm_jax.generation.selection import SelectionConfig
from musiclm_jax.generation.stages import StageSpec, musiclm_stages
from musiclm_jax.models import codec, mulan, w2v_bert
from musiclm_jax.models import stage as stage_model
from musiclm_jax.models.codec import CodecConfig
from musiclm_jax.models.mulan import MuLanConfig
from musiclm_jax.models.soundstream import SoundStreamConfig
from musiclm_jax.models.w2v_bert import W2vBertConfig
from musiclm_jax.records import from_dict, to_dict
from musiclm_jax.specs import AudioSpec, Stream
from musiclm_jax.tokens import StageLayout

# MuLan twice more, to choose among generated clips (`reranker`) and among semantic tokens (`semantic_reranker`); a bundle may do without.
RERANKERS = ("reranker", "semantic_reranker")


@dataclasses.dataclass(frozen=True)
class MusicLMConfig:
    """The defaults are the paper's sizes."""

    audio: AudioSpec = AudioSpec()
    # The paper's SoundStream, or another codec in its place.
    codec: CodecConfig = SoundStreamConfig()
    w2v_bert: W2vBertConfig = W2vBertConfig()
    mulan: MuLanConfig = MuLanConfig()
    # In the order in which they run.
    stages: tuple[StageSpec, ...] = musiclm_stages()
    # Stages that generation leaves out. Without the fine stage the wave is that of the coarse levels: duller, but better than with a fine stage that
    # has hardly learned, whose codes are noise.
    skipped_stages: tuple[str, ...] = ()
    # How many clips are made for each that is returned. Ours.
    selection: SelectionConfig = SelectionConfig()

    def __post_init__(self):
        spec = self.audio
        if self.codec.frame_samples != spec.frame_samples:
            raise UserError(
                f"the codec has frames of {self.codec.frame_samples} samples, audio of {spec.frame_samples}: "
                "choose strides with that product, or a spectral codec with such frames"
            )
        if self.w2v_bert.token_samples != spec.semantic_samples:
            raise UserError(f"w2v_bert has a token each {self.w2v_bert.token_samples} samples, audio says {spec.semantic_samples}: change its mel.hop_samples")
        if spec.semantic_samples % self.mulan.mel.hop_samples:
            raise UserError(
                f"mulan.mel.hop_samples={self.mulan.mel.hop_samples} is no part of the {spec.semantic_samples} samples of a semantic token, "
                "whose spectrum MuLan is to read: choose one that divides them"
            )
        for name, mel in (("w2v_bert", self.w2v_bert.mel), ("mulan", self.mulan.mel)):
            if mel.sample_rate_hz != spec.sample_rate_hz:
                raise UserError(f"{name}.mel.sample_rate_hz={mel.sample_rate_hz}, audio.sample_rate_hz={spec.sample_rate_hz}: make them equal")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names) or set(names) & {"codec", "w2v_bert", "mulan"}:
            raise UserError(f"stages {', '.join(names)}: each needs a name of its own, and none is codec, w2v_bert or mulan")
        if unknown := set(self.skipped_stages) - set(names):
            raise UserError(f"skipped_stages has {min(unknown)!r}: choose from {', '.join(names)}")
        self._check_order()

    def _check_order(self) -> None:
        """Raises UserError unless each stage finds what it reads, and continues what is written, and the last word is sound."""
        written = {"mulan": self.mulan.num_levels}
        for stage in self.stages:
            layout = stage.layout(self.streams)
            if stage.name in self.skipped_stages:
                continue
            for segment in layout.prefix:
                if written.get(segment.stream, 0) < segment.first_level + segment.levels:
                    raise UserError(f"stage {stage.name!r} reads {segment.stream!r}, of which no stage before it writes all levels: put one before that does")
            target = layout.target
            if target.first_level != written.get(target.stream, 0):
                before = f"{written.get(target.stream, 0)} levels are written before it"
                raise UserError(f"stage {stage.name!r} writes {target.stream!r} from level {target.first_level} on, and {before}: make these equal")
            written[target.stream] = target.first_level + target.levels
        if "acoustic" not in written:
            raise UserError("no stage that is not skipped writes 'acoustic', so that there is nothing to decode: add one, or skip fewer")

    @property
    def streams(self) -> dict[str, Stream]:
        """The token streams, each as the model that writes it has it, so that they cannot disagree."""
        return {
            "mulan": Stream("mulan", self.mulan.num_levels, self.mulan.num_codes),
            "semantic": Stream("semantic", 1, self.w2v_bert.num_clusters, self.audio.semantic_rate_hz),
            "acoustic": Stream("acoustic", self.codec.num_levels, self.codec.num_codes, self.audio.frame_rate_hz),
        }

    def stage(self, name: str) -> StageSpec:
        """The stage of that name."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError(f"stage {name!r}: choose one of {', '.join(stage.name for stage in self.stages)}")

    def layout(self, name: str) -> StageLayout:
        """What that stage reads and writes."""
        return self.stage(name).layout(self.streams)

    @property
    def coarse_levels(self) -> int:
        """Codec levels that the first stage which writes any of them writes: those that candidates are judged by."""
        return next(self.layout(stage.name).target.levels for stage in self.stages if stage.target.stream == "acoustic")

    @property
    def models(self) -> tuple[str, ...]:
        """What a bundle must hold, a file each. It may also hold `RERANKERS`."""
        return ("codec", "w2v_bert", "mulan", *(stage.name for stage in self.stages))

    def variable_shapes(self, name: str) -> dict[str, Any]:
        """The shapes of the variables of a model of the bundle, a nested dict of ShapeDtypeStructs."""
        match name:
            case "codec":
                return codec.variable_shapes(self.codec)
            case "w2v_bert":
                return w2v_bert.variable_shapes(self.w2v_bert)
            case "mulan":
                return mulan.variable_shapes(self.mulan)
            case "reranker":
                return {"params": mulan.variable_shapes(self.mulan)["params"]}
            case "semantic_reranker":
                spectra = jax.ShapeDtypeStruct((self.w2v_bert.num_clusters, self.mulan.mel.num_mels), jnp.float32)
                return {"params": mulan.variable_shapes(self.mulan)["params"], "spectra": spectra}
        return stage_model.variable_shapes(self.stage(name).model, self.layout(name))

    def to_dict(self) -> dict[str, Any]:
        return to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MusicLMConfig:
        """The inverse of `to_dict`, also after JSON. Raises `UserError` for an unknown or wrongly typed field."""
        return from_dict(cls, data, where="model")
