"""The melody of a clip, played again: another lead instrument and another band, the same notes in the same key and tempo.

Two renderings of one melody are what the melody embedder learns from, as MusicLM's learned from covers and humming
(arXiv 2301.11325, appendix C). Variants have no captions and keep no combination of attributes back for the test
split; their melodies are those of their clips, so the splits do not mix.
"""

import dataclasses

from musiclm_jax.corpus.attributes import DRUMS_RATE, DYNAMICS, INSTRUMENTS, Attributes, clip_rng, clip_split, draw_attributes
from musiclm_jax.corpus.compose import Note, compose

# Some variants are the lead alone, as a hummed melody would be: chords and drums must not be what tells melodies apart.
_ALONE_RATE = 0.25


def arrange(*, seed: int, index: int, variant: int) -> tuple[Attributes, list[Note]]:
    """Attributes and notes of a variant. The lead's pitches, steps and lengths are those of the clip.

    Variants 1 to 7 have the seven other lead instruments; from there on these come round again, with other bands.
    """
    if variant < 1:
        raise ValueError(f"variant={variant}: variants count from 1")
    clip = draw_attributes(split=clip_split(index), rng=clip_rng(seed, index, "attributes"))
    others = [instrument for instrument in INSTRUMENTS if instrument != clip.instrument]
    lead = others[(index + variant) % len(others)]

    rng = clip_rng(seed, index, "variant", variant=variant)
    alone = bool(rng.random() < _ALONE_RATE)
    drums, bass, pad = (bool(rng.random() < rate) for rate in (DRUMS_RATE, 0.75, 0.4))
    band = dataclasses.replace(
        clip,
        drums=drums and not alone,
        bass=bass and not alone,
        accompaniment="pad" if pad and not alone else lead,
        dynamics=str(rng.choice(DYNAMICS)),
    )
    # Composed for the clip's own instrument, whose register decides the octave, from the clip's own stream: the melody is drawn before any note is played.
    notes = compose(band, rng=clip_rng(seed, index, "music"))
    notes = [dataclasses.replace(note, voice=lead) if note.part == "lead" else note for note in notes if note.part == "lead" or not alone]
    return dataclasses.replace(band, instrument=lead), notes
