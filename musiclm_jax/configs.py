"""The config of a MusicLM: its models, the token streams that they write, and its stages.

`config.json` of a bundle contains it. The config of the training is `parts.part.FitConfig`.
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
from musiclm_jax.generation.timing import TimingConfig
from musiclm_jax.generation.voice import VoiceConfig
from musiclm_jax.models import codec, melody, mulan, w2v_bert
from musiclm_jax.models import stage as stage_model
from musiclm_jax.models.codec import CodecConfig
from musiclm_jax.models.melody import MelodyConfig
from musiclm_jax.models.mulan import MuLanConfig
from musiclm_jax.models.soundstream import SoundStreamConfig
from musiclm_jax.models.w2v_bert import W2vBertConfig
from musiclm_jax.records import from_dict, to_dict
from musiclm_jax.specs import AudioSpec, Stream
from musiclm_jax.tokens import StageLayout

# Two more MuLans, which select among candidate clips (`reranker`) and among drafts of semantic tokens (`semantic_reranker`). They are optional in a bundle.
TOKENIZER_MODELS = ("codec", "w2v_bert", "mulan")
RERANKERS = ("reranker", "semantic_reranker")
# Fields that a config of before does not have; None: without.
OPTIONAL = ("melody", "timing", "voice")
# Fields that a config of before has, at any depth: lower temperatures of finer levels.
_FORMER = ("cooling",)


@dataclasses.dataclass(frozen=True)
class MusicLMConfig:
    """The config of all models of a bundle. The defaults are the paper's sizes."""

    audio: AudioSpec = AudioSpec()
    # The codec: the paper's SoundStream, or another one in its place.
    codec: CodecConfig = SoundStreamConfig()
    w2v_bert: W2vBertConfig = W2vBertConfig()
    mulan: MuLanConfig = MuLanConfig()
    # The melody embedder, whose codes may be conditions of stages. None: the model follows no melodies.
    melody: MelodyConfig | None = None
    # Where a window lies in its piece, as a condition of stages, so that music can end by itself. None: it cannot.
    timing: TimingConfig | None = None
    # How a voice is prepared whose semantic tokens are a condition of stages, so that the music accompanies it. None: the model accompanies no voice.
    voice: VoiceConfig | None = None
    # In the order in which they run.
    stages: tuple[StageSpec, ...] = musiclm_stages()
    # Names of stages that generation skips. Without the fine stage the wave is decoded from the coarse levels only. It is duller, but better than with a
    # fine stage that was hardly trained, whose codes are noise.
    skipped_stages: tuple[str, ...] = ()
    # Numbers of candidates and drafts from which each returned clip is selected. Not in the paper.
    selection: SelectionConfig = SelectionConfig()

    def __post_init__(self):
        spec = self.audio
        if self.codec.frame_samples != spec.frame_samples:
            raise UserError(
                f"the codec has frames of {self.codec.frame_samples} samples, audio has {spec.frame_samples}: "
                "choose strides with that product, or a spectral codec with that frame_samples"
            )
        if self.w2v_bert.token_samples != spec.semantic_samples:
            raise UserError(f"w2v_bert has one token per {self.w2v_bert.token_samples} samples, audio has {spec.semantic_samples}: change its mel.hop_samples")
        if spec.semantic_samples % self.mulan.mel.hop_samples:
            raise UserError(
                f"mulan.mel.hop_samples={self.mulan.mel.hop_samples} does not divide the {spec.semantic_samples} samples of a semantic token, "
                "whose spectrum the semantic reranker reads: choose one that divides them"
            )
        for name, mel in [(name, getattr(self, name).mel) for name in ("w2v_bert", "mulan", "melody") if getattr(self, name) is not None]:
            if mel.sample_rate_hz != spec.sample_rate_hz:
                raise UserError(f"{name}.mel.sample_rate_hz={mel.sample_rate_hz}, audio.sample_rate_hz={spec.sample_rate_hz}: make them equal")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names) or set(names) & {*TOKENIZER_MODELS, "melody"}:
            raise UserError(f"stages {', '.join(names)}: choose a different name for each, and not codec, w2v_bert, mulan or melody")
        if unknown := set(self.skipped_stages) - set(names):
            raise UserError(f"skipped_stages has {min(unknown)!r}: choose from {', '.join(names)}")
        self._check_order()

    def _check_order(self) -> None:
        """Raises UserError unless each stage's prefix is written before it, its target continues the written levels, and acoustic codes are written."""
        written = {name: stream.levels for name, stream in self.streams.items() if name == "mulan" or stream.optional}
        for stage in self.stages:
            layout = stage.layout(self.streams)
            if stage.name in self.skipped_stages:
                continue
            for segment in layout.prefix:
                if written.get(segment.stream, 0) < segment.first_level + segment.levels:
                    raise UserError(
                        f"stage {stage.name!r} reads levels of {segment.stream!r} that no stage before it writes: put a stage that writes them before it"
                    )
            if stage.reads("melody") and not self.melody.fitting(stage.window_sec):
                raise UserError(
                    f"stage {stage.name!r} reads a melody in windows of {stage.window_sec:g} s, and the embedder's have {self.melody.window_sec:g} s: "
                    "choose a window_sec of the stage that is as long, or leave the melody out of its prefix"
                )
            target = layout.target
            if target.first_level != written.get(target.stream, 0):
                before = f"{written.get(target.stream, 0)} levels are written before it"
                raise UserError(f"stage {stage.name!r} writes {target.stream!r} from level {target.first_level} on, and {before}: make these equal")
            written[target.stream] = target.first_level + target.levels
        if "acoustic" not in written:
            raise UserError("no stage, or only skipped ones, write 'acoustic', so that there is nothing to decode: add such a stage, or skip fewer")

    @property
    def streams(self) -> dict[str, Stream]:
        """The token streams by name. Their sizes are taken from the configs of the models that write them."""
        streams = {
            "mulan": Stream("mulan", self.mulan.num_levels, self.mulan.num_codes),
            "semantic": Stream("semantic", 1, self.w2v_bert.num_clusters, self.audio.semantic_rate_hz),
            "acoustic": Stream("acoustic", self.codec.num_levels, self.codec.num_codes, self.audio.frame_rate_hz),
        }
        if self.melody is not None:
            sizes = self.melody.num_levels, self.melody.num_codes
            streams["melody"] = Stream("melody", *sizes, steps=self.melody.condition_windows, optional=True)
        if self.timing is not None:
            streams["timing"] = self.timing.stream
        if self.voice is not None:
            streams["voice"] = dataclasses.replace(streams["semantic"], name="voice", optional=True)
        return streams

    def stage(self, name: str) -> StageSpec:
        """The stage `name`. Raises UserError if there is no such stage."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError(f"stage {name!r}: choose one of {', '.join(stage.name for stage in self.stages)}")

    def layout(self, name: str) -> StageLayout:
        """The layout of the stage `name`: its prefix and its target."""
        return self.stage(name).layout(self.streams)

    @property
    def coarse_levels(self) -> int:
        """The number of codec levels that the first acoustic stage writes. Candidates are selected from these levels."""
        return next(self.layout(stage.name).target.levels for stage in self.stages if stage.target.stream == "acoustic")

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that a bundle must contain. It may also contain `RERANKERS`."""
        return (*TOKENIZER_MODELS, *(("melody",) if self.melody is not None else ()), *(stage.name for stage in self.stages))

    def variable_shapes(self, name: str) -> dict[str, Any]:
        """The shapes of the variables of the model `name`, as a nested dict of ShapeDtypeStructs."""
        match name:
            case "codec":
                return codec.variable_shapes(self.codec)
            case "w2v_bert":
                return w2v_bert.variable_shapes(self.w2v_bert)
            case "mulan":
                return mulan.variable_shapes(self.mulan)
            case "melody" if self.melody is not None:
                return melody.variable_shapes(self.melody)
            case "reranker":
                return {"params": mulan.variable_shapes(self.mulan)["params"]}
            case "semantic_reranker":
                spectra = jax.ShapeDtypeStruct((self.w2v_bert.num_clusters, self.mulan.mel.num_mels), jnp.float32)
                return {"params": mulan.variable_shapes(self.mulan)["params"], "spectra": spectra}
        return stage_model.variable_shapes(self.stage(name).model, self.layout(name))

    def check_melody(self) -> None:
        """Raises UserError unless a stage reads melodies."""
        self._check_reads("melody", "follows no melody")

    def check_timing(self) -> None:
        """Raises UserError unless a stage reads the timing, so that music can end by itself."""
        self._check_reads("timing", "cannot end its music")

    def check_voice(self) -> None:
        """Raises UserError unless a stage reads a voice that the music accompanies."""
        self._check_reads("voice", "accompanies no voice")

    def _check_reads(self, stream: str, lacks: str) -> None:
        if not any(stage.reads(stream) for stage in self.stages if stage.name not in self.skipped_stages):
            raise UserError(
                f"the model {lacks}: choose a bundle for which `musiclm info` lists {stream}, or make one with "
                f"`musiclm fit CLIPS --gin_file runs/with_{stream}.gin`"
            )

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON types. What is None of `OPTIONAL` is left out, as in bundles of before."""
        return {name: value for name, value in to_dict(self).items() if name not in OPTIONAL or value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MusicLMConfig:
        """The inverse of `to_dict`, also after JSON, without `_FORMER` fields. Raises `UserError` for an unknown or wrongly typed field."""
        return from_dict(cls, without_former(data), where="model")


def without_former(tree: Any) -> Any:
    """A tree of JSON types without the fields of `_FORMER`."""
    if isinstance(tree, Mapping):
        return {name: without_former(value) for name, value in tree.items() if name not in _FORMER}
    return [without_former(value) for value in tree] if isinstance(tree, list) else tree
