"""Tunes by people: fiddle, pipe and fife tunes printed between 1778 and 1903. TUNES.md says whence they come; tools/extract_tunes.py makes the file.

A tenth of the tunes, by a hash of the title, is for clips of the test split alone.
"""

import dataclasses
import functools
import gzip
import importlib.resources
import json
import zlib

import numpy as np

from musiclm_jax.corpus.clip import Split, pick
from musiclm_jax.corpus.sampled.bars import METERS, Section, Tone

# Share of the tunes that are written in the asked mode; the others are moved to it, since few tunes are in minor.
_NATIVE_RATE = 0.5
_TO_MINOR = {4: 3, 9: 8, 11: 10}
_TO_MAJOR = {3: 4, 8: 9, 10: 11}


@dataclasses.dataclass(frozen=True)
class Tune:
    title: str
    # A name of "collections" in the file.
    collection: str
    # A key of bars.METERS.
    meter: str
    mode: str
    # Without chords.
    sections: tuple[Section, ...]

    @property
    def name(self) -> str:
        return f"{self.collection}: {self.title}"

    @property
    def split(self) -> Split:
        return "test" if zlib.crc32(self.title.lower().encode()) % 10 == 9 else "train"


@functools.cache
def load_tunes() -> tuple[Tune, ...]:
    data = importlib.resources.files("musiclm_jax.corpus.sampled").joinpath("tunes.json.gz").read_bytes()
    return tuple(_read(*fields) for fields in json.loads(gzip.decompress(data))["tunes"])


def draw_tune(*, split: Split, meter: str, mode: str, rng: np.random.Generator) -> Tune:
    """A tune of the split and meter, moved to the mode if it is in the other one."""
    native = bool(rng.random() < _NATIVE_RATE)
    tunes = _pool(split, meter, mode if native else None)
    return in_mode(pick(tunes, rng), mode)


def in_mode(tune: Tune, mode: str) -> Tune:
    """The tune with the same degrees of the scale in another mode. Leading tones, which go up to the tonic, stay."""
    if tune.mode == mode:
        return tune
    return dataclasses.replace(tune, mode=mode, sections=tuple(_section_in_mode(section, mode) for section in tune.sections))


@functools.cache
def _pool(split: Split, meter: str, mode: str | None) -> tuple[Tune, ...]:
    return tuple(tune for tune in load_tunes() if (tune.split, tune.meter) == (split, meter) and mode in (None, tune.mode))


def _section_in_mode(section: Section, mode: str) -> Section:
    moves = _TO_MINOR if mode == "minor" else _TO_MAJOR
    tones = []
    for tone, after in zip(section.melody, (*section.melody[1:], None)):
        degree = tone.pitch % 12
        leads = degree == 11 and after is not None and after.pitch - tone.pitch == 1
        tones.append(tone if leads else dataclasses.replace(tone, pitch=tone.pitch - degree + moves.get(degree, degree)))
    return dataclasses.replace(section, melody=tuple(tones))


def _read(title: str, collection: str, meter: str, tonic: int, mode: str, sections: list) -> Tune:
    parts = [part for bars, pickup, line in sections for part in _halves(_section(bars, pickup, line, tonic), METERS[meter].bar)]
    return Tune(title=title, collection=collection, meter=meter, mode=mode, sections=tuple(parts))


def _section(bars: int, pickup: int, line: list[int], tonic: int) -> Section:
    tones, tick = [], -pickup
    for pitch, length in zip(line[::2], line[1::2], strict=True):
        if pitch:
            tones.append(Tone(tick=tick, length=length, pitch=pitch - 60 - tonic))
        tick += length
    return Section(bars=bars, melody=tuple(tones))


def _halves(section: Section, bar: int) -> list[Section]:
    """A section of 16 bars as two sections; others as they are."""
    if section.bars < 16:
        return [section]
    return [cut(section, 0, 8, bar), cut(section, 8, 16, bar)]


def cut(section: Section, first: int, stop: int, bar: int) -> Section:
    """Bars `first` to `stop` of a section, with its pickup if it is the beginning. bar: ticks of a bar. The chords are left out."""
    start, end = first * bar, stop * bar
    kept = [tone for tone in section.melody if (start <= tone.tick or not first) and tone.tick < end]
    moved = [Tone(tick=tone.tick - start, length=min(tone.end, end) - tone.tick, pitch=tone.pitch) for tone in kept]
    return Section(bars=stop - first, melody=tuple(moved))
