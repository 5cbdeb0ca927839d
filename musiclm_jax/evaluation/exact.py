"""Exact wishes, a tempo, a key and a meter: which of them a clip meets, by estimators that come with the package.

Text-to-music models follow such words loosely, if at all. So candidates are measured, the best is kept, and a miss is said. The estimators are fitted on the
synthetic corpus by `tools/fit_exact.py`; docs/steering.md says how often they are right.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from musiclm_jax.arrays import Float
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.estimators import METERS, MODES, SAMPLE_RATE_HZ, TEMPI_BPM, ChoiceModel, Features, extract, same_tempo
from musiclm_jax.evaluation.extras import extra
from musiclm_jax.generation.selection import Prefer


@runtime_checkable
class Model(Protocol):
    """What makes the clips: a `MusicLM`."""

    def stream(self, prompt: str | None, **options: Any) -> Iterable[Float[np.ndarray, "1 n"]]: ...


WEIGHTS = "exact.json"
_TONICS = ("c", "c#", "d", "d#", "e", "f", "f#", "g", "g#", "a", "a#", "b")
_FLATS = {"db": "c#", "eb": "d#", "gb": "f#", "ab": "g#", "bb": "a#"}
_TEMPO_TOLERANCE = 0.04


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is estimated of a clip."""

    bpm: float | int
    # Such as "a minor".
    key: str
    # "3/4" or "4/4".
    meter: str

    def __str__(self) -> str:
        return f"{self.bpm:.0f} bpm, {self.key}, {self.meter}"


@dataclasses.dataclass(frozen=True)
class ExactWishes:
    """A tempo, a key and a meter, each of which may be None.

    Raises:
        UserError: the tempo is beyond what is measured, or the key or meter is none.
    """

    # Beats per minute.
    bpm: float | int | None = None
    # A tonic and a mode, such as "A minor" or "Bb major".
    key: str | None = None
    meter: str | None = None

    def __post_init__(self):
        if self.bpm is not None and not TEMPI_BPM[0] <= self.bpm <= TEMPI_BPM[-1]:
            raise UserError(f"bpm={self.bpm:g}: choose a tempo from {TEMPI_BPM[0]:.0f} to {TEMPI_BPM[-1]:.0f}")
        if self.meter is not None and self.meter not in METERS:
            raise UserError(f"meter={self.meter!r}: choose one of {', '.join(METERS)}")
        if self.key is not None:
            object.__setattr__(self, "key", parse_key(self.key))

    def __bool__(self) -> bool:
        return any(value is not None for value in dataclasses.astuple(self))

    def words(self) -> tuple[str, ...]:
        """The wishes as captions say them."""
        bpm = () if self.bpm is None else (f"{self.bpm:.0f} bpm",)
        return (*bpm, *(word for word in (self.key, self.meter) if word is not None))

    def missed(self, facts: Facts) -> tuple[str, ...]:
        """Names of the wishes that a clip does not meet. Tempi may be 4 % apart."""
        wrong = {
            "bpm": self.bpm is not None and not same_tempo(facts.bpm, self.bpm, tolerance=_TEMPO_TOLERANCE),
            "key": self.key is not None and facts.key != self.key,
            "meter": self.meter is not None and facts.meter != self.meter,
        }
        return tuple(name for name, is_wrong in wrong.items() if is_wrong)


def parse_key(text: str) -> str:
    """A key, such as "A minor", "bb major", "F# min" or "Am", in one form: "a minor", "a# major". Raises UserError for anything else."""
    short = re.fullmatch(r"([A-Ga-g][#b♯♭]?)m", text.strip())
    match = re.fullmatch(r"([a-g][#b♯♭]?)\s*[- ]?\s*(maj|min|major|minor)", f"{short[1]} minor".lower() if short else text.strip().lower())
    tonic = match and match[1].replace("♯", "#").replace("♭", "b")
    tonic = _FLATS.get(tonic, tonic)
    if tonic not in _TONICS:
        raise UserError(f"key={text!r}: choose a tonic and a mode, such as 'A minor' or 'Bb major'")
    return f"{tonic} {next(mode for mode in MODES if mode.startswith(match[2][:3]))}"


def measure(wave: Float[np.ndarray, "N"]) -> Facts:
    """The facts of a clip at 24 kHz, of 10 s or so. Raises ValueError if it is shorter than 1 s."""
    return measure_features(extract(wave), _models())


def measure_features(features: Features, models: Mapping[str, ChoiceModel]) -> Facts:
    """models: "tempo", "key" and "meter"."""
    tempo = int(models["tempo"].probabilities(features.tempi).argmax())
    keys = models["key"].probabilities(features.keys).reshape(len(MODES), 12)
    mode = int(keys.sum(axis=1).argmax())  # More reliable than the mode of the best key.
    meter = METERS[int(models["meter"].probabilities(features.meters[tempo]).argmax())]
    return Facts(float(TEMPI_BPM[tempo]), f"{_TONICS[int(keys[mode].argmax())]} {MODES[mode]}", meter)


@functools.cache
def _models() -> dict[str, ChoiceModel]:
    stored: Any = json.loads(importlib.resources.files("musiclm_jax.evaluation").joinpath("weights", WEIGHTS).read_text())
    return {name: ChoiceModel(np.array(weights)) for name, weights in stored.items()}


def scorer(wishes: ExactWishes) -> Prefer:
    """A function that counts the wishes that a wave at 24 kHz meets; of one shorter than 1 s, none."""
    count = lambda wave: len(wishes.words()) - len(wishes.missed(measure(wave)))  # noqa: E731
    return lambda wave: float(count(wave)) if len(wave) >= SAMPLE_RATE_HZ else 0.0


def check_measurable(seconds: float | int) -> None:
    """Raises UserError for clips that are too short to be measured, or where the extra `eval` is missing."""
    extra("librosa", what="measuring tempo, key and meter")
    if seconds < 1:
        raise UserError(f"seconds={seconds:g}: tempo, key and meter are measured in clips of 1 s or more: choose 10")


@dataclasses.dataclass(frozen=True)
class ExactClip:
    """The best of several tries."""

    # float32 [N] at 24 kHz.
    wave: Float[np.ndarray, "N"]
    # Its number among the samples of the prompt, from 0 on.
    sample: int
    facts: Facts
    # Names of the wishes that it does not meet.
    missed: tuple[str, ...]


def make_exactly(
    musiclm: Model, prompt: str, wishes: ExactWishes, *, seconds: float | int = 10.0, tries: int = 4, sample: int = 0, **options: Any
) -> ExactClip:
    """Makes clips of a prompt until one meets all wishes, `tries` at most, and returns the one that meets most of them.

    Args:
        prompt: `word_prompt` adds the wishes to it.
        seconds: at least 1.
        sample: the number of the first try among the samples of the prompt.
        options: of `MusicLM.stream`.

    Raises:
        UserError: the clip is too short to be measured; as `MusicLM.stream`.
    """
    check_measurable(seconds)
    best: ExactClip | None = None
    for number in range(sample, sample + tries):
        stream = musiclm.stream(prompt, seconds=seconds, sample=number, prefer=scorer(wishes), **options)
        wave = np.concatenate(list(stream), axis=1)[0]
        facts = measure(wave)
        made = ExactClip(wave, number, facts, wishes.missed(facts))
        if best is None or len(made.missed) < len(best.missed):
            best = made
        if not best.missed:
            break
    return best


def word_prompt(musiclm: Any, prompt: str, wishes: ExactWishes) -> str:
    """The prompt with those wishes in words that the text tower knows; tempi are rounded to 5 bpm, as in the captions of the corpus."""
    rounded = dataclasses.replace(wishes, bpm=None if wishes.bpm is None else float(np.clip(5 * round(wishes.bpm / 5), 60, 180)))
    known = [words for words in rounded.words() if not musiclm.mulan.unknown_words(words)[0]]
    return ", ".join([prompt, *known])
