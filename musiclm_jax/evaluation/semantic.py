"""Evaluates semantic tokens: their mutual information with the ground truth of held-out clips, and whether equal notes get equal tokens.

The share of repeated tokens is measured on any folder of clips. The other figures need clips with the attributes of a corpus, and its notes.

Each figure comes with that of a reference, k-means with the same number of clusters on log-mel frames of the same front end, at the same rate: the
difference is what w2v-BERT has learned. Mutual information also comes with its value for shuffled clips, because with few clips and many clusters it is
above 0 by chance.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax import audio
from musiclm_jax.arrays import Int
from musiclm_jax.audio.features import log_mel
from musiclm_jax.corpus.synthesized.attributes import Attributes
from musiclm_jax.corpus.synthesized.clip import SynthesizedCorpus
from musiclm_jax.corpus.synthesized.compose import Note, onset_sec
from musiclm_jax.data.folder import Entry
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.clips import ClipFile, check_seed, draw_clips, read_clips, read_waves
from musiclm_jax.evaluation.extras import extra, require
from musiclm_jax.evaluation.tables import Table, number, page
from musiclm_jax.files import AnyPath, as_path
from musiclm_jax.nn.clustering import assign, kmeans


@runtime_checkable
class Tokenizer(Protocol):
    """The interface of the evaluated tokenizer, that of `tokenizers.SemanticTokenizer`. config: has mel (a LogMelConfig), token_samples, num_clusters."""

    config: Any

    def encode(self, wave: Any) -> Any:
        """24 kHz waves [B, N] -> tokens [B, ceil(N / token_samples)] in [0, num_clusters)."""
        ...


# Attributes with one value per clip.
LABELS = ("instrument", "tonic", "mode", "drums")
PITCH = "melody pitch"
_NUM_SHUFFLES = 20
_BATCH = 10


def information(tokens: Int[np.ndarray, "n T"], labels: Int[np.ndarray, "n T"], *, rng: np.random.Generator) -> dict[str, float]:
    """Mutual information of the tokens and the labels of n clips of T tokens, normalized by the mean of both entropies to 0 to 1.

    Returns:
        {"nmi", "chance"}, where "chance" is the mean over permutations of the labels among clips.
    """
    nmi = lambda order: extra("sklearn.metrics").normalized_mutual_info_score(labels[order].ravel(), tokens.ravel())  # noqa: E731
    return {
        "nmi": float(nmi(np.arange(len(tokens)))),
        "chance": float(np.mean([nmi(rng.permutation(len(tokens))) for _ in range(_NUM_SHUFFLES)])),
    }


def neighbours_repeat(tokens: Int[np.ndarray, "n T"]) -> float:
    """Share of tokens that are equal to the token before them in the same clip."""
    return float((tokens[:, 1:] == tokens[:, :-1]).mean())


# ---------------------------------------------------------------------------------------------------------------- notes


def read_notes(data_dir: str | AnyPath, clips: Sequence[Entry]) -> list[tuple[Attributes, list[Note]]] | None:
    """The attributes and lead notes of each clip, composed again from the seed of the corpus. None if the folder is not a synthesized
    corpus of this version, or its pieces end."""
    try:
        found = json.loads((as_path(data_dir) / "corpus.json").read_bytes())
        corpus = SynthesizedCorpus(found["seed"])
        if corpus.identity != found:
            return None
        composed = [corpus.notes(*map(int, PurePath(clip.file_name).stem.split("-"))) for clip in clips]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if any(dataclasses.asdict(attributes) != clip.attributes for (attributes, _), clip in zip(composed, clips, strict=True)):
        return None
    return [(attributes, [note for note in notes if note.part == "lead"]) for attributes, notes in composed]


def sounding_pitch(attributes: Attributes, notes: Sequence[Note], *, num_tokens: int, token_sec: float) -> Int[np.ndarray, "T"]:
    """MIDI pitch of the melody at the middle of each token: that of the last note that has begun, or of the first note before it begins."""
    onsets = np.array([onset_sec(note, tempo_bpm=attributes.tempo_bpm) for note in notes])
    last = np.searchsorted(onsets, (np.arange(num_tokens) + 0.5) * token_sec, side="right") - 1
    return np.array([note.pitch for note in notes])[np.maximum(last, 0)]


def middle_tokens(attributes: Attributes, notes: Sequence[Note], *, num_tokens: int, token_sec: float) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k"]]:
    """Returns (the token at the middle of each note, its MIDI pitch). Notes that end after the last token are omitted."""
    eighth_sec = 30 / attributes.tempo_bpm
    begin = np.array([onset_sec(note, tempo_bpm=attributes.tempo_bpm) for note in notes])
    length = np.array([note.length * eighth_sec for note in notes])
    whole = begin + length <= num_tokens * token_sec
    return ((begin + length / 2) / token_sec).astype(int)[whole], np.array([note.pitch for note in notes])[whole]


def notes_repeat(tokens: Int[np.ndarray, "k"], clips: Int[np.ndarray, "k"], instruments: Int[np.ndarray, "k"], pitches: Int[np.ndarray, "k"]):
    """How often two different notes have the same token, over pairs of notes. The arrays have one row per note: its middle token, clip, etc.

    Returns:
        {"same clip, same pitch", "same clip, any pitch", "other clip, same pitch and instrument", "other clip, any note"}: shares of pairs, None if there
        is no such pair. The second and the fourth are references for the first and the third.
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
    """Returns (the number of pairs of rows with equal keys and equal tokens, the number of pairs with equal keys)."""
    pairs = lambda columns: sum(n * (n - 1) // 2 for n in np.unique(np.stack(columns), axis=1, return_counts=True)[1].tolist())  # noqa: E731
    return np.array([pairs([*keys, tokens]), pairs(keys)])


# ------------------------------------------------------------------------------------------------------- the evaluation


def evaluate_semantic(
    tokenizer: Tokenizer,
    data_dir: str | AnyPath,
    *,
    num_clips: int | None = None,
    seconds: float = 10.0,
    fit_clips: int = 334,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Tokenizes the beginnings of random held-out clips and compares the tokens with the ground truth.

    Args:
        tokenizer: the tokenizer.
        data_dir: a folder of clips; see `read_clips` for its splits. The attributes of a corpus are the ground truth; notes also need its corpus.json.
        num_clips: number of held-out clips, 2 or more. None: all. With fewer clips chance is higher, because a rare token is in few clips.
        seconds: length of the beginning of each clip that is tokenized. Clips must not be shorter.
        fit_clips: number of training clips on whose log-mel frames the reference is fitted. 334 clips of 30 s have 10,000 s, `W2vBertPart.kmeans_sec`.
        seed: random seed of the choice of clips, of the reference's k-means and of the permutations.
        progress: called with one line per step.

    Returns:
        A report of plain JSON types: "results" {"tokens", "log-mel": {"information" {label: {"nmi", "chance"}}, "neighbours_repeat",
        "notes_repeat" (see `notes_repeat`; None without notes)}}; "left_out", a line for each label that some clips lack; "num_clusters",
        "num_clips", "num_notes", "fit_clips", "seconds", "seed".

    Raises:
        UserError: the seed is out of range, scikit-learn is missing, or the folder has too few or too short clips.
    """
    check_seed(seed)
    require("sklearn")
    folder, config = read_clips(data_dir, progress=progress), tokenizer.config
    held_out, train = folder.split("test"), folder.split("train")
    num_clips = len(held_out) if num_clips is None else num_clips
    held_out = draw_clips(held_out, num_clips, name="num_clips", rng=np.random.default_rng([seed, 1]))
    train = draw_clips(train, fit_clips, name="fit_clips", kind="training", least=1, rng=np.random.default_rng([seed, 1]))
    known = [name for name in LABELS if all(name in clip.attributes for clip in held_out)]

    progress(f"fitting k-means on the log-mel frames of {fit_clips} training clips")
    mel = dataclasses.replace(config.mel, hop_samples=config.token_samples)
    frames = jax.jit(lambda wave: log_mel(wave, mel))
    fitting = np.concatenate([np.asarray(frames(ClipFile.of(folder, clip).read()[None]))[0] for clip in train])
    if len(fitting) < config.num_clusters:
        raise UserError(f"fit_clips={fit_clips}: their {len(fitting)} frames are fewer than the {config.num_clusters} clusters; choose more clips")
    centroids = kmeans(jax.random.key(seed), jnp.asarray(fitting), num_clusters=config.num_clusters)

    rows: dict[str, list] = {"tokens": [], "log-mel": []}
    for start in range(0, num_clips, _BATCH):
        batch = held_out[start : start + _BATCH]
        progress(f"tokenizing held-out clips {start + 1} to {start + len(batch)} of {num_clips}")
        waves = read_waves([ClipFile.of(folder, clip) for clip in batch], round(seconds * audio.SAMPLE_RATE_HZ))
        rows["tokens"].append(np.asarray(tokenizer.encode(waves)))
        rows["log-mel"].append(np.asarray(assign(frames(waves), centroids)))
    streams = {name: np.concatenate(batches) for name, batches in rows.items()}

    num_tokens, token_sec = streams["tokens"].shape[1], config.token_samples / audio.SAMPLE_RATE_HZ
    # As JSON, because attributes of a user's clips may have any type.
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
    """The report as two tables in plain text: mutual information with chance in brackets, and the shares of pairs that have the same token."""
    results, ours = report["results"], report["results"]["tokens"]
    title = (
        f"Semantic tokens on {report['num_clips']} held-out clips, {report['seconds']:g} s each; {report['num_clusters']} clusters, "
        f"log-mel: k-means fitted on {report['fit_clips']} training clips"
    )
    information = tuple(
        (label, *("{nmi:.3f} ({chance:.3f})".format(**result["information"][label]) for result in results.values())) for label in ours["information"]
    )
    pairs = [("neighbours", *(number(result["neighbours_repeat"]) for result in results.values()))]
    notes = [f"left out: {each}" for each in report["left_out"]]
    if report["num_notes"]:
        pairs += [(f"notes, {which}", *(number(result["notes_repeat"][which]) for result in results.values())) for which in ours["notes_repeat"]]
        notes.insert(0, f"the tokens in the middle of {report['num_notes']} notes")
    else:
        notes.insert(0, "no notes: the folder is not a whole corpus of this version of `musiclm corpus`")
    tables = (Table(("mutual information with", *results), information), Table(("pairs with the same token", *results), tuple(pairs)))
    return page(title, *(table.text() for table in tables), notes=notes)
