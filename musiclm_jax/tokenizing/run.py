"""The tokens of a folder of clips, made once by the frozen models of a bundle: `musiclm tokenize`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from musiclm_jax.data.beam import check_flags, run_jobs
from musiclm_jax.data.folder import ClipFolder, Entry, read_folder
from musiclm_jax.data.inspection import inspect_clips
from musiclm_jax.data.token_set import SPLITS, TOKENIZERS, TokenInfo, TokenSet, is_token_set, write_token_set
from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath, as_path, exists, is_bucket, is_file, make_folder, read_json, write_json, write_text
from musiclm_jax.models import mulan
from musiclm_jax.records import to_dict
from musiclm_jax.tokenizing.shards import ShardJob, ShardReport, features_of, make_shard, windowing_of
from musiclm_jax.tokenizing.tokenizers import Tokenizers, copy_tokenizers, hashes

# Clips whose headers are read, evenly over the folder, to tell the size of what is to be made.
_SAMPLE_CLIPS = 200
# Shards of both splits, where there are clips for so many, and the smallest number of clips in one.
_SHARDS, _SHARD_CLIPS = 1024, 32
_SETTINGS, _SKIPPED = "plan/settings.json", "skipped.log"


def tokenize(
    data: AnyPath | str,
    out: AnyPath | str,
    *,
    model: str,
    record_sec: float = 30.0,
    context_sec: float = 5.0,
    batch_size: int = 4,
    group_by: str = "listed",
    flags: Sequence[str] = (),
) -> TokenSet:
    """Makes a token set of the clips in `data` (`data/token_set.py`). The same call continues an interrupted one, and gives the same bytes.

    Args:
        data: a folder of clips (`data/folder.py`).
        out: the folder of the token set. Other files in it are an error.
        model: a bundle, with or without stages.
        record_sec: longest record. Where all clips are shorter, as far as their headers say, records are as long as the longest.
        context_sec: what is encoded together with a record on each side of it, as context.
        batch_size: records that are computed at once.
        group_by: as in `data.folder.read_folder`.
        flags: options of Apache Beam, which choose the runner (`data/beam.py`).

    Raises:
        UserError: no clip can be used, `out` has something else or was begun with other arguments, or there is no space for the tokens.
    """
    check_flags(flags)
    data, out = as_path(data), as_path(out)
    folder = read_folder(data, hash_files=False, group_by=group_by)
    hours, longest_sec = _sample_hours(folder)
    tokenizers = Tokenizers.open(model)
    spec = tokenizers.config.audio
    windowing = windowing_of(spec, record_sec=min(record_sec, max(longest_sec, 1.0)), context_sec=context_sec)
    size = max(_SHARD_CLIPS, -(-len(folder.entries) // _SHARDS))
    shards = {split: [entries[first : first + size] for first in range(0, len(entries), size)] for split in SPLITS if (entries := folder.split(split))}
    plan = {"windowing": dataclasses.asdict(windowing), "batch_size": batch_size, "shards": {split: len(each) for split, each in shards.items()}}
    jobs = [ShardJob(str(data), str(out), split, number, len(each), windowing, batch_size) for split, each in shards.items() for number in range(len(each))]
    _begin(out, model, folder, plan, jobs, [entries for each in shards.values() for entries in each])
    pending = [job for job in jobs if job.report(verify=True) is None]
    if pending:
        bytes_each = _record_bytes(tokenizers, windowing.record)
        _announce(out, folder, hours * 3600 / (windowing.record / spec.semantic_rate_hz) * bytes_each, hours, len(jobs), len(jobs) - len(pending))
        run_jobs(pending, make_shard, flags=flags)
    if pending or not is_token_set(out):
        _finish(out, folder, tokenizers, jobs, windowing.record / spec.semantic_rate_hz, context_sec)
    return TokenSet.open(out)


def _sample_hours(folder: ClipFolder) -> tuple[float, float]:
    """(hours of all clips, seconds of the longest one), from the headers of some. Raises UserError where none of them can be read."""
    entries = folder.entries
    some = [entries[i] for i in np.unique(np.linspace(0, len(entries) - 1, min(_SAMPLE_CLIPS, len(entries))).round().astype(int))]
    facts = inspect_clips(dataclasses.replace(folder, entries=tuple(some)), listen=False)
    seconds = [clip.seconds for clip in facts if clip.reason is None]
    if not seconds:
        raise UserError(f"{folder.path}: none of {len(some)} clips can be used, such as {facts[0].entry.name}: {facts[0].reason}")
    return sum(seconds) / len(some) * len(entries) / 3600, max(seconds)


def _record_bytes(tokenizers: Tokenizers, record: int) -> int:
    """The size of a record without its captions."""
    config = tokenizers.config
    windows = mulan.num_windows(config.mulan, record * config.audio.semantic_samples)
    return 2 * (record + config.audio.frames_per_semantic * record * config.codec.num_levels + windows * config.mulan.embedding_dim)


def _begin(out: AnyPath, model: str, folder: ClipFolder, plan: dict[str, Any], jobs: Sequence[ShardJob], entries: Sequence[Sequence[Entry]]) -> None:
    """Writes the tokenizers and the plan, unless they are there. Raises UserError where others are."""
    digest = hashlib.sha256()
    for each in entries:
        digest.update(_plan_text(each).encode())
    settings = {**plan, "model": hashes(model), "clips": digest.hexdigest()}
    if is_file(out / _SETTINGS):
        before = read_json(out / _SETTINGS)
        if before != settings:
            changed = ", ".join(name for name in settings if settings[name] != before.get(name))
            raise UserError(f"{out} was begun with another model, other clips or settings ({changed}): choose another folder, or give what was given then")
        return
    if exists(out) and (not out.is_dir() or any(path.name not in ("plan", TOKENIZERS) for path in out.iterdir())):
        raise UserError(f"{out} exists and is no token set: choose a new folder")
    make_folder(out)
    copy_tokenizers(model, out / TOKENIZERS)
    for job, each in zip(jobs, entries, strict=True):
        write_text(job.plan_file, _plan_text(each))
    write_json(out / _SETTINGS, settings)


def _plan_text(entries: Sequence[Entry]) -> str:
    """The clips of a shard, one a line."""
    return "".join(f"{json.dumps(to_dict(entry), ensure_ascii=False)}\n" for entry in entries)


def _announce(out: AnyPath, folder: ClipFolder, size: float, hours: float, shards: int, done: int) -> None:
    continues = f"; {done} of {shards} shards are done" if done else ""
    print(f"tokenize: {len(folder.entries)} clips, about {hours:,.1f} hours: about {size / 1e6:,.1f} MB of tokens in {shards} shards{continues}", flush=True)
    for warning in folder.warnings:
        print(f"tokenize: {warning}", flush=True)
    if not is_bucket(out) and size * (1 - done / shards) > (free := shutil.disk_usage(out).free):
        raise UserError(f"{out} has {free / 1e6:,.0f} MB free, and about {size / 1e6:,.0f} MB are to be written: make space, or choose another disk")


def _finish(out: AnyPath, folder: ClipFolder, tokenizers: Tokenizers, jobs: Sequence[ShardJob], record_sec: float, context_sec: float) -> None:
    """Writes what a complete token set has beside its shards. Raises UserError where it has no record to train on."""
    reports = {job: job.report() for job in jobs}
    if missing := [job for job, report in reports.items() if report is None]:
        raise UserError(f"{missing[0].file} was not written: run the same command again; it continues")
    by_split = {split: [report for job, report in reports.items() if job.split == split] for split in SPLITS}
    by_split = {split: found for split, found in by_split.items() if found}
    skipped = sorted([*folder.unusable, *(each for report in reports.values() for each in report.skipped)])
    write_text(out / _SKIPPED, "".join(f"{name}: {reason}\n" for name, reason in skipped))
    if skipped:
        print(f"tokenize: {len(skipped)} clips cannot be used and are left out: see {out / _SKIPPED}", flush=True)
    count = lambda what, *splits: sum(getattr(report, what) for split in splits for report in by_split.get(split, ()))  # noqa: E731
    if not count("clips", "train"):
        raise UserError(f"{folder.path}: no clip of split 'train' can be used, see {out / _SKIPPED}")
    info = TokenInfo(
        audio=tokenizers.config.audio,
        record_sec=record_sec,
        context_sec=context_sec,
        mulan_window_sec=tokenizers.config.mulan.window_sec,
        mulan_hop_sec=tokenizers.config.mulan.hop_sec,
        data=folder.path.name if is_bucket(folder.path) else folder.path.resolve().name,
        clips=count("clips", *by_split),
        captioned=count("captioned", *by_split),
        held_out=count("clips", "test"),
        skipped=len(skipped),
        hours=round(count("seconds", *by_split) / 3600, 3),
        records={split: sum(len(report.lengths) for report in found) for split, found in by_split.items()},
        sha256=_digest(out, reports.values()),
    )
    lengths = {split: [np.array(report.lengths, np.int32) for report in found] for split, found in by_split.items()}
    sizes = {split: sum(report.bytes for report in found) for split, found in by_split.items()}
    write_token_set(out, info, features_of(tokenizers), lengths, sizes)


def _digest(out: AnyPath, reports: Iterable[ShardReport]) -> str:
    tokenizers = read_json(out / TOKENIZERS / "config.json")["sha256"]
    return hashlib.sha256(json.dumps([tokenizers, *(report.sha256 for report in reports)]).encode()).hexdigest()
