"""Whether a band plays with the voice that it is given: `python benchmarks/accompaniment.py CLIPS [--model BUNDLE] [--clips N]`.

CLIPS is a sampled corpus with stems. For held-out clips, the bundle generates 10 s of a band from the clip's caption and its lead as the voice. Columns: two
agreements of the band with a lead, both correlations over time, of onsets (rises of the log-mel spectrum in 10 ms) and of chromagrams (without their means over
time, in one key), and after each the share of clips in which it is lower than in the first row, with 95 % intervals over clips. Rows: the band with its own
lead; with the lead of a clip with another tune; a band that was given no voice; the corpus's band with that other lead (chance), and with its own lead
(ceiling).
"""

from __future__ import annotations

import argparse
from typing import Any

import jax.numpy as jnp
import numpy as np
from held_out import RATE_HZ, SECONDS, SEED, Piece, beside_first, chroma, collect, correlation, print_table, read_pieces, run, tries, with_others

from musiclm_jax import MusicLM
from musiclm_jax.arrays import Float
from musiclm_jax.audio.features import LogMelConfig, log_mel

MEL = LogMelConfig(window_samples=1024, hop_samples=240, num_fft=1024, num_mels=40)


def onsets(wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T"]:
    mel = np.asarray(log_mel(jnp.asarray(wave[None, : SECONDS * RATE_HZ]), MEL))[0]
    rises = np.maximum(np.diff(np.maximum(mel, mel.max() - 8), axis=0), 0).sum(axis=1)
    return rises - rises.mean()


def agreements(band: Float[np.ndarray, "N"], lead: Float[np.ndarray, "N"]) -> dict[str, float]:
    return {"onsets": correlation(onsets(band), onsets(lead)), "chroma": correlation(chroma(band), chroma(lead))}


def measure(model: MusicLM, piece: Piece, other: Piece, options: dict[str, Any]) -> dict[str, dict[str, float]]:
    lead, band, others_lead = piece.read("lead"), piece.read("band"), other.read("lead")
    given = model.accompany(lead, piece.caption, seed=SEED, **options)
    without = model.generate([piece.caption], seconds=SECONDS, seed=SEED, **options).wave[0]
    return {
        "with its own lead": agreements(given, lead),
        "with another's lead": agreements(given, others_lead),
        "given no voice": agreements(without, lead),
        "chance: corpus, another's": agreements(band, others_lead),
        "ceiling: corpus, its own": agreements(band, lead),
    }


def main(options: argparse.Namespace) -> None:
    model = MusicLM.from_pretrained(options.model)
    model.config.check_voice()
    has_band = lambda piece: {"lead", "band"} <= piece.files.keys() and not piece.attributes.solo  # noqa: E731
    pairs = with_others(read_pieces(options.folder, needs="a lead and a band", keep=has_band))
    found = collect((piece, measure(model, piece, other, tries(options))) for piece, other in pairs[: options.clips])
    print_table(beside_first(found))


if __name__ == "__main__":
    run(main, __doc__)
