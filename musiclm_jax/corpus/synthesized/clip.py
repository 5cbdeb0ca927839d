"""A clip of the synthesized corpus: from its number to its attributes, captions and wave."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from musiclm_jax.corpus.clip import CLIP_SAMPLES, STEMS, Description, Variant, clip_rng, clip_split, is_variant
from musiclm_jax.corpus.synthesized import synthesis
from musiclm_jax.corpus.synthesized.attributes import Attributes, draw_attributes
from musiclm_jax.corpus.synthesized.captions import write_captions
from musiclm_jax.corpus.synthesized.compose import Note, compose
from musiclm_jax.corpus.synthesized.endings import end, has_ending
from musiclm_jax.corpus.synthesized.variants import arrange

# The version changes when the music for a seed changes. Version 1 had variants without hums; its clips were the same.
VERSION = 2


@dataclasses.dataclass(frozen=True)
class SynthesizedCorpus:
    """Implements `Corpus`.

    Notes and captions are equal on all machines. Samples may differ by rounding, with other versions of NumPy or SciPy or another processor.
    """

    seed: int
    # Share of the pieces that end (`endings`), 0 to 1. The others are cut after 30 s.
    endings: float = 0.0

    @property
    def identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "version": VERSION} | ({"endings": self.endings} if self.endings else {})

    @property
    def notice(self) -> str:
        return ""

    def require(self) -> None:
        """Nothing is needed."""

    def notes(self, index: int, variant: int = 0) -> tuple[Attributes, list[Note]]:
        """The attributes and notes of a clip or a variant that does not end."""
        if variant:
            return arrange(seed=self.seed, index=index, variant=variant)
        attributes = draw_attributes(split=clip_split(index), rng=clip_rng(self.seed, index, "attributes"))
        return attributes, compose(attributes, rng=clip_rng(self.seed, index, "music"))

    def describe(self, index: int, variant: Variant = 0) -> Description:
        split = clip_split(index)
        if is_variant(variant):
            return Description(split, dataclasses.asdict(arrange(seed=self.seed, index=index, variant=variant)[0]), [])
        attributes = draw_attributes(split=split, rng=clip_rng(self.seed, index, "attributes"))
        captions = [] if variant else write_captions(attributes, split=split, rng=clip_rng(self.seed, index, "captions"))
        return Description(split, dataclasses.asdict(attributes), captions)

    def render(self, index: int, variant: Variant = 0) -> Float[np.ndarray, " N"]:
        (attributes, notes), num_samples = self.notes(index, variant if is_variant(variant) else 0), CLIP_SAMPLES
        if has_ending(seed=self.seed, index=index, share=self.endings):
            notes, num_samples = end(notes, attributes, seed=self.seed, index=index)
        notes = [note for note in notes if variant not in STEMS or (note.part == "lead") == (variant == "lead")]
        hiss = clip_rng(self.seed, index, "hiss", variant=STEMS.get(variant, variant))
        return synthesis.render(notes, attributes=attributes, rng=hiss, num_samples=num_samples)
