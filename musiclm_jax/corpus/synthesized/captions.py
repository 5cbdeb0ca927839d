"""Captions from a small grammar with synonyms, of the kinds on which MuLan (arXiv 2208.12415) was trained.

Each clip has six captions, in this order: a list of tags, a title, two descriptions of one sentence and two of two sentences. The list of tags and the
first description of each length name lead instrument, drums, mode and tempo; the other captions name some of them. The test split has its own templates,
built from words of the training captions: a text model trained from scratch can know their words, but has not seen their sentences.
"""

import re

import numpy as np

from musiclm_jax.corpus.clip import Split, pick
from musiclm_jax.corpus.synthesized.attributes import Attributes

# instrument -> its names, as (form before a noun, form on its own with article). The first is the plain name, the others are synonyms.
INSTRUMENT_NAMES = {
    "piano": (("piano", "a piano"), ("grand piano", "a grand piano"), ("acoustic piano", "an acoustic piano")),
    "guitar": (("guitar", "a guitar"), ("acoustic guitar", "an acoustic guitar"), ("plucked guitar", "a plucked guitar")),
    "flute": (("flute", "a flute"), ("wooden flute", "a wooden flute"), ("blown flute", "a blown flute")),
    "strings": (("string", "strings"), ("bowed string", "bowed strings"), ("violin", "violins")),
    "organ": (("organ", "an organ"), ("hammond organ", "a hammond organ"), ("drawbar organ", "a drawbar organ")),
    "electric piano": (
        ("electric piano", "an electric piano"),
        ("rhodes electric piano", "a rhodes electric piano"),
        ("rhodes", "a rhodes"),
    ),
    "bell": (("bell", "bells"), ("glockenspiel", "a glockenspiel"), ("chime", "chimes")),
    "synth lead": (("synth lead", "a synth lead"), ("synth", "a synth"), ("synthesizer", "a synthesizer")),
}
# Probability of the plain name; otherwise one of all names is drawn.
_PLAIN_NAME_RATE = 0.6

TEMPO_WORDS = {
    "slow": ("slow", "slow", "unhurried", "leisurely"),
    "mid": ("mid-tempo", "mid-tempo", "moderate", "medium-tempo"),
    "fast": ("fast", "fast", "quick", "up-tempo"),
}
TEMPO_NOUNS = {
    "slow": ("slow tempo", "leisurely pace", "unhurried tempo"),
    "mid": ("moderate tempo", "medium tempo", "moderate pace"),
    "fast": ("fast tempo", "quick pace", "fast pace"),
}
PACES = {"slow": ("slow", "unhurried", "leisurely"), "mid": ("moderate", "medium"), "fast": ("fast", "quick")}
MODE_MOODS = {
    "major": ("happy", "bright", "cheerful", "joyful", "sunny"),
    "minor": ("sad", "dark", "melancholic", "sombre", "wistful"),
}
DYNAMIC_MOODS = {
    ("soft", "slow"): ("calm", "gentle", "soft", "peaceful"),
    ("soft", "mid"): ("calm", "gentle", "soft"),
    ("soft", "fast"): ("gentle", "soft", "light"),
    ("medium", "slow"): ("relaxed", "easy"),
    ("medium", "mid"): ("relaxed", "steady"),
    ("medium", "fast"): ("lively", "light"),
    ("loud", "slow"): ("powerful", "loud", "strong"),
    ("loud", "mid"): ("powerful", "loud", "energetic"),
    ("loud", "fast"): ("energetic", "powerful", "loud"),
}
DRUM_PHRASES = {
    True: ("with drums", "with drums", "with a steady drum beat", "over a drum beat", "backed by drums", "with a drum kit"),
    False: ("without drums", "without drums", "with no drums", "without any drums", "without percussion"),
}
DRUM_CLAUSES = {
    True: ("the drums keep a steady beat", "there is a drum beat", "a drum kit plays along", "there are drums"),
    False: ("there are no drums", "there is no drum beat", "there is no percussion", "it has no drums"),
}
DRUM_TAGS = {True: ("drums", "drum beat", "drum kit"), False: ("no drums", "without drums", "no percussion")}
METER_WORDS = {"3/4": ("3/4", "three-four time"), "4/4": ("4/4", "four-four time")}

# split -> kind -> templates. Slots: {inst} is the instrument before a noun, {an_inst} on its own, {bare_inst} on its own without article. "a" becomes "an"
# where needed. "full" templates name instrument, drums, mode and tempo.
TEMPLATES = {
    "train": {
        "tags": (
            "{bare_inst}, {style}, {tempo}, {mode}, {drum_tag}, {mood}",
            "{style}, {bare_inst}, {mood}, {mode}, {tempo}, {drum_tag}",
            "{bare_inst}, {mood}, {tempo}, {drum_tag}, {mode}, {bpm}",
            "{tempo}, {bare_inst}, {drum_tag}, {mode}, {style}, {meter}",
            "{style}, {mood}, {bare_inst}, {drum_tag}, {mode}, {tempo}, {bpm}",
        ),
        "title": (
            "{mood} {inst} {style} in {key}",
            "{tempo} {style} for {bare_inst}",
            "{mood} {inst} {style}",
            "{inst} {style} {drums}",
            "{mood} {tempo} {inst} music",
            "{mood} {style} in {mode}",
        ),
        "one full": (
            "a {tempo} {mood} {inst} {style} {in_mode} {drums}",
            "a {mood} and {tempo} {style} piece led by {an_inst}, {drums}, {in_mode}",
            "{an_inst} in the lead of a {tempo} {style} tune {in_mode} {drums}",
            "this is a {mood} {inst} melody {in_mode}, played at a {tempo_noun} {drums}",
            "a {mood} {mode} key melody on {an_inst} at a {tempo_noun}, {drums}",
            "a {tempo} {inst} melody {in_mode} {drums}",
            "{mood} and {mood} {inst} music {in_mode}, {tempo} and {drums}",
            "a {tempo} {inst} piece {drums} {in_mode}",
        ),
        "one": (
            "a {mood} {inst} melody {in_mode}",
            "a {mood} {inst} melody {drums}",
            "a {tempo} {style} piece led by {an_inst}",
            "a {tempo} {inst} tune at {bpm} {in_mode}",
            "a {mood} {style} tune {in_mode} at a {tempo_noun}",
            "{an_inst} in the lead of a tune {in_mode} {drums}",
            "a {mood} and {tempo} {inst} {style} tune in {meter}",
            "{mood} music played on {an_inst} {in_mode}",
        ),
        "two full": (
            "a {mood} melody on {an_inst} {in_mode}. the tempo is {pace} and {drum_clause}",
            "a {tempo} {style} piece {drums}. the lead is {an_inst}, and the melody is {mood} and {in_mode}",
            "this is {style} music with {an_inst} in the lead. it is {mood} and {tempo}, {in_mode}, and {drum_clause}",
            "{mood} {inst} music {in_mode} {drums}. it is played at a {tempo_noun}, about {bpm}",
            "a {mood} {inst} {style} at a {tempo_noun}. it is {in_mode} and {drum_clause}",
        ),
        "two": (
            "a {mood} {inst} tune {in_mode}. it is a {style} piece at about {bpm}",
            "a {style} tune led by {an_inst}. the music is {mood}, and {drum_clause}",
            "this is a {tempo} {style} piece in {meter}. the melody is played on {an_inst} {in_mode}",
            "a {mood} and {mood} piece for {bare_inst}. it is played at a {tempo_noun}",
            "the music is {mood} and {tempo}. it has {an_inst} in the lead {drums}",
        ),
    },
    "test": {
        "tags": (
            "{mood}, {drum_tag}, {style}, {bare_inst}, {mode}, {tempo}",
            "{mode}, {tempo}, {mood}, {bare_inst}, {bpm}, {drum_tag}",
            "{drum_tag}, {mode}, {bare_inst}, {tempo}, {style}",
        ),
        "title": (
            "{style} for {bare_inst} in {key}",
            "{tempo} {mood} {style} for {bare_inst}",
            "{mood} music for {bare_inst} {drums}",
            "{inst} tune in {mode}",
        ),
        "one full": (
            "{in_mode} and {drums}, a {mood} {style} piece for {bare_inst} at a {tempo_noun}",
            "a {style} melody played on {an_inst}, {tempo}, {mood}, {in_mode} and {drums}",
            "{tempo} and {mood} music for {bare_inst} {in_mode}, {drums}",
            "a piece {drums}, {in_mode}, with {an_inst} in the lead at a {tempo_noun}",
        ),
        "one": (
            "music {in_mode} for {bare_inst}, {mood} and {tempo}",
            "this {mood} melody is played on {an_inst} {drums}",
            "at a {tempo_noun}, {an_inst} in the lead of a {mood} tune {in_mode}",
            "a {style} tune in {meter} for {bare_inst}, {in_mode}",
        ),
        "two full": (
            "{drum_clause} in this {tempo} {style} piece. it has {an_inst} in the lead of a {mood} melody {in_mode}",
            "this {mood} music is {in_mode} and {tempo}. it is a {style} tune for {bare_inst} {drums}",
            "the melody is {in_mode}, played on {an_inst} at a {tempo_noun}. the music is {mood} and {drum_clause}",
        ),
        "two": (
            "it has {an_inst} in the lead. this is a {mood} {style} piece {in_mode}",
            "the tempo is {pace}, about {bpm}. it is {mood} music for {bare_inst} {drums}",
            "it is a {mood} tune {in_mode}. the {style} music is led by {an_inst}",
        ),
    },
}
# Each clip has one caption of each kind, in this order.
KINDS = ("tags", "title", "one full", "one", "two full", "two")


def write_captions(attributes: Attributes, *, split: Split, rng: np.random.Generator) -> list[str]:
    """Draws the six captions of one clip, one of each of KINDS."""
    captions = []
    for kind in KINDS:
        templates = TEMPLATES[split][kind]
        template = pick(templates, rng)
        captions.append(_polish(template.format_map(_Slots(attributes, rng)), kind))
    return captions


class _Slots(dict):
    """The words for the slots of one template, drawn when they are looked up. No mood occurs twice."""

    def __init__(self, attributes: Attributes, rng: np.random.Generator):
        names = INSTRUMENT_NAMES[attributes.instrument]
        plain = rng.random() < _PLAIN_NAME_RATE
        inst, an_inst = names[0] if plain else pick(names, rng)
        super().__init__(inst=inst, an_inst=an_inst, bare_inst=re.sub("^an? ", "", an_inst))
        self._attributes = attributes
        self._rng = rng
        by_mode, by_dynamics = MODE_MOODS[attributes.mode], DYNAMIC_MOODS[attributes.dynamics, attributes.tempo]
        self._moods = [str(rng.choice(by_mode)), str(rng.choice(by_dynamics))]
        rng.shuffle(self._moods)

    def __missing__(self, slot: str) -> str:
        attributes = self._attributes
        tonic, mode = attributes.key.split()
        key = f"{tonic[0]}{ {'#': ' sharp', 'b': ' flat'}.get(tonic[1:], '') } {mode}"
        if slot == "mood":
            return self._moods.pop()
        options = {
            "style": (attributes.style,),
            "tempo": TEMPO_WORDS[attributes.tempo],
            "pace": PACES[attributes.tempo],
            "tempo_noun": TEMPO_NOUNS[attributes.tempo],
            "bpm": (f"{5 * round(attributes.tempo_bpm / 5)} bpm",),
            "mode": (mode,),
            "key": (key,),
            "in_mode": (f"in a {mode} key", f"in a {mode} key", f"in {mode}", f"in {key}", f"in the key of {key}"),
            "drums": DRUM_PHRASES[attributes.drums],
            "drum_clause": DRUM_CLAUSES[attributes.drums],
            "drum_tag": DRUM_TAGS[attributes.drums],
            "meter": METER_WORDS[attributes.meter],
        }[slot]
        return pick(options, self._rng)


def _polish(text: str, kind: str) -> str:
    """Corrects articles, and adds capitals and full stops."""
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    if kind == "tags":
        return text
    if kind == "title":
        return re.sub(r"(?<![\w-])(?!(?:in|for|with|by|over|a|an|and)\b)[a-z]", lambda match: match[0].upper(), text)
    return ". ".join(sentence[0].upper() + sentence[1:] for sentence in text.split(". ")) + "."
