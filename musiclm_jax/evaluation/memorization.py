"""Memorization of training data by the semantic stage (MusicLM, arXiv 2301.11325, section 5 and appendix B).

The stage gets the MuLan tokens of a clip and its first T semantic tokens, and continues with 125 tokens, 5 s, by the most likely one each time. It has
memorized a clip exactly if all of them are those of the clip, and approximately if the histograms of both are closer than those of unrelated clips: below a
threshold that fewer than 0.01 % of the pairs of a continuation and another clip pass. The paper does not state the number of clips, and no settings of its
transport distance; ours are in the report.

Held-out clips, which the paper does not have, are the control: what matches there is music that can be guessed, not remembered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from musiclm_jax.arrays import Float, Int
from musiclm_jax.data.folder import ClipFolder, Entry
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation import bootstrap
from musiclm_jax.evaluation.clips import ClipFile, Excerpt, Progress, check_seed, left_out, map_waves, read_clips
from musiclm_jax.evaluation.continuations import Given, continue_clips
from musiclm_jax.evaluation.distances import centroid_distances, matching_costs
from musiclm_jax.evaluation.identity import tokenizer_name
from musiclm_jax.evaluation.tables import Table, number, page, percent
from musiclm_jax.evaluation.token_index import PASSAGE_TOKENS, entropy_bits, tokenize
from musiclm_jax.files import AnyPath
from musiclm_jax.generation.stages import StageSpec
from musiclm_jax.musiclm import MusicLM

PROMPT_TOKENS = (0, 50, 100, 150, 200, 250)
# The share of unrelated pairs that may pass the threshold, and the most pairs that are compared for it.
FALSE_POSITIVES, _NUM_UNRELATED = 1e-4, 15_000
# Weight of the entropy in the transport distance, in mean distances of two tokens, and the most iterations.
_EPSILON, _ITERATIONS = 0.05, 200
_SPLITS = {"train": "training", "test": "held-out"}


@dataclasses.dataclass(frozen=True)
class _Clips:
    """The clips of one split: names, semantic tokens [n, T], MuLan tokens [n, Q]."""

    names: tuple[str, ...]
    tokens: np.ndarray
    mulan: np.ndarray

    def after(self, prompt: int) -> Int[np.ndarray, "n T"]:
        """The clips' own tokens after a prompt."""
        return self.tokens[:, prompt : prompt + PASSAGE_TOKENS]

    def given(self, split: str, prompt: int) -> Given:
        """What the stage gets of the clips."""
        return Given(_SPLITS[split], self.mulan, self.tokens[:, :prompt])


def evaluate_memorization(
    musiclm: MusicLM,
    data_dir: str | AnyPath,
    *,
    num_clips: int = 100,
    prompt_tokens: Sequence[int] = PROMPT_TOKENS,
    batch_size: int = 20,
    seed: int = 0,
    kept: AnyPath | None = None,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """How often the semantic stage continues clips with their own tokens.

    Args:
        musiclm: the model. Its semantic stage must be conditioned on MuLan tokens only.
        data_dir: a folder of clips with the splits of the training. Of each clip the beginning is used: the longest prompt and 5 s.
        num_clips: the largest number of clips of each split, drawn at random.
        prompt_tokens: lengths T of the prompts, in semantic tokens.
        batch_size: clips that are continued at once.
        seed: random seed of the choice of clips and pairs, and of the bootstrap.
        kept: a .npz file of continuations, with which a call that was stopped is continued; see `continue_clips`. None: none.
        progress: called with one line per step.

    Returns:
        A report of plain JSON types: "results" {split: [{"prompt_tokens", "exact", "approximate", "equal", each with "_95"}]}, the shares of clips that
        match exactly and approximately, and the mean share of equal tokens; "threshold" and its calibration; "entropy" {"matches", "others", "clips"},
        mean bits per token of continuations and of the clips' own tokens; "matches", a list of each; "notes" and the settings.

    Raises:
        UserError: a number is out of range, the stage has other conditions, fewer than 2 training clips are long enough, or `kept` is another file.
    """
    check_seed(seed)
    stage = _semantic_stage(musiclm)
    prompts = _check_prompts(prompt_tokens, num_clips, batch_size)
    folder = read_clips(data_dir, progress=progress)
    clips, skipped = _read_splits(musiclm, folder, num_clips, max(prompts) + PASSAGE_TOKENS, np.random.default_rng([seed, 0]), progress)
    given = {(split, prompt): some.given(split, prompt) for split, some in clips.items() for prompt in prompts}
    made = continue_clips(musiclm, stage, list(given.values()), batch_size=batch_size, file=kept, progress=progress)
    continued = dict(zip(given, made, strict=True))

    progress("comparing histograms of tokens")
    costs = _cost_settings(musiclm, clips["train"].tokens)
    unrelated = _unrelated_costs(clips["train"], {prompt: continued["train", prompt] for prompt in prompts}, costs, np.random.default_rng([seed, 1]))
    threshold, num_below = calibrate(unrelated)
    rows = {split: [_compare(some, prompt, continued[split, prompt], costs) for prompt in prompts] for split, some in clips.items()}
    rng = np.random.default_rng([seed, 2])
    return {
        "tokenizer": tokenizer_name(musiclm),
        "num_clips": {split: len(some.names) for split, some in clips.items()},
        "num_tokens": PASSAGE_TOKENS,
        "prompt_tokens": list(prompts),
        "seed": seed,
        "threshold": threshold,
        "mean_unrelated": float(unrelated.mean()),
        "num_unrelated": len(unrelated),
        "num_unrelated_below": num_below,
        "epsilon": costs["epsilon"],
        "iterations": _ITERATIONS,
        "results": {split: [_shares(row, threshold, rng) for row in some] for split, some in rows.items()},
        "entropy": _entropies(rows, clips, threshold),
        "matches": [match for split, some in rows.items() for row in some for match in _matches(split, row, threshold)],
        "skipped": skipped,
        "notes": _notes(stage, prompts, clips) + left_out(skipped),
    }


# ---------------------------------------------------------------------------------------------------------------------- Clips


def _semantic_stage(musiclm: MusicLM) -> StageSpec:
    stage = next((stage for stage in musiclm.config.stages if stage.target.stream == "semantic"), None)
    if stage is None:
        raise UserError("the model has no stage of semantic tokens, whose memorization this evaluation measures")
    if others := [levels.stream for levels in stage.prefix if levels.stream != "mulan"]:
        raise UserError(f"the semantic stage is conditioned on {', '.join(others)} too: this evaluation has MuLan tokens only")
    return stage


def _check_prompts(prompt_tokens: Sequence[int], num_clips: int, batch_size: int) -> tuple[int, ...]:
    """The lengths, ascending. Raises UserError for numbers out of range."""
    if not prompt_tokens or min(prompt_tokens) < 0 or max(prompt_tokens) > 5000:
        raise UserError(f"prompt_tokens={list(prompt_tokens)}: choose lengths from 0 to 5000 tokens")
    if num_clips < 2 or batch_size < 1:
        raise UserError(f"num_clips={num_clips}, batch_size={batch_size}: choose at least 2 clips and a batch of at least 1")
    return tuple(sorted(set(prompt_tokens)))


def _read_splits(
    musiclm: MusicLM, folder: ClipFolder, num_clips: int, num_tokens: int, rng: np.random.Generator, progress: Progress
) -> tuple[dict[str, _Clips], list[str]]:
    """Some clips of each split that has any, drawn at random, and the reasons why others cannot be used."""
    clips, skipped = {}, []
    for split in _SPLITS:
        entries = folder.split(split)
        chosen = [entries[i] for i in rng.permutation(len(entries))[:num_clips].tolist()]
        found, reasons = _read(musiclm, folder, chosen, split, num_tokens, progress)
        skipped += reasons
        clips |= {split: found} if found else {}
    return clips, skipped


def _read(musiclm: MusicLM, folder: ClipFolder, entries: Sequence[Entry], split: str, num_tokens: int, progress: Progress) -> tuple[_Clips | None, list[str]]:
    """The tokens of the beginnings of clips, and the reasons why others cannot be used. None: a split other than that of training has none."""
    spec, names = musiclm.config.audio, {ClipFile.of(folder, entry): entry.name for entry in entries}
    samples = num_tokens * spec.semantic_samples
    excerpt = Excerpt(spec.sample_rate_hz, samples, samples / spec.sample_rate_hz)
    least = 2 if split == "train" else 0
    if len(names) < least:
        raise UserError(f"{folder.path}: has {len(names)} training clips, expected at least {least}")

    def fn(wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return tokenize(musiclm.semantic, wave, rate_hz=spec.semantic_rate_hz), musiclm.mulan.audio_tokens(wave[None])[0]

    done, skipped = map_waves(fn, list(names), excerpt, what=_SPLITS[split], least=least, progress=progress)
    if not done:
        return None, skipped
    tokens, mulan = (np.stack([result[i] for _, result, _ in done]) for i in range(2))
    return _Clips(tuple(names[file] for file, _, _ in done), tokens, mulan), skipped


# ---------------------------------------------------------------------------------------------------------------------- Matches


@dataclasses.dataclass(frozen=True)
class _Compared:
    """The continuations of the clips of a split after one prompt length, compared with the clips' own tokens."""

    prompt: int
    names: tuple[str, ...]
    continued: np.ndarray
    # [n]: the share of equal tokens, and the distance of the histograms.
    equal: np.ndarray
    costs: np.ndarray


def _compare(clips: _Clips, prompt: int, continued: Int[np.ndarray, "n T"], costs: dict[str, Any]) -> _Compared:
    own = clips.after(prompt)
    return _Compared(prompt, clips.names, continued, (continued == own).mean(axis=1), matching_costs(continued, own, **costs))


def _cost_settings(musiclm: MusicLM, tokens: Int[np.ndarray, "n T"]) -> dict[str, Any]:
    """The arguments of `matching_costs`. The entropy's weight is in mean distances of two of the tokens."""
    distances = centroid_distances(np.asarray(musiclm.variables("w2v_bert")["kmeans"]["centroids"]))
    usage = np.bincount(tokens.ravel(), minlength=len(distances)) / tokens.size
    return {"distances": distances, "epsilon": _EPSILON * (float(usage @ distances @ usage) or 1.0), "iterations": _ITERATIONS}


def _unrelated_costs(clips: _Clips, continued: dict[int, np.ndarray], costs: dict[str, Any], rng: np.random.Generator) -> Float[np.ndarray, "P"]:
    """Distances of continuations to the tokens of other clips, in the same place: all pairs, or some drawn at random."""
    count, prompts = len(clips.names), list(continued)
    pairs = rng.permutation(len(prompts) * count * (count - 1))[:_NUM_UNRELATED]
    which, pair = np.divmod(pairs, count * (count - 1))
    i, j = np.divmod(pair, count - 1)
    j += j >= i  # All numbers but i.
    made, own = np.stack([continued[prompt] for prompt in prompts]), np.stack([clips.after(prompt) for prompt in prompts])
    return matching_costs(made[which, i], own[which, j], **costs)


def calibrate(unrelated: Float[np.ndarray, "P"]) -> tuple[float, int]:
    """The largest threshold below which fewer than 0.01 % of the distances of unrelated pairs are, and the number of them that are."""
    allowed = max(0, int(np.ceil(FALSE_POSITIVES * len(unrelated))) - 1)
    threshold = float(np.sort(unrelated)[allowed])
    return threshold, int(np.sum(unrelated < threshold))


def _shares(row: _Compared, threshold: float, rng: np.random.Generator) -> dict[str, Any]:
    values = {"exact": row.equal == 1, "approximate": row.costs < threshold, "equal": row.equal}

    def statistic(counts: np.ndarray) -> dict[str, np.ndarray]:
        return {name: bootstrap.means(each, counts) for name, each in values.items()}

    return {"prompt_tokens": row.prompt} | bootstrap.estimate(statistic, len(row.names), rng=rng)


def _matches(split: str, row: _Compared, threshold: float) -> list[dict[str, Any]]:
    """The clips that match, at least approximately."""
    found = np.flatnonzero(row.costs < threshold).tolist()
    same = {"split": split, "prompt_tokens": row.prompt}
    return [{**same, "file_name": row.names[i], "exact": bool(row.equal[i] == 1), "cost": float(row.costs[i])} for i in found]


def _entropies(rows: dict[str, list[_Compared]], clips: dict[str, _Clips], threshold: float) -> dict[str, float | None]:
    """Mean entropies of continuations of training clips that match and that do not, and of the clips' own tokens."""

    def mean(sequences: list[np.ndarray]) -> float | None:
        return float(np.mean([entropy_bits(each) for each in sequences])) if sequences else None

    matching = [(row.continued[i], row.costs[i] < threshold) for row in rows["train"] for i in range(len(row.names))]
    own = [tokens for row in rows["train"] for tokens in clips["train"].after(row.prompt)]
    return {"matches": mean([each for each, match in matching if match]), "others": mean([each for each, match in matching if not match]), "clips": mean(own)}


def _notes(stage: StageSpec, prompts: Sequence[int], clips: dict[str, _Clips]) -> list[str]:
    notes, rate = [], PASSAGE_TOKENS / 5
    if stage.window_sec * rate < max(prompts) + PASSAGE_TOKENS:
        notes.append(f"the stage sees {stage.window_sec:g} s at once, less than the longest prompt and 5 s: it continues what is left of the prompt")
    if "test" not in clips:
        notes.append("there are no held-out clips, so that it is unknown how much of this is music that can be guessed")
    count = len(clips["train"].names)
    if len(prompts) * count * (count - 1) < 1 / FALSE_POSITIVES:
        notes.append(f"{count} training clips have too few unrelated pairs for the threshold: use more clips, such that there are 10,000 pairs")
    notes.append(f"none of {count} training clips means that a rate below {100 * (1 - 0.05 ** (1 / count)):.1f} % cannot be excluded")
    return notes


# ---------------------------------------------------------------------------------------------------------------------- Pages


def memorization_table(report: dict[str, Any]) -> Table:
    """A line for each split and length of the prompt."""
    rows = tuple(
        (
            f"{_SPLITS[split]} clips",
            f"{row['prompt_tokens']} ({row['prompt_tokens'] / PASSAGE_TOKENS * 5:g} s)",
            *(percent(row[name], row[f"{name}_95"]) for name in ("exact", "approximate", "equal")),
        )
        for split, some in report["results"].items()
        for row in some
    )
    return Table(("", "prompt, tokens", "exact matches", "approximate matches", "equal tokens"), rows)


def format_memorization_report(report: dict[str, Any]) -> str:
    """The report in plain text: the table of matches, the threshold, and the entropies."""
    counts = ", ".join(f"{count} {_SPLITS[split]} clips" for split, count in report["num_clips"].items())
    title = f"Memorization: {counts}, continued by {report['num_tokens']} semantic tokens of {report['tokenizer']}; 95 % intervals in brackets"
    threshold = (
        f"approximate: transport distance below {report['threshold']:.3g}, where unrelated clips have {report['mean_unrelated']:.3g}; "
        f"{report['num_unrelated_below']} of {report['num_unrelated']} unrelated pairs are below"
    )
    entropy = report["entropy"]
    bits = ", ".join(f"{what} {number(entropy[key], digits=1)}" for what, key in (("matches", "matches"), ("others", "others"), ("the clips' own", "clips")))
    return page(title, memorization_table(report).text(), f"{threshold}\nentropy in bits per token: {bits}", notes=report["notes"])
