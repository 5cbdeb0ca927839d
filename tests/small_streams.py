"""Streams of distinct prime sizes, and the layouts of MusicLM's stages over them."""

from musiclm_jax.generation.stages import musiclm_stages
from musiclm_jax.specs import Stream
from musiclm_jax.tokens import StageLayout

STAGES = ("semantic", "coarse", "fine")


def make_streams(*, mulan=(3, 5), semantic=7, acoustic=(5, 11), semantic_rate_hz=25, frame_rate_hz=50) -> dict[str, Stream]:
    """(levels, codes) of each; semantic tokens have one level."""
    return {
        "mulan": Stream("mulan", *mulan),
        "semantic": Stream("semantic", 1, semantic, semantic_rate_hz),
        "acoustic": Stream("acoustic", *acoustic, frame_rate_hz),
    }


def stage_layout(name: str, streams: dict[str, Stream] | None = None, *, coarse_levels: int = 2, fine_sees_mulan: bool = False) -> StageLayout:
    specs = {spec.name: spec for spec in musiclm_stages(coarse_levels=coarse_levels, fine_sees_mulan=fine_sees_mulan)}
    return specs[name].layout(streams or make_streams())
