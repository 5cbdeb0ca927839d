"""Whether music ends by itself where it is asked to: `python benchmarks/ending.py WORK`.

It makes a corpus of pieces that end in WORK, and continues the training of the packaged model's semantic stage with the timing tokens in its prefix; the
packaged model's other parts stay as they are. An interrupted run continues. Then, for captions of held-out pieces, it generates pieces with `ending` and
without, of the lengths of the held-out pieces, and prints for each row:

- level: of the last second, in dB below the rest (RMS), mean with its 95 % interval over pieces, and the share of pieces in which it is below -20 dB;
- cadence: the share of pieces whose last sounding second has the tonic as its strongest pitch class. The last sounding second ends where the sound falls below
  -30 dB of the loudest second for good; the tonic is that of the key (Krumhansl's profiles) of the seconds before it, and for the whole piece the true one.

Rows: with ending; without; a held-out piece, cut at 10 s, which does not end (chance); and the whole held-out piece (ceiling).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from melody import CHROMA
from packaged import PackagedPart, continued, with_stream, with_trained

from musiclm_jax import MusicLM
from musiclm_jax.arrays import Float
from musiclm_jax.audio.features import log_mel
from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.corpus import make_corpus, render_clip
from musiclm_jax.corpus.clip import clip_split
from musiclm_jax.corpus.synthesized import synthesis
from musiclm_jax.corpus.synthesized.clip import SynthesizedCorpus
from musiclm_jax.generation.timing import TimingConfig
from musiclm_jax.parts.fit import run_step
from musiclm_jax.parts.part import FitConfig
from musiclm_jax.parts.prepare import PreparePart

SEED, RATE_HZ = 21, synthesis.SAMPLE_RATE_HZ
# Of the pitch classes from the tonic on, in major and minor (Krumhansl, Cognitive Foundations of Musical Pitch, 1990).
PROFILES = (
    (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
)


def make_config(steps: int, optional_dropout: float) -> FitConfig:
    """The packaged model, with a semantic stage that reads the timing."""
    bindings = ["stage/OptimizerConfig.learning_rate=1e-3", "TrainConfig.eval_every=200", f"SEMANTIC_STEPS={steps}"]
    sizes = load_config("demo", ["runs/with_timing.gin", "runs/fit.gin"], [*bindings, f"semantic/StageRecipe.optional_dropout={optional_dropout}"])
    parts = (PreparePart(), PackagedPart(), continued(sizes.part("semantic")))
    return FitConfig(parts, with_stream("timing", timing=TimingConfig()), encode_context_sec=0.0, encode_batch_size=16)


def train(folder: Path, *, pieces: int, steps: int, optional_dropout: float) -> MusicLM:
    data, work, config = folder / "corpus", folder / "run", make_config(steps, optional_dropout)
    make_corpus(data, num_clips=pieces, seed=SEED, endings=1.0)
    for step in config.steps:
        print(step, run_step(step, data, config=config, workdir=work), flush=True)
    return with_trained(config.model, work, "semantic")


def seconds_db(wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T"]:
    """The level of each whole second, counted from the end."""
    count = len(wave) // RATE_HZ
    return 10 * np.log10(np.square(wave[len(wave) - count * RATE_HZ :].reshape(count, RATE_HZ)).mean(axis=1) + 1e-12)


def last_level(wave: Float[np.ndarray, "N"]) -> float:
    """The level of the last second, relative to the rest."""
    db = seconds_db(wave)
    return float(db[-1] - 10 * np.log10(np.mean(10 ** (db[:-1] / 10))))


def pitch_classes(wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "12"]:
    """Mean amplitudes at the pitch classes, from A on: those of CHROMA begin there."""
    bands = np.exp(np.asarray(log_mel(jnp.asarray(wave[None]), CHROMA))[0] / 2).mean(axis=0)
    quarters = bands.reshape(-1, 24).sum(axis=0)
    return quarters.reshape(12, 2).sum(axis=1)


def tonic_of(classes: Float[np.ndarray, "12"]) -> int:
    return int(np.argmax([max(np.corrcoef(np.roll(profile, tonic), classes)[0, 1] for profile in PROFILES) for tonic in range(12)]))


def cadence(wave: Float[np.ndarray, "N"], tonic: int | None = None) -> bool:
    """Whether the strongest pitch class of the last sounding second is the tonic. tonic: from A on; None: it is estimated."""
    tenth = RATE_HZ // 10
    levels = np.sqrt(np.square(wave[: len(wave) // tenth * tenth].reshape(-1, tenth)).mean(axis=1))
    end = (int(np.flatnonzero(levels > levels.max() * 10 ** (-30 / 20))[-1]) + 1) * tenth
    tonic = tonic_of(pitch_classes(wave[: max(end - RATE_HZ, RATE_HZ)])) if tonic is None else tonic
    return int(np.argmax(pitch_classes(wave[max(0, end - RATE_HZ) : end]))) == tonic


def evaluate(model: MusicLM, held_out: list[int]) -> None:
    levels: dict[str, list[float]] = {}
    cadences: dict[str, list[bool]] = {}

    def add(name: str, wave: Float[np.ndarray, "N"], tonic: int | None = None) -> None:
        levels.setdefault(name, []).append(last_level(wave))
        cadences.setdefault(name, []).append(cadence(wave, tonic))

    for index in held_out:
        piece = render_clip(SynthesizedCorpus(SEED, 1.0), index)
        seconds = round(len(piece.wave) / RATE_HZ)
        for name, ending in (("with ending", True), ("without", False)):
            add(name, model.generate(piece.captions[:1], seconds=seconds, seed=index, ending=ending).wave[0])
        add("chance: a piece cut at 10 s", piece.wave[: 10 * RATE_HZ])
        add("ceiling: the whole piece", piece.wave, (piece.attributes["tonic"] - 9) % 12)
        print(f"piece {index}, {seconds} s: " + "  ".join(f"{levels[name][-1]:6.1f} {cadences[name][-1]:d}" for name in levels), flush=True)
    rng = np.random.default_rng(0)
    print(f"{'':30}{'level':>7}  {'95 %':>15}  below -20 dB  cadence")
    for name, values in levels.items():
        low, high = np.quantile(rng.choice(values, (10_000, len(values))).mean(axis=1), [0.025, 0.975])
        print(f"{name:30}{np.mean(values):7.1f}  {low:7.1f} {high:7.1f}  {np.mean(np.array(values) < -20):12.2f}  {np.mean(cadences[name]):7.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pieces", type=int, default=200, help="a tenth of them is held out")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--optional_dropout", type=float, default=0.2, help="as in StageRecipe")
    arguments = parser.parse_args()
    model = train(arguments.folder, pieces=arguments.pieces, steps=arguments.steps, optional_dropout=arguments.optional_dropout)
    evaluate(model, [index for index in range(arguments.pieces) if clip_split(index) == "test"])
