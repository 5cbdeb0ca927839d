"""The tokens of the clips of one shard: decoding, windows, the frozen models, one file."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from musiclm_jax import audio
from musiclm_jax.arrays import Float
from musiclm_jax.data import token_set
from musiclm_jax.data.decoding import MIN_SEC, to_int16
from musiclm_jax.data.folder import Entry
from musiclm_jax.data.prefetch import map_ahead
from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath, as_path, fingerprint, is_file, parse_json, read_json, sha256_file, write_json
from musiclm_jax.models import mulan
from musiclm_jax.parts.encode import in_batches
from musiclm_jax.records import from_dict, to_dict
from musiclm_jax.specs import AudioSpec
from musiclm_jax.tokenizing.tokenizers import Tokenizers, open_once

# A clip that is decoded moves from memory to an unnamed temporary file above this size.
_SPOOL_BYTES = 32 * 2**20
# Clips that are decoded ahead.
_WORKERS = 2


@dataclasses.dataclass(frozen=True)
class Windowing:
    """How clips are cut into records, in semantic tokens."""

    record: int
    # On each side.
    context: int

    def records(self, num_tokens: int) -> list[tuple[int, int]]:
        """(first token, tokens) of each record of a clip. The last one ends where the clip ends."""
        starts = [*range(0, max(num_tokens - self.record, 0), self.record), max(num_tokens - self.record, 0)]
        return [(start, min(self.record, num_tokens)) for start in dict.fromkeys(starts)]

    @property
    def encoded(self) -> int:
        """The number of tokens that are encoded at once for a record: itself, and its context."""
        return self.record + 2 * self.context

    def first_encoded(self, start: int, num_tokens: int) -> int:
        """The first token of the encoder's input for the record at `start`. The input lies within the clip; a shorter clip is padded at its end."""
        return max(0, min(start - self.context, num_tokens - self.encoded))


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """A shard to make. Its clips are in `out`/plan."""

    data: str
    out: str
    split: str
    number: int
    total: int
    windowing: Windowing
    batch_size: int

    @property
    def plan_file(self) -> AnyPath:
        return as_path(self.out) / "plan" / f"{self.split}-{self.number:05d}.jsonl"

    @property
    def report_file(self) -> AnyPath:
        return as_path(self.out) / "shards" / f"{self.split}-{self.number:05d}.json"

    @property
    def file(self) -> AnyPath:
        return as_path(self.out) / token_set.shard_name(self.split, self.number, self.total)

    def report(self, *, verify: bool = False) -> ShardReport | None:
        """The report of the shard, if it is done and its file is there with the size that it was written with. verify: also with the contents."""
        if not is_file(self.report_file) or not is_file(self.file):
            return None
        report = from_dict(ShardReport, read_json(self.report_file), where=str(self.report_file))
        same = fingerprint(self.file)[0] == report.bytes and not (verify and sha256_file(self.file) != report.sha256)
        return report if same else None


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """What is in a shard that is done."""

    bytes: int
    sha256: str
    # Semantic tokens of each record.
    lengths: tuple[int, ...]
    clips: int
    captioned: int
    seconds: float
    # (name, reason) of clips that cannot be used.
    skipped: tuple[tuple[str, str], ...]


def make_shard(job: ShardJob) -> None:
    """Writes a shard, and its report, unless it is done."""
    if job.report(verify=True) is not None:
        return
    tokenizers = open_once(str(as_path(job.out) / token_set.TOKENIZERS))
    entries = [from_dict(Entry, parse_json(line), where=str(job.plan_file)) for line in job.plan_file.read_text(encoding="utf-8").splitlines()]
    maker = _Maker(tokenizers, job)
    token_set.write_shard(job.file, maker.records(as_path(job.data), entries), features_of(tokenizers))
    report = ShardReport(
        fingerprint(job.file)[0], sha256_file(job.file), tuple(maker.lengths), maker.clips, maker.captioned, maker.seconds, tuple(maker.skipped)
    )
    write_json(job.report_file, to_dict(report))
    print(f"tokenize: {job.split} shard {job.number + 1} of {job.total}: {maker.clips} clips, {maker.seconds / 3600:.2f} hours", flush=True)


def features_of(tokenizers: Tokenizers) -> Any:
    config = tokenizers.config
    return token_set.features(levels=config.codec.num_levels, mulan_levels=config.mulan.num_levels, mulan_dim=config.mulan.embedding_dim)


class _Track:
    """A decoded clip, in memory or in a temporary file."""

    def __init__(self, file: Any, num_samples: int, peak: float):
        self._file, self.num_samples, self._peak = file, num_samples, peak

    def wave(self, start: int, length: int) -> Float[np.ndarray, "N"]:
        """`length` samples from `start` on, as 16 bits can have them; zeros after the end of the clip."""
        self._file.seek(4 * start)
        samples = np.frombuffer(self._file.read(4 * min(length, self.num_samples - start)), np.float32)
        return np.pad(to_int16(samples, peak=self._peak).astype(np.float32) / 32768, (0, length - len(samples)))

    def close(self) -> None:
        self._file.close()


def _decode(folder: AnyPath, entry: Entry, sample_rate_hz: int) -> _Track | UserError:
    file = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)
    part = {"start_sec": entry.start_sec or 0.0, "end_sec": entry.end_sec}
    try:
        decoded = audio.decode(folder / entry.file_name, file, sample_rate_hz=sample_rate_hz, min_samples=round(MIN_SEC * sample_rate_hz), **part)
    except UserError as error:
        file.close()
        return error
    return _Track(file, decoded.num_samples, decoded.peak)


@dataclasses.dataclass(frozen=True)
class _Window:
    """A record to be: its waves, and what is said of it."""

    entry: Entry
    # In semantic tokens: the first one of the record, the first one of the encoder's input, and how many the record has.
    start: int
    encoded_from: int
    length: int
    encoded: Float[np.ndarray, "N"]
    record: Float[np.ndarray, "M"]


class _Maker:
    """Makes the records of a shard, and counts."""

    def __init__(self, tokenizers: Tokenizers, job: ShardJob):
        self._tokenizers, self._job, self._spec = tokenizers, job, tokenizers.config.audio
        self.lengths: list[int] = []
        self.skipped: list[tuple[str, str]] = []
        self.clips, self.captioned, self.seconds = 0, 0, 0.0

    def records(self, folder: AnyPath, entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
        """The records of all clips, in order. They are made in batches that do not depend on anything but the clips of the shard."""
        captions = self._caption_tokens(entries)
        batch: list[_Window] = []
        for window in self._windows(folder, entries):
            batch.append(window)
            if len(batch) == self._job.batch_size:
                yield from self._encode(batch, captions)
                batch = []
        if batch:
            yield from self._encode(batch, captions)

    def _windows(self, folder: AnyPath, entries: Sequence[Entry]) -> Iterator[_Window]:
        tracks = map_ahead(lambda entry: _decode(folder, entry, self._spec.sample_rate_hz), entries, workers=_WORKERS)
        with contextlib.closing(tracks):
            for entry, track in tracks:
                if isinstance(track, UserError):
                    self.skipped.append((entry.name, str(track).removeprefix(f"{folder / entry.file_name}: ")))
                    continue
                with contextlib.closing(track):
                    yield from self._cut(entry, track)
                self.clips += 1
                self.captioned += bool(entry.captions)
                self.seconds += track.num_samples / self._spec.sample_rate_hz

    def _cut(self, entry: Entry, track: _Track) -> Iterator[_Window]:
        windowing, samples = self._job.windowing, self._spec.semantic_samples
        total = -(-track.num_samples // samples)
        for start, length in windowing.records(total):
            encoded_from = windowing.first_encoded(start, total)
            encoded = track.wave(samples * encoded_from, samples * windowing.encoded)
            yield _Window(entry, start, encoded_from, length, encoded, track.wave(samples * start, samples * windowing.record))

    def _encode(self, batch: Sequence[_Window], captions: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        tokenizers, config = self._tokenizers, self._tokenizers.config
        fill = [batch[-1]] * (self._job.batch_size - len(batch))  # Programs are compiled for one batch size.
        encoded, records = (np.stack([getattr(window, name) for window in (*batch, *fill)]) for name in ("encoded", "record"))
        semantic, acoustic = tokenizers.semantic_tokens(encoded), tokenizers.acoustic_tokens(encoded)
        embeddings = tokenizers.window_embeddings(records).astype(np.float16)
        for row, window in enumerate(batch):
            first, per_token = window.start - window.encoded_from, self._spec.frames_per_semantic
            samples = window.length * self._spec.semantic_samples
            count = mulan.num_windows(config.mulan, samples)
            self.lengths.append(window.length)
            yield {
                "id": window.entry.name,
                "start_sec": np.float32(window.start / self._spec.semantic_rate_hz),
                "semantic": semantic[row, first : first + window.length].astype(np.int16),
                "acoustic": acoustic[row, first * per_token : (first + window.length) * per_token].astype(np.int16),
                "mulan": embeddings[row, :count],
                "captions": list(window.entry.captions),
                "caption_tokens": _stack([captions[caption] for caption in window.entry.captions], config.mulan.num_levels),
            }

    def _caption_tokens(self, entries: Sequence[Entry]) -> dict[str, np.ndarray]:
        """The MuLan tokens of all captions, int16 [Q]."""
        texts = list(dict.fromkeys(caption for entry in entries for caption in entry.captions))
        if not texts:
            return {}
        mulan = self._tokenizers.mulan
        tokens = in_batches(lambda rows: mulan.text_tokens([texts[int(row)] for row in np.asarray(rows)]), np.arange(len(texts)))
        return dict(zip(texts, tokens.astype(np.int16), strict=True))


def _stack(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
    return np.stack(rows) if rows else np.zeros((0, width), np.int16)


def windowing_of(spec: AudioSpec, *, record_sec: float, context_sec: float) -> Windowing:
    return Windowing(spec.semantic_tokens(record_sec), spec.semantic_tokens(context_sec))
