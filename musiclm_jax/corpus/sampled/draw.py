"""Draws what a clip is: lead, style, tempo, key and band.

Lead, style and mode are drawn independently, the mode with probability 1/2, so that nothing but the key tells the mode. Drums depend on the style alone.
"""

import dataclasses

import numpy as np

from musiclm_jax.corpus.clip import pick
from musiclm_jax.corpus.sampled.attributes import ROOMS, Attributes
from musiclm_jax.corpus.sampled.instruments import INSTRUMENTS, LEADS
from musiclm_jax.corpus.sampled.styles import STYLES
from musiclm_jax.corpus.terms import DYNAMICS, KEY_NAMES, MODES, tempo_band

# The band of a clip. A solo has none of it.
_RATES = {"bass": 0.8, "chords": 0.9, "pad": 0.3, "counter": 0.25}
_OWN_CHORDS_RATE = 0.35
# Share of the clips without drums that the lead plays alone.
_SOLO_RATE = 0.25
_PADS = ("strings", "synth pad", "choir", "organ")
_COUNTERS = ("violin", "cello", "flute", "clarinet", "french horn", "strings", "vibraphone", "acoustic guitar", "electric guitar", "oboe", "saxophone")
_COLOURS = {"clean": 0.85, "tape": 0.06, "vinyl": 0.05, "phone": 0.04}
_STACCATO_RATE = 0.25
_WEIGHTS = np.array([INSTRUMENTS[name].weight for name in LEADS])


def draw_attributes(rng: np.random.Generator) -> Attributes:
    """Draws the attributes of a clip, but for those that follow from its notes: density, form and tune, and which parts do play."""
    instrument = LEADS[int(rng.choice(len(LEADS), p=_WEIGHTS / _WEIGHTS.sum()))]
    name = pick(tuple(STYLES), rng)
    style = STYLES[name]
    mode = pick(MODES, rng)
    tonic = int(rng.integers(12))
    meter = _weighted(style.meters, rng)
    tempo_bpm = int(rng.integers(style.tempo_bpm[0], style.tempo_bpm[1] + 1))
    if meter == "6/8":
        tempo_bpm = round(0.8 * tempo_bpm)  # The beats are dotted quarters.
    swing = meter != "6/8" and rng.random() < style.swing
    attributes = Attributes(
        instrument=instrument,
        family=INSTRUMENTS[instrument].family,
        tempo_bpm=tempo_bpm,
        tempo=tempo_band(tempo_bpm),
        meter=meter,
        key=f"{KEY_NAMES[mode][tonic]} {mode}",
        tonic=tonic,
        mode=mode,
        drums=False,
        kit="",
        style=name,
        dynamics=pick(DYNAMICS, rng),
        bass="",
        chords="",
        pad="",
        counter="",
        feel="swing" if swing else "straight",
        density="flowing",
        articulation="staccato" if rng.random() < _STACCATO_RATE else "legato",
        room=pick(ROOMS, rng),
        colour=_weighted(_COLOURS, rng),
        form=("verse",),
        tune="",
    )
    return draw_band(attributes, rng)


def draw_band(attributes: Attributes, rng: np.random.Generator, *, solo_rate: float = _SOLO_RATE) -> Attributes:
    """The attributes with another band. solo_rate: share of the clips without drums in which the lead plays alone."""
    style = STYLES[attributes.style]
    drums = bool(rng.random() < style.drums_rate)
    solo = not drums and bool(rng.random() < solo_rate)
    plays = {part: not solo and bool(rng.random() < rate) for part, rate in _RATES.items()}
    lead = INSTRUMENTS[attributes.instrument]
    own = lead.chords and bool(rng.random() < _OWN_CHORDS_RATE)
    drawn = {
        "kit": pick(style.kits, rng),
        "bass": pick(style.basses, rng),
        "chords": attributes.instrument if own else _other(style.chords, attributes.instrument, rng),
        "pad": _other(_PADS, attributes.instrument, rng),
        "counter": _other(_COUNTERS, attributes.instrument, rng),
    }
    if solo:
        plays["chords"] = lead.chords
        drawn["chords"] = attributes.instrument
    elif not drums and not any(plays.values()):
        plays["chords"] = True
    kept = {part: drawn[part] if plays[part] else "" for part in _RATES}
    return dataclasses.replace(attributes, drums=drums, kit=drawn["kit"] if drums else "", **kept)


def _other(names: tuple[str, ...], lead: str, rng: np.random.Generator) -> str:
    return pick(tuple(name for name in names if name != lead) or names, rng)


def _weighted(options: dict[str, float], rng: np.random.Generator) -> str:
    weights = np.array(list(options.values()))
    return list(options)[int(rng.choice(len(options), p=weights / weights.sum()))]
