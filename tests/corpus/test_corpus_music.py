"""Attributes, notes and sound of the corpus."""

import dataclasses
import itertools

import numpy as np
import pytest

from musiclm_jax.corpus import render_clip
from musiclm_jax.corpus.clip import clip_rng, clip_split
from musiclm_jax.corpus.synthesized import attributes as attributes_lib
from musiclm_jax.corpus.synthesized import compose as compose_lib
from musiclm_jax.corpus.synthesized import synthesis
from musiclm_jax.corpus.synthesized.attributes import INSTRUMENTS, STYLES, draw_attributes
from musiclm_jax.corpus.synthesized.clip import SynthesizedCorpus
from musiclm_jax.corpus.synthesized.voices import DRUMS, VOICES
from musiclm_jax.corpus.terms import MODES, SCALES, TEMPO_BANDS

RATE_HZ = 24000


def _attributes(index, seed=3):
    return draw_attributes(split=clip_split(index), rng=clip_rng(seed, index, "attributes"))


def _is_reserved(drawn):
    return attributes_lib.is_reserved(instrument=drawn.instrument, style=drawn.style, tempo=drawn.tempo, drums=drawn.drums, dynamics=drawn.dynamics)


def test_training_never_shows_a_reserved_combination_and_test_always_does():
    drawn = [_attributes(index) for index in range(2000)]
    assert [_is_reserved(one) for one in drawn] == [index % 10 == 9 for index in range(2000)]
    styles = {(one.instrument, one.style) for one in drawn[9::10]}
    assert set(attributes_lib.RESERVED_STYLES.items()) <= styles
    cells = {one.instrument: (one.tempo, one.drums, one.dynamics) for one in drawn[9::10] if one.style != attributes_lib.RESERVED_STYLES[one.instrument]}
    assert cells == attributes_lib.RESERVED_CELLS


def test_no_attribute_tells_the_mode():
    drawn = [_attributes(index) for index in range(6000) if index % 10 != 9]
    for names in itertools.combinations(("instrument", "tempo", "drums", "dynamics"), 2):
        groups = {}
        for one in drawn:
            groups.setdefault(tuple(getattr(one, name) for name in names), []).append(one.mode == "minor")
        assert all(abs(np.mean(group) - 0.5) < 5 * 0.5 / len(group) ** 0.5 for group in groups.values())


def test_chance_levels_are_clean():
    drawn = [_attributes(index) for index in range(4000) if index % 10 != 9]
    for instrument in INSTRUMENTS:
        mine = [one for one in drawn if one.instrument == instrument]
        assert len(mine) / len(drawn) == pytest.approx(1 / 8, abs=0.025)
        assert np.mean([one.mode == "minor" for one in mine]) == pytest.approx(0.5, abs=0.09)
        assert np.mean([one.drums for one in mine]) == pytest.approx(0.55, abs=0.09)
    assert {one.tonic for one in drawn} == set(range(12))
    assert {one.style for one in drawn} == set(STYLES)
    for band in TEMPO_BANDS:
        assert np.mean([one.tempo == band for one in drawn]) > 0.25
    assert min(one.tempo_bpm for one in drawn) < 64 and max(one.tempo_bpm for one in drawn) > 166


@pytest.mark.parametrize("bpm,band", [(60, "slow"), (89, "slow"), (90, "mid"), (125, "mid"), (126, "fast"), (170, "fast")])
def test_tempo_bands(bpm, band):
    assert attributes_lib.tempo_band(bpm) == band


def test_key_names_the_tonic():
    letters = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
    for mode in MODES:
        for tonic, name in enumerate(attributes_lib.KEY_NAMES[mode]):
            assert (letters[name[0]] + name.count("#") - name.count("b")) % 12 == tonic


@pytest.mark.parametrize("index", range(40))
def test_notes_stay_in_the_key_on_the_grid_and_in_the_clip(index):
    drawn = _attributes(index)
    notes = compose_lib.compose(drawn, rng=clip_rng(3, index, "music"))
    scale = {(drawn.tonic + step) % 12 for step in SCALES[drawn.mode]}
    if drawn.mode == "minor":
        scale.add((drawn.tonic + 11) % 12)
    for note in notes:
        assert note.voice in DRUMS or note.pitch % 12 in scale
        assert abs(note.shift_sec) <= compose_lib.MAX_SHIFT_SEC
        assert 0 <= compose_lib.onset_sec(note, tempo_bpm=drawn.tempo_bpm) < 30

    lead = [note for note in notes if note.part == "lead"]
    assert {note.voice for note in lead} == {drawn.instrument}
    assert all(48 <= note.pitch <= 89 for note in lead)  # Bells reach highest: an octave above a tonic of 77.
    # The lead never pauses, and plays one note at a time.
    assert all(note.step + note.length == after.step for note, after in itertools.pairwise(lead))
    assert {note.part for note in notes if note.voice in DRUMS} == (set(DRUMS) if drawn.drums else set())
    assert any(note.voice == "bass" for note in notes) == drawn.bass

    # The first chord is the tonic chord, so its third tells the mode.
    first = {note.pitch % 12 for note in notes if note.step < 8 and note.part in ("chord", "pad")}
    assert (drawn.tonic + (3 if drawn.mode == "minor" else 4)) % 12 in first


def test_phrases_repeat():
    drawn = dataclasses.replace(_attributes(0), tempo_bpm=120, tempo="mid", meter="4/4", style="folk")
    notes = compose_lib.compose(drawn, rng=np.random.default_rng(5))
    bars = [[(n.step % 8, n.length) for n in notes if n.part == "lead" and n.step // 8 == bar] for bar in range(15)]
    assert bars[:3] == bars[4:7]  # A phrase of four bars, played twice but for its ending.
    assert bars[8:11] == bars[12:15]


@pytest.mark.parametrize("voice", VOICES)
@pytest.mark.parametrize("pitch", [40, 64, 90])
def test_voices_sound(voice, pitch):
    wave = synthesis.render_note(voice, pitch=pitch, length_sec=0.3)
    assert wave.dtype == np.float32 and np.isfinite(wave).all()
    assert np.sqrt(np.mean(np.square(wave[:6000]))) == pytest.approx(1.0, abs=1e-3)
    assert np.abs(wave).max() < 8
    assert np.abs(wave[[0, -1]]).max() < 0.05  # No clicks.


@pytest.mark.parametrize("drum", DRUMS)
def test_drums_sound(drum):
    wave = synthesis.render_drum(drum)
    assert np.isfinite(wave).all() and 0.3 < np.abs(wave).max() < 6


@pytest.mark.parametrize("voice", [*INSTRUMENTS, "bass", "pad"])
def test_voices_are_in_tune(voice):
    wave = synthesis.render_note(voice, pitch=69, length_sec=1.2)[:24000]
    power = np.abs(np.fft.rfft(wave * np.hanning(24000))) ** 2
    assert power[430:450].sum() > 5 * max(power[410:430].sum(), power[450:470].sum())


def test_lead_voices_differ():
    features = {}
    for voice in INSTRUMENTS:
        profiles = []
        for pitch in (64, 69, 74):
            wave = synthesis.render_note(voice, pitch=pitch, length_sec=1.0)[:19200]
            hz = 440 * 2 ** ((pitch - 69) / 12)
            early, late = (np.abs(np.fft.rfft(part * np.hanning(9600), 48000)) for part in (wave[:9600], wave[9600:]))
            profile = [part[round(2 * n * hz) - 25 : round(2 * n * hz) + 25].max() for part in (early, late) for n in range(1, 9)]
            profiles.append(20 * np.log10(np.maximum(np.array(profile) / max(profile), 1e-3)))
        features[voice] = np.array(profiles)
    for voice in INSTRUMENTS:
        within = np.ptp(features[voice], axis=0).mean()
        for other in INSTRUMENTS:
            if other != voice:
                assert np.abs(features[voice].mean(0) - features[other].mean(0)).mean() > max(3.0, 0.5 * within), other


def test_sound_starts_where_the_score_says():
    drawn = dataclasses.replace(_attributes(0), instrument="piano", tempo_bpm=100, drums=True, style="rock")
    note = compose_lib.Note("snare", "snare", 0, step=7, length=1, shift_sec=0.004, gain=1.0)
    wave = synthesis.render([note], attributes=drawn, rng=np.random.default_rng(0))
    start = round((0.02 + 7 * 30 / 100 + 0.004) * RATE_HZ)
    # Apart from the constant that is taken away, there is only hiss before the note.
    before = wave[: start - 1] - wave[: start - 1].mean()
    assert np.abs(before).max() < 8 * synthesis.HISS and before.std() == pytest.approx(synthesis.HISS, rel=0.05)
    assert np.abs(wave[start : start + 240]).max() > 0.1


def test_tempo_can_be_heard():
    for index in (5, 8, 20):
        clip = render_clip(SynthesizedCorpus(0), index)
        assert clip.attributes["drums"]
        energy = np.log(1e-4 + np.abs(clip.wave.reshape(-1, 240)).sum(1))  # 100 frames per second
        onsets = np.maximum(np.diff(energy), 0)
        spectrum = np.abs(np.fft.rfft(onsets - onsets.mean(), 60000))
        beat_bin = clip.attributes["tempo_bpm"] / 60 * 600
        peaks = [spectrum[round(beat_bin * k) - 6 : round(beat_bin * k) + 7].max() for k in (1, 2)]
        assert max(peaks) > 5 * np.median(spectrum[300:4000])


def test_loudness_follows_dynamics():
    drawn = _attributes(1)
    notes = compose_lib.compose(drawn, rng=clip_rng(3, 1, "music"))
    levels = {}
    for dynamics in attributes_lib.DYNAMICS:
        wave = synthesis.render(notes, attributes=dataclasses.replace(drawn, dynamics=dynamics), rng=np.random.default_rng(0))
        assert wave.shape == (720000,) and np.abs(wave).max() <= 0.951
        levels[dynamics] = wave.std()
    assert levels["soft"] < levels["medium"] < levels["loud"]


def test_a_clip_does_not_depend_on_what_was_rendered_before():
    first = render_clip(SynthesizedCorpus(1), 2)
    render_clip(SynthesizedCorpus(5), 0)
    again = render_clip(SynthesizedCorpus(1), 2)
    np.testing.assert_array_equal(first.wave, again.wave)
    assert (first.attributes, first.captions, first.split) == (again.attributes, again.captions, again.split)
    assert not np.array_equal(first.wave, render_clip(SynthesizedCorpus(2), 2).wave)
