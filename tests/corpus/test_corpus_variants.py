"""The same melody in other hands."""

import dataclasses

import numpy as np
import pytest

from musiclm_jax.corpus import compose, render_clip, render_variant
from musiclm_jax.corpus.attributes import INSTRUMENTS, STREAMS, clip_rng, clip_split, draw_attributes
from musiclm_jax.corpus.variants import arrange


def melody(notes):
    return [(note.pitch, note.step, note.length) for note in notes if note.part == "lead"]


def clip_score(seed, index):
    attributes = draw_attributes(split=clip_split(index), rng=clip_rng(seed, index, "attributes"))
    return attributes, compose.compose(attributes, rng=clip_rng(seed, index, "music"))


@pytest.mark.parametrize("index", [0, 4, 9, 11])
def test_same_melody_in_seven_other_instruments(index):
    clip, notes = clip_score(3, index)
    variants = [arrange(seed=3, index=index, variant=variant) for variant in range(1, 8)]
    for attributes, played in variants:
        assert melody(played) == melody(notes)
        assert {note.voice for note in played if note.part == "lead"} == {attributes.instrument}
        for kept in ("tempo_bpm", "tempo", "meter", "key", "tonic", "mode", "style"):
            assert getattr(attributes, kept) == getattr(clip, kept)
        # What the attributes say is what is played, and nothing is left of the clip's instrument.
        voices = {note.voice for note in played}
        assert ("kick" in voices, "bass" in voices) == (attributes.drums, attributes.bass)
        assert voices <= {attributes.instrument, attributes.accompaniment, "bass", "kick", "snare", "hat"}
    assert {attributes.instrument for attributes, _ in variants} == set(INSTRUMENTS) - {clip.instrument}


def test_a_variant_is_a_function_of_its_numbers():
    one = arrange(seed=3, index=4, variant=1)
    for numbers in (dict(seed=3, index=4, variant=8), dict(seed=3, index=5, variant=1), dict(seed=4, index=4, variant=1)):
        assert arrange(**numbers) != one
    assert arrange(seed=3, index=4, variant=1) == one
    # The eighth has the instrument of the first again, and another band or another sound.
    assert arrange(seed=3, index=4, variant=8)[0].instrument == one[0].instrument


def test_bands_differ():
    variants = [arrange(seed=3, index=index, variant=1) for index in range(100)]
    assert len({(attributes.drums, attributes.bass, attributes.accompaniment == "pad") for attributes, _ in variants}) == 8
    alone = [{note.part for note in notes} == {"lead"} for _, notes in variants]
    assert 0.1 < np.mean(alone) < 0.4


def test_the_sound_is_another():
    clip, again = render_clip(seed=3, index=4), render_variant(seed=3, index=4, variant=0)
    np.testing.assert_array_equal(again.wave, clip.wave)
    assert dataclasses.replace(again, wave=clip.wave) == clip
    variant, same = (render_variant(seed=3, index=4, variant=1) for _ in range(2))
    np.testing.assert_array_equal(variant.wave, same.wave)
    assert variant.wave.shape == clip.wave.shape and variant.wave.dtype == np.float32 and np.abs(variant.wave).max() <= 1
    assert variant.split == clip.split and variant.captions == [] and variant.attributes["instrument"] != clip.attributes["instrument"]
    # Not one wave at another level, either.
    assert np.abs(np.corrcoef(variant.wave, clip.wave)[0, 1]) < 0.9


def test_variants_count_from_one():
    with pytest.raises(ValueError, match="variant=0"):
        arrange(seed=3, index=4, variant=0)


def test_the_streams_of_clips_are_what_they_were():
    """Recorded before there were variants: other numbers would be another corpus under the same seed."""
    recorded = {"attributes": 25719835, "music": 569990753, "captions": 48196475, "hiss": 102358185}
    assert {stream: clip_rng(3, 5, stream).integers(1 << 30) for stream in recorded} == recorded
    assert STREAMS[:4] == tuple(recorded)
    assert clip_rng(3, 5, "hiss", variant=1).integers(1 << 30) != recorded["hiss"]
