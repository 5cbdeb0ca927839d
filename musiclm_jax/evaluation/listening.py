"""Listening tests as in MusicLM (arXiv 2301.11325): blind comparisons of two clips that have one caption, on a scale of five.

`write_page` writes a page that a browser opens from the disk; raters save their answers as JSON; `score` counts wins and tests each pair of systems.
"""

from __future__ import annotations

import collections
import html
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from musiclm_jax.audio import SAMPLE_RATE_HZ
from musiclm_jax.data.folder import ClipFolder
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.clips import ClipFile, Excerpt, Progress, check_seed, left_out, map_groups, pair_clips, read_clips, unpaired
from musiclm_jax.evaluation.html import as_script, document, element, link
from musiclm_jax.evaluation.tables import Table, page
from musiclm_jax.files import local_path, read_json, write_text

FORMAT = 1
# What a rater says of the first clip and of the second one, as preference for the second.
SCALE = {-2: "much more the first", -1: "rather the first", 0: "no difference", 1: "rather the second", 2: "much more the second"}
QUESTION = "Which clip fits the text better? Judge the music, not the quality of the sound."
# Clips are no shorter, 0.04 s, and of a pair whose lengths differ by a factor above the other, one can be told by its length.
_LEAST_SAMPLES, _UNEVEN = 960, 1.02
_SCRIPT = Path(__file__).with_name("listening.js")


def write_page(
    a_dir: str | Path, b_dir: str | Path, out: str | Path, *, num_pairs: int | None = None, seed: int = 0, progress: Progress = lambda line: None
) -> tuple[int, list[str]]:
    """Writes a page for blind comparisons of the clips of the same names in two folders.

    The order of the pairs, and of the two clips of each, is random. The text is the first caption that a clip of the pair has. The page names the audio files
    relative to itself: moved, it needs them in the same places. The names of the folders are those of the systems in the results.

    Returns:
        (the number of pairs, notes about clips that are left out).

    Raises:
        UserError: a folder cannot be read, both have the same name, fewer than 2 pairs have clips that can be heard, or the page cannot be written.
    """
    check_seed(seed)
    out, folders = local_path(out), [read_clips(local_path(path), progress=progress) for path in (a_dir, b_dir)]
    systems = [folder.path.resolve().name for folder in folders]
    if systems[0] == systems[1]:
        raise UserError(f"both folders are called {systems[0]!r}, which is the name of the system in the results: rename one of them")
    paired, rng = pair_clips(*folders), np.random.default_rng(seed)
    files = [tuple(ClipFile.of(folder, entry) for folder, entry in zip(folders, pair)) for pair in paired]
    lengths, skipped, _ = map_groups(len, files, Excerpt(SAMPLE_RATE_HZ, _LEAST_SAMPLES), columns=tuple(systems), progress=progress)
    pairs = [paired[number] for number, _ in lengths]
    order = rng.permutation(len(pairs))[:num_pairs]
    trials = [_trial(folders, systems, pairs[i], bool(rng.integers(2)), out) for i in order.tolist()]
    scale = "".join(f'<button value="{value}">{html.escape(text)}</button>' for value, text in SCALE.items())
    clips = "".join(f'<div class="clip">{name}<br><audio controls></audio></div>' for name in ("First", "Second"))
    data = {"format": FORMAT, "systems": systems, "seed": seed, "trials": trials}
    body = [
        f'<div id="trial">{element("p", QUESTION)}<blockquote id="text"></blockquote><div>{clips}</div><p id="scale">{scale}</p></div>',
        '<p class="note"><span id="count"></span> <button id="back">back</button> <button id="save">save the answers so far</button></p>',
        f"<script>const test = {as_script(data)};\n{_SCRIPT.read_text(encoding='utf-8')}</script>",
    ]
    write_text(out, document("Listening test", *body))
    uneven = sum(max(both) > _UNEVEN * min(both) for _, both in lengths)
    notes = [f"{uneven} of {len(pairs)} pairs have clips of different lengths, by which raters can tell the systems apart"] if uneven else []
    return len(trials), [*unpaired(*folders, len(paired)), *left_out(skipped), *notes]


def _trial(folders: Sequence[ClipFolder], systems: Sequence[str], pair: Sequence[Any], swapped: bool, page: Path) -> dict[str, Any]:
    texts = [caption for entry in pair for caption in entry.captions]
    sides = [(system, link(ClipFile.of(folder, entry), page)) for folder, system, entry in zip(folders, systems, pair)]
    (first, first_file), (second, second_file) = reversed(sides) if swapped else sides
    return {"clip": pair[0].name, "text": texts[0] if texts else "", "first": first, "second": second, "files": [first_file, second_file]}


# ---------------------------------------------------------------------------------------------------------------------- Results


def score(paths: Sequence[str | Path]) -> dict[str, Any]:
    """Counts the wins of each system, and tests each pair of systems by Wilcoxon's signed-rank test, with Bonferroni's correction for the number of pairs.

    A win is a preference, strong or weak. The test ranks answers by their strength, those without preference too, which then count for neither side (Pratt).

    Args:
        paths: results that raters have saved.

    Returns:
        A report of plain JSON types: "wins" and "comparisons" {system: count}; "pairs", a list of {"systems", "answers", "wins", "ties", "p", "p_corrected"};
        "num_results".

    Raises:
        UserError: there are none, a file is none, or two are the same.
    """
    if not paths:
        raise UserError("there are no results: name the JSON files that raters have saved")
    _check_distinct(paths)
    # {the two systems, in the order of their names: preferences for the second of them}.
    ratings: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
    for first, second, rating in itertools.chain.from_iterable(map(_answers, paths)):
        systems = tuple(sorted((first, second)))
        ratings[systems].append(rating if systems == (first, second) else -rating)
    wins, comparisons, pairs = collections.Counter(), collections.Counter(), []
    for systems, values in sorted(ratings.items()):
        won = [sum(value < 0 for value in values), sum(value > 0 for value in values)]
        for system, count in zip(systems, won):
            wins[system] += count
            comparisons[system] += len(values)
        p = float(scipy.stats.wilcoxon(values, zero_method="pratt").pvalue) if any(values) else 1.0
        corrected = min(1.0, p * len(ratings))
        pairs.append({"systems": systems, "answers": len(values), "wins": won, "ties": len(values) - sum(won), "p": p, "p_corrected": corrected})
    return {"wins": dict(wins), "comparisons": dict(comparisons), "pairs": pairs, "num_results": len(paths)}


def _check_distinct(paths: Sequence[str | Path]) -> None:
    """Raises UserError if two files are the same, whose answers would count twice."""
    known: dict[str, str | Path] = {}
    for path in paths:
        content = json.dumps(read_json(path), sort_keys=True)
        if content in known:
            raise UserError(f"{known[content]} and {path} are the same results: name each file once")
        known[content] = path


def _answers(path: str | Path) -> Iterable[tuple[str, str, int]]:
    """(first system, second system, preference for the second) of each answer of a file. Raises UserError if it is no file of results."""
    found = read_json(path)
    try:
        if found.get("format") != FORMAT:
            raise ValueError("another format")
        answers = [(str(each["first"]), str(each["second"]), each["rating"]) for each in found["answers"]]
        if not answers or any(rating not in SCALE or isinstance(rating, bool) for _, _, rating in answers):
            raise ValueError("no answers, or others than on the scale")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: has no results of a listening test; name the JSON files that its page saves") from error
    return answers


def format_score(report: dict[str, Any]) -> str:
    """The report in plain text: wins of each system, and the tests of pairs."""
    wins = tuple((system, f"{report['wins'].get(system, 0)}", f"{count}") for system, count in sorted(report["comparisons"].items()))
    pairs = tuple(
        (
            " and ".join(pair["systems"]),
            f"{pair['answers']}",
            " : ".join(map(str, pair["wins"])),
            f"{pair['ties']}",
            f"{pair['p']:.2g}",
            f"{pair['p_corrected']:.2g}",
        )
        for pair in report["pairs"]
    )
    title = f"Listening test: {report['num_results']} files of answers, {len(pairs)} pairs of systems"
    columns = ("pair", "answers", "wins", "no preference", "p, Wilcoxon", "p, Bonferroni")
    return page(title, Table(("system", "wins", "comparisons"), wins).text(), Table(columns, pairs).text())
