"""Decoding the clips, once for all parts. Those of a data set of TFDS are decoded, and stay in it."""

from __future__ import annotations

import dataclasses
from typing import Any

from musiclm_jax.data.clips import prepare
from musiclm_jax.data.pairs import renderings
from musiclm_jax.data.readers import check_reader
from musiclm_jax.data.records import RecordFolder
from musiclm_jax.parts.part import PREPARE, WAVES, FitConfig, Part, Run, Step, TokenStream, Work
from musiclm_jax.parts.timing import TimingTokens, places
from musiclm_jax.training import hosts


@dataclasses.dataclass(frozen=True)
class PreparePart(Part):
    """Decodes the clips. The other parts read its output."""

    @property
    def name(self) -> str:
        return PREPARE

    def steps(self, fit: FitConfig) -> tuple[Step, ...]:
        settings = {"sample_rate_hz": fit.model.audio.sample_rate_hz}
        return (Step(PREPARE, "decoding the clips", _prepare_once, ("samples.npy", "clips.json"), settings, needs=(), reads=(WAVES,)),)

    def streams(self, fit: FitConfig) -> tuple[TokenStream, ...]:
        """The timing of crops, which follows from the names and lengths of the clips."""
        timing = fit.model.timing
        if timing is None:
            return ()
        tokens = lambda run: TimingTokens(timing, places(run.clips))  # noqa: E731
        return (TokenStream(timing.stream, (PREPARE,), tokens, codebooks=lambda run: timing.codebooks),)


def _prepare_once(run: Run, work: Work) -> dict[str, Any]:
    return hosts.first(lambda: _prepare(run, work))


def _prepare(run: Run, work: Work) -> dict[str, Any]:
    file_format = run.clip_folder.file_format if isinstance(run.clip_folder, RecordFolder) else None
    check_reader(run.config.reader, file_format)  # Before hours of decoding.
    if file_format:
        work.outputs = ()
    store = prepare(run.clip_folder, work.folder, sample_rate_hz=run.config.model.audio.sample_rate_hz)
    for warning in run.clip_folder.warnings:
        print(f"{PREPARE}: {warning}", flush=True)
    skipped = len(run.clip_folder.entries) - len(store.clips)
    if skipped:
        print(f"{PREPARE}: {skipped} clips cannot be used and are left out: see {work.folder / 'skipped.log'}", flush=True)
    hours = sum(clip.length for clip in store.clips) / store.sample_rate_hz / 3600
    captioned = sum(bool(clip.captions) for clip in store.clips)
    results = {"clips": len(store.clips), "captioned": captioned, "held_out": len(store.split("test")), "skipped": skipped, "hours": round(hours, 3)}
    tunes = {f"{split}_melodies": len(renderings(store, split)) for split in ("train", "test")}
    return results | (tunes if any(tunes.values()) else {})
