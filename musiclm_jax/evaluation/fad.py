"""Fréchet audio distance (arXiv 1812.08466) of generated clips to a reference: with its interval, its limit for many clips, and a score for each clip."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musiclm_jax.arrays import Float
from musiclm_jax.data.folder import ClipFolder
from musiclm_jax.errors import UserError, unreadable
from musiclm_jax.evaluation import frechet
from musiclm_jax.evaluation.clips import ClipFile, Excerpt, Progress, check_seed, choose_clips, left_out, map_waves, other_lengths, read_clips
from musiclm_jax.evaluation.embeddings import Embedding
from musiclm_jax.evaluation.frechet import Gaussian
from musiclm_jax.evaluation.tables import Table, number, page
from musiclm_jax.files import atomic_path

# Version of the file of a reference.
_FORMAT = 1
# At this share of the distance of the reference's own halves, or below, both sets are the same clips.
_SAME = 1e-6
_WORST = 5


@dataclasses.dataclass(frozen=True)
class Reference:
    """The statistics of a reference set, which a file may hold instead of its clips."""

    # The name of the embedding.
    embedding: str
    # Where the clips are from, for the report.
    path: str
    gaussian: Gaussian
    num_clips: int
    # Mean length of the clips.
    seconds: float
    # The distance of one random half of the clips to the other. NaN: there are fewer than 4 clips.
    halves: float


@dataclasses.dataclass(frozen=True)
class _Embedded:
    """The clips of a set, each as the result of `frechet.compress`."""

    names: tuple[str, ...]
    rows: list[Float[np.ndarray, "_ E"]]
    seconds: float
    skipped: tuple[str, ...]


def save_reference(path: str | Path, reference: Reference) -> None:
    """Writes the statistics of a reference to a .npz file, atomically. Raises UserError if it cannot be written."""
    fields = {"embedding": reference.embedding, "path": reference.path, "num_clips": reference.num_clips, "seconds": reference.seconds}
    header = json.dumps({"format": _FORMAT, **fields, "halves": reference.halves, "num_rows": reference.gaussian.num_rows})
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, header=header, mean=reference.gaussian.mean, factor=reference.gaussian.factor)


def read_reference(path: Path) -> Reference:
    """Reads what `save_reference` wrote. Raises UserError if it cannot be read, or is another file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            if header.pop("format") != _FORMAT:
                raise ValueError("another format")
            gaussian = Gaussian(file["mean"], file["factor"], header.pop("num_rows"))
            if gaussian.mean.ndim != 1 or gaussian.factor.shape[1:] != gaussian.mean.shape:
                raise ValueError("other shapes")
            return Reference(gaussian=gaussian, **header)
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is neither a folder of clips nor statistics of `musiclm evaluate fad --save-reference`; name one of them") from error


def evaluate_fad(
    embedding: Embedding,
    reference: str | Path,
    generated: str | Path,
    *,
    num_clips: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    save_to: str | Path | None = None,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """The Fréchet audio distance of the clips in one folder to those in another. Captions and splits are not used, and any rates are read.

    Args:
        embedding: the judge, from `judges.load_embedding`.
        reference: the folder of the reference, or a file of its statistics.
        generated: the folder of the generated clips.
        num_clips: the largest number of clips of each folder, drawn at random. None: all.
        seconds: length of the beginning of each clip that is used. None: clips are used whole.
        seed: random seed of the draws, of the subsets for the limit, and of the bootstrap.
        save_to: a file for the statistics of the reference.
        progress: called with one line per step.

    Returns:
        A report of plain JSON types: "fad", "fad_95", its interval for other generated clips against this reference, "fad_inf" (see
        `frechet.extrapolate`) and "fad_inf_r2" or None, "halves", the distance of one half of the reference's clips to the other half, or None; "clips", a
        list of {"file_name", "score"}, the distance of each clip alone to the reference; "notes", lines that say what limits the figures; and the settings.

    Raises:
        UserError: a folder or a file cannot be read, no clip of a folder can be used, the statistics are of another embedding, or a clip's embedding is
            not finite.
    """
    check_seed(seed)
    excerpt = Excerpt(embedding.sample_rate_hz, embedding.min_samples, seconds)
    if os.path.isfile(generated):
        raise UserError(f"{generated}: is a file, expected a folder of generated clips; the reference, which may be a file, comes first")
    known = read_reference(Path(reference)) if os.path.isfile(reference) else None
    if known and known.embedding != embedding.name:
        raise UserError(f"{reference}: has statistics of {known.embedding}, but the embedding is {embedding.name}: choose the same for both")
    real = None if known else read_clips(reference, progress=progress)
    made = read_clips(generated, progress=progress)
    read = functools.partial(_embed, embedding, excerpt=excerpt, num_clips=num_clips, progress=progress)
    skipped: list[str] = []
    if known is None:
        clips = read(real, what="reference", rng=np.random.default_rng([seed, 0]))
        skipped += clips.skipped
        halves = _halves(clips.rows, np.random.default_rng([seed, 1]))
        known = Reference(embedding.name, str(reference), frechet.fit(clips.rows), len(clips.rows), clips.seconds, halves)
    clips = read(made, what="generated", rng=np.random.default_rng([seed, 4]))
    skipped += clips.skipped
    if save_to is not None:
        save_reference(save_to, known)
    return _report(known, clips, str(generated), skipped, seed) | {"seconds": seconds, "seed": seed}


def _embed(
    embedding: Embedding, folder: ClipFolder, *, what: str, excerpt: Excerpt, num_clips: int | None, rng: np.random.Generator, progress: Progress
) -> _Embedded:
    """Embeds the clips of a folder."""
    names = {ClipFile.of(folder, entry): entry.name for entry in choose_clips(folder, num_clips, rng=rng)}

    def one(wave: np.ndarray) -> np.ndarray:
        return frechet.compress(np.asarray(embedding.embed(wave)))

    done, skipped = map_waves(one, list(names), excerpt, what=what, progress=progress)
    for file, rows, _ in done:
        if not np.isfinite(rows).all():
            raise UserError(f"{file}: its embedding by {embedding.name} has NaN or infinity; remove the clip, or choose another embedding")
    seconds = float(np.mean([length for _, _, length in done]))
    unusable = tuple(f"{folder.path / name}: {reason}" for name, reason in folder.unusable)
    return _Embedded(tuple(names[file] for file, _, _ in done), [rows for _, rows, _ in done], seconds, (*unusable, *skipped))


def _halves(clips: Sequence[Float[np.ndarray, "_ E"]], rng: np.random.Generator) -> float:
    """The distance of one random half of the clips to the other half. NaN: there are fewer than 4 clips."""
    if len(clips) < 4:
        return float("nan")
    order, half = rng.permutation(len(clips)), len(clips) // 2
    return frechet.distance(*(frechet.fit([clips[i] for i in rows]) for rows in (order[:half], order[half:])))


def _report(reference: Reference, clips: _Embedded, path: str, skipped: list[str], seed: int) -> dict[str, Any]:
    generated = frechet.fit(clips.rows)
    value = frechet.distance(reference.gaussian, generated)
    limit = frechet.extrapolate(reference.gaussian, clips.rows, rng=np.random.default_rng([seed, 2]))
    scores = [frechet.distance(reference.gaussian, frechet.fit([rows])) for rows in clips.rows]
    sizes = {"num_clips": len(clips.rows), "num_embeddings": generated.num_rows, "mean_seconds": clips.seconds}
    return {
        "embedding": reference.embedding,
        "num_dimensions": len(generated.mean),
        "reference": {
            "path": reference.path,
            "num_clips": reference.num_clips,
            "num_embeddings": reference.gaussian.num_rows,
            "mean_seconds": reference.seconds,
        },
        "generated": {"path": path, **sizes},
        "fad": value,
        "fad_95": frechet.distance_interval(reference.gaussian, clips.rows, rng=np.random.default_rng([seed, 3])),
        "fad_inf": limit and limit.value,
        "fad_inf_r2": limit and limit.r2,
        "halves": reference.halves if np.isfinite(reference.halves) else None,
        "clips": [{"file_name": name, "score": score} for name, score in sorted(zip(clips.names, scores), key=lambda clip: -clip[1])],
        "skipped": skipped,
        "notes": _notes(reference, clips, generated, value, limit and limit.value, skipped),
    }


def _notes(reference: Reference, clips: _Embedded, generated: Gaussian, value: float, limit: float | None, skipped: list[str]) -> list[str]:
    """What limits the figures, one line each."""
    notes, dim = left_out(skipped), len(generated.mean)
    if len(clips.rows) == 1:
        notes.append("one generated clip: the distance says how this clip differs from the reference, and nothing about a model")
    for what, rows, count in (("reference", reference.gaussian.num_rows, reference.num_clips), ("generated", generated.num_rows, len(clips.rows))):
        if rows <= dim:
            few = f"{what}: {rows} embeddings of {dim} dimensions, fewer than a covariance needs"
            notes.append(f"{few}; the distance is far too large, and comparable only with that of another {count} clips")
    if limit is None:
        notes.append("too few generated clips for the limit of many clips (fad_inf)")
    if value <= _SAME * (float(np.sum(generated.factor**2)) or 1.0):
        notes.append("the distance is 0: both folders have the same clips")
    elif limit is not None and limit < 0:
        notes.append("the limit of many clips (fad_inf) is below 0, which no distance is: its extrapolation is too noisy here; use more generated clips")
    notes += other_lengths(reference.seconds, clips.seconds)
    if reference.num_clips < len(clips.rows):
        notes.append("there are fewer reference clips than generated ones: are the folders swapped? The limit and the scores are of the second folder")
    return notes


def format_fad_report(report: dict[str, Any]) -> str:
    """The report in plain text: the distances, the clips farthest from the reference, and the notes."""
    sets = [
        f"{what}: {each['num_clips']} clips of {each['mean_seconds']:.3g} s, {each['num_embeddings']} embeddings, {each['path']}"
        for what, each in (("reference", report["reference"]), ("generated", report["generated"]))
    ]
    rows = [
        ("generated to reference (FAD)", number(report["fad"], report["fad_95"])),
        ("  for infinitely many generated clips", number(report["fad_inf"]) + ("" if report["fad_inf"] is None else f"  (r2 {report['fad_inf_r2']:.2f})")),
        ("half of the reference to the other half", number(report["halves"])),
    ]
    far = [(clip["file_name"], number(clip["score"])) for clip in report["clips"][:_WORST]]
    title = f"Fréchet audio distance, {report['embedding']}, {report['num_dimensions']} dimensions; 95 % interval in brackets"
    tables = (Table(("", "distance"), tuple(rows)), Table(("clips farthest from the reference", "distance"), tuple(far)))
    return page("\n".join([title, *sets]), *(table.text() for table in tables), notes=report["notes"])
