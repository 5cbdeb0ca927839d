"""Divergence of the classes of generated clips from those of the real clips with the same captions, by a classifier (MusicLM, arXiv 2301.11325, section 4.1).

Papers differ in three choices, all of which are reported: the direction of the Kullback-Leibler divergence, and whether the classes of a classifier with
many labels per clip become a distribution by the softmax of its logits or by its sigmoids divided by their sum. MusicLM does not state its choices;
AudioCraft has KL(reference || generated) of softmaxes, with this epsilon.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from musiclm_jax.arrays import Float
from musiclm_jax.evaluation import bootstrap
from musiclm_jax.evaluation.clips import ClipFile, Excerpt, Progress, check_seed, left_out, map_groups, other_lengths, pair_clips, read_clips, unpaired
from musiclm_jax.evaluation.judges import Classifier
from musiclm_jax.evaluation.tables import Table, number, page

EPSILON = 1e-6
# Makes a distribution of logits over the classes.
NORMALIZATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "softmax": lambda logits: softmax(logits, axis=-1),
    "sigmoid": lambda logits: expit(logits) / expit(logits).sum(axis=-1, keepdims=True),
}
DIRECTIONS = ("reference || generated", "generated || reference")


def divergences(p: Float[np.ndarray, "n V"], q: Float[np.ndarray, "m V"]) -> Float[np.ndarray, "n m"]:
    """The Kullback-Leibler divergence KL(p || q) in nats, of each row of p from each row of q."""
    return (p * np.log(p + EPSILON)).sum(axis=1)[:, None] - p @ np.log(q + EPSILON).T


def evaluate_kld(
    classifier: Classifier,
    reference: str | Path,
    generated: str | Path,
    *,
    seconds: float | None = None,
    seed: int = 0,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """The divergence of the classes of generated clips from those of the real clips of the same names (`pair_clips`).

    The distribution of a clip is the mean of those of its windows.

    Args:
        classifier: the judge, from `judges.load_classifier`.
        reference, generated: the folders.
        seconds: length of the beginning of each clip that is used. None: clips are used whole.
        seed: random seed of the bootstrap.
        progress: called with one line per step.

    Returns:
        A report of plain JSON types: "results" {normalization: {direction: {"pairs", "shuffled", each with "_95"}}}, where "shuffled" is the mean over
        pairs of different clips, which a model reaches that ignores its captions; "num_pairs", "skipped", "notes" and the settings.

    Raises:
        UserError: a folder cannot be read, or fewer than 2 clips have a partner that can be used.
    """
    check_seed(seed)
    excerpt = Excerpt(classifier.sample_rate_hz, classifier.min_samples, seconds)
    folders = [read_clips(folder, progress=progress) for folder in (reference, generated)]
    pairs = pair_clips(*folders)

    def classify(wave: np.ndarray) -> dict[str, np.ndarray]:
        logits = np.asarray(classifier.logits(wave), np.float64)
        return {name: normalize(logits).mean(axis=0) for name, normalize in NORMALIZATIONS.items()}

    files = [tuple(ClipFile.of(folder, entry) for folder, entry in zip(folders, pair)) for pair in pairs]
    groups, skipped, lengths = map_groups(classify, files, excerpt, columns=("reference", "generated"), progress=progress)
    results: dict[str, dict[str, Any]] = {}
    for name in NORMALIZATIONS:
        real, made = (np.stack([classes[i][name] for _, classes in groups]) for i in range(2))
        tables = zip(DIRECTIONS, (divergences(real, made), divergences(made, real)), strict=True)
        results[name] = {way: bootstrap.estimate_pairs(table, rng=np.random.default_rng([seed, 0])) for way, table in tables}
    return {
        "classifier": classifier.name,
        "num_classes": len(classifier.labels),
        "reference": str(reference),
        "generated": str(generated),
        "num_pairs": len(groups),
        "seconds": seconds,
        "seed": seed,
        "results": results,
        "skipped": skipped,
        "notes": unpaired(*folders, len(pairs)) + other_lengths(*lengths) + left_out(skipped),
    }


def format_kld_report(report: dict[str, Any]) -> str:
    """The report as a table in plain text: a line for each normalization and direction."""
    rows = tuple(
        (f"{name}, KL({way})", *(number(result[key], result[f"{key}_95"]) for key in ("pairs", "shuffled")))
        for name, ways in report["results"].items()
        for way, result in ways.items()
    )
    title = (
        f"Divergence of {report['num_classes']} classes by {report['classifier']}, {report['num_pairs']} pairs of clips, in nats; 95 % intervals in brackets"
    )
    return page(title, Table(("", "same caption", "shuffled (chance)"), rows).text(), notes=report["notes"])
