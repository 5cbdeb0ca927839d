"""Pieces that end on the tonic, and then are silent."""

import json

import numpy as np
import pytest
import soundfile

from musiclm_jax.cli.main import main
from musiclm_jax.corpus import make_corpus, render_clip
from musiclm_jax.corpus.synthesized.clip import SynthesizedCorpus
from musiclm_jax.corpus.synthesized.endings import end, has_ending
from musiclm_jax.corpus.synthesized.variants import arrange
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.clips import read_clips
from musiclm_jax.evaluation.semantic import read_notes


@pytest.mark.parametrize("index", range(40))
def test_the_last_bar_holds_the_tonic(index):
    attributes, notes = SynthesizedCorpus(3).notes(index)
    ended, num_samples = end(notes, attributes, seed=3, index=index)
    assert 12 * 24_000 <= num_samples <= 30 * 24_000
    bar = 2 * attributes.beats_per_bar
    step = max(note.step for note in ended)
    last, before = [note for note in ended if note.step == step], [note for note in ended if note.step < step]
    # All that was played until then is as it was.
    assert step % bar == 0 and before == [note for note in notes if note.step < step]
    assert {note.part for note in last} >= {note.part for note in before} - {"snare", "hat"}
    third = 3 if attributes.mode == "minor" else 4
    for note in last:
        assert note.part == "kick" or note.length == bar
        if note.part in ("lead", "bass"):
            assert note.pitch % 12 == attributes.tonic
        elif note.part != "kick":
            assert (note.pitch - attributes.tonic) % 12 in (0, third, 7)
    # Silence follows.
    assert num_samples == round((0.02 + (step + bar) * 30 / attributes.tempo_bpm + 2.5) * 24_000)


def test_pieces_end_at_many_times():
    lengths = [end(SynthesizedCorpus(3).notes(index)[1], SynthesizedCorpus(3).notes(index)[0], seed=3, index=index)[1] / 24_000 for index in range(100)]
    assert np.quantile(lengths, 0.1) < 17 and np.quantile(lengths, 0.9) > 25


def test_variants_end_with_their_clip():
    for variant in range(1, 10):
        attributes, notes = arrange(seed=3, index=4, variant=variant)
        ended, num_samples = end(notes, attributes, seed=3, index=4)
        assert num_samples == end(SynthesizedCorpus(3).notes(4)[1], SynthesizedCorpus(3).notes(4)[0], seed=3, index=4)[1]
        step = max(note.step for note in ended)
        assert {note.part for note in ended if note.step == step} <= {note.part for note in notes}
        assert {note.voice for note in ended if note.part == "lead"} == {attributes.instrument}


def test_the_sound_dies_away():
    clip = render_clip(SynthesizedCorpus(3, 1.0), 4)
    level = lambda wave: np.sqrt(np.mean(np.square(wave)))  # noqa: E731
    assert level(clip.wave[-6000:]) < 0.01 * level(clip.wave[:-24_000]) and level(clip.wave[-72_000:-60_000]) > 0.05 * level(clip.wave[:-24_000])
    assert len(render_clip(SynthesizedCorpus(3, 1.0), 4, 1).wave) == len(clip.wave)
    assert (clip.captions, clip.attributes) == (render_clip(SynthesizedCorpus(3), 4).captions, render_clip(SynthesizedCorpus(3), 4).attributes)


def test_a_share_of_the_clips_ends_and_the_others_are_what_they_were(tmp_path):
    ends = [index for index in range(400) if has_ending(seed=3, index=index, share=0.25)]
    assert 70 < len(ends) < 130 and set(ends) <= {index for index in range(400) if has_ending(seed=3, index=index, share=0.5)}
    assert not any(has_ending(seed=3, index=index, share=0.0) for index in range(100)) and all(
        has_ending(seed=3, index=index, share=1.0) for index in range(100)
    )
    which = next(index for index in range(400) if index not in ends)
    np.testing.assert_array_equal(render_clip(SynthesizedCorpus(3, 0.25), which).wave, render_clip(SynthesizedCorpus(3), which).wave)


def test_a_corpus_with_endings_is_another_corpus(tmp_path):
    make_corpus(tmp_path / "ends", num_clips=2, seed=3, endings=1.0)
    assert json.loads((tmp_path / "ends" / "corpus.json").read_text()) == {"seed": 3, "version": 2, "endings": 1.0}
    for index in range(2):
        assert soundfile.info(tmp_path / "ends" / f"audio/00000{index}.flac").frames == len(render_clip(SynthesizedCorpus(3, 1.0), index).wave) < 720_000
    kept = (tmp_path / "ends" / "audio/000000.flac").stat().st_mtime_ns
    make_corpus(tmp_path / "ends", num_clips=2, seed=3, endings=1.0)
    assert (tmp_path / "ends" / "audio/000000.flac").stat().st_mtime_ns == kept
    with pytest.raises(UserError, match="'endings': 1.0.*choose another directory"):
        make_corpus(tmp_path / "ends", num_clips=2, seed=3)
    # The notes that an evaluation would compose are not those of the pieces.
    assert read_notes(tmp_path / "ends", read_clips(tmp_path / "ends").entries) is None
    with pytest.raises(UserError, match="endings=1.5: choose a share from 0 to 1"):
        make_corpus(tmp_path / "new", num_clips=1, seed=3, endings=1.5)


def test_the_command_makes_them(tmp_path, capsys):
    with pytest.raises(SystemExit, match="^$"):
        main(["corpus", str(tmp_path / "ends"), "--clips", "1", "--endings", "1", "--workers", "1"])
    assert "1 clips, up to 0.01 hours" in capsys.readouterr().out
    assert soundfile.info(tmp_path / "ends" / "audio/000000.flac").frames < 720_000
