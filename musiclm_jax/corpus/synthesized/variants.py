"""Variants of a clip: the same melody in the same key and tempo, with another lead instrument and another accompaniment, or hummed or whistled.

The melody embedder learns from two renderings of one melody, as MusicLM's learned from covers and humming (arXiv 2301.11325, appendix C). Variants have no
captions, and no combination of attributes is reserved for the test split. A variant is in the split of its clip, so no melody is in both splits.
"""

import dataclasses

from musiclm_jax.corpus.clip import clip_rng, clip_split
from musiclm_jax.corpus.synthesized.attributes import DRUMS_RATE, INSTRUMENTS, Attributes, draw_attributes
from musiclm_jax.corpus.synthesized.compose import Note, compose
from musiclm_jax.corpus.terms import DYNAMICS

# Share of the variants by instruments that are the lead alone, so that an embedder cannot rely on chords and drums.
_ALONE_RATE = 0.25
# Leads that people have with them. They are always alone.
MOUTHS = ("hum", "whistle")


def arrange(*, seed: int, index: int, variant: int) -> tuple[Attributes, list[Note]]:
    """The attributes and notes of a variant. The lead's pitches, steps and lengths are those of the clip.

    Variants 1 to 9 have the seven other lead instruments, a hum and a whistle, beginning with another one for each clip; variants 10 to 18 have them again
    with other accompaniments, and so on.

    Raises:
        ValueError: a variant below 1.
    """
    if variant < 1:
        raise ValueError(f"variant={variant}: choose 1 or more; the clip itself is not a variant")
    clip = draw_attributes(split=clip_split(index), rng=clip_rng(seed, index, "attributes"))
    others = [*(instrument for instrument in INSTRUMENTS if instrument != clip.instrument), *MOUTHS]
    lead = others[(index + variant) % len(others)]

    rng = clip_rng(seed, index, "variant", variant=variant)
    alone = bool(rng.random() < _ALONE_RATE) or lead in MOUTHS
    drums, bass, pad = (bool(rng.random() < rate) for rate in (DRUMS_RATE, 0.75, 0.4))
    band = dataclasses.replace(
        clip,
        drums=drums and not alone,
        bass=bass and not alone,
        accompaniment="pad" if pad and not alone else lead,
        dynamics=str(rng.choice(DYNAMICS)),
    )
    # Composed for the clip's instrument, whose register decides the octave, from the clip's random stream, which draws the melody before anything else that
    # depends on the accompaniment.
    notes = compose(band, rng=clip_rng(seed, index, "music"))
    notes = [dataclasses.replace(note, voice=lead) if note.part == "lead" else note for note in notes if note.part == "lead" or not alone]
    return dataclasses.replace(band, instrument=lead), notes
