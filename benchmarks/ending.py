"""Whether music ends by itself where it is asked to: `python benchmarks/ending.py CLIPS [--model BUNDLE] [--clips N]`.

CLIPS is a sampled corpus with endings. For captions of held-out clips that end, the bundle generates pieces of 12 to 20 s with `ending` and without. Columns,
with 95 % intervals over clips:

- level: of the last second, in dB above the rest (RMS), and the share of clips in which it is below -20 dB;
- cadence: the share of clips whose last sounding second has the tonic as its strongest pitch class. The last sounding second ends where the sound falls below
  -30 dB of the loudest tenth of a second for good; the tonic is that of the key (Krumhansl's profiles) of the seconds before it, and for the whole clip the
  true one.

Rows: with ending; without; a held-out clip, cut at 10 s, which does not end (chance); and the whole held-out clip (ceiling).
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from held_out import RATE_HZ, SEED, Piece, collect, print_table, quarter_tones, read_pieces, run, tries

from musiclm_jax import MusicLM
from musiclm_jax.arrays import Float

# Of the pieces that are asked for, in turn: at least a window of the semantic stage (16 s), and at most the 30 s of a clip of the corpus.
LENGTHS_SEC = (16, 18, 20, 22, 24)
# Of the pitch classes from the tonic on, in major and minor (Krumhansl, Cognitive Foundations of Musical Pitch, 1990).
PROFILES = (
    (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
)


def last_level(wave: Float[np.ndarray, "N"]) -> float:
    """The level of the last second, relative to the rest."""
    power = np.square(wave, dtype=np.float64)
    last, rest = (10 * np.log10(each.mean() + 1e-12) for each in (power[-RATE_HZ:], power[:-RATE_HZ]))
    return float(last - rest)


def pitch_classes(wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "12"]:
    """Mean amplitudes at the pitch classes, from A on."""
    return quarter_tones(wave).mean(axis=0).reshape(12, 2).sum(axis=1)


def tonic_of(classes: Float[np.ndarray, "12"]) -> int:
    return int(np.argmax([max(np.corrcoef(np.roll(profile, tonic), classes)[0, 1] for profile in PROFILES) for tonic in range(12)]))


def cadence(wave: Float[np.ndarray, "N"], tonic: int | None = None) -> bool:
    """Whether the strongest pitch class of the last sounding second is the tonic. tonic: from A on; None: it is estimated."""
    tenth = RATE_HZ // 10
    levels = np.sqrt(np.square(wave[: len(wave) // tenth * tenth].reshape(-1, tenth)).mean(axis=1))
    end = (int(np.flatnonzero(levels >= levels.max() * 10 ** (-30 / 20))[-1]) + 1) * tenth
    tonic = tonic_of(pitch_classes(wave[: max(end - RATE_HZ, RATE_HZ)])) if tonic is None else tonic
    return int(np.argmax(pitch_classes(wave[max(0, end - RATE_HZ) : end]))) == tonic


def judge(wave: Float[np.ndarray, "N"], tonic: int | None = None) -> dict[str, float]:
    """The columns of the table for one wave. tonic: as for `cadence`."""
    level = last_level(wave)
    return {"level": level, "below -20 dB": level < -20, "cadence": cadence(wave, tonic)}


def measure(model: MusicLM, piece: Piece, seconds: int, options: dict[str, Any]) -> dict[str, dict[str, float]]:
    make = lambda ending: model.generate([piece.caption], seconds=seconds, seed=SEED, ending=ending, **options).wave[0]  # noqa: E731
    return {
        "with ending": judge(make(True)),
        "without": judge(make(False)),
        "chance: a clip cut at 10 s": judge(piece.read()),
        "ceiling: the whole clip": judge(piece.read(seconds=None), (piece.attributes.tonic - 9) % 12),
    }


def main(options: argparse.Namespace) -> None:
    model = MusicLM.from_pretrained(options.model)
    model.config.check_timing()
    pieces = read_pieces(options.folder, needs="an ending", keep=lambda piece: piece.attributes.ends)[: options.clips]
    lengths = (LENGTHS_SEC[i % len(LENGTHS_SEC)] for i in range(len(pieces)))
    print_table(collect((piece, measure(model, piece, seconds, tries(options))) for piece, seconds in zip(pieces, lengths)))


if __name__ == "__main__":
    run(main, __doc__)
