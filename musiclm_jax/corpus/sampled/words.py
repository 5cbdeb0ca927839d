"""The word lists of captions, in `wordlists/*.toml`, and what is true of a clip.

A list is a table of the file under the name of its rule, of which there may be many:

    [[mood]]
    when = { mode = "minor", tempo = ["slow", "mid"] }   # facts, all of which must be so; of a list, one
    names = ["mode"]                                     # attributes that each of the words names outright
    words = "sad; mournful"                              # apart by semicolons or ends of lines; repeated words are drawn more often

With `by = "mode"`, `words` is a table from values of that fact to words. The lists were made by hand; candidates of moods came from WordNet 3.0.
"""

import dataclasses
import functools
import re
import tomllib
from importlib import resources

from musiclm_jax.corpus.sampled.attributes import Attributes
from musiclm_jax.corpus.sampled.instruments import FAMILIES, INSTRUMENTS
from musiclm_jax.corpus.terms import tempo_band

_LISTS = ("instruments", "moods", "styles", "scenes", "sound")
_ELECTRIC_FAMILIES = {"synth", "electric piano"}
_ELECTRIC_INSTRUMENTS = {"electric guitar", "distorted guitar", "organ", "electric bass", "synth bass"}
_ELECTRIC_KITS = {"electronic", "hip hop"}
# Slots for instruments of a clip: nouns, which have forms.
PARTS = ("lead", "chords", "pad", "counter", "bass")
SLOT = re.compile(r"\{(\w+)\}")


@dataclasses.dataclass(frozen=True)
class Phrase:
    """One or more words, in which {slots} may stand for other rules."""

    text: str
    # Attributes that the text names outright.
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Group:
    when: dict
    phrases: tuple[Phrase, ...]

    def holds(self, facts: dict) -> bool:
        return all(_agrees(facts[name], wanted) for name, wanted in self.when.items())


def _agrees(fact, wanted) -> bool:
    """Whether a fact is the value wanted; one of those wanted, if they are a list; in the range wanted, if it is a number."""
    if isinstance(fact, int) and not isinstance(fact, bool):
        return wanted[0] <= fact <= wanted[1]
    wanted = set(wanted) if isinstance(wanted, list) else {wanted}
    return bool(wanted & (set(fact) if isinstance(fact, (tuple, frozenset)) else {fact}))


def facts_of(attributes: Attributes) -> dict:
    """What conditions of word lists may ask of a clip: its attributes but for the numbers, and what follows from them.

    energy: calm, even or high. bpm: beats per minute. lacks: families of which no instrument plays. unplugged: whether none needs electricity. traditional:
    whether people made the tune.
    """
    clip = attributes
    playing = {name for name in (clip.instrument, clip.bass, clip.chords, clip.pad, clip.counter) if name}
    families = {INSTRUMENTS[name].family for name in playing}
    electric = families & _ELECTRIC_FAMILIES or playing & _ELECTRIC_INSTRUMENTS or clip.kit in _ELECTRIC_KITS
    facts = dataclasses.asdict(clip)
    del facts["tempo_bpm"], facts["tonic"]
    return facts | {
        "bpm": clip.tempo_bpm,
        "solo": clip.solo,
        "ends": clip.ends,
        "energy": _energy(clip),
        "has_bass": bool(clip.bass),
        "has_chords": clip.chords not in ("", clip.instrument),
        "has_pad": clip.pad not in ("", clip.instrument),
        "has_counter": clip.counter not in ("", clip.instrument),
        "bassless": not clip.bass and clip.instrument != "tuba",
        "traditional": bool(clip.tune),
        "vocals": "voice" in families,
        "lacks": frozenset(FAMILIES) - families,
        "unplugged": not electric,
    }


def _energy(clip: Attributes) -> str:
    if (clip.dynamics == "soft" and clip.tempo != "fast") or (clip.dynamics == "medium" and clip.tempo == "slow"):
        return "calm"
    if (clip.dynamics == "loud" and clip.tempo != "slow") or (clip.dynamics == "medium" and clip.tempo == "fast" and clip.drums):
        return "high"
    return "even"


class Vocabulary:
    """What can be said of one clip."""

    def __init__(self, attributes: Attributes):
        self._facts = facts_of(attributes)
        tonic, mode = attributes.key.split()
        spoken = f"{tonic[0]}{ {'#': ' sharp', 'b': ' flat'}.get(tonic[1:], '') } {mode}"
        bpm = 5 * round(attributes.tempo_bpm / 5)
        self._phrases = {
            "key": [Phrase(key, ("key", "mode")) for key in (spoken, attributes.key)],
            "bpm": [Phrase(f"{bpm} {unit}", ("tempo_bpm", "tempo") if tempo_band(bpm) == attributes.tempo else ("tempo_bpm",)) for unit in ("bpm", "BPM")],
            "lead": self._true("instrument"),
        }
        for part in PARTS[1:]:
            instrument = self._facts[part]
            others = [] if instrument in ("", attributes.instrument) else self._true("instrument", instrument=instrument)
            self._phrases[part] = [Phrase(phrase.text) for phrase in others]

    def phrases(self, slot: str) -> list[Phrase]:
        """All that can be said in a slot, a rule or one of PARTS; what is to be drawn more often occurs more often."""
        if slot not in self._phrases:
            self._phrases[slot] = [phrase for phrase in self._true(slot) if self.can_fill(phrase.text)]
        return self._phrases[slot]

    def can_fill(self, text: str) -> bool:
        """Whether something can be said in each slot of a text."""
        return all(self.phrases(part_and_form(slot)[0]) for slot in SLOT.findall(text))

    def _true(self, rule: str, **facts) -> list[Phrase]:
        return [phrase for group in _rules()[rule] if group.holds(self._facts | facts) for phrase in group.phrases]


def part_and_form(slot: str) -> tuple[str, str]:
    """ "a_lead" -> ("lead", "a"); "lead_adj" -> ("lead", "adj"); a slot without form -> (slot, "")."""
    if slot.startswith("a_"):
        return slot[2:], "a"
    return (slot[:-4], "adj") if slot.endswith("_adj") else (slot, "")


@functools.cache
def _rules() -> dict[str, tuple[_Group, ...]]:
    tables = [(rule, table) for name in _LISTS for rule, tables in _read(name).items() for table in tables]
    return {rule: tuple(group for name, table in tables if name == rule for group in _groups(**table)) for rule, _ in tables}


def _groups(*, words: str | dict, by: str = "", when: dict | None = None, names: list | tuple = (), times: int = 1) -> list[_Group]:
    lists = {(): words} if not by else {(by, value): listed for value, listed in words.items()}
    return [
        _Group((when or {}) | (dict([condition]) if condition else {}), tuple(Phrase(text, tuple(names)) for text in _split(listed)) * times)
        for condition, listed in lists.items()
    ]


def _split(listed: str) -> list[str]:
    return [text.strip() for text in re.split(r"[;\n]", listed) if text.strip()]


def anchors() -> dict[str, dict[str | bool, tuple[str, ...]]]:
    """attribute -> its values -> words that are said of clips of that value alone, by which free words can be read."""
    said: dict[str, dict[str, set]] = {name: {} for name in ("family", "instrument", "drums", "mode", "tempo", "style")}
    for group in (group for groups in _rules().values() for group in groups):
        when = {name: value for name, value in group.when.items() if not isinstance(value, list)}
        if "instrument" in when:
            when["family"] = INSTRUMENTS[when["instrument"]].family
        for name in said.keys() & when.keys():
            for phrase in group.phrases:
                said[name].setdefault(phrase.text.removesuffix("~"), set()).add(when[name])
    found: dict[str, dict] = {name: {} for name in said}
    for name, texts in said.items():
        for text, values in texts.items():
            if len(values) == 1 and not SLOT.search(text):
                found[name].setdefault(*values, []).append(text)
    return {name: {value: tuple(texts) for value, texts in values.items()} for name, values in found.items()}


@functools.cache
def templates() -> dict[str, dict[str, tuple[str, ...]]]:
    """split -> kind of caption -> templates."""
    return {split: {kind: tuple(listed.strip().split("\n")) for kind, listed in kinds.items()} for split, kinds in _read("templates").items()}


def _read(name: str) -> dict:
    return tomllib.loads(resources.files(__package__).joinpath("wordlists", f"{name}.toml").read_text(encoding="utf-8"))
