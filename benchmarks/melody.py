"""Whether music follows a melody that is given: `python benchmarks/melody.py CLIPS [--model BUNDLE] [--clips N]`.

CLIPS is a sampled corpus with stems. For held-out clips, the bundle generates 10 s from the clip's caption and its lead, played alone, as the melody; how well
does the contour of the pitch classes match that of the lead?

The match is the correlation of two chromagrams, each without its mean over time, at the best of all transpositions and of shifts of up to 0.3 s. Columns: the
mean match, and the share of clips in which it is lower than in the first row, with 95 % intervals over clips. Rows: the music; the music against the lead of
a clip with another tune; music that was given that one's lead; music that was given none; that other clip itself (chance); and the clip itself, which no model
made (ceiling).
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

import numpy as np
from held_out import SECONDS, SEED, Piece, beside_first, chroma, collect, correlation, print_table, read_pieces, run, tries, with_others

from musiclm_jax import MusicLM
from musiclm_jax.arrays import Float


def match(wave: Float[np.ndarray, "N"], lead: Float[np.ndarray, "N"]) -> float:
    """The correlation of two chromagrams at the best transposition and shift."""
    one, two = chroma(wave), chroma(lead)
    pairs = ((one[max(0, lag) : len(one) + min(0, lag)], two[max(0, -lag) : len(two) + min(0, -lag)]) for lag in range(-3, 4))
    return max(correlation(a, np.roll(b, turn, axis=1)) for a, b in pairs for turn in range(24))


def measure(model: MusicLM, piece: Piece, other: Piece, options: dict[str, Any]) -> dict[str, dict[str, float]]:
    make = functools.partial(model.generate, [piece.caption], seconds=SECONDS, seed=SEED, **options)
    lead, others_lead = piece.read("lead"), other.read("lead")
    given = make(melody=lead).wave[0]
    found = {
        "its lead was given": match(given, lead),
        "against another's lead": match(given, others_lead),
        "another's lead was given": match(make(melody=others_lead).wave[0], lead),
        "no melody was given": match(make().wave[0], lead),
        "chance: the other clip": match(other.read(), lead),
        "ceiling: the clip itself": match(piece.read(), lead),
    }
    return {row: {"match": value} for row, value in found.items()}


def main(options: argparse.Namespace) -> None:
    model = MusicLM.from_pretrained(options.model)
    model.config.check_melody()
    pairs = with_others(read_pieces(options.folder, needs="a lead", keep=lambda piece: "lead" in piece.files))
    found = collect((piece, measure(model, piece, other, tries(options))) for piece, other in pairs[: options.clips])
    print_table(beside_first(found))


if __name__ == "__main__":
    run(main, __doc__)
