"""Evaluates MuLan by retrieval between clips and captions, in both directions, and by zero-shot tagging.

Retrieval is among N held-out clips with one caption each. A caption may fit several clips, so that even a perfect model cannot always find the right one.
The bound is the recall of a model that knows each clip's ground truth and what each caption states (`statements`): clips are ranked by the number of
stated attributes that they have, with ties in random order. Captions of a clip are ranked alike: those that it does not contradict come first, and among
them the one that fits the fewest clips. Recalls are exact expectations over ties.

Retrieval needs a folder of captioned clips only; the bound and the tags need clips with the attributes of a corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from musiclm_jax import audio
from musiclm_jax.arrays import Bool, Float
from musiclm_jax.corpus.synthesized import captions
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.clips import ClipFile, Prompt, check_seed, choose_prompts, read_clips, read_waves
from musiclm_jax.evaluation.extras import extra, require
from musiclm_jax.evaluation.statements import facts, lacking, num_disagreements, stated
from musiclm_jax.evaluation.tables import Table, number, page
from musiclm_jax.files import AnyPath


@runtime_checkable
class Embedder(Protocol):
    """The interface of the evaluated model, that of `tokenizers.MuLanTokenizer`."""

    def embed_audio(self, wave: Any) -> Any:
        """24 kHz waves [B, N] -> unit embeddings [B, D]."""
        ...

    def embed_text(self, texts: Sequence[str]) -> Any:
        """B texts -> unit embeddings [B, D]."""
        ...


RANKS = (1, 10)
# {attribute: {value: prompt}}, in the words of the corpus' captions.
TAGS: dict[str, dict[Any, str]] = {
    "instrument": {name: f"a piece with {names[0][1]}" for name, names in captions.INSTRUMENT_NAMES.items()},
    "drums": {True: "a piece with drums", False: "a piece without drums"},
    "mode": {mode: f"a piece in a {mode} key" for mode in captions.MODE_MOODS},
    "tempo": {band: f"a {words[0]} piece" for band, words in captions.TEMPO_WORDS.items()},
}


def recall_at(scores: Float[np.ndarray, "n n"], k: int) -> float:
    """Recall at k: the share of rows whose diagonal entry is among the k highest of the row, in expectation over the orders of ties."""
    own = np.diag(scores)[:, None]
    higher, equal = (scores > own).sum(axis=1), (scores == own).sum(axis=1)
    return float(np.clip((k - higher) / equal, 0, 1).mean())


def bound_scores(texts: Sequence[str], truths: Sequence[dict[str, Any]]) -> Float[np.ndarray, "n n"]:
    """Scores of the bound: row i, column j is how well clip j with the `facts` truths[j] fits caption i.

    A score is minus the number of stated attributes that the clip does not have. For a clip with all of them it is log(n / number of such clips).
    """
    wrong = np.array([[num_disagreements(statements, truth) for truth in truths] for statements in map(stated, texts)], np.float64)
    fits = wrong == 0
    return np.where(fits, np.log(len(truths) / np.maximum(fits.sum(axis=1, keepdims=True), 1)), -wrong)


def tag_auc(scores: Float[np.ndarray, "n"], has_tag: Bool[np.ndarray, "n"]) -> float | None:
    """Area under the ROC curve of one tag: how often a clip with the tag has a higher score than one without it. None if all clips have it, or none."""
    return float(extra("sklearn.metrics").roc_auc_score(has_tag, scores)) if 0 < has_tag.sum() < len(has_tag) else None


def evaluate_mulan(
    mulan: Embedder,
    data_dir: str | AnyPath,
    *,
    num_clips: int | None = None,
    seconds: float = 10.0,
    seed: int = 0,
    batch_size: int = 10,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Evaluates retrieval among held-out clips with one caption each, and zero-shot tagging of the same clips.

    Args:
        mulan: the model.
        data_dir: a folder of captioned clips; see `read_clips` for its splits.
        num_clips: number of held-out clips with captions, 2 or more. None: all. Their captions are drawn by `choose_prompts`.
        seconds: length of the beginning of each clip that is embedded. Clips must not be shorter.
        seed: random seed of the choice of clips and captions.
        batch_size: number of clips, or of texts, that are embedded at once.
        progress: called with one line per step.

    Returns:
        A report of plain JSON types: "retrieval" {"text to audio", "audio to text": {"1", "10": {"recall", "bound", "chance"}}}, "tags"
        {attribute: {"auc": mean over its values, "values": {value: auc}}} and "macro_auc", the mean over attributes, where an AUC is None if all clips
        have the value or none has it; "left_out", a line for each figure for which the clips lack attributes (bounds are None then, and tags missing);
        "num_clips", "seconds", "seed".

    Raises:
        UserError: the seed is out of range, scikit-learn is missing, the folder has no captions, or it has too few or too short held-out clips.
    """
    check_seed(seed)
    require("sklearn")
    folder, num_samples = read_clips(data_dir, progress=progress), round(seconds * audio.SAMPLE_RATE_HZ)
    if not folder.captioned:
        raise UserError(f"{folder.path}: no clip has a caption, which this evaluation needs; add captions to metadata.jsonl")
    prompts = choose_prompts(folder.captioned, num_captions=num_clips, rng=np.random.default_rng([seed, 0]), name="num_clips")
    tag_names, truths, left_out = _ground_truth(prompts)

    texts = [prompt.caption for prompt in prompts]
    text_embeddings = _embed(mulan.embed_text, texts, batch_size)
    tag_embeddings = {name: _embed(mulan.embed_text, list(TAGS[name].values()), batch_size) for name in tag_names}
    audio_embeddings = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        progress(f"embedding held-out clips {start + 1} to {start + len(batch)} of {len(prompts)}")
        audio_embeddings.append(np.asarray(mulan.embed_audio(read_waves([ClipFile.of(folder, prompt) for prompt in batch], num_samples))))
    audio_embeddings = np.concatenate(audio_embeddings)

    similar, bound = text_embeddings @ audio_embeddings.T, bound_scores(texts, truths) if truths else None
    retrieval: dict[str, dict[str, Any]] = {}
    for way, turn in (("text to audio", lambda scores: scores), ("audio to text", np.transpose)):
        best = {k: None if bound is None else recall_at(turn(bound), k) for k in RANKS}
        retrieval[way] = {str(k): {"recall": recall_at(turn(similar), k), "bound": best[k], "chance": min(1.0, k / len(prompts))} for k in RANKS}
    tags = {}
    for name, embeddings in tag_embeddings.items():
        similarity = audio_embeddings @ embeddings.T  # [n, values]
        has = {value: np.array([prompt.attributes[name] == value for prompt in prompts]) for value in TAGS[name]}
        aucs = {str(value): tag_auc(similarity[:, i], has[value]) for i, value in enumerate(TAGS[name])}
        tags[name] = {"auc": _mean(aucs.values()), "values": aucs}
    return {
        "num_clips": len(prompts),
        "seconds": seconds,
        "seed": seed,
        "retrieval": retrieval,
        "tags": tags,
        "macro_auc": _mean(tag["auc"] for tag in tags.values()),
        "left_out": left_out,
    }


def _ground_truth(prompts: Sequence[Prompt]) -> tuple[list[str], list[dict[str, Any]] | None, list[str]]:
    """Returns (the attributes of TAGS that all clips have, the `facts` of all clips or None if a clip lacks some, lines for "left_out")."""
    tags = [name for name in TAGS if all(name in prompt.attributes for prompt in prompts)]
    left_out = [f"tags of {name}: not all clips have that attribute" for name in TAGS if name not in tags]
    if any("named" in prompt.attributes for prompt in prompts):
        return tags, None, ["what a perfect reader reaches: the captions are not of the grammar that it reads", *left_out]
    for prompt in prompts:
        if missing := lacking(prompt.attributes):
            why = f"{prompt.file_name} lacks {', '.join(missing)} of the attributes of a corpus"
            return tags, None, [f"what a perfect reader reaches: {why}", *left_out]
    return tags, [facts(prompt.attributes) for prompt in prompts], left_out


def _embed(embed_text: Callable[[Sequence[str]], Any], texts: list[str], batch_size: int) -> Float[np.ndarray, "n D"]:
    """Embeds texts in batches of one size, so that they share one compiled program. The last batch is padded with its first text."""
    rows = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        rows.append(np.asarray(embed_text(batch + batch[:1] * (batch_size - len(batch))))[: len(batch)])
    return np.concatenate(rows)


def _mean(values) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def format_mulan_report(report: dict[str, Any]) -> str:
    """The report as two tables in plain text: recall with bound and chance, and AUC by attribute."""
    recalls = tuple(
        (f"{way}, first {k}", *(number(row[key]) for key in ("recall", "bound", "chance")))
        for way, ranks in report["retrieval"].items()
        for k, row in ranks.items()
    )
    tags = tuple(
        (name, number(tag["auc"]), ", ".join(f"{_TAG_NAMES.get((name, value), value)} {number(auc)}" for value, auc in tag["values"].items()))
        for name, tag in report["tags"].items()
    )
    tables = [Table(("", "recall", "perfect reader", "chance"), recalls)]
    tables += [Table(("zero-shot tagging", "AUC (0.5 is chance)", "of each value"), (*tags, ("mean", number(report["macro_auc"]), "")))] if tags else []
    title = f"MuLan on {report['num_clips']} held-out clips, one caption each, {report['seconds']:g} s"
    return page(title, *(table.text() for table in tables), notes=[f"left out: {each}" for each in report["left_out"]])


_TAG_NAMES = {("drums", "True"): "with", ("drums", "False"): "without"}
