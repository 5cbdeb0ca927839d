"""The config of a whole MusicLM: every model, the token streams between them, the windows of long generation, how to sample.

It is what `config.json` of a bundle holds. How each part is trained is `fit.FitConfig`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from musiclm_jax.errors import UserError
from musiclm_jax.generation.sampler import SamplingConfig
from musiclm_jax.generation.stages import WindowConfig
from musiclm_jax.models.codec import CodecConfig
from musiclm_jax.models.mulan import MuLanConfig
from musiclm_jax.models.soundstream import SoundStreamConfig
from musiclm_jax.models.stage import StageConfig
from musiclm_jax.models.w2v_bert import W2vBertConfig
from musiclm_jax.records import from_dict, to_dict
from musiclm_jax.specs import AudioSpec, TokenSpec
from musiclm_jax.tokens import STAGES, StageLayout, stage_layout


@dataclasses.dataclass(frozen=True)
class MusicLMConfig:
    """The defaults are the paper's sizes."""

    audio: AudioSpec = AudioSpec()
    # The paper's, or the spectral codec in its place.
    soundstream: CodecConfig = SoundStreamConfig()
    w2v_bert: W2vBertConfig = W2vBertConfig()
    mulan: MuLanConfig = MuLanConfig()
    # SoundStream levels that the coarse stage writes; the fine stage writes the rest.
    coarse_levels: int = 4
    semantic: StageConfig = StageConfig()
    coarse: StageConfig = StageConfig()
    fine: StageConfig = StageConfig()
    # Whether the fine stage sees the MuLan tokens. The paper leaves it open; AudioLM's sees coarse tokens only.
    fine_sees_mulan: bool = False
    # Whether generation runs the fine stage. Without it the wave is that of the coarse levels: duller, but better than with a fine stage that has
    # hardly learned, whose codes are noise.
    use_fine: bool = True
    # How long generation slides over what the stages learned.
    windows: WindowConfig = WindowConfig()
    # How each stage draws by default: the paper's temperatures.
    semantic_sampling: SamplingConfig = SamplingConfig(temperature=1.0)
    coarse_sampling: SamplingConfig = SamplingConfig(temperature=0.95)
    fine_sampling: SamplingConfig = SamplingConfig(temperature=0.4)
    # Clips made for each one that is returned, of which the reranker chooses the nearest to the prompt. The paper's: 1.
    num_candidates: int = 1
    # Semantic token sequences drawn for each candidate; of all of a clip's the nearest to the prompt become its candidates. The paper's: 1.
    num_drafts: int = 1
    # Drafts grow by at most so many seconds; then the nearest to the prompt go on, each in `num_drafts` ways.
    draft_sec: float | int = 30.0

    def __post_init__(self):
        spec = self.audio
        for name in ("num_candidates", "num_drafts"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: choose 1 (no choice) or more")
        if not self.draft_sec > 0:
            raise UserError(f"draft_sec={self.draft_sec}: choose a length above 0")
        if self.soundstream.frame_samples != spec.frame_samples:
            raise UserError(
                f"soundstream has frames of {self.soundstream.frame_samples} samples, audio of {spec.frame_samples}: "
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
        self.tokens  # noqa: B018  (checks coarse_levels)

    @property
    def tokens(self) -> TokenSpec:
        """Sizes of the streams, each taken from the model that writes it, so that they cannot disagree."""
        return TokenSpec(
            mulan_levels=self.mulan.num_levels,
            mulan_codes=self.mulan.num_codes,
            semantic_codes=self.w2v_bert.num_clusters,
            acoustic_levels=self.soundstream.num_levels,
            acoustic_codes=self.soundstream.num_codes,
            coarse_levels=self.coarse_levels,
        )

    def stage(self, name: str) -> StageConfig:
        """Sizes of the stage "semantic", "coarse" or "fine"."""
        return getattr(self, _stage_name(name))

    def layout(self, name: str) -> StageLayout:
        """What that stage reads and writes."""
        return stage_layout(_stage_name(name), self.tokens, audio=self.audio, fine_sees_mulan=self.fine_sees_mulan)

    def sampling(self, name: str) -> SamplingConfig:
        """How that stage draws by default."""
        return getattr(self, f"{_stage_name(name)}_sampling")

    def to_dict(self) -> dict[str, Any]:
        return to_dict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MusicLMConfig:
        """The inverse of `to_dict`, also after JSON. Raises `UserError` for a missing, unknown or wrongly typed field."""
        return from_dict(cls, data, where="model")


def _stage_name(name: str) -> str:
    if name not in STAGES:
        raise UserError(f"stage {name!r}: choose one of {', '.join(STAGES)}")
    return name
