"""Whether a folder of clips can train a model, and what would spoil it, before anything is trained: `musiclm data check`.

The checks of the parts are those of `fit`, on the lengths that the headers of the files give.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import math
from collections.abc import Callable, Sequence

import numpy as np

from musiclm_jax.data.clips import MAX_BAD_SHARE, Clip, ClipStore
from musiclm_jax.data.folder import ClipFolder, read_folder
from musiclm_jax.data.inspection import CLIPPED_SHARE, SILENT_SHARE, ClipFacts, equal_files, inspect_clips, scripts_of, similar_clips
from musiclm_jax.data.records import RecordFolder
from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath, as_path
from musiclm_jax.parts.part import CAPTIONS, MELODIES, FitConfig, Run
from musiclm_jax.parts.trained import TrainedPart

# Examples that are named of what was found.
_EXAMPLES = 3


@dataclasses.dataclass(frozen=True)
class PartData:
    """What a part gets of the data."""

    name: str
    # Seconds of an example, and hours of the training clips that it can use.
    example_sec: float
    hours: float
    clips: int
    # Hours of audio that its training sees in all.
    seen_hours: float


@dataclasses.dataclass(frozen=True)
class DataReport:
    """The result of `check_data`. `errors` would stop or spoil a training; `warnings` would not."""

    folder: str
    clips: int
    hours: float
    # Counts by value.
    splits: dict[str, int]
    formats: dict[str, int]
    rates_hz: dict[str, int]
    channels: dict[str, int]
    captions: int
    words: int
    kinds: dict[str, int]
    scripts: dict[str, int]
    # Seconds of each clip.
    seconds: tuple[float, ...]
    parts: tuple[PartData, ...]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        counts = lambda found: ", ".join(f"{name} {count}" for name, count in found.items()) or "none"  # noqa: E731
        shortest, middle, longest = np.quantile(self.seconds, [0, 0.5, 1]) if self.seconds else (0, 0, 0)
        lines = [
            f"{self.folder}: {self.clips} clips, {self.hours:.2f} hours, {shortest:.1f} to {longest:.1f} s, median {middle:.1f} s",
            f"  splits      {counts(self.splits)}",
            f"  formats     {counts(self.formats)}",
            f"  rates       {counts(self.rates_hz)}",
            f"  channels    {counts(self.channels)}",
            f"  captions    {self.captions}, {self.words} different words; kinds: {counts(self.kinds)}; scripts: {counts(self.scripts)}",
        ]
        for part in self.parts:
            passes = part.seen_hours / part.hours if part.hours else math.inf
            data = f"examples of {part.example_sec:g} s from {part.clips} clips, {part.hours:.2f} hours"
            lines.append(f"  {part.name:<18}{data}; its training sees {part.seen_hours:,.1f} hours, {passes:,.1f} times all")
        lines += [f"warning: {each}" for each in self.warnings] + [f"error: {each}" for each in self.errors]
        return "\n".join([*lines, "nothing that would stop a training" if not self.errors else f"{len(self.errors)} errors"])


def check_data(data: AnyPath | str, *, config: FitConfig, listen: bool = True, on_clip: Callable[[int, int], None] = lambda done, total: None) -> DataReport:
    """Inspects the clips in `data` for a training with `config`. Nothing is written.

    Args:
        data: the folder.
        listen: whether the clips are decoded, for silence, clipping, duplicates. False: headers alone.
        on_clip: called with (clips done, clips in all).

    Raises:
        UserError: there are no clips, or a table cannot be read. What else is wrong is in `DataReport.errors`.
    """
    folder = read_folder(data, hash_files=listen, group_by=config.group_by)
    facts = inspect_clips(folder, listen=listen, on_clip=on_clip)
    good = [clip for clip in facts if clip.reason is None]
    errors, notes = _check_parts(_HeaderRun(config, as_path(data), as_path("."), folder=folder, store=_store(good, config.model.audio.sample_rate_hz)))
    warnings = [*folder.warnings, *notes]
    _check_unusable(folder, facts, errors, warnings)
    _check_duplicates(facts, errors, warnings)
    _check_sound(good, warnings)
    if good and not any(clip.entry.split == "test" for clip in good):
        warnings.append("no clip is held out, so nothing will be evaluated: give some the split 'test'")
    captions = [caption for clip in good for caption in clip.entry.captions]
    counted = lambda values: {str(name): count for name, count in collections.Counter(values).most_common()}  # noqa: E731
    return DataReport(
        folder=str(folder.path),
        clips=len(good),
        hours=sum(clip.seconds for clip in good) / 3600,
        splits=counted(clip.entry.split for clip in good),
        formats=counted(clip.format for clip in good),
        rates_hz=counted(clip.sample_rate_hz for clip in good),
        channels=counted(clip.channels for clip in good),
        captions=len(captions),
        words=len({word for caption in captions for word in caption.lower().split()}),
        kinds=counted(kind for clip in good for kind in clip.entry.kinds or ()),
        scripts=dict(scripts_of(captions).most_common()),
        seconds=tuple(clip.seconds for clip in good),
        parts=tuple(_part_data(part, config, good) for part in config.parts if isinstance(part, TrainedPart)),
        errors=tuple(errors),
        warnings=tuple(warnings),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _HeaderRun(Run):
    """A run whose clips are known by their headers alone."""

    folder: ClipFolder
    store: ClipStore

    clip_folder = property(lambda self: self.folder)
    clips = property(lambda self: self.store)


def _store(clips: Sequence[ClipFacts], sample_rate_hz: int) -> ClipStore:
    """The store that `prepare` would make, without samples."""
    lengths = [round(clip.seconds * sample_rate_hz) for clip in clips]
    offsets = np.cumsum([0, *lengths])
    entries = [clip.entry for clip in clips]
    return ClipStore(
        np.zeros(0, np.int16),
        tuple(
            Clip(entry.name, int(at), length, entry.captions, entry.split, entry.attributes, entry.melody, entry.kinds)
            for entry, at, length in zip(entries, offsets, lengths)
        ),
        sample_rate_hz,
    )


def _part_data(part: TrainedPart, config: FitConfig, clips: Sequence[ClipFacts]) -> PartData:
    seconds, reads = part.example_sec(config), part.reads(config)
    # A stage is trained on whole windows; shorter clips are padded for the other parts.
    least = seconds - 1 / config.model.audio.semantic_rate_hz if part.tokens_per_example(config) else 0.0
    has = {CAPTIONS: lambda entry: bool(entry.captions), MELODIES: lambda entry: entry.melody is not None}
    train = [clip for clip in clips if clip.entry.split == "train" and all(has[aspect](clip.entry) for aspect in reads if aspect in has)]
    used = [clip.seconds for clip in train if clip.seconds > least]
    steps = part.task(config).num_steps
    return PartData(part.name, seconds, sum(used) / 3600, len(used), steps * part.batch_size * seconds / 3600)


def check_headers(run: Run) -> None:
    """Raises UserError where the clips of `run` cannot train a part of the bundle, by the headers of their files: before they are decoded. Records of TFDS
    are decoded, and are checked once `prepare` has their index."""
    if isinstance(run.clip_folder, RecordFolder):
        return
    good = [clip for clip in inspect_clips(run.clip_folder, listen=False) if clip.reason is None]
    store = _store(good, run.config.model.audio.sample_rate_hz)
    errors, _ = _check_parts(_HeaderRun(run.config, run.data, run.workdir, folder=run.clip_folder, store=store))
    if errors:
        raise UserError(errors[0])


def _check_parts(run: Run) -> tuple[list[str], list[str]]:
    """The checks of the parts of the bundle. Returns (what they raise, what they print)."""
    wanted = {step.name for step in run.config.steps_to("export")} if "export" in run.config.steps else set(run.config.steps)
    errors, printed = [], io.StringIO()
    for part in run.config.parts:
        if not any(step.name in wanted for step in part.steps(run.config)):
            continue
        try:
            with contextlib.redirect_stdout(printed):
                part.check(run)
        except UserError as error:
            errors.append(str(error))
    return errors, printed.getvalue().splitlines()


def _check_unusable(folder: ClipFolder, facts: Sequence[ClipFacts], errors: list[str], warnings: list[str]) -> None:
    bad = [*folder.unusable, *((clip.entry.name, clip.reason) for clip in facts if clip.reason)]
    if bad:
        total = len(folder.entries) + len(folder.unusable)
        line = f"{len(bad)} of {total} clips cannot be used: {_examples([f'{name} ({reason})' for name, reason in bad])}"
        (errors if len(bad) > MAX_BAD_SHARE * total else warnings).append(line)


def _check_duplicates(facts: Sequence[ClipFacts], errors: list[str], warnings: list[str]) -> None:
    for pairs, what in ((equal_files(facts), "the same file"), (similar_clips(facts), "the same recording, by fingerprint")):
        crossing = [pair for pair in pairs if pair[0].split != pair[1].split]
        if crossing:
            errors.append(f"{len(crossing)} pairs of clips in different splits are {what}, so that evaluations use what was trained on: {_pairs(crossing)}")
        if within := [pair for pair in pairs if pair not in crossing]:
            warnings.append(f"{len(within)} pairs of clips are {what}: {_pairs(within)}")


def _check_sound(clips: Sequence[ClipFacts], warnings: list[str]) -> None:
    decoded = [clip for clip in clips if clip.clipped is not None]
    if found := [clip.entry.name for clip in decoded if clip.clipped >= CLIPPED_SHARE]:
        warnings.append(f"{len(found)} clips are at full scale in more than {CLIPPED_SHARE:.1%} of their samples: {_examples(found)}")
    if found := [clip.entry.name for clip in decoded if clip.silent >= SILENT_SHARE]:
        warnings.append(f"{len(found)} clips are silent for {SILENT_SHARE:.0%} of the time or more: {_examples(found)}")


def _pairs(pairs: Sequence[tuple[Entry, Entry]]) -> str:
    return _examples([f"{a.name} and {b.name}" for a, b in pairs])


def _examples(found: Sequence[str]) -> str:
    more = f", and {len(found) - _EXAMPLES} more" if len(found) > _EXAMPLES else ""
    return ", ".join(found[:_EXAMPLES]) + more
