"""Do semantic tokens say what sounds? What they share with the ground truth of held-out clips, and whether a note gets the same token again.

On any folder of clips, how often tokens repeat is measured; the rest as far as the clips have the attributes of the corpus, and its notes.

Beside each figure stands the same of a reference: k-means with as many clusters on plain log-mel frames of the same front end, at the same rate.
What the tokens have beyond it, w2v-BERT has learned. Chance is measured too, against the ground truth of other clips: few clips and many
clusters share something by accident.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax import audio
from musiclm_jax.arrays import Int
from musiclm_jax.audio.features import log_mel
from musiclm_jax.corpus.attributes import Attributes
from musiclm_jax.corpus.compose import Note, onset_sec
from musiclm_jax.corpus.variants import arrange
from musiclm_jax.corpus.write import CORPUS_VERSION, clip_notes
from musiclm_jax.data.folder import Entry
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.clips import check_seed, draw_clips, read_clips, read_waves
from musiclm_jax.evaluation.extras import extra, require
from musiclm_jax.nn.clustering import assign, kmeans


@runtime_checkable
class Tokenizer(Protocol):
    """`tokenizers.SemanticTokenizer`, or anything like it. `config`: mel (a LogMelConfig), token_samples and num_clusters."""

    config: Any

    def encode(self, wave: Any) -> Any:
        """24 kHz waves [B, N] -> tokens [B, ceil(N / token_samples)] in [0, num_clusters)."""
        ...


# One value per clip.
LABELS = ("instrument", "tonic", "mode", "drums")
PITCH = "melody pitch"
_NUM_SHUFFLES = 20
_BATCH = 10


def information(tokens: Int[np.ndarray, "n T"], labels: Int[np.ndarray, "n T"], *, rng: np.random.Generator) -> dict[str, float]:
    """{"nmi", "chance"}: normalized mutual information of tokens with labels (over the mean of both entropies, 0 to 1), and its mean where
    whole clips have swapped their labels.

    Both are ids of n clips of T tokens.
    """
    nmi = lambda order: extra("sklearn.metrics").normalized_mutual_info_score(labels[order].ravel(), tokens.ravel())  # noqa: E731
    return {
        "nmi": float(nmi(np.arange(len(tokens)))),
        "chance": float(np.mean([nmi(rng.permutation(len(tokens))) for _ in range(_NUM_SHUFFLES)])),
    }


def neighbours_repeat(tokens: Int[np.ndarray, "n T"]) -> float:
    """Share of tokens that are equal to the one before in the same clip."""
    return float((tokens[:, 1:] == tokens[:, :-1]).mean())


# ---------------------------------------------------------------------------------------------------------------- notes


def read_notes(data_dir: str | Path, clips: Sequence[Entry]) -> list[tuple[Attributes, list[Note]]] | None:
    """Attributes and lead notes of each clip, composed again from the corpus' seed. None where the folder is not a corpus of this version."""
    try:
        corpus = json.loads((Path(data_dir) / "corpus.json").read_text(encoding="utf-8"))
        if corpus["version"] != CORPUS_VERSION:
            return None
        composed = [_compose(corpus["seed"], *map(int, Path(clip.file_name).stem.split("-"))) for clip in clips]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if any(dataclasses.asdict(attributes) != clip.attributes for (attributes, _), clip in zip(composed, clips, strict=True)):
        return None
    return [(attributes, [note for note in notes if note.part == "lead"]) for attributes, notes in composed]


def _compose(seed: int, index: int, variant: int = 0) -> tuple[Attributes, list[Note]]:
    return arrange(seed=seed, index=index, variant=variant) if variant else clip_notes(seed=seed, index=index)


def sounding_pitch(attributes: Attributes, notes: Sequence[Note], *, num_tokens: int, token_sec: float) -> Int[np.ndarray, "T"]:
    """MIDI pitch of the melody in the middle of each token: of the last note that has begun; before the first note, of that one."""
    onsets = np.array([onset_sec(note, tempo_bpm=attributes.tempo_bpm) for note in notes])
    last = np.searchsorted(onsets, (np.arange(num_tokens) + 0.5) * token_sec, side="right") - 1
    return np.array([note.pitch for note in notes])[np.maximum(last, 0)]


def middle_tokens(attributes: Attributes, notes: Sequence[Note], *, num_tokens: int, token_sec: float) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k"]]:
    """(token, pitch): where the middle of each note lies, counted in tokens, and its MIDI pitch. Notes that end after the last token are left out."""
    eighth_sec = 30 / attributes.tempo_bpm
    begin = np.array([onset_sec(note, tempo_bpm=attributes.tempo_bpm) for note in notes])
    length = np.array([note.length * eighth_sec for note in notes])
    whole = begin + length <= num_tokens * token_sec
    return ((begin + length / 2) / token_sec).astype(int)[whole], np.array([note.pitch for note in notes])[whole]


def notes_repeat(tokens: Int[np.ndarray, "k"], clips: Int[np.ndarray, "k"], instruments: Int[np.ndarray, "k"], pitches: Int[np.ndarray, "k"]):
    """How often two different notes have the same token, over all pairs. One row per note: its middle token, clip, instrument and pitch.

    Returns:
        {"same clip, same pitch", "same clip, any pitch", "other clip, same pitch and instrument", "other clip, any note"}: shares, None where
        there is no such pair. The second of each two is what the first is without the note's identity.
    """
    everything = np.zeros_like(tokens)
    clip, clip_pitch = (_pairs(tokens, *keys) for keys in ((clips,), (clips, pitches)))
    same, every = (_pairs(tokens, *keys) for keys in ((instruments, pitches), (everything,)))
    # Notes of one clip have one instrument, so pairs in a clip are among the pairs of all clips.
    counts = {
        "same clip, same pitch": clip_pitch,
        "same clip, any pitch": clip,
        "other clip, same pitch and instrument": same - clip_pitch,
        "other clip, any note": every - clip,
    }
    return {name: float(equal / total) if total else None for name, (equal, total) in counts.items()}


def _pairs(tokens: Int[np.ndarray, "k"], *keys: Int[np.ndarray, "k"]) -> np.ndarray:
    """(pairs of rows with the same keys and the same token, pairs of rows with the same keys)."""
    pairs = lambda columns: sum(n * (n - 1) // 2 for n in np.unique(np.stack(columns), axis=1, return_counts=True)[1].tolist())  # noqa: E731
    return np.array([pairs([*keys, tokens]), pairs(keys)])


# ------------------------------------------------------------------------------------------------------- the evaluation


def evaluate_semantic(
    tokenizer: Tokenizer,
    data_dir: str | Path,
    *,
    num_clips: int | None = None,
    seconds: float = 10.0,
    fit_clips: int = 334,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Codes the first `seconds` of held-out clips, drawn at random, and compares the tokens with the ground truth.

    Args:
        tokenizer: of waves into semantic tokens.
        data_dir: a folder of clips; see `read_clips` for its splits. With the attributes of a corpus there is ground truth, with its corpus.json notes.
        num_clips: held-out clips, 2 or more; None takes all. The fewer, the higher is chance: a cluster of few tokens is in few clips.
        seconds: of each clip, from its start. A clip must be that long.
        fit_clips: training clips, whole, on whose log-mel frames the reference is fitted. 334 of 30 s are the 10,000 s of `FitConfig.kmeans_sec`.
        seed: of the choice of clips, of the reference's k-means and of the swaps.
        progress: called with a line about each step.

    Returns:
        A report of plain JSON types: "results" {"tokens", "log-mel": {"information" {label: {"nmi", "chance"}}, "neighbours_repeat",
        "notes_repeat" (see `notes_repeat`; None without notes)}}; "left_out", a line for each label that not all clips have; "num_clusters",
        "num_clips", "num_notes", "fit_clips", "seconds", "seed".

    Raises:
        UserError: a bad seed; scikit-learn is missing; the folder has too few or too short clips.
    """
    check_seed(seed)
    require("sklearn")
    folder, config = read_clips(data_dir, progress=progress), tokenizer.config
    held_out, train = folder.split("test"), folder.split("train")
    num_clips = len(held_out) if num_clips is None else num_clips
    held_out = draw_clips(held_out, num_clips, name="num_clips", rng=np.random.default_rng([seed, 1]))
    train = draw_clips(train, fit_clips, name="fit_clips", kind="training", least=1, rng=np.random.default_rng([seed, 1]))
    known = [name for name in LABELS if all(name in clip.attributes for clip in held_out)]

    progress(f"k-means of the log-mel frames of {fit_clips} training clips")
    mel = dataclasses.replace(config.mel, hop_samples=config.token_samples)
    frames = jax.jit(lambda wave: log_mel(wave, mel))
    fitting = np.concatenate([np.asarray(frames(audio.read(folder.path / clip.file_name)[None]))[0] for clip in train])
    if len(fitting) < config.num_clusters:
        raise UserError(f"fit_clips={fit_clips}: their {len(fitting)} frames are fewer than the {config.num_clusters} clusters; ask for more")
    centroids = kmeans(jax.random.key(seed), jnp.asarray(fitting), num_clusters=config.num_clusters)

    rows: dict[str, list] = {"tokens": [], "log-mel": []}
    for start in range(0, num_clips, _BATCH):
        batch = held_out[start : start + _BATCH]
        progress(f"coding held-out clips {start + 1} to {start + len(batch)} of {num_clips}")
        waves = read_waves([folder.path / clip.file_name for clip in batch], round(seconds * audio.SAMPLE_RATE_HZ))
        rows["tokens"].append(np.asarray(tokenizer.encode(waves)))
        rows["log-mel"].append(np.asarray(assign(frames(waves), centroids)))
    streams = {name: np.concatenate(batches) for name, batches in rows.items()}

    num_tokens, token_sec = streams["tokens"].shape[1], config.token_samples / audio.SAMPLE_RATE_HZ
    # As JSON, for the attributes of a user's own clips may be of any kind.
    ids = {name: np.unique([json.dumps(clip.attributes[name]) for clip in held_out], return_inverse=True)[1] for name in known}
    labels = {name: np.repeat(of_clip[:, None], num_tokens, axis=1) for name, of_clip in ids.items()}
    place = {"num_tokens": num_tokens, "token_sec": token_sec}
    if notes := read_notes(folder.path, held_out):
        labels[PITCH] = np.stack([sounding_pitch(*clip, **place) for clip in notes])
    results = {}
    for name, tokens in streams.items():
        shares = {label: information(tokens, values, rng=np.random.default_rng([seed, 2])) for label, values in labels.items()}
        results[name] = {"information": shares, "neighbours_repeat": neighbours_repeat(tokens), "notes_repeat": None}
    num_notes = 0
    if notes:
        middles = [middle_tokens(*clip, **place) for clip in notes]
        pitches = np.concatenate([pitch for _, pitch in middles])
        of_clip = np.repeat(np.arange(num_clips), [len(pitch) for _, pitch in middles])
        num_notes = len(pitches)
        for name, tokens in streams.items():
            middle = np.concatenate([row[at] for row, (at, _) in zip(tokens, middles, strict=True)])
            results[name]["notes_repeat"] = notes_repeat(middle, of_clip, ids["instrument"][of_clip], pitches)
    return {
        "num_clusters": config.num_clusters,
        "num_clips": num_clips,
        "num_notes": num_notes,
        "fit_clips": fit_clips,
        "seconds": seconds,
        "seed": seed,
        "results": results,
        "left_out": [f"{name}: not all clips have that attribute" for name in LABELS if name not in known],
    }


def format_semantic_report(report: dict[str, Any]) -> str:
    """A table in plain text: what tokens and reference share with the ground truth, chance in brackets, and how often they repeat."""
    results = report["results"]
    lines = [
        f"Semantic tokens on {report['num_clips']} held-out clips, {report['seconds']:g} s each; {report['num_clusters']} clusters, "
        f"log-mel: k-means fitted on {report['fit_clips']} training clips",
        "",
        f"{'mutual information with':40}  {'tokens':^15}  {'log-mel':^15}",
    ]

    def row(title: str, cells: list[str]) -> str:
        return (f"{title:40}  " + "  ".join(f"{cell:15}" for cell in cells)).rstrip()

    for label in results["tokens"]["information"]:
        values = [result["information"][label] for result in results.values()]
        lines.append(row(label, [f"{value['nmi']:.3f} ({value['chance']:.3f})" for value in values]))
    lines += ["", row("neighbours that repeat", [f"{result['neighbours_repeat']:.3f}" for result in results.values()])]
    left_out = ["", "left out", *report["left_out"]] if report["left_out"] else []
    if not report["num_notes"]:
        return "\n".join([*lines, "no notes: the folder is not a whole corpus of this version of `musiclm corpus`", *left_out])
    lines += ["", f"two of the {report['num_notes']} notes have the same token in their middle"]
    for name in results["tokens"]["notes_repeat"]:
        shares = [result["notes_repeat"][name] for result in results.values()]
        lines.append(row(name, ["-" if share is None else f"{share:.3f}" for share in shares]))
    return "\n".join([*lines, *left_out])
