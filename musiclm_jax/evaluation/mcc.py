"""MuLan cycle consistency (MusicLM, arXiv 2301.11325, section 4.1): the mean cosine of a caption and the clip that was generated from it.

A model that generates from MuLan tokens, or chooses its clips by MuLan, is favoured by that same MuLan, as the paper says of its own table. CLAP judges
from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musiclm_jax.data.folder import ClipFolder, Entry
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation import bootstrap
from musiclm_jax.evaluation.clips import ClipFile, Excerpt, Progress, check_seed, left_out, map_groups, pair_clips, read_clips, unpaired
from musiclm_jax.evaluation.judges import Matcher
from musiclm_jax.evaluation.tables import Table, count, number, page

# Clips of this share of the length on which the judge was trained, or longer, count as whole.
_NEARLY = 0.95


def evaluate_mcc(
    judge: Matcher,
    reference: str | Path,
    generated: str | Path | None = None,
    *,
    seconds: float | None = None,
    seed: int = 0,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """The mean cosine of captions and clips, beside that of shuffled captions.

    Args:
        judge: from `judges.load_matcher`.
        reference: a folder of captioned clips.
        generated: a folder of clips that were generated from these captions, with the names of the real clips (`pair_clips`). The caption of a pair is the
            first of the generated clip, or of the real one if that has none. None: the real clips only.
        seconds: length of the beginning of each clip that is used. None: clips are used whole.
        seed: random seed of the bootstrap.
        progress: called with one line per step.

    Returns:
        A report of plain JSON types: "results" {"real", "generated": {"pairs", "shuffled", each with "_95"}}, where "shuffled" is the mean over pairs of a
        clip and the caption of another; "num_clips", "clips", a list of {"file_name", "caption", "generated", "real"}, the cosines; "skipped", "notes" and
        the settings.

    Raises:
        UserError: a folder cannot be read, there are no captions, or fewer than 2 captions have clips that can be used.
    """
    check_seed(seed)
    excerpt = Excerpt(judge.sample_rate_hz, judge.min_samples, seconds)
    real = read_clips(reference, progress=progress)
    made = None if generated is None else read_clips(generated, progress=progress)
    pairs = [(entry,) for entry in real.entries] if made is None else pair_clips(real, made)
    captions = _captions(pairs)
    if len(captions) < 2:
        raise UserError(f"{_lack(real, made)}; add captions to metadata.jsonl, or a text file beside each clip")
    columns = ("real",) if made is None else ("real", "generated")
    files = [tuple(ClipFile.of(folder, entry) for folder, entry in zip((real, made), pair)) for _, *pair in captions]
    groups, skipped, lengths = map_groups(judge.embed_clip, files, excerpt, columns=columns, progress=progress)
    texts = judge.embed_texts([captions[i][0] for i, _ in groups])
    clips = [np.stack([embeddings[column] for _, embeddings in groups]) for column in range(len(columns))]
    cosines = {what: (texts @ embeddings.T).astype(np.float64) for what, embeddings in zip(columns, clips)}
    num_missing = len(pairs) - len(captions)
    notes = [] if made is None else unpaired(real, made, len(pairs))
    if (shortest := min(lengths)) < _NEARLY * judge.full_sec:
        notes.append(f"{judge.name} was trained on clips of {judge.full_sec:g} s: with {shortest:.3g} s the cosines are lower, also those of real clips")
    notes += [f"left out, since they have no caption: {count(num_missing, 'clip')}"] if num_missing else []
    return {
        "judge": judge.name,
        "reference": str(reference),
        "generated": None if generated is None else str(generated),
        "num_clips": len(groups),
        "seconds": seconds,
        "seed": seed,
        "results": {what: bootstrap.estimate_pairs(table, rng=np.random.default_rng([seed, 0])) for what, table in cosines.items()},
        "clips": [
            {"file_name": captions[i][1].file_name, "caption": captions[i][0], **{what: float(table[row, row]) for what, table in cosines.items()}}
            for row, (i, _) in enumerate(groups)
        ],
        "skipped": skipped,
        "notes": notes + left_out(skipped),
    }


def _captions(groups: Sequence[tuple[Entry, ...]]) -> list[tuple]:
    """Returns (caption, its real clip, its generated clip if there are any) of the groups of which a clip has a caption."""
    found = []
    for group in groups:
        # The caption of the last, which is the generated one, comes first.
        texts = [caption for entry in reversed(group) for caption in entry.captions]
        found += [(texts[0], *group)] if texts else []
    return found


def _lack(real: ClipFolder, made: ClipFolder | None) -> str:
    if made is None:
        return f"{real.path}: {len(real.captioned)} of {len(real.entries)} clips have a caption, expected at least 2"
    return f"of the clips with the same name in {real.path} and {made.path}, fewer than 2 have a caption in either folder"


def format_mcc_report(report: dict[str, Any]) -> str:
    """The report as a table in plain text: a line for generated and for real clips."""
    rows = tuple((f"{what} clips", *(number(result[key], result[f"{key}_95"]) for key in ("pairs", "shuffled"))) for what, result in report["results"].items())
    title = f"Mean cosine of caption and clip by {report['judge']}, {report['num_clips']} captions; 95 % intervals in brackets"
    return page(title, Table(("", "own caption", "shuffled (chance)"), rows).text(), notes=report["notes"])
