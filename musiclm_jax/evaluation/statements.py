"""Parses captions of the corpus into the attributes that they state, with the tables of the grammar that writes them (corpus/synthesized/captions.py).

Each phrase of the tables allows certain values of an attribute: "bowed strings" the instrument strings, "leisurely pace" the tempo slow, "sad" the mode
minor, "calm" soft dynamics at a slow or mid tempo. Moods count here, although they are hints rather than names (see `named_attributes`), because the
result serves as a bound for any reader. Long phrases are matched first, so that the "steady" of "with a steady drum beat" is not a mood, and each word is
matched once. If several phrases are about the same attribute, the values that all of them allow remain.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from musiclm_jax.corpus.synthesized import captions
from musiclm_jax.corpus.synthesized.attributes import STYLES
from musiclm_jax.corpus.terms import DYNAMICS, KEY_NAMES, TEMPO_BANDS

# {attribute: the values that a caption allows}.
Statements = dict[str, frozenset]
# Attributes of the metadata, and "bpm", the tempo in beats per minute rounded to a multiple of 5, as in captions.
ATTRIBUTES = ("instrument", "drums", "mode", "key", "tempo", "bpm", "meter", "style", "dynamics")


def lacking(attributes: Mapping[str, Any]) -> list[str]:
    """The attributes that `facts` needs and the metadata of a clip lack."""
    needed = [name for name in ATTRIBUTES if name != "bpm"]
    missing = [name for name in needed if not isinstance(attributes.get(name), (str, int))]
    tempo = attributes.get("tempo_bpm")
    return missing + ([] if isinstance(tempo, (int, float)) and math.isfinite(tempo) else ["tempo_bpm"])


def facts(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ATTRIBUTES from the metadata of a clip for which `lacking` returns nothing."""
    return {name: attributes[name] for name in ATTRIBUTES if name != "bpm"} | {"bpm": 5 * round(attributes["tempo_bpm"] / 5)}


def stated(caption: str) -> Statements:
    """The attributes that a caption states, with the values that it allows. The set is empty for an attribute with contradicting phrases."""
    found: Statements = {}
    pattern, meanings = _grammar()
    for match in pattern.finditer(caption):
        meaning = {"bpm": frozenset([int(match["bpm"])])} if match["bpm"] else meanings[match[0].lower()]
        for name, values in meaning.items():
            found[name] = found.get(name, values) & values
    return found


def num_disagreements(statements: Statements, truth: Mapping[str, Any]) -> int:
    """The number of stated attributes that a clip with the `facts` `truth` does not have."""
    return sum(truth[name] not in values for name, values in statements.items())


# Words with which captions of the corpus (corpus/synthesized/captions.py) name an attribute. Moods are hints, not names: "sad" does not count as naming
# the mode, nor "waltz" the tempo.
_NAMES = {
    "instrument": r"piano|guitar|flute|strings?|violins?|organ|rhodes|bells?|glockenspiel|chimes?|synth|synthesizer",
    "drums": r"drums?|percussion",
    "mode": r"major|minor",
    "tempo": r"slow|unhurried|leisurely|mid-tempo|medium-tempo|moderate|(?:medium|moderate) (?:tempo|pace)|tempo is medium"
    r"|fast|quick|up-tempo|\d+ bpm",
    "tempo_bpm": r"\d+ bpm",
}
_NAMES = {attribute: re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for attribute, words in _NAMES.items()}


def named_attributes(caption: str) -> frozenset[str]:
    """The attributes among instrument, drums, mode, tempo and tempo_bpm that a caption names. Prompt adherence is measured by these only."""
    return frozenset(attribute for attribute, words in _NAMES.items() if words.search(caption))


@functools.cache
def _grammar() -> tuple[re.Pattern, dict[str, Statements]]:
    """Returns (a pattern that matches all phrases, {phrase in lower case: its meaning})."""
    meanings: dict[str, Statements] = {}
    for phrase, meaning in _phrases():
        meanings[phrase.lower()] = {name: frozenset(values) for name, values in meaning.items()}
    # The tonic must be a capital letter, which distinguishes "A minor" from "a minor".
    words = (f"(?-i:{phrase[0].upper()}){re.escape(phrase[1:])}" if "key" in meanings[phrase] else re.escape(phrase) for phrase in meanings)
    return re.compile(rf"(?<![\w-])(?:(?P<bpm>\d+) bpm|{'|'.join(sorted(words, key=len, reverse=True))})(?![\w-])", re.IGNORECASE), meanings


def _phrases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (phrase, {attribute: the values that it allows}) from the tables of the grammar."""
    for instrument, names in captions.INSTRUMENT_NAMES.items():
        for before_noun, alone in names:
            yield before_noun, {"instrument": [instrument]}
            yield re.sub("^an? ", "", alone), {"instrument": [instrument]}
    for table in (captions.TEMPO_WORDS, captions.TEMPO_NOUNS, captions.PACES):
        for band, phrases in table.items():
            yield from ((phrase, {"tempo": [band]}) for phrase in phrases)
    for table in (captions.DRUM_PHRASES, captions.DRUM_CLAUSES, captions.DRUM_TAGS):
        for drums, phrases in table.items():
            yield from ((phrase, {"drums": [drums]}) for phrase in phrases)
    for meter, phrases in captions.METER_WORDS.items():
        yield from ((phrase, {"meter": [meter]}) for phrase in phrases)
    for mode, moods in captions.MODE_MOODS.items():
        yield mode, {"mode": [mode]}
        yield from ((mood, {"mode": [mode]}) for mood in moods)
        for tonic in KEY_NAMES[mode]:
            yield f"{tonic[0]}{ {'#': ' sharp', 'b': ' flat'}.get(tonic[1:], '') } {mode}", {"key": [f"{tonic} {mode}"], "mode": [mode]}
    yield from ((style, {"style": [style]}) for style in STYLES)
    for mood in {mood for moods in captions.DYNAMIC_MOODS.values() for mood in moods}:
        # A mood fits all pairs of some dynamics and some tempi. If it fits all tempi it states nothing about the tempo, and likewise for dynamics.
        fitting = [pair for pair, moods in captions.DYNAMIC_MOODS.items() if mood in moods]
        dynamics, tempi = ({pair[i] for pair in fitting} for i in range(2))
        meaning = {"dynamics": dynamics, "tempo": tempi}
        yield mood, {name: values for name, values in meaning.items() if len(values) < len(DYNAMICS if name == "dynamics" else TEMPO_BANDS)}
