"""Whether music follows a melody that is given, and its tune rather than its key, tempo and chords: `python benchmarks/melody.py WORK`.

It makes a corpus with variants in WORK, trains a melody embedder on it, and continues the training of the packaged model's semantic stage with the melody
tokens in its prefix; the packaged model's other parts stay as they are. An interrupted run continues. Then, for held-out tunes, it generates 10 s from the
tune's caption and a hum of the tune, and prints how well the contour of the pitch classes matches that of the tune, played alone by a piano.

The match is the correlation of two chromagrams, each without its mean over time, at the best of all transpositions and of shifts of up to 0.3 s. Columns: the
mean match, its 95 % interval over tunes, and the share of tunes in which the music that was given the tune matches better. Rows: that music; that music
against another tune over the same chords in the same key, tempo and metre; the music that was given another tune; music that was given none; a clip of another
tune from the corpus (chance); and the tune with its band, which no model made (ceiling).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax import MusicLM
from musiclm_jax.arrays import Float
from musiclm_jax.audio.features import LogMelConfig, log_mel
from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.corpus import make_corpus
from musiclm_jax.corpus.clip import clip_rng, clip_split
from musiclm_jax.corpus.synthesized import synthesis
from musiclm_jax.corpus.synthesized.attributes import Attributes
from musiclm_jax.corpus.synthesized.captions import write_captions
from musiclm_jax.corpus.synthesized.clip import SynthesizedCorpus
from musiclm_jax.corpus.synthesized.compose import Note, compose
from musiclm_jax.models import melody
from musiclm_jax.parts.fit import run_step
from musiclm_jax.parts.part import FitConfig, Run
from musiclm_jax.parts.prepare import PreparePart
from musiclm_jax.tokens import ABSENT
from musiclm_jax.training.task import TrainState

SEED, SECONDS = 20, 10.0
RATE_HZ = synthesis.SAMPLE_RATE_HZ
# Two bands per semitone, folded to pitch classes.
CHROMA = LogMelConfig(window_samples=4096, hop_samples=2400, num_fft=8192, num_mels=120, min_hz=110.0, max_hz=3520.0, scale="octave", floor=1e-3)


# ---------------------------------------------------------------------------------------------------------------------- Training


def make_config(values: dict[str, float]) -> FitConfig:
    """The packaged model, with a melody embedder and a semantic stage that reads its tokens."""
    bindings = [f"{name}={value}" for name, value in values.items()] + [
        "stage/OptimizerConfig.learning_rate=1e-3",
        "TrainConfig.eval_every=200",
        "MelodyPart.condition_hop_sec=0.4",
    ]
    sizes = load_config("demo", ["runs/with_melody.gin", "runs/fit.gin"], bindings)
    parts = (PreparePart(), PackagedPart(), sizes.part("melody"), continued(sizes.part("semantic")))
    return FitConfig(parts, with_stream("melody", melody=sizes.model.melody), encode_context_sec=0.0, encode_batch_size=16)


def train(folder: Path, *, tunes: int, variants: int, values: dict[str, float]) -> MusicLM:
    data, work, config = folder / "corpus", folder / "run", make_config(values)
    make_corpus(data, num_clips=tunes, seed=SEED, num_variants=variants)
    for step in config.steps:
        run_step(step, data, config=config, workdir=work)
    print_losses(Run(config, data, work))
    return with_trained(config.model, work, "melody", "semantic")


def print_losses(run: Run) -> None:
    """The loss of the semantic stage on held-out crops, with their melody, another's and none."""
    part = run.config.part("semantic")
    task, source = part.task(run.config), part.source(run, "test", SEED)
    state = TrainState(np.int32(0), run.saved("semantic")["params"], {}, {})
    evaluate = jax.jit(lambda batch: task.eval_step(state, batch, jax.random.key(0))["loss"])
    changes = {"right": lambda codes: codes, "another's": lambda codes: np.roll(codes, 1, axis=0), "none": lambda codes: np.full_like(codes, ABSENT)}
    for name, change in changes.items():
        batches = (source(step) for step in range(8))
        found = [float(evaluate({**batch, "melody": change(batch["melody"])})) for batch in batches]
        print(f"held-out nats per semantic token, melody {name:10} {np.mean(found):.4f}", flush=True)


# ---------------------------------------------------------------------------------------------------------------------- Tunes


def alone(notes: list[Note], attributes: Attributes, voice: str, seed: int) -> Float[np.ndarray, "N"]:
    """The tune of some notes, played by one voice alone."""
    lead = [dataclasses.replace(note, voice=voice) for note in notes if note.part == "lead"]
    return synthesis.render(lead, attributes=attributes, rng=np.random.default_rng(seed))


def same_chords(notes: list[Note], attributes: Attributes, seed: int) -> list[Note]:
    """Another piece with the same attributes, and in its first seconds the same chords but another tune."""

    def opening(notes: list[Note], *parts: str) -> list[tuple[int, int, int]]:
        return [(note.pitch, note.step, note.length) for note in notes if note.part in parts and note.step * 30 / attributes.tempo_bpm < SECONDS]

    for number in range(100_000):
        others = compose(attributes, rng=np.random.default_rng([seed, number]))
        if opening(others, "chord", "pad") == opening(notes, "chord", "pad") and opening(others, "lead") != opening(notes, "lead"):
            return others
    raise ValueError(f"no other tune over the chords of tune {seed} was found")


# ---------------------------------------------------------------------------------------------------------------------- Measuring


def chroma(wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T C"]:
    """Amplitudes of the first seconds at 24 classes of quarter tones, without their means over time."""
    log = np.asarray(log_mel(jnp.asarray(wave[None, : round(SECONDS * RATE_HZ)]), CHROMA))[0]
    classes = np.exp(log / 2).reshape(len(log), -1, 24).sum(axis=1)
    return classes - classes.mean(axis=0)


def match(wave: Float[np.ndarray, "N"], tune: Float[np.ndarray, "N"]) -> float:
    """The correlation of two chromagrams at the best transposition and shift."""
    one, two = chroma(wave), chroma(tune)
    pairs = ((one[max(0, lag) : len(one) + min(0, lag)], two[max(0, -lag) : len(two) + min(0, -lag)]) for lag in range(-3, 4))
    found = [np.vdot(a, np.roll(b, turn, axis=1)) / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-9) for a, b in pairs for turn in range(24)]
    return float(max(found))


def evaluate(model: MusicLM, held_out: list[int]) -> None:
    rows: dict[str, list[float]] = {}
    add = lambda name, wave, tune: rows.setdefault(name, []).append(match(wave, tune))  # noqa: E731
    scores = {index: SynthesizedCorpus(SEED).notes(index) for index in held_out}
    piano = {index: alone(notes, attributes, "piano", index) for index, (attributes, notes) in scores.items()}
    hums = {index: alone(notes, attributes, "hum", index + 1) for index, (attributes, notes) in scores.items()}
    others = {index: alone(same_chords(notes, attributes, index), attributes, "piano", index) for index, (attributes, notes) in scores.items()}
    bands = {index: synthesis.render(notes, attributes=attributes, rng=np.random.default_rng(index)) for index, (attributes, notes) in scores.items()}
    near = [similarity(model, hums[index], piano[index]) > similarity(model, hums[index], others[index]) for index in held_out]
    print(f"of {len(held_out)} hums, the embedder finds the tune nearer than the other one over the same chords: {np.mean(near):.2f}", flush=True)
    for index, after in zip(held_out, np.roll(held_out, 1), strict=True):
        captions = write_captions(scores[index][0], split="test", rng=clip_rng(SEED, index, "captions"))
        make = functools.partial(model.generate, captions[:1], seconds=SECONDS, seed=0)
        given = make(melody=hums[index]).wave[0]
        add("the tune was given", given, piano[index])
        add("another over the same chords", given, others[index])
        add("another tune was given", make(melody=hums[after]).wave[0], piano[index])
        add("no melody was given", make().wave[0], piano[index])
        add("chance: a clip of another tune", bands[after], piano[index])
        add("ceiling: the tune with its band", bands[index], piano[index])
        print(f"tune {index}: " + "  ".join(f"{values[-1]:.3f}" for values in rows.values()), flush=True)
    first, rng = np.array(rows["the tune was given"]), np.random.default_rng(0)
    print(f"{'':34}{'match':>7}  {'95 %':>15}  given is better")
    for name, values in rows.items():
        means = rng.choice(values, (10_000, len(values))).mean(axis=1)
        better = "" if name == "the tune was given" else f"{np.mean(first > np.array(values)):15.2f}"
        print(f"{name:34}{np.mean(values):7.3f}  {np.quantile(means, 0.025):7.3f} {np.quantile(means, 0.975):7.3f}  {better}")


def similarity(model: MusicLM, one: Float[np.ndarray, "N"], two: Float[np.ndarray, "N"]) -> float:
    """The mean cosine of two waves' melody embeddings in the same windows."""
    config, params = model.config.melody, model.variables("melody")["params"]
    starts = [config.hop_samples * i for i in range(config.condition_windows)]
    waves = (np.stack([wave[start : start + config.window_samples] for start in starts]) for wave in (one, two))
    a, b = (np.asarray(_embed(config, params, each)) for each in waves)
    return float(np.mean(np.sum(a * b, axis=1)))


_embed = jax.jit(melody.embed, static_argnums=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tunes", type=int, default=180, help="a tenth of them is held out")
    parser.add_argument("--variants", type=int, default=2)
    parser.add_argument("--melody_steps", type=int, default=600)
    parser.add_argument("--semantic_steps", type=int, default=500)
    parser.add_argument("--past_dropout", type=float, default=0.3, help="as in StageRecipe; the packaged model's by default")
    parser.add_argument("--held_out", type=int, default=24, help="the most tunes for which music is generated")
    arguments = parser.parse_args()
    values = {"MELODY_STEPS": arguments.melody_steps, "SEMANTIC_STEPS": arguments.semantic_steps, "semantic/StageRecipe.past_dropout": arguments.past_dropout}
    model = train(arguments.folder, tunes=arguments.tunes, variants=arguments.variants, values=values)
    evaluate(model, [index for index in range(arguments.tunes) if clip_split(index) == "test"][: arguments.held_out])
