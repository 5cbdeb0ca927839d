"""The protocol of MusicLM's table 1 (arXiv 2301.11325) on MusicCaps: its public table, and audio that the user has.

Clips of AudioSet's evaluation split, or of the balanced subset of it, are cut to the clip of 10 s that the caption is of; the model generates a clip from
each caption; and the two sets are compared by FAD, KLD and MCC.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from musiclm_jax import audio
from musiclm_jax.data.layouts import read_musiccaps
from musiclm_jax.data.metadata import Line
from musiclm_jax.data.tables import read_rows
from musiclm_jax.data.walk import is_audio, walk
from musiclm_jax.errors import UserError, unwritable
from musiclm_jax.evaluation.clips import Excerpt, Progress, check_seed, left_out
from musiclm_jax.evaluation.embeddings import Embedding
from musiclm_jax.evaluation.fad import evaluate_fad
from musiclm_jax.evaluation.generated import Wanted, generate_clips
from musiclm_jax.evaluation.identity import model_name
from musiclm_jax.evaluation.judges import Classifier, Matcher
from musiclm_jax.evaluation.kld import DIRECTIONS, evaluate_kld
from musiclm_jax.evaluation.mcc import evaluate_mcc
from musiclm_jax.evaluation.tables import Table, number, page
from musiclm_jax.files import AnyPath, as_path, is_dir, is_file, make_folder, write_json, write_text
from musiclm_jax.musiclm import MusicLM

SUBSETS = {"balanced": "is_balanced_subset", "eval": "is_audioset_eval"}
# A real clip may be shorter than asked for by the rest.
_LEAST_SHARE = 0.95
REFERENCE, GENERATED, REPORT = "reference", "generated", "musiccaps"
# Of MusicLM's table 1: FAD by Trill and by VGGish, KLD by LEAF, MCC by the authors' MuLan.
PAPER = (
    ("MusicLM (table 1)", "Trill 0.44, VGGish 4.0", "LEAF 1.01", "MuLan 0.51"),
    ("Mubert (table 1)", "Trill 0.45, VGGish 9.6", "LEAF 1.58", "MuLan 0.32"),
    ("Riffusion (table 1)", "Trill 0.76, VGGish 13.4", "LEAF 1.19", "MuLan 0.34"),
)
DIFFERENCES = (
    "figures of other judges cannot be compared: the paper has Trill, VGGish, LEAF and its own MuLan",
    "the paper states neither the reference set of its FAD, nor the layer of Trill, nor the direction and normalization of its KLD; ours are of the clips "
    "whose audio is there, and KL(reference || generated) of softmaxes",
    "reference clips are mono at the rate of the model",
)


@dataclasses.dataclass(frozen=True)
class Judges:
    """What compares the clips."""

    embeddings: tuple[Embedding, ...]
    classifiers: tuple[Classifier, ...]
    matchers: tuple[Matcher, ...]


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """The clips of a subset, by names such as "ID-30"; and those of it whose audio is not there."""

    lines: dict[str, Line]
    absent: tuple[str, ...]


def evaluate_musiccaps(
    musiclm: MusicLM,
    table: str | AnyPath,
    audio_dir: str | AnyPath,
    out: str | AnyPath,
    judges: Judges,
    *,
    subset: str = "balanced",
    num_clips: int | None = None,
    seconds: float = 10.0,
    seed: int = 0,
    batch_size: int = 10,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Generates a clip for each caption of MusicCaps whose audio is there, and compares them with the real clips.

    Args:
        musiclm: the model.
        table: MusicCaps' CSV file.
        audio_dir: the folder of audio, named as docs/data.md says: whole videos or clips.
        out: a folder for the clips, which a later call continues, and for the report: musiccaps.json, musiccaps.md.
        judges: from `evaluation/judges.py`.
        subset: one of SUBSETS.
        num_clips: only the first clips of the subset, for a trial. None: all.
        seconds: length of the clips.
        seed, batch_size: of `generate_clips`.
        progress: called with one line per step.

    Returns:
        The report: "fad", "kld", "mcc", lists of the reports of each judge; "num_clips", "num_captions" of the subset, "absent", "skipped", the settings.

    Raises:
        UserError: the table or the folder cannot be read, the subset is empty, fewer than 2 of its clips can be used, or `out` has clips of another model.
    """
    check_seed(seed)
    for judge in (*judges.embeddings, *judges.classifiers, *judges.matchers):
        Excerpt(judge.sample_rate_hz, judge.min_samples, seconds)  # Raises UserError for clips that are too short, before they are generated.
    out, chosen = as_path(out), _choose(as_path(table), as_path(audio_dir), subset, num_clips)
    if len(chosen.lines) < 2:
        raise UserError(
            f"{audio_dir}: has the audio of {len(chosen.lines)} clips of the subset {subset!r}, expected at least 2; name files by the ids of {table}"
        )
    skipped = _write_reference(chosen, as_path(audio_dir), out / REFERENCE, seconds, musiclm.config.audio.sample_rate_hz, progress)
    wanted = [Wanted(f"{name}.wav", line.captions[0]) for name, line in chosen.lines.items() if is_file(out / REFERENCE / f"{name}.wav")]
    if len(wanted) < 2:
        raise UserError(f"{audio_dir}: {len(wanted)} clips of the subset {subset!r} can be used, expected at least 2" + (f": {skipped[0]}" if skipped else ""))
    generate_clips(musiclm, wanted, out / GENERATED, seconds=seconds, seed=seed, batch_size=batch_size, progress=progress)
    folders, options = (out / REFERENCE, out / GENERATED), {"seconds": seconds, "seed": seed, "progress": progress}
    captions = [each.caption for each in wanted]
    report = {
        "model": model_name(musiclm),
        "subset": subset,
        "num_captions": len(chosen.lines) + len(chosen.absent),
        "num_clips": len(wanted),
        "num_truncated": len(musiclm.mulan.truncated(captions)),
        "num_unknown": sum(not musiclm.mulan.unknown_words(caption)[1] for caption in captions),
        "seconds": seconds,
        "seed": seed,
        "fad": [evaluate_fad(judge, *folders, **options) for judge in judges.embeddings],
        "kld": [evaluate_kld(judge, *folders, **options) for judge in judges.classifiers],
        "mcc": [evaluate_mcc(judge, *folders, **options) for judge in judges.matchers],
        "absent": list(chosen.absent),
        "skipped": skipped,
    }
    write_json(out / f"{REPORT}.json", report)
    write_text(out / f"{REPORT}.md", musiccaps_markdown(report))
    return report


def _choose(table: AnyPath, folder: AnyPath, subset: str, num_clips: int | None) -> _Chosen:
    """The clips of a subset. Raises UserError if there are none."""
    if subset not in SUBSETS:
        raise UserError(f"subset {subset!r}: choose one of {', '.join(SUBSETS)}")
    if not is_dir(folder):
        raise UserError(f"{folder}: is not a folder; name the folder of MusicCaps' audio")
    found = read_musiccaps(folder, [name for name in walk(folder)[0] if is_audio(name)], table=table)
    rows = [row for _, row in read_rows(table)[0] if str(row.get(SUBSETS[subset])).lower() in ("true", "1")]
    if not rows:
        raise UserError(f"{table}: flags no clip as {SUBSETS[subset]}; take the table that was published, or choose another subset")
    # The lines of the table are in the order of its rows, without those of absent clips.
    absent, lines = set(found.absent), iter(found.lines)
    names = [f"{row['ytid']}-{float(row['start_s']):g}" for _, row in read_rows(table)[0]]
    by_name = {name: next(lines) for name in names if name not in absent}
    wanted = [f"{row['ytid']}-{float(row['start_s']):g}" for row in rows][:num_clips]
    return _Chosen({name: by_name[name] for name in wanted if name in by_name}, tuple(name for name in wanted if name not in by_name))


def _write_reference(chosen: _Chosen, folder: AnyPath, out: AnyPath, seconds: float, rate_hz: int, progress: Progress) -> list[str]:
    """Writes the real clips, cut to their first seconds, unless they are there. Returns the reasons why some cannot be used."""
    try:
        make_folder(out)
    except OSError as error:
        raise unwritable(out, error) from error
    skipped, missing = [], {name: line for name, line in chosen.lines.items() if not is_file(out / f"{name}.wav")}
    if missing:
        progress(f"cutting {len(missing)} real clips")
    options = {"sample_rate_hz": rate_hz, "min_samples": round(_LEAST_SHARE * seconds * rate_hz)}
    for name, line in missing.items():
        start = line.start_sec or 0.0
        try:
            wave = audio.read(folder / line.file_name, **options, start_sec=start, end_sec=start + seconds)
        except UserError as error:
            skipped.append(str(error))
        else:
            audio.write_wav(out / f"{name}.wav", wave, rate_hz)
    return skipped


# ---------------------------------------------------------------------------------------------------------------------- Pages


def musiccaps_table(report: dict[str, Any]) -> Table:
    """The model, the real clips, and chance, beside the paper's models."""

    def cells(kind: str, name: str, find: Callable[[dict[str, Any]], dict[str, Any]], key: str) -> str:
        found = [(each[name], find(each)) for each in report[kind]]
        return ", ".join(f"{judge} {number(result[key], result.get(f'{key}_95'))}" for judge, result in found)

    def kld(key: str) -> str:
        return cells("kld", "classifier", lambda each: each["results"]["softmax"][DIRECTIONS[0]], key)

    def mcc(what: str, key: str) -> str:
        return cells("mcc", "judge", lambda each: each["results"][what], key)

    fad, halves = (cells("fad", "embedding", lambda each: each, key) for key in ("fad", "halves"))
    rows = (
        (report["model"], fad, kld("pairs"), mcc("generated", "pairs")),
        ("real clips (FAD: half to half)", halves, "", mcc("real", "pairs")),
        ("shuffled (chance)", "", kld("shuffled"), mcc("generated", "shuffled")),
        *PAPER,
    )
    return Table(("", "FAD", "KLD", "MCC"), rows)


def _title(report: dict[str, Any]) -> str:
    clips = f"{report['num_clips']} of {report['num_captions']} captions of the subset {report['subset']!r}"
    return f"MusicCaps, {clips}, {report['seconds']:g} s each; 95 % intervals in brackets"


def _notes(report: dict[str, Any]) -> list[str]:
    notes = [f"{len(report['absent'])} clips have no audio, such as {report['absent'][0]}"] if report["absent"] else []
    notes += left_out(report["skipped"])
    if report["num_truncated"]:
        notes.append(f"{report['num_truncated']} captions are longer than the model reads and were truncated")
    if report["num_unknown"]:
        notes.append(f"{report['num_unknown']} captions have no word that the model knows")
    notes += list(dict.fromkeys(note for kind in ("fad", "kld", "mcc") for each in report[kind] for note in each["notes"]))
    return [*notes, *DIFFERENCES]


def format_musiccaps_report(report: dict[str, Any]) -> str:
    """The report in plain text."""
    return page(_title(report), musiccaps_table(report).text(), notes=_notes(report))


def musiccaps_markdown(report: dict[str, Any]) -> str:
    """The report as a page of Markdown."""
    return "\n".join([f"# {_title(report)}", "", musiccaps_table(report).markdown(), "", *(f"- {note}" for note in _notes(report)), ""])
