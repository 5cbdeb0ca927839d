"""A clip of the sampled corpus: from its number to its attributes, captions and wave."""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float

from musiclm_jax.corpus.clip import Description, Variant, clip_rng, clip_split, is_variant
from musiclm_jax.corpus.sampled import kits, soundfonts
from musiclm_jax.corpus.sampled.captions import write_captions
from musiclm_jax.corpus.sampled.compose import compose_clip
from musiclm_jax.corpus.sampled.play import play
from musiclm_jax.corpus.sampled.score import Score

# The version changes when the music for a seed changes.
VERSION = 1


@dataclasses.dataclass(frozen=True)
class SampledCorpus:
    """Implements `Corpus`. Samples may differ with other versions of FluidSynth, the soundfonts, NumPy or SciPy."""

    seed: int
    # Share of the pieces that end, 0 to 1. The others are cut after 30 s.
    endings: float = 0.0

    @property
    def identity(self) -> dict[str, Any]:
        return {"instruments": "sampled", "seed": self.seed, "version": VERSION} | ({"endings": self.endings} if self.endings else {})

    @property
    def notice(self) -> str:
        return pathlib.Path(__file__).with_name("NOTICE").read_text(encoding="utf-8")

    def require(self) -> None:
        soundfonts.require()
        kits.require()

    def score(self, index: int, variant: int = 0) -> Score:
        """The notes of a clip or a variant."""
        return _score(self, index, variant)

    def describe(self, index: int, variant: Variant = 0) -> Description:
        split, attributes = clip_split(index), self.score(index, variant if is_variant(variant) else 0).attributes
        captions = [] if variant else write_captions(attributes, split=split, rng=clip_rng(self.seed, index, "captions"))
        named = {"named": [list(caption.named) for caption in captions]} if captions else {}
        return Description(split, dataclasses.asdict(attributes) | named, [caption.text for caption in captions])

    def render(self, index: int, variant: Variant = 0) -> Float[np.ndarray, " N"]:
        if is_variant(variant):
            return play(self.score(index, variant), seed=self.seed, index=index, variant=variant)["mix"]
        return _stems(self, index)["mix" if variant == 0 else variant]


@functools.lru_cache(maxsize=2)
def _score(corpus: SampledCorpus, index: int, variant: int) -> Score:
    ends = bool(clip_rng(corpus.seed, index, "ending").random() < corpus.endings)
    return compose_clip(corpus.seed, index, variant=variant, ending=ends)


@functools.lru_cache(maxsize=1)
def _stems(corpus: SampledCorpus, index: int) -> dict[str, Float[np.ndarray, " N"]]:
    """A clip and its stems, of which a corpus asks one after another."""
    return play(corpus.score(index), seed=corpus.seed, index=index)
