"""Clips of sampled instruments: what their attributes say is what their notes are."""

import collections
import dataclasses
import functools
import itertools

import numpy as np
import pytest

from musiclm_jax.corpus.clip import clip_rng
from musiclm_jax.corpus.sampled import patterns
from musiclm_jax.corpus.sampled.attributes import COLOURS, KITS, PARTS, ROOMS
from musiclm_jax.corpus.sampled.attributes import STYLES as NAMES
from musiclm_jax.corpus.sampled.bars import METERS, Section, Tone
from musiclm_jax.corpus.sampled.compose import compose_clip
from musiclm_jax.corpus.sampled.draw import draw_attributes
from musiclm_jax.corpus.sampled.harmony import PROGRESSIONS, chord, draw_chords, find_chords
from musiclm_jax.corpus.sampled.instruments import INSTRUMENTS, LEADS
from musiclm_jax.corpus.sampled.melody import vary
from musiclm_jax.corpus.sampled.styles import STYLES
from musiclm_jax.corpus.sampled.tunes import in_mode, load_tunes

INDICES = range(30)
compose = functools.cache(compose_clip)


def _part(score, part):
    return [note for note in score.notes if note.part == part]


def test_a_clip_is_determined_by_seed_index_and_variant():
    assert compose_clip(3, 5) == compose_clip(3, 5)
    assert compose_clip(3, 5, variant=1) == compose_clip(3, 5, variant=1)
    assert len({compose_clip(seed, index, variant=variant).notes for seed, index, variant in itertools.product((3, 4), (5, 6), (0, 1))}) == 8


@pytest.mark.parametrize("ending", [False, True])
@pytest.mark.parametrize("variant", [0, 1])
def test_attributes_say_what_is_played(ending, variant):
    for index in INDICES:
        score = compose(0, index, variant=variant, ending=ending)
        attributes, playing = score.attributes, {note.part for note in score.notes}
        assert playing <= set(PARTS) and "lead" in playing
        for part in ("bass", "chords", "pad", "counter"):
            assert bool(getattr(attributes, part)) == (part in playing)
            assert getattr(attributes, part) in ("", *INSTRUMENTS)
        assert attributes.drums == ("drums" in playing) == bool(attributes.kit)
        assert attributes.family == INSTRUMENTS[attributes.instrument].family
        assert attributes.ends == ending and set(attributes.form) <= {"intro", "verse", "chorus", "break", "ending"}
        assert (attributes.style, attributes.room) in itertools.product(NAMES, ROOMS)
        assert attributes.colour in COLOURS and attributes.kit in ("", *KITS)
        if attributes.drums:
            assert _part(score, "drums")[0].start_sec < 4


def test_a_part_that_never_plays_is_not_an_attribute():
    # The clip is of verses alone, in which counter-melodies may be silent.
    drawn, score = draw_attributes(clip_rng(0, 103, "attributes")), compose_clip(0, 103)
    assert drawn.counter == "strings" and score.attributes.counter == "" and not _part(score, "counter")


def test_notes_are_within_bounds():
    for index, ending in itertools.product(INDICES, (False, True)):
        score = compose(0, index, variant=0, ending=ending)
        assert score.length_sec == 30 if not ending else 12 <= score.length_sec < 30
        starts = [note.start_sec for note in score.notes]
        assert starts == sorted(starts) and 0 <= starts[0] < 1 and starts[-1] < score.length_sec
        assert all(1 <= note.velocity <= 127 and 0 < note.length_sec < 30 for note in score.notes)
        lead = INSTRUMENTS[score.attributes.instrument]
        assert all(lead.low <= note.pitch <= lead.high for note in _part(score, "lead"))
        assert all(24 <= note.pitch <= 108 for note in score.notes if note.part != "drums")
        ends = {}
        for note in score.notes:
            assert ends.get((note.part, note.pitch), -1) < note.start_sec
            ends[note.part, note.pitch] = note.start_sec + note.length_sec


def test_the_lead_plays_most_of_the_time():
    for index in INDICES:
        sounding = np.zeros(30_00, bool)
        for note in _part(compose(0, index, variant=0, ending=False), "lead"):
            # Half a second of a staccato or plucked note is heard as one.
            sounding[int(note.start_sec * 100) : int((note.start_sec + max(note.length_sec, 0.5)) * 100)] = True
        assert min(sounding[start : start + 10_00].mean() for start in range(0, 20_00, 50)) > 0.7, index


def test_tunes_are_of_one_split_alone():
    tunes = {"train": set(), "test": set()}
    for index in range(400):
        if index in INDICES or index % 10 == 9:
            tunes["test" if index % 10 == 9 else "train"] |= {compose(0, index, variant=0, ending=False).attributes.tune} - {""}
    known = {tune.name: tune.split for tune in load_tunes()}
    assert all(known[name] == split for split, names in tunes.items() for name in names)
    assert len(tunes["test"]) > 10 and len(tunes["train"]) > 10
    share = np.mean([split == "test" for split in known.values()])
    assert 0.08 < share < 0.13


def test_tunes_are_whole():
    tunes = load_tunes()
    assert len(tunes) == 1931
    for tune in tunes:
        bar = METERS[tune.meter].bar
        for section in tune.sections:
            assert section.bars in (4, 8) and -bar < section.melody[0].tick and section.melody[-1].end <= section.bars * bar
            assert all(tone.end <= after.tick for tone, after in itertools.pairwise(section.melody))
        assert tune.sections[-1].melody[-1].pitch % 12 == 0


def test_a_tune_changes_its_mode_and_keeps_its_rhythm():
    scale = {"major": {0, 2, 4, 5, 7, 9, 11}, "minor": {0, 2, 3, 5, 7, 8, 10, 11}}
    tunes = load_tunes()[::40]
    for tune, mode in itertools.product(tunes, scale):
        moved = in_mode(tune, mode)
        tones, before = ([tone for section in t.sections for tone in section.melody] for t in (moved, tune))
        assert moved.mode == mode and [(tone.tick, tone.length) for tone in tones] == [(tone.tick, tone.length) for tone in before]
        assert np.mean([tone.pitch % 12 in scale[mode] for tone in tones]) > 0.9
        assert in_mode(tune, tune.mode) is tune


def test_nothing_predicts_the_mode():
    drawn = [draw_attributes(clip_rng(1, index, "attributes")) for index in range(2000)]
    assert {attributes.instrument for attributes in drawn} == set(LEADS)
    for field in ("style", "family", "drums", "dynamics", "meter", "bass", "kit", "feel", "tempo"):
        counts = collections.Counter((getattr(attributes, field), attributes.mode) for attributes in drawn)
        for value in {value for value, _ in counts}:
            major, minor = counts[value, "major"], counts[value, "minor"]
            # Within four standard deviations of a half.
            assert abs(major - minor) <= 4 * np.sqrt(major + minor), (field, value)
    leads = collections.Counter(attributes.instrument for attributes in drawn)
    assert leads["piano"] > 1.5 * leads["harp"] and leads["flute"] > leads["banjo"]
    assert 0.5 < np.mean([attributes.drums for attributes in drawn]) < 0.6
    assert 0.8 < np.mean([attributes.colour == "clean" for attributes in drawn]) < 0.9


def test_variants_have_the_melody_of_the_clip():
    alone = 0
    for index, ending in itertools.product(range(12), (False, True)):
        clip = compose(0, index, variant=0, ending=ending)
        leads = {clip.attributes.instrument}
        for variant in (1, 2, 3):
            other = compose_clip(0, index, variant=variant, ending=ending)
            assert other.length_sec == clip.length_sec
            for field in ("key", "tempo_bpm", "meter", "feel", "tune", "form", "density", "articulation"):
                assert getattr(other.attributes, field) == getattr(clip.attributes, field)
            assert other.attributes.instrument not in leads
            leads.add(other.attributes.instrument)
            ours, theirs = _part(clip, "lead"), _part(other, "lead")
            assert [note.pitch % 12 for note in ours] == [note.pitch % 12 for note in theirs]
            assert np.allclose([note.length_sec for note in ours], [note.length_sec for note in theirs], atol=0.05)
            assert np.allclose([note.start_sec for note in ours], [note.start_sec for note in theirs], atol=0.05)
            alone += {note.part for note in other.notes} == {"lead"}
    assert 5 < alone < 40


def test_a_piece_ends_on_the_tonic_chord():
    for index in INDICES:
        score = compose(0, index, variant=0, ending=True)
        attributes = score.attributes
        last = _part(score, "lead")[-1]
        triad = {attributes.tonic, (attributes.tonic + (4 if attributes.mode == "major" else 3)) % 12, (attributes.tonic + 7) % 12}
        final = [note for note in score.notes if note.part != "drums" and note.start_sec > last.start_sec - 0.06]
        assert last.pitch % 12 == attributes.tonic and {note.pitch % 12 for note in final} <= triad
        assert all(note.pitch % 12 == attributes.tonic for note in final if note.part == "bass")
        # Nothing is played in the last two seconds, and the chord is held until then.
        assert all(note.start_sec < score.length_sec - 2.4 for note in score.notes)
        assert abs(last.start_sec + last.length_sec - (score.length_sec - 2.2)) < 0.2


@pytest.mark.parametrize("mode", ["major", "minor"])
def test_chords_are_found_for_a_melody(mode):
    third = 4 if mode == "major" else 3
    pitches = (0, third, 7, third) + (5, 9 if mode == "major" else 8, 12, 5) + (11, 7, 2, 11) + (0, third, 0, 0)
    melody = tuple(Tone(tick=12 * index, length=12, pitch=pitch) for index, pitch in enumerate(pitches))
    found = find_chords(Section(bars=4, melody=melody), METERS["4/4"], mode)
    tonic, subdominant = (chord(name) for name in (("I", "IV") if mode == "major" else ("i", "iv")))
    assert found[0] == found[1] == found[-1] == tonic and found[2] == found[3] == subdominant
    assert found[4].root == found[5].root == 7
    # Other notes of the last bar suggest the subdominant, but the last is the tonic.
    closing = (*melody[:12], *(dataclasses.replace(tone, pitch=pitch) for tone, pitch in zip(melody[12:], (5, 5, 5, 0), strict=True)))
    assert find_chords(Section(bars=4, melody=closing), METERS["4/4"], mode)[-1] == tonic


def test_progressions_close_on_the_tonic():
    rng = np.random.default_rng(0)
    for kind, modes in PROGRESSIONS.items():
        for mode, meter, bars in itertools.product(modes, METERS.values(), (4, 8, 12)):
            chords = draw_chords(kind, mode, bars, meter, rng)
            assert len(chords) == bars * meter.bar // meter.slot
            assert chords[-1].root == 0 and chords[-1].tones[1] == (4 if mode == "major" else 3)
    assert chord("bVI").root == 8 and chord("V7").tones == (0, 4, 7, 10) and chord("ii°").tones == (0, 3, 6)


def test_repeats_vary_a_little():
    rng = np.random.default_rng(0)
    pitches, lengths = (0, 4, 7, 12, 9, 7, 5, 4, 2, 7, 4, 0), (24, 12, 12, 6, 6, 12, 6, 6, 12, 12, 24, 48)
    starts = np.cumsum((0, *lengths)).tolist()
    melody = tuple(Tone(tick, length, pitch) for tick, length, pitch in zip(starts, lengths, pitches))
    varied = [vary(melody, METERS["4/4"], "major", rng) for _ in range(50)]
    same = np.mean([np.mean([tone in line for tone in melody]) for line in varied])
    assert 0.75 < same < 1 and all(line[-1] == melody[-1] for line in varied)
    assert {len(line) > len(melody) for line in varied} == {True, False} and min(map(len, varied)) < len(melody)
    for line in varied:
        assert all(tone.end == after.tick for tone, after in itertools.pairwise(line))
        assert all(tone.pitch % 12 in (0, 2, 4, 5, 7, 9, 11) for tone in line)


def test_patterns_fit_their_meters():
    assert tuple(STYLES) == NAMES
    steps = {name: meter.bar // meter.step for name, meter in METERS.items()}
    lines = [(meter, line) for table in (patterns.COMPS, patterns.BASSES) for meters in table.values() for meter, options in meters.items() for line in options]
    grooves = [*patterns.GROOVES.values(), patterns.FILLS, patterns.HAND_FILLS]
    lines += [(meter, line) for meters in grooves for meter, options in meters.items() for groove in options for line in groove.values()]
    assert all(len(line) == steps[meter] for meter, line in lines)
    for name, style in STYLES.items():
        assert set(style.kits) <= set(KITS) and set(style.basses) <= set(INSTRUMENTS) and style.progressions in PROGRESSIONS
        assert all(INSTRUMENTS[chords].chords for chords in style.chords)
        for meter in style.meters:
            assert patterns.GROOVES[name][meter]
            assert any(meter in patterns.COMPS[comp] for comp in style.comps) and any(meter in patterns.BASSES[line] for line in style.bass_lines)


def test_swing_delays_off_beats():
    score = next(
        s for s in (compose(0, index, variant=0, ending=False) for index in range(200)) if s.attributes.feel == "swing" and s.attributes.style == "jazz"
    )
    assert dataclasses.asdict(score.attributes)["feel"] == "swing"
    beat = 60 / score.attributes.tempo_bpm
    drums = [note.start_sec for note in score.notes if note.part != "lead"]
    phases = np.array([(start - 0.05) % beat / beat for start in drums])
    assert np.mean((phases > 0.58) & (phases < 0.75)) > 3 * np.mean((phases > 0.42) & (phases < 0.55))
