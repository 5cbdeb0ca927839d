"""The same melody in other hands."""

import dataclasses

import numpy as np
import pytest

from musiclm_jax.corpus import render_clip
from musiclm_jax.corpus.clip import STREAMS, clip_rng, clip_split
from musiclm_jax.corpus.synthesized import compose, synthesis
from musiclm_jax.corpus.synthesized.attributes import INSTRUMENTS, draw_attributes
from musiclm_jax.corpus.synthesized.clip import SynthesizedCorpus
from musiclm_jax.corpus.synthesized.variants import MOUTHS, arrange


def melody(notes):
    return [(note.pitch, note.step, note.length) for note in notes if note.part == "lead"]


def clip_score(seed, index):
    attributes = draw_attributes(split=clip_split(index), rng=clip_rng(seed, index, "attributes"))
    return attributes, compose.compose(attributes, rng=clip_rng(seed, index, "music"))


@pytest.mark.parametrize("index", [0, 4, 9, 11])
def test_same_melody_by_seven_other_instruments_and_two_mouths(index):
    clip, notes = clip_score(3, index)
    variants = [arrange(seed=3, index=index, variant=variant) for variant in range(1, 10)]
    for attributes, played in variants:
        assert melody(played) == melody(notes)
        assert {note.voice for note in played if note.part == "lead"} == {attributes.instrument}
        for kept in ("tempo_bpm", "tempo", "meter", "key", "tonic", "mode", "style"):
            assert getattr(attributes, kept) == getattr(clip, kept)
        # What the attributes say is what is played, and nothing is left of the clip's instrument.
        voices = {note.voice for note in played}
        assert ("kick" in voices, "bass" in voices) == (attributes.drums, attributes.bass)
        assert voices <= {attributes.instrument, attributes.accompaniment, "bass", "kick", "snare", "hat"}
    assert {attributes.instrument for attributes, _ in variants} == {*INSTRUMENTS, *MOUTHS} - {clip.instrument}
    # Nobody accompanies a hum.
    assert all({note.part for note in played} == {"lead"} for attributes, played in variants if attributes.instrument in MOUTHS)


def test_a_variant_is_a_function_of_its_numbers():
    one = arrange(seed=3, index=4, variant=1)
    for numbers in (dict(seed=3, index=4, variant=19), dict(seed=3, index=5, variant=1), dict(seed=4, index=4, variant=1)):
        assert arrange(**numbers) != one
    assert arrange(seed=3, index=4, variant=1) == one
    # The tenth has the instrument of the first again, and another band or another sound.
    assert arrange(seed=3, index=4, variant=10)[0].instrument == one[0].instrument


def test_bands_differ():
    variants = [arrange(seed=3, index=index, variant=1) for index in range(100)]
    assert len({(attributes.drums, attributes.bass, attributes.accompaniment == "pad") for attributes, _ in variants}) == 8
    alone = [{note.part for note in notes} == {"lead"} for attributes, notes in variants if attributes.instrument not in MOUTHS]
    assert 0.1 < np.mean(alone) < 0.4
    # With one variant each, some clips are hummed and some whistled.
    assert all(0.05 < np.mean([attributes.instrument == mouth for attributes, _ in variants]) < 0.2 for mouth in MOUTHS)


def test_the_sound_is_another():
    clip, again = render_clip(SynthesizedCorpus(3), 4), render_clip(SynthesizedCorpus(3), 4, 0)
    np.testing.assert_array_equal(again.wave, clip.wave)
    assert dataclasses.replace(again, wave=clip.wave) == clip
    variant, same = (render_clip(SynthesizedCorpus(3), 4, 1) for _ in range(2))
    np.testing.assert_array_equal(variant.wave, same.wave)
    assert variant.wave.shape == clip.wave.shape and variant.wave.dtype == np.float32 and np.abs(variant.wave).max() <= 1
    assert variant.split == clip.split and variant.captions == [] and variant.attributes["instrument"] != clip.attributes["instrument"]
    # Not one wave at another level, either.
    assert np.abs(np.corrcoef(variant.wave, clip.wave)[0, 1]) < 0.9


def pitch_hz(wave, *, low=80.0, high=2000.0):
    """The strongest frequency of a quarter second."""
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 8 * len(wave)))
    hz = np.fft.rfftfreq(8 * len(wave), 1 / synthesis.SAMPLE_RATE_HZ)
    return hz[np.argmax(np.where((hz > low) & (hz < high), spectrum, 0))]


@pytest.mark.parametrize(("mouth", "ratio"), [("hum", 0.5), ("whistle", 2.0)])
def test_mouths_sing_in_octaves_and_glide(mouth, ratio):
    note, from_below = (synthesis.render_note(mouth, pitch=69, length_sec=1.0, glide_from=pitch) for pitch in (None, 62))
    settled = slice(12_000, 18_000)
    for wave in (note, from_below):
        assert abs(12 * np.log2(pitch_hz(wave[settled]) / (440 * ratio))) < 0.3
    onset = slice(240, 720)  # 10 to 30 ms after it.
    zero_crossings = lambda wave: np.sum(np.diff(np.sign(wave[onset])) != 0)  # noqa: E731
    if mouth == "whistle":
        assert zero_crossings(from_below) < zero_crossings(note)
    assert not np.allclose(note[:2000], from_below[:2000], atol=0.1)
    # Other voices do not glide.
    np.testing.assert_array_equal(*(synthesis.render_note("flute", pitch=69, length_sec=0.3, glide_from=pitch) for pitch in (None, 62)))


def test_a_hum_has_formants():
    """Above 1 kHz, a hum has less than a voice with the same harmonics and no vocal tract."""
    wave = synthesis.render_note("hum", pitch=69, length_sec=1.0)
    power = np.square(np.abs(np.fft.rfft(wave)))
    hz = np.fft.rfftfreq(len(wave), 1 / synthesis.SAMPLE_RATE_HZ)
    share = power[hz > 1000].sum() / power.sum()
    harmonics = np.arange(1, 25.0)
    flat = harmonics**-1.8
    assert share < 0.2 * flat[harmonics * 220 > 1000].sum() / flat.sum()


def test_notes_glide_from_the_note_before():
    notes = [dataclasses.replace(note, voice="hum") for note in clip_score(3, 4)[1] if note.part == "lead"]
    assert synthesis._pitches_before(notes) == [notes[0].pitch, *(note.pitch for note in notes[:-1])]
    flutes = [dataclasses.replace(note, voice="flute") for note in notes]
    assert synthesis._pitches_before(flutes) == [note.pitch for note in notes]


def test_variants_count_from_one():
    with pytest.raises(ValueError, match="variant=0"):
        arrange(seed=3, index=4, variant=0)


def test_the_streams_of_clips_are_what_they_were():
    """Recorded before there were variants: other numbers would be another corpus under the same seed."""
    recorded = {"attributes": 25719835, "music": 569990753, "captions": 48196475, "hiss": 102358185}
    assert {stream: clip_rng(3, 5, stream).integers(1 << 30) for stream in recorded} == recorded
    assert STREAMS[:4] == tuple(recorded)
    assert clip_rng(3, 5, "hiss", variant=1).integers(1 << 30) != recorded["hiss"]


def test_stems_are_the_lead_and_all_the_others():
    clip, lead, band = (render_clip(SynthesizedCorpus(3), 4, variant) for variant in (0, "lead", "band"))
    assert (lead.captions, lead.attributes, lead.split) == (band.captions, band.attributes, band.split) == ([], clip.attributes, clip.split)
    # Each at its own level, they make the clip, but for the noise.
    parts = np.stack([lead.wave, band.wave], axis=1)
    shares = np.linalg.lstsq(parts, clip.wave, rcond=None)[0]
    assert (shares > 0.1).all() and np.std(clip.wave - parts @ shares) < 0.02 * np.std(clip.wave)
    # Their noises differ, or a band could be known by the noise of its lead.
    quiet = slice(0, 400)
    assert abs(np.corrcoef(lead.wave[quiet], band.wave[quiet])[0, 1]) < 0.3
