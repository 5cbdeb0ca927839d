"""Captions say what is true, in words that training captions use as well."""

import re

import pytest

from musiclm_jax.corpus.clip import clip_rng, clip_split
from musiclm_jax.corpus.synthesized import captions as captions_lib
from musiclm_jax.corpus.synthesized.attributes import draw_attributes
from musiclm_jax.corpus.synthesized.captions import KINDS, TEMPLATES, write_captions

# Read independently of the grammar: the first pattern that matches wins.
INSTRUMENTS = {
    "electric piano": r"electric piano|rhodes",
    "piano": r"piano",
    "guitar": r"guitar",
    "flute": r"flute",
    "strings": r"strings?\b|violins?",
    "organ": r"organ",
    "bell": r"bells?\b|glockenspiel|chimes?",
    "synth lead": r"synth",
}
TEMPO = {
    "slow": r"slow|unhurried|leisurely",
    "mid": r"mid-tempo|medium|moderate",
    "fast": r"fast|quick|up-tempo",
}
MODE = {"minor": r"minor", "major": r"major"}
DRUMS = {False: r"(without|without any|no) (drum|percussion)", True: r"drum"}
MOODS = {
    "minor": r"\b(sad|dark|melancholic|sombre|wistful)\b",
    "major": r"\b(happy|bright|cheerful|joyful|sunny)\b",
}


def _read(text, patterns):
    return next((value for value, pattern in patterns.items() if re.search(pattern, text.lower())), None)


def _clips(num=600, seed=2):
    for index in range(num):
        split = clip_split(index)
        attributes = draw_attributes(split=split, rng=clip_rng(seed, index, "attributes"))
        yield split, attributes, write_captions(attributes, split=split, rng=clip_rng(seed, index, "captions"))


def _words(texts):
    return set(re.findall(r"[a-z0-9/-]+", " ".join(texts).lower()))


def test_captions_say_what_is_true():
    for _, attributes, captions in _clips():
        truth = (attributes.instrument, attributes.tempo, attributes.mode, attributes.drums)
        assert len(captions) == len(KINDS) == 6
        for kind, caption in zip(KINDS, captions, strict=True):
            read = tuple(_read(caption, patterns) for patterns in (INSTRUMENTS, TEMPO, MODE, DRUMS))
            assert all(said in (None, true) for said, true in zip(read, truth, strict=True)), caption
            assert _read(caption, MOODS) in (None, attributes.mode), caption
            if kind in ("tags", "one full", "two full"):
                assert read == truth, caption
            for bpm in re.findall(r"(\d+) bpm", caption):
                assert int(bpm) % 5 == 0 and abs(int(bpm) - attributes.tempo_bpm) <= 2.5
            for note in re.findall(r"in (?:the key of )?([A-G](?: sharp| flat)? (?:major|minor))", caption):
                assert note.replace(" sharp", "#").replace(" flat", "b") == attributes.key
            if "three-four" in caption or "3/4" in caption:
                assert attributes.meter == "3/4"


def test_most_captions_name_most_things():
    captions = [caption for _, _, captions in _clips() for caption in captions]
    for patterns, least in ((INSTRUMENTS, 0.9), (MODE, 0.6), (DRUMS, 0.6), (TEMPO, 0.55)):
        assert sum(_read(caption, patterns) is not None for caption in captions) / len(captions) > least


def test_splits_share_no_template_and_all_words():
    for kind in KINDS:
        assert not set(TEMPLATES["train"][kind]) & set(TEMPLATES["test"][kind])
    slots = re.compile(r"\{\w+\}")
    words = {split: _words(slots.sub(" ", t) for k in KINDS for t in TEMPLATES[split][k]) for split in TEMPLATES}
    assert words["test"] <= words["train"], words["test"] - words["train"]
    used = {split: set(re.findall(slots, str(TEMPLATES[split]))) for split in TEMPLATES}
    assert used["test"] <= used["train"]


def test_test_sentences_are_never_seen_in_training():
    seen = {"train": set(), "test": set()}
    for split, _, captions in _clips():
        seen[split] |= set(captions[2:])
    assert not seen["train"] & seen["test"]


@pytest.mark.parametrize(
    "text,kind,expected",
    [
        ("a organ, a piano", "tags", "an organ, a piano"),
        ("sad up-tempo lo-fi in C sharp minor with drums", "title", "Sad Up-tempo Lo-fi in C Sharp Minor with Drums"),
        ("a easy tune in A minor. it is slow", "one", "An easy tune in A minor. It is slow."),
    ],
)
def test_articles_and_capitals(text, kind, expected):
    assert captions_lib._polish(text, kind) == expected
