"""Captions of the sampled corpus, in words that people use.

A caption is drawn from a grammar: a template, whose slots are filled by words that are true of the clip (`words.py`, `wordlists/`), which may have slots
themselves. Each clip has eight captions of five kinds: two lists of tags, a title, two descriptions of one sentence, one of two or three sentences, as
those of MusicCaps (arXiv 2301.11325), and two prompts as people type them. The first list of tags and the first sentence name lead instrument, drums,
mode and tempo.
"""

import dataclasses
import functools
import re

import numpy as np

from musiclm_jax.corpus.clip import Split, pick
from musiclm_jax.corpus.sampled.attributes import Attributes
from musiclm_jax.corpus.sampled.words import PARTS, SLOT, Vocabulary, part_and_form, templates

# The kinds of templates of the captions of a clip, in order.
KINDS = ("tags_full", "tags", "title", "one_full", "one", "two", "prompt", "prompt")
# What captions of `full` kinds name, and what captions may name, in the order of Caption.named.
FULL = ("instrument", "drums", "mode", "tempo")
NAMED = ("instrument", "family", "drums", "mode", "tempo", "tempo_bpm", "key", "meter", "style", "dynamics")
# Probability that a caption that need not name the lead instrument calls it by a looser word.
_LOOSE_RATE = 0.3
# Probability that a prompt is typed in lower case.
_LOWER_CASE_RATE = 0.6
# A sound of a vowel, as words that are used here are spelled.
_VOWEL = r"(?:(?!one|once|uni|use|eu)[aeio]|u[^ns]|un[^i]|[AEIO]|8\d|1[18]\b|honest)"
# Words of titles without capitals.
_SMALL = "in for with without by over a an and the of on at to no from as"
# Plurals that lose their "s" before a noun.
_PLURAL = re.compile(r"(?<=[a-rt-z])s$")
# Verbs that follow an instrument, without the "s" after a plural, which is marked by "~" until then.
_VERB = re.compile(r"~ (accompanie|add|answer|carrie|fill|hold|lay|lead|play|sing|take|walk)s\b")


@dataclasses.dataclass(frozen=True)
class Caption:
    text: str
    # Attributes, of NAMED, that the text says outright: "minor" names the mode, "sad" does not.
    named: tuple[str, ...]


def write_captions(attributes: Attributes, *, split: Split, rng: np.random.Generator) -> list[Caption]:
    """Draws the captions of one clip, one of each of KINDS. No two are the same."""
    vocabulary = Vocabulary(attributes)
    captions: list[Caption] = []
    for kind in KINDS:
        possible = [template for template in templates()[split][kind] if vocabulary.can_fill(template)]
        caption = _write(vocabulary, possible, kind, rng)
        while caption in captions:
            caption = _write(vocabulary, possible, kind, rng)
        captions.append(caption)
    return captions


def _write(vocabulary: Vocabulary, possible: list[str], kind: str, rng: np.random.Generator) -> Caption:
    loose = not kind.endswith("full") and rng.random() < _LOOSE_RATE
    draw = _Draw(vocabulary, rng, loose=loose)
    text = draw.fill(pick(possible, rng))
    lower_case = kind == "prompt" and rng.random() < _LOWER_CASE_RATE
    return Caption(_polish(text, kind, lower_case=lower_case), tuple(name for name in NAMED if name in draw.named))


class _Draw:
    """The words of one caption. An instrument has one name throughout, and no other word occurs twice if it can be helped."""

    def __init__(self, vocabulary: Vocabulary, rng: np.random.Generator, *, loose: bool):
        self.named: set[str] = set()
        self._vocabulary = vocabulary
        self._rng = rng
        self._lead = "loose" if loose and vocabulary.phrases("loose") else "lead"
        self._nouns: dict[str, str] = {}
        self._drawn: set[str] = set()

    def fill(self, text: str) -> str:
        return SLOT.sub(lambda slot: self._word(slot[1]), text)

    def _word(self, slot: str) -> str:
        part, form = part_and_form(slot)
        if part not in PARTS:
            return self._choose(slot)
        if part not in self._nouns:
            self._nouns[part] = self._choose(self._lead if part == "lead" else part)
        return _inflect(self._nouns[part], form)

    def _choose(self, slot: str) -> str:
        phrases = self._vocabulary.phrases(slot)
        fresh = [phrase for phrase in phrases if not self._drawn & _content(phrase.text)] or phrases
        phrase = pick(fresh, self._rng)
        self._drawn |= _content(phrase.text)
        self.named |= set(phrase.names)
        return self.fill(phrase.text)


def _inflect(noun: str, form: str) -> str:
    """A noun with its article ("a"), before another ("adj"), or on its own. One that ends in "~" has no article, and keeps the mark if it is a plural."""
    bare = noun.removesuffix("~")
    if bare == noun:
        return f"a {bare}" if form == "a" else bare
    singular = _PLURAL.sub("", bare)
    return singular if form == "adj" else noun if singular != bare else bare


@functools.cache
def _content(text: str) -> frozenset[str]:
    """The words of a text by which repetition is noticed: those of four letters or more, without slots and endings."""
    return frozenset(re.sub(r"(ly|ed|ing|s)$", "", word) for word in re.findall(r"[a-z]{4,}", SLOT.sub("", text.lower())))


def _polish(text: str, kind: str, *, lower_case: bool) -> str:
    """Corrects verbs and articles, and adds capitals and full stops."""
    text = _VERB.sub(lambda verb: f" {verb[1].removesuffix('ie')}{'y' * verb[1].endswith('ie')}", text).replace("~", "")
    text = re.sub(rf"\b([Aa]) (?={_VOWEL})", r"\1n ", text)
    text = re.sub(rf"\b([Aa])n (?!{_VOWEL})", r"\1 ", text)
    if lower_case:
        return re.sub(r"[A-Z](?![b#]? (?:major|minor|sharp|flat))", lambda letter: letter[0].lower(), text)
    if kind.startswith("tags") or kind == "prompt":
        return text
    if kind == "title":
        small = "|".join(_SMALL.split())
        return re.sub(rf"^[a-z]|(?<![\w'-])(?!(?:{small})\b)[a-z]", lambda letter: letter[0].upper(), text)
    return ". ".join(sentence[0].upper() + sentence[1:] for sentence in text.split(". ")) + "."
