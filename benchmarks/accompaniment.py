"""Whether a band plays with the voice that it is given: `python benchmarks/accompaniment.py WORK`.

It makes a corpus with stems in WORK, and continues the training of the packaged model's semantic stage on the bands, with the tokens of their leads in its
prefix; the packaged model's other parts stay as they are. An interrupted run continues. Then, for held-out pieces, it generates 10 s of a band from the lead
and a caption, and prints two agreements of the band with a lead, both correlations over time: of onsets (rises of the log-mel spectrum in 10 ms) and of
chromagrams (without their means over time, in one key). Columns: both agreements, each with its 95 % interval over pieces, and the share of pieces in which
that of the first row is higher. Rows: the band with its own lead; with the lead of another piece; a band that was given no voice; the corpus's band with the
lead of another piece (chance), and with its own lead (ceiling).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from melody import RATE_HZ, chroma
from packaged import PackagedPart, continued, with_stream, with_trained

from musiclm_jax import MusicLM
from musiclm_jax.arrays import Float
from musiclm_jax.audio.features import LogMelConfig, log_mel
from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.corpus import make_corpus, render_clip
from musiclm_jax.corpus.clip import clip_split
from musiclm_jax.corpus.synthesized.clip import SynthesizedCorpus
from musiclm_jax.generation.voice import VoiceConfig
from musiclm_jax.parts.fit import run_step
from musiclm_jax.parts.part import FitConfig
from musiclm_jax.parts.prepare import PreparePart
from musiclm_jax.parts.voice import VoicePart

SEED, SECONDS = 22, 10
MEL = LogMelConfig(window_samples=1024, hop_samples=240, num_fft=1024, num_mels=40)


def make_config(steps: int) -> FitConfig:
    """The packaged model, with a semantic stage that reads a voice. Half of the clips are leads, which accompany none, so that few voices are dropped."""
    bindings = ["stage/OptimizerConfig.learning_rate=1e-3", "TrainConfig.eval_every=200", f"SEMANTIC_STEPS={steps}"]
    sizes = load_config("demo", ["runs/with_voice.gin", "runs/fit.gin"], [*bindings, "semantic/StageRecipe.optional_dropout=0.1"])
    parts = (PreparePart(), PackagedPart(), VoicePart(), continued(sizes.part("semantic")))
    return FitConfig(parts, with_stream("voice", voice=VoiceConfig()), encode_context_sec=0.0, encode_batch_size=16)


def make_songs(folder: Path, *, pieces: int) -> Path:
    """A folder of leads and bands, without their mixes. A band has the captions of its mix."""
    corpus, songs = folder / "corpus", folder / "songs"
    make_corpus(corpus, num_clips=pieces, seed=SEED, stems=True)
    songs.mkdir(exist_ok=True)
    if not (songs / "audio").exists():
        (songs / "audio").symlink_to((corpus / "audio").resolve())
    lines, captions = [], []
    for line in map(json.loads, (corpus / "metadata.jsonl").read_text().splitlines()):
        captions = line["captions"] or captions
        if not line["captions"]:
            lines.append(line | ({"captions": captions} if "voice" in line else {}))
    (songs / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return songs


def train(folder: Path, *, pieces: int, steps: int) -> MusicLM:
    songs, work, config = make_songs(folder, pieces=pieces), folder / "run", make_config(steps)
    for step in config.steps:
        print(step, run_step(step, songs, config=config, workdir=work), flush=True)
    return with_trained(config.model, work, "semantic")


def onsets(wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T"]:
    mel = np.asarray(log_mel(jnp.asarray(wave[None, : SECONDS * RATE_HZ]), MEL))[0]
    rises = np.maximum(np.diff(np.maximum(mel, mel.max() - 8), axis=0), 0).sum(axis=1)
    return rises - rises.mean()


def agreements(band: Float[np.ndarray, "N"], lead: Float[np.ndarray, "N"]) -> tuple[float, float]:
    """Of onsets and of chromagrams."""
    pairs = ((each(band), each(lead)) for each in (onsets, chroma))
    return tuple(float(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-9)) for a, b in pairs)


def evaluate(model: MusicLM, held_out: list[int]) -> None:
    rows: dict[str, list[tuple[float, float]]] = {}
    stem = lambda index, name: render_clip(SynthesizedCorpus(SEED), index, name).wave[: SECONDS * RATE_HZ]  # noqa: E731
    leads, bands = ({index: stem(index, name) for index in held_out} for name in ("lead", "band"))
    for index, other in zip(held_out, np.roll(held_out, 1), strict=True):
        caption = render_clip(SynthesizedCorpus(SEED), index, 0).captions[0]
        given = model.accompany(leads[index], caption, seed=index, num_candidates=1, num_drafts=1)
        without = np.concatenate(list(model.stream(caption, seconds=SECONDS, seed=index, num_candidates=1, num_drafts=1)), axis=1)[0]
        for name, band, lead in (
            ("with its own lead", given, leads[index]),
            ("with another's lead", given, leads[other]),
            ("given no voice", without, leads[index]),
            ("chance: corpus, another's", bands[index], leads[other]),
            ("ceiling: corpus, its own", bands[index], leads[index]),
        ):
            rows.setdefault(name, []).append(agreements(band, lead))
        print(f"piece {index}: " + "  ".join(f"{values[-1][0]:.3f} {values[-1][1]:.3f}" for values in rows.values()), flush=True)
    first, rng = np.array(rows["with its own lead"]), np.random.default_rng(0)
    print(f"{'':27}{'onsets':>7} {'95 %':>15}  lower  {'chroma':>7} {'95 %':>15}  lower")
    for name, values in rows.items():
        found = np.array(values)
        means = found[rng.integers(len(found), size=(10_000, len(found)))].mean(axis=1)
        (low, high), lower = np.quantile(means, [0.025, 0.975], axis=0), (first > found).mean(axis=0)
        print(f"{name:27}" + "  ".join(f"{found[:, i].mean():7.3f} {low[i]:7.3f} {high[i]:7.3f}  {lower[i]:5.2f}" for i in (0, 1)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pieces", type=int, default=100, help="a tenth of them is held out")
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    evaluate(
        train(arguments.folder, pieces=arguments.pieces, steps=arguments.steps),
        [index for index in range(arguments.pieces) if clip_split(index) == "test"],
    )
