"""Exact wishes: what is asked for, what is measured, and which of several clips is kept."""

from types import SimpleNamespace

import numpy as np
import pytest

from musiclm_jax.corpus import render_clip
from musiclm_jax.corpus.synthesized.clip import SynthesizedCorpus
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation import exact
from musiclm_jax.evaluation.exact import ExactWishes, Facts, make_exactly, measure, parse_key, scorer, word_prompt


@pytest.mark.parametrize(
    "text, key",
    [
        ("A minor", "a minor"),
        (" Bb maj", "a# major"),
        ("f#-min", "f# minor"),
        ("G♭ major", "f# major"),
        ("cmajor", "c major"),
        ("Am", "a minor"),
        ("f#m", "f# minor"),
    ],
)
def test_keys_have_one_form(text, key):
    assert parse_key(text) == key


@pytest.mark.parametrize(
    "wishes, says", [({"key": "H minor"}, "'H minor'"), ({"key": "A"}, "such as 'A minor'"), ({"bpm": 400}, "bpm=400"), ({"meter": "5/4"}, "3/4, 4/4")]
)
def test_wishes_that_are_not_measured(wishes, says):
    with pytest.raises(UserError, match=says):
        ExactWishes(**wishes)


def test_what_is_missed_is_named():
    facts = Facts(97.0, "a minor", "3/4")
    assert ExactWishes(96, "A minor", "3/4").missed(facts) == () and not ExactWishes().missed(facts) and not ExactWishes()
    assert ExactWishes(104, "A major", "4/4").missed(facts) == ("bpm", "key", "meter")


def test_facts_of_clips_of_the_corpus():
    right = []
    for index in (0, 1, 2, 3, 4, 5):
        clip = render_clip(SynthesizedCorpus(5), index)
        wishes = ExactWishes(clip.attributes["tempo_bpm"], f"{exact._TONICS[clip.attributes['tonic']]} {clip.attributes['mode']}", clip.attributes["meter"])
        right += [name not in wishes.missed(measure(clip.wave[:240_000])) for name in ("bpm", "key", "meter")]
    assert sum(right) >= 15  # Of 18.


def scripted(monkeypatch, facts):
    """A model whose sample n has the nth facts."""
    monkeypatch.setattr(exact, "measure", lambda wave: facts[int(wave[0])])
    return SimpleNamespace(stream=lambda prompt, *, sample, **options: iter([np.full((1, 24_000), sample, np.float32)]))


def test_the_first_clip_that_meets_all_is_kept_or_the_best(monkeypatch):
    wishes = ExactWishes(bpm=96, key="A minor")
    none, one, both = Facts(150, "c major", "4/4"), Facts(96, "c major", "4/4"), Facts(96, "a minor", "4/4")
    clip = make_exactly(scripted(monkeypatch, [none, both, one]), "piano", wishes, seconds=1)
    assert (clip.sample, clip.missed, clip.facts) == (1, (), both)
    clip = make_exactly(scripted(monkeypatch, [none, one, one, none]), "piano", wishes, seconds=1)
    assert (clip.sample, clip.missed) == (1, ("key",))
    clip = make_exactly(scripted(monkeypatch, [both, none, one]), "piano", wishes, seconds=1, sample=1, tries=2)
    assert (clip.sample, clip.missed) == (2, ("key",))
    score = scorer(wishes)
    assert [score(np.full(24_000, value)) for value in (0.0, 1.0, 2.0)] == [2, 0, 1] and score(np.zeros(10)) == 0
    with pytest.raises(UserError, match="1 s or more"):
        make_exactly(scripted(monkeypatch, []), "piano", wishes, seconds=0.5)


def test_a_prompt_says_what_the_tower_knows():
    tower = lambda *known: SimpleNamespace(mulan=SimpleNamespace(unknown_words=lambda text: ([w for w in text.split() if w not in known], [])))  # noqa: E731
    wishes = ExactWishes(97, "A minor", "3/4")
    assert word_prompt(tower("95", "bpm", "a", "minor"), "piano", wishes) == "piano, 95 bpm, a minor"
    assert word_prompt(tower(), "piano", wishes) == "piano"
