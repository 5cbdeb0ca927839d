"""Captions of sampled clips say what is true, name what they say they name, and know many words."""

import dataclasses
import re

import numpy as np
import pytest

from musiclm_jax.corpus.clip import clip_split
from musiclm_jax.corpus.sampled import attributes as attributes_lib
from musiclm_jax.corpus.sampled import captions as captions_lib
from musiclm_jax.corpus.sampled import words as words_lib
from musiclm_jax.corpus.sampled.attributes import Attributes
from musiclm_jax.corpus.sampled.captions import FULL, KINDS, NAMED, write_captions
from musiclm_jax.corpus.sampled.instruments import INSTRUMENTS, LEADS
from musiclm_jax.corpus.terms import KEY_NAMES, tempo_band

# Read independently of the word lists.
NO_DRUMS = (
    r"(?:no|without|without any|isn't any|without a|minus the|free of|zero|skip the|hold the|sans) (?:drum|percussion)s?(?: (?:beat|kit))?"
    r"|no kick or snare drum|drum-free|percussion-free|drumless|drums (?:off|muted|left out|are absent)|no drummer"
)
DRUMS = r"drum|percussion|snare|kick|cymbal|congas|backbeat|brushes|brushed"
TEMPO = {
    "slow": r"\b(?:slow\w*|unhurried|leisurely|low-tempo|low tempo|crawl|no hurry|largo|lento|larghetto|adagio|adagietto|grave)\b",
    "fast": r"\b(?:fast|quick|quickly|up-tempo|uptempo|fast-paced|rapid|speedy|brisk|high speed|presto|prestissimo|vivacissimo|allegro|vivace|vivo"
    r"|at speed|tempo is up|races along|gallop)\b",
    "mid": r"\b(?:mid-tempo|mid tempo|medium|medium-tempo|medium-paced|moderate|moderately paced|walking.pace|moderato|allegretto)\b",
}
# Andante spans two bands.
ITALIAN = {r"\b(?:largo|larghetto)\b": (30, 69), r"\bandant(?:e|ino)\b": (76, 108), r"\ballegro\b": (126, 167), r"\bpresto\b": (165, 260)}
MODE = {"minor": r"\bminor\b", "major": r"\bmajor\b"}
MOODS = {
    "minor": r"\b(?:sad|dark|melanchol\w+|somb\w+|mournful|gloomy|tragic|sorrow\w+|menacing|sinister|eerie|funeral|graveyard|boss fight|breakup|shadows?)\b",
    "major": r"\b(?:happy|bright|cheer(?:ful|y)|joy\w+|sunny|merry|jolly|triumphant|jubilant|wedding|sunrise|birthday|smil\w+|celebrat\w+|rainbow|tender)\b",
}
DYNAMICS = {
    "soft": r"\b(?:soft|quiet|hushed|pianissimo|whispering)\b",
    "loud": r"\b(?:loud|forte|fortissimo|booming|blaring|massive)\b",
}
METER = {"3/4": r"3/4|three-four|triple time|waltz time", "6/8": r"6/8|six-eight|compound time|jig\b", "4/4": r"4/4|four-four|common time|reel\b"}
STYLES = {style: rf"\b{style}\b" for style in ("jazz", "reggae", "techno", "funk", "celtic", "bossa", "blues", "hip hop", "ambient")}
# Names that have other instruments' names in them, and words that only look like instruments.
COMPOUNDS = r"thumb piano|mouth organ|(?:mouth|blues|pocket|thumb) harp|bass fiddle|pan flute|church bells|bass guitar"
SOUNDS = {
    "piano": r"\bpiano\b(?! house)|pianoforte|ivories",
    "harpsichord": r"harpsichord|clavecin",
    "organ": r"\borgan\b|hammond",
    "accordion": r"accordion|squeezebox",
    "harmonica": r"harmonica|mouth organ|blues harp",
    "guitar": r"\bguitars?\b|\baxe\b",
    "banjo": r"\bbanjo\b",
    "harp": r"\bharp\b",
    "sitar": r"\bsitar\b",
    "koto": r"\bkoto\b",
    "violin": r"\bviolins?\b|\bfiddle\b",
    "cello": r"\bcello\b",
    "trumpet": r"\btrumpets?\b|\bcornet\b",
    "trombone": r"\btrombones?\b",
    "french horn": r"french horn",
    "tuba": r"\btuba\b|sousaphone",
    "flute": r"\bflute\b",
    "clarinet": r"clarinet|licorice",
    "oboe": r"\boboe\b",
    "saxophone": r"\bsax(?:ophone)?\b",
    "bagpipe": r"bagpipe",
    "vibraphone": r"vibraphone|\bvibes\b",
    "marimba": r"marimba",
    "synth": r"\bsynth(?:esizer)?\b",
    "choir": r"\bchoir\b",
    "bass": r"\bbass\b",
}
# What else a sound may come from.
KNOWN_AS = {
    "flute": "flute|recorder",
    "trumpet": "trumpet|brass section",
    "trombone": "trombone|brass section",
    "violin": "violin|strings",
    "bass": "bass|tuba",
}


def _draw(rng: np.random.Generator) -> Attributes:
    """Attributes without the habits of styles, so that any contradiction can come up."""

    def one_of(*options):
        return options[int(rng.integers(len(options)))]

    instrument, bpm, mode, style = one_of(*LEADS), int(rng.integers(50, 185)), one_of("major", "minor"), one_of(*attributes_lib.STYLES)
    tonic, solo = int(rng.integers(12)), rng.random() < 0.15
    drums = bool(not solo and rng.random() < 0.6)
    chordal = [name for name, each in INSTRUMENTS.items() if each.chords]
    return Attributes(
        instrument=instrument,
        family=INSTRUMENTS[instrument].family,
        tempo_bpm=bpm,
        tempo=tempo_band(bpm),
        meter="3/4" if style == "waltz" else one_of("4/4", "3/4", "6/8"),
        key=f"{KEY_NAMES[mode][tonic]} {mode}",
        tonic=tonic,
        mode=mode,
        drums=drums,
        kit=one_of(*attributes_lib.KITS) if drums else "",
        style=style,
        dynamics=one_of("soft", "medium", "loud"),
        bass="" if solo else one_of("", "acoustic bass", "electric bass", "synth bass", "tuba"),
        chords="" if solo else one_of("", *chordal),
        pad="" if solo else one_of("", "strings", "synth pad", "choir"),
        counter="" if solo else one_of("", "", *LEADS),
        feel=one_of("straight", "swing"),
        density=one_of("sustained", "flowing", "busy"),
        articulation=one_of("legato", "staccato"),
        room=one_of(*attributes_lib.ROOMS),
        colour=one_of(*attributes_lib.COLOURS),
        form=one_of(("verse", "chorus"), ("intro", "verse", "break"), ("verse", "chorus", "ending")),
        tune=one_of("", "o'neill: The Lark"),
    )


def _clips(num=300, seed=2):
    rng = np.random.default_rng(seed)
    for index in range(num):
        attributes = _draw(rng)
        yield attributes, write_captions(attributes, split=clip_split(index), rng=rng)


@pytest.fixture(scope="module")
def clips():
    return list(_clips())


def _plain(text):
    """A text without phrases whose words say something else apart."""
    return re.sub(r"medium-loud|moderately loud|mezzo-forte|soft (?:rock|pop|carpet)|soft-(?:hued|spoken)|as soft as a kiss", "", text.lower())


def _sounds(text):
    """The instruments that a text says are there."""
    text = re.sub(r"(?:no|without) (?:bass line|bass|guitars?|piano|synths|brass|horns|strings)|bassless", "", text.lower())
    return _read(re.sub(COMPOUNDS, "", text), SOUNDS)


def _read(text, patterns):
    return {value for value, pattern in patterns.items() if re.search(pattern, text.lower())}


def _parts(clip):
    return {name for name in (clip.instrument, clip.bass, clip.chords, clip.pad, clip.counter) if name}


def test_drums_are_said_only_where_they_play(clips):
    for clip, captions in clips:
        for caption in captions:
            text, negations = re.subn(NO_DRUMS, "", caption.text.lower())
            affirmed = re.search(DRUMS, text) is not None
            assert not (clip.drums and negations) and not (affirmed and not clip.drums), caption
            assert ("drums" in caption.named) == bool(affirmed or negations), caption


@pytest.mark.parametrize("name,patterns", [("tempo", TEMPO), ("mode", MODE), ("mode", MOODS), ("dynamics", DYNAMICS), ("meter", METER)])
def test_no_word_contradicts(clips, name, patterns):
    found = set()
    for clip, captions in clips:
        for caption in captions:
            read = _read(_plain(caption.text), patterns)
            assert read <= {getattr(clip, name)}, (clip, caption)
            found |= read
    assert found == set(patterns)


@pytest.mark.parametrize("name,patterns", [("tempo", TEMPO), ("mode", MODE)])
def test_names_are_named(clips, name, patterns):
    patterns = patterns | {"andante": r"andant"} if name == "tempo" else patterns
    for _, captions in clips:
        for caption in captions:
            if _read(_plain(caption.text), patterns):
                assert name in caption.named, caption


def test_exact_values(clips):
    for clip, captions in clips:
        for caption in captions:
            text = caption.text
            for bpm in re.findall(r"(\d+) bpm", text.lower()):
                assert abs(int(bpm) - clip.tempo_bpm) <= 2.5
                assert "tempo_bpm" in caption.named and ("tempo" in caption.named or tempo_band(int(bpm)) != clip.tempo)
            for word, (low, high) in ITALIAN.items():
                assert not re.search(word, text.lower()) or low <= clip.tempo_bpm <= high, caption
            for key in re.findall(r"\b([A-G](?:[b#]| sharp| flat)? (?:major|minor))", text.replace("A major key", "").replace("A minor key", "")):
                if {"key", "mode"} <= set(caption.named):
                    assert key.lower().replace(" sharp", "#").replace(" flat", "b") == clip.key.lower(), caption
            for style in _read(text.replace("lo-fi hip hop", ""), STYLES):
                assert style in clip.style, caption


def test_only_instruments_that_play(clips):
    for clip, captions in clips:
        truth = " ".join(_parts(clip) | {INSTRUMENTS[name].family for name in _parts(clip)})
        for caption in captions:
            text = caption.text.lower()
            assert all(re.search(KNOWN_AS.get(sound, sound), truth) for sound in _sounds(text)), (clip, caption)
            if re.search(r"unaccompanied|nothing else|no accompaniment|all alone", text):
                assert clip.solo, caption
            if re.search(r"no (?:vocals|singing|singer)|instrumental", text):
                assert not {"choir", "voice"} & _parts(clip), caption
            if re.search(r"unplugged|all acoustic|no electronics", text) and "unplugged guitar" not in text:
                assert not re.search(r"synth|electric|distorted", truth) and clip.kit not in ("electronic", "hip hop"), caption


def test_full_captions_name_four_things(clips):
    for _, captions in clips:
        assert len(captions) == len(KINDS) == 8
        for kind, caption in zip(KINDS, captions, strict=True):
            assert set(caption.named) <= set(NAMED)
            assert not re.search(r"[{}~]|\ba [aeio](?!ne\b|nce\b)|  |\.\.", caption.text), caption
            if kind.endswith("full"):
                assert set(FULL) <= set(caption.named), caption
        assert len({caption.text for caption in captions}) == 8


def test_many_words(clips):
    known = {word for _, captions in clips for caption in captions for word in re.findall(r"[a-z][a-z'-]+", caption.text.lower())}
    assert len(known) >= 1500


def test_most_captions_name_something(clips):
    captions = [caption for _, captions in clips for caption in captions]
    for name, least in (("instrument", 0.5), ("family", 0.7), ("drums", 0.4), ("mode", 0.35), ("tempo", 0.4), ("style", 0.4)):
        assert sum(name in caption.named for caption in captions) / len(captions) > least, name


def test_splits_share_no_template_and_all_words():
    templates = words_lib.templates()
    tokens = {split: set(re.findall(r"\{\w+\}|[a-z]+", " ".join(t for listed in kinds.values() for t in listed))) for split, kinds in templates.items()}
    assert set(templates["train"]) == set(templates["test"]) == set(KINDS)
    assert tokens["test"] <= tokens["train"], tokens["test"] - tokens["train"]
    for kind in KINDS:
        assert not set(templates["train"][kind]) & set(templates["test"][kind])


def test_every_condition_can_be_met():
    """A misspelled value of a condition would silently leave out its words."""
    rng = np.random.default_rng(0)
    seen = {}
    for _ in range(3000):
        for name, fact in words_lib.facts_of(_draw(rng)).items():
            seen.setdefault(name, set()).update(fact if isinstance(fact, (tuple, frozenset)) else {fact})
    for rule, groups in words_lib._rules().items():
        for group in groups:
            for name, wanted in group.when.items():
                assert name == "bpm" or set(wanted if isinstance(wanted, list) else [wanted]) <= seen[name] | set(INSTRUMENTS), (rule, group.when)


def test_anchors_are_said_of_one_value():
    anchors = words_lib.anchors()
    assert set(anchors["drums"]) == {True, False} and set(anchors["mode"]) == {"major", "minor"} and set(anchors["instrument"]) >= set(LEADS)
    assert "sad" in anchors["mode"]["minor"] and "fiddle" in anchors["instrument"]["violin"] and "guitar" in anchors["family"]["guitar"]
    assert "guitar" not in {text for texts in anchors["instrument"].values() for text in texts}
    for values in anchors.values():
        texts = [text for listed in values.values() for text in listed]
        assert len(texts) == len(set(texts)) and not any(re.search("[{}~]", text) for text in texts)


def test_captions_depend_on_the_generator_alone():
    attributes = _draw(np.random.default_rng(5))
    first, second, other = (write_captions(attributes, split="train", rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == second != other


def test_a_part_of_the_same_instrument_is_not_named_again():
    attributes = dataclasses.replace(_draw(np.random.default_rng(5)), instrument="harp", family="plucked", chords="harp", pad="", counter="")
    vocabulary = words_lib.Vocabulary(attributes)
    assert vocabulary.phrases("lead") and not vocabulary.phrases("chords")
    assert vocabulary.can_fill("{mood} {lead}") and not vocabulary.can_fill("{lead} over {chords}")


@pytest.mark.parametrize(
    "text,kind,lower_case,expected",
    [
        ("a organ, a united choir, a unhurried tune", "tags_full", False, "an organ, a united choir, an unhurried tune"),
        ("sad up-tempo lo-fi in C sharp minor with drums", "title", False, "Sad Up-tempo Lo-fi in C Sharp Minor with Drums"),
        ("a easy tune in A minor. it is slow", "one", False, "An easy tune in A minor. It is slow."),
        ("a EDM house tune from an Paris cafe", "prompt", False, "an EDM house tune from a Paris cafe"),
        ("soft bells~ carries the tune. brass leads, and a cello answers", "two", False, "Soft bells carry the tune. Brass leads, and a cello answers."),
        ("a old Irish tune in F# minor", "prompt", True, "an old irish tune in F# minor"),
    ],
)
def test_articles_and_capitals(text, kind, lower_case, expected):
    assert captions_lib._polish(text, kind, lower_case=lower_case) == expected


@pytest.mark.parametrize("noun,form,expected", [("violins~", "adj", "violin"), ("brass~", "adj", "brass"), ("harp", "a", "a harp"), ("oohs~", "a", "oohs~")])
def test_forms_of_nouns(noun, form, expected):
    assert captions_lib._inflect(noun, form) == expected
