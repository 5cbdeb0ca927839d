"""What semantic tokens decide and what acoustic tokens decide (MusicLM, arXiv 2301.11325, section 5, "information represented by the tokens").

Of each prompt two groups of clips are made: with the same MuLan and semantic tokens and new acoustic tokens each, and with new semantic tokens each, too. The
paper listens: the first share genre, rhythm and a part of the melody, and differ in their sound; the second differ in all but what the prompt says. Here
the distances between two clips of a group are measured, beside those between clips of different prompts, which the paper does not have.

A clip that was made from semantic tokens is encoded again: how many of its tokens are the given ones says how far the acoustic stages follow them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import soxr

from musiclm_jax.arrays import Float, Int
from musiclm_jax.audio.loudness import level
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation import bootstrap
from musiclm_jax.evaluation.clips import Progress
from musiclm_jax.evaluation.embeddings import load_musicnn
from musiclm_jax.evaluation.html import brightness
from musiclm_jax.evaluation.identity import model_name
from musiclm_jax.evaluation.tables import Table, number, page, percent
from musiclm_jax.generation.request import check_request, clip_keys
from musiclm_jax.generation.sampler import Keys
from musiclm_jax.generation.stages import StageSpec, required_steps
from musiclm_jax.musiclm import MusicLM
from musiclm_jax.tokens import ABSENT

# How far two clips are apart, and the digits of the table.
MEASURES = {"MuLan, cosine distance": 3, "musicnn, cosine distance": 3, "spectra, dB": 1, "semantic tokens that differ": 3}
_RANGE_DB = 80.0  # Of `brightness`.


@dataclasses.dataclass(frozen=True)
class _Group:
    """Clips of one prompt: the semantic tokens that they were made from [n, T], and what is measured of them, a row for each clip."""

    given: np.ndarray
    encoded: np.ndarray
    # By the names of MEASURES.
    features: dict[str, np.ndarray]


def evaluate_diversity(
    musiclm: MusicLM,
    prompts: Sequence[str],
    *,
    num_draws: int = 4,
    seconds: float | int = 10.0,
    seed: int = 0,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """How far clips of one prompt are apart, with the same semantic tokens and with new ones.

    Args:
        musiclm: the model. Each clip is drawn once, without candidates and drafts.
        prompts: two or more.
        num_draws: clips of each group, 2 or more.
        seconds: length of the clips; musicnn needs 3 s.
        seed: random seed of the clips and of the bootstrap.
        progress: called with one line per prompt.

    Returns:
        A report of plain JSON types: "results" {measure: {"same", "anew", "prompts", "ratio", each with "_95"}}, the mean distances of two clips with the
        same semantic tokens, of two with new ones, and of two of different prompts, and the first in parts of the second; "kept" {"pairs", "shuffled"}, the
        share of semantic tokens that are the given ones when the clips of the first group are encoded again, and that of another prompt's; the settings.
        Intervals are over prompts.

    Raises:
        UserError: fewer than two different prompts or two draws, clips that are too short, or a model without a stage of semantic tokens.
    """
    check_request(prompts, seconds=seconds, seed=seed, num_samples=num_draws)
    if len(prompts) < 2 or len(set(map(musiclm.text.normalize, prompts))) < len(prompts):
        raise UserError(f"{len(prompts)} prompts {', '.join(map(repr, prompts))}: give two or more that differ, since intervals are over prompts")
    if num_draws < 2:
        raise UserError(f"draws={num_draws}: choose 2 or more, since pairs of clips are compared")
    judge = load_musicnn()
    if seconds * judge.sample_rate_hz < judge.min_samples:
        raise UserError(f"seconds={seconds:g}: choose at least 3, the least that musicnn can read")
    draw = functools.partial(_draw_prompt, musiclm, _stages(musiclm), num_draws=num_draws, seconds=seconds, seed=seed)
    groups = []
    for i, prompt in enumerate(prompts, start=1):
        progress(f"drawing {2 * num_draws} clips of prompt {i} of {len(prompts)}")
        groups.append(draw(prompt))
    same, anew = zip(*groups, strict=True)
    return {
        "model": model_name(musiclm),
        "prompts": list(prompts),
        "num_draws": num_draws,
        "seconds": seconds,
        "seed": seed,
        "results": {name: _distances(name, same, anew, rng=np.random.default_rng([seed, 0])) for name in MEASURES},
        "kept": bootstrap.estimate_pairs(kept_tokens(same), rng=np.random.default_rng([seed, 0])),
    }


# ---------------------------------------------------------------------------------------------------------------------- Clips


def _stages(musiclm: MusicLM) -> tuple[StageSpec, ...]:
    """The stages in their order, that of semantic tokens first."""
    stages = tuple(stage for stage in musiclm.config.stages if stage.name not in musiclm.config.skipped_stages)
    if stages[0].target.stream != "semantic":
        raise UserError("the model has no stage of semantic tokens before the others, which this evaluation needs")
    return stages


def _draw_prompt(musiclm: MusicLM, stages: Sequence[StageSpec], prompt: str, *, num_draws: int, seconds: float | int, seed: int) -> tuple[_Group, _Group]:
    """Clips of one prompt with the same semantic tokens, and with new ones. The first clip of both is the same."""
    config = musiclm.config
    steps = required_steps([(stage, stage.layout(config.streams)) for stage in stages], seconds=seconds)
    absent = {name: np.full((1, stream.steps, stream.levels), ABSENT, np.int32) for name, stream in config.streams.items() if stream.optional}
    conditions = {"mulan": musiclm.mulan.text_tokens([prompt]), **absent}
    keys = clip_keys([musiclm.text.normalize(prompt)] * num_draws, seed=seed)
    semantic = draw_streams(musiclm, stages[:1], conditions, steps=steps, keys=keys)["semantic"]
    groups = []
    for given in (semantic[:1], semantic):
        rows = {name: np.repeat(tokens, len(given), axis=0) for name, tokens in conditions.items()} | {"semantic": given}
        codes = draw_streams(musiclm, stages[1:], rows, steps=steps, keys=keys)["acoustic"]
        groups.append(_measure(musiclm, np.repeat(given[:, :, 0], num_draws // len(given), axis=0), codes, seconds=seconds))
    return groups[0], groups[1]


def draw_streams(
    musiclm: MusicLM, stages: Sequence[StageSpec], streams: Mapping[str, np.ndarray], *, steps: Mapping[str, int], keys: Keys
) -> dict[str, np.ndarray]:
    """The streams, and those that the stages write, one after the other. Each B / G consecutive keys share one of the G rows of the streams given."""
    found = dict(streams)
    for stage in stages:
        conditions = {levels.stream: found[levels.stream] for levels in stage.prefix}
        rows = max((len(tokens) for tokens in conditions.values()), default=1)
        conditions = {name: np.repeat(tokens, rows // len(tokens), axis=0) for name, tokens in conditions.items()}
        codes, name = musiclm.draw_stage(stage, conditions, steps=steps[stage.name], keys=keys), stage.target.stream
        before = found.get(name)
        found[name] = codes if before is None else np.concatenate([before[:, : codes.shape[1]], codes[:, : before.shape[1]]], axis=2)
    return found


def _measure(musiclm: MusicLM, given: Int[np.ndarray, "n T"], codes: Int[np.ndarray, "n F Q"], *, seconds: float | int) -> _Group:
    rate, judge = musiclm.config.audio.sample_rate_hz, load_musicnn()
    decoded = musiclm.acoustic.decode(codes)[:, : round(seconds * rate)]
    waves = np.stack([level(wave, sample_rate_hz=rate) for wave in decoded])
    encoded = musiclm.semantic.encode(waves)
    tags = np.stack([judge.embed(soxr.resample(wave, rate, judge.sample_rate_hz)).mean(axis=0) for wave in waves])
    features = (musiclm.mulan.embed_audio(waves), tags, np.stack([brightness(wave) for wave in waves]), encoded)
    return _Group(given[:, : encoded.shape[1]], encoded, dict(zip(MEASURES, features, strict=True)))


# ---------------------------------------------------------------------------------------------------------------------- Distances


def cosine_distances(rows: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n n"]:
    rows = rows.astype(np.float64)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return 1 - unit @ unit.T


def mean_differences(rows: np.ndarray, difference: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Float[np.ndarray, "n n"]:
    """The mean over all that two rows have, of `difference` of both."""
    return np.array([[difference(row, other).mean() for other in rows] for row in rows], np.float64)


def distance_table(name: str, features: np.ndarray) -> Float[np.ndarray, "n n"]:
    """Distances of clips by one of MEASURES, from a row for each clip: embeddings, spectra from 0 to 1, or tokens."""
    if "cosine" in name:
        return cosine_distances(features)
    return mean_differences(features, np.not_equal) if "tokens" in name else _RANGE_DB * mean_differences(features, lambda a, b: np.abs(a - b))


def prompt_means(table: Float[np.ndarray, "n n"], num_prompts: int) -> Float[np.ndarray, "P P"]:
    """Mean distances of a clip of one prompt and a clip of another; of two different clips, where both prompts are the same."""
    draws = len(table) // num_prompts
    blocks = table.reshape(num_prompts, draws, num_prompts, draws).sum(axis=(1, 3))
    own = np.trace(table.reshape(num_prompts, draws, num_prompts, draws).diagonal(axis1=0, axis2=2))
    count = np.full_like(blocks, draws * draws)
    np.fill_diagonal(count, draws * (draws - 1))
    return (blocks - np.diag(own)) / count


def _distances(name: str, same: Sequence[_Group], anew: Sequence[_Group], *, rng: np.random.Generator) -> dict[str, Any]:
    """The figures of one measure."""
    ours, theirs = (prompt_means(distance_table(name, np.concatenate([each.features[name] for each in groups])), len(groups)) for groups in (same, anew))

    def statistic(counts: np.ndarray) -> dict[str, np.ndarray]:
        close, (wide, others) = bootstrap.means(np.diag(ours), counts), bootstrap.pair_means(theirs, counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"same": close, "anew": wide, "prompts": others, "ratio": close / wide}

    return bootstrap.estimate(statistic, len(same), rng=rng)


def kept_tokens(groups: Sequence[_Group]) -> Float[np.ndarray, "P P"]:
    """The share of the semantic tokens of the clips of one prompt, encoded again, that are those from which the clips of another were made."""
    return np.array([[(clips.encoded == other.given).mean() for other in groups] for clips in groups], np.float64)


# ---------------------------------------------------------------------------------------------------------------------- Pages


def format_diversity_report(report: dict[str, Any]) -> str:
    """The report in plain text: a line for each measure, and how many semantic tokens are kept."""
    columns = ("", "same semantic tokens", "new semantic tokens", "other prompts", "same : new")
    rows = tuple(
        (
            name,
            *(number(result[key], result[f"{key}_95"], digits=MEASURES[name]) for key in ("same", "anew", "prompts")),
            number(result["ratio"], result["ratio_95"], digits=2),
        )
        for name, result in report["results"].items()
    )
    title = (
        f"Distance of two clips by {report['model']}: {len(report['prompts'])} prompts, {report['num_draws']} clips of {report['seconds']:g} s in each group; "
        "95 % intervals over prompts in brackets"
    )
    kept = report["kept"]
    own, other = (percent(kept[key], kept[f"{key}_95"]) for key in ("pairs", "shuffled"))
    again = f"semantic tokens that are the given ones when a clip is encoded again: {own}; those of another prompt: {other}"
    return page(title, Table(columns, rows).text(), again, notes=["each clip is drawn once, without candidates and drafts"])
