"""A folder of captioned clips -> a clip store that training reads. NumPy only: no TensorFlow, no JAX.

The folder holds audio files and `metadata.jsonl`, one object per line:

    {"file_name": "audio/0001.flac", "captions": ["a calm piano melody"], "split": "train", "attributes": {"tempo_bpm": 80}}

`caption` (one string) may replace `captions`; `split` ("train" or "test") and `attributes` are optional. Captions may be sorted by kind, under names of
one's choice, so that MuLan's training can mix the kinds by weight; all else takes them alike:

    "captions": {"short": ["calm piano"], "long": ["a calm piano melody in a minor key"], "playlist": ["music to read by"], "label": ["piano"]}

Clips with the same `"melody": "name"` are renderings of one tune, second for second, from which the melody embedder learns; such a clip needs no
caption. Without `metadata.jsonl` each audio file may have a text file of the same stem, one caption per line.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musiclm_jax import audio
from musiclm_jax.data.prefetch import Source
from musiclm_jax.errors import UserError
from musiclm_jax.records import read_json, write_json, write_text

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")
# A crop starts on a semantic token, so that waves and tokens of a crop line up exactly.
ALIGN_SAMPLES = 960
MIN_SEC = 1.0
MAX_BAD_SHARE = 0.1
TEST_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class Clip:
    """One entry of a store. `offset` and `length` are samples in `samples.npy`."""

    file_name: str
    offset: int
    length: int
    captions: tuple[str, ...]
    split: str
    attributes: dict[str, Any]
    # Of what tune it is a rendering. None: not said.
    melody: str | None = None
    # The kind of each caption. None: not said.
    kinds: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class ClipStore:
    """All clips of a data set: int16 samples end to end (memory-mapped, [N total]) and what is known of each clip."""

    samples: np.ndarray
    clips: tuple[Clip, ...]
    sample_rate_hz: int

    @classmethod
    def open(cls, directory: Path | str) -> ClipStore:
        directory = Path(directory)
        index = read_json(directory / "index.json")
        samples = np.load(directory / "samples.npy", mmap_mode="r")
        if len(samples) != index["num_samples"]:
            raise UserError(f"{directory}/samples.npy has {len(samples)} samples, its index says {index['num_samples']}: prepare the data again")
        tuples = lambda clip: {name: tuple(clip[name]) for name in ("captions", "kinds") if name in clip}  # noqa: E731
        clips = tuple(Clip(**{**clip, **tuples(clip)}) for clip in index["clips"])
        return cls(samples, clips, index["sample_rate_hz"])

    def wave(self, clip: Clip, start: int = 0, length: int | None = None) -> np.ndarray:
        """float32 [length] of a clip from sample `start`, zero-padded on the right where the clip ends."""
        length = clip.length - start if length is None else length
        piece = self.samples[clip.offset + start : clip.offset + min(start + length, clip.length)].astype(np.float32) / 32768
        return np.pad(piece, (0, length - len(piece)))

    def split(self, name: str) -> tuple[Clip, ...]:
        return tuple(clip for clip in self.clips if clip.split == name)

    def captioned(self) -> ClipStore:
        """The clips that have a caption, of the same samples."""
        return dataclasses.replace(self, clips=tuple(clip for clip in self.clips if clip.captions))


# ---------------------------------------------------------------------------------------------------------------------- Prepare


def prepare(folder: Path | str, directory: Path | str, *, sample_rate_hz: int = audio.SAMPLE_RATE_HZ, workers: int | None = None) -> ClipStore:
    """Decodes the clips of `folder` (any format, rate, channels) to mono int16 in the store `directory`, whole or not at all.

    Clips that are missing, damaged, silent, not finite, shorter than 1 s or with neither caption nor melody are left out, counted and named in
    `skipped.log`. Where no clip has a split, about 5 % are held out by the hash of their melody, or else of their name.

    Raises:
        UserError: no audio, neither captions nor melodies, a melody in both splits, or more than 10 % of the clips are bad.
    """
    folder, directory = Path(folder), Path(directory)
    entries = _entries(folder)
    directory.mkdir(parents=True, exist_ok=True)
    clips: list[Clip] = []
    skipped: list[str] = []

    def decode(entry: dict[str, Any]) -> np.ndarray | UserError:
        if not entry["captions"] and entry["melody"] is None:
            return UserError(f"{entry['file_name']}: has no caption; add one to metadata.jsonl")
        try:
            wave = audio.read(folder / entry["file_name"], sample_rate_hz=sample_rate_hz, min_samples=round(MIN_SEC * sample_rate_hz))
        except UserError as error:
            return error
        return np.clip(np.rint(wave * 32768), -32768, 32767).astype(np.int16)

    samples_file = directory / "samples.npy"
    with _GrowingArray(samples_file) as samples, concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for some in _chunks(entries, 64):  # Decoded in parallel, written in order, never many in memory.
            for entry, wave in zip(some, pool.map(decode, some), strict=True):
                if isinstance(wave, UserError):
                    skipped.append(str(wave))
                else:
                    clips.append(Clip(offset=samples.length, length=len(wave), **entry))
                    samples.append(wave)
        write_text(directory / "skipped.log", "".join(f"{line}\n" for line in skipped))
        if len(skipped) > MAX_BAD_SHARE * len(entries):
            raise UserError(
                f"{len(skipped)} of {len(entries)} clips in {folder} are of no use, such as {skipped[0]!r} "
                f"(all of them: {directory / 'skipped.log'}): repair or remove them"
            )
    if not any(clip.split == "train" for clip in clips):
        raise UserError(f"{folder} has no clip of split 'train': give some clips that split in metadata.jsonl, or no clip any split")
    index = {
        "sample_rate_hz": sample_rate_hz,
        "num_samples": sum(clip.length for clip in clips),
        "num_skipped": len(skipped),
        # Without kinds the index is byte for byte what it was before there were any, and so trainings on it stay done.
        "clips": [{name: value for name, value in dataclasses.asdict(clip).items() if name != "kinds" or value is not None} for clip in clips],
    }
    write_json(directory / "index.json", index)  # Last: a store without an index is no store.
    return ClipStore.open(directory)


def _entries(folder: Path) -> list[dict[str, Any]]:
    """What the folder says of each clip: file_name, captions, split, attributes, melody, where said also kinds; in the order of the file names."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the folder that holds the clips and metadata.jsonl")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    listed = _read_metadata(folder / "metadata.jsonl") if (folder / "metadata.jsonl").exists() else _read_sidecars(folder, files)
    if not files:
        what = "captions but no audio" if listed else "no audio"
        raise UserError(f"{folder} holds {what}: put the clips there ({', '.join(AUDIO_SUFFIXES)}) under the names that metadata.jsonl gives")
    if not any(entry["captions"] or entry["melody"] is not None for entry in listed.values()):
        raise UserError(
            f"{folder} holds {len(files)} audio files but no captions: add metadata.jsonl with lines such as "
            f'{{"file_name": "{files[0]}", "captions": ["a calm piano melody"]}}, or a text file beside each clip'
        )
    nothing = {"captions": (), "split": None, "attributes": {}, "melody": None}
    entries = [{"file_name": name, **listed.get(name, nothing)} for name in sorted({*files, *listed})]
    if all(entry["split"] is None for entry in entries):
        tune = lambda entry: entry["file_name"] if entry["melody"] is None else entry["melody"]  # noqa: E731
        held_out = set(_held_out(sorted({tune(entry) for entry in entries})))
        return [{**entry, "split": "test" if tune(entry) in held_out else "train"} for entry in entries]
    entries = [{**entry, "split": entry["split"] or "train"} for entry in entries]
    train, test = ({entry["melody"] for entry in entries if entry["split"] == split} - {None} for split in ("train", "test"))
    if train & test:
        raise UserError(f"{folder / 'metadata.jsonl'} has melody {min(train & test)!r} in both splits: give all of its renderings the same one")
    return entries


def _read_metadata(path: Path) -> dict[str, dict[str, Any]]:
    listed = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name = os.path.normpath(entry["file_name"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f'{path} line {number} is not an object with "file_name" and "captions": mend that line') from None
        try:
            captions, kinds = read_captions(entry)
        except UserError as error:
            raise UserError(f"{path} line {number}: {error}") from None
        if entry.get("split") not in (None, "train", "test"):
            raise UserError(f"{path} line {number}: split is {entry['split']!r}, expected 'train' or 'test'")
        if name in listed:
            raise UserError(f"{path} line {number}: {name} is listed twice; put all its captions into one line")
        if not isinstance(entry.get("melody"), str | None):
            raise UserError(f"{path} line {number}: melody is {entry['melody']!r}, expected a string")
        texts = {"captions": captions, "kinds": kinds}
        listed[name] = {**texts, "split": entry.get("split"), "attributes": entry.get("attributes") or {}, "melody": entry.get("melody")}
    return listed


def read_captions(entry: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """The captions that a line of metadata.jsonl gives, without empty ones, and the kind of each; None for the kinds where it names none.

    Raises:
        UserError: they are neither a list of strings nor an object from kinds to such lists.
    """
    given = entry.get("captions", entry.get("caption", ()))
    by_kind = given if isinstance(given, dict) else {None: [given] if isinstance(given, str) else given}
    for texts in by_kind.values():
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"captions is {given!r}, expected a list of strings, or an object from kinds to lists of strings")
    found = [(text.strip(), kind) for kind, texts in by_kind.items() for text in texts if text.strip()]
    return tuple(text for text, _ in found), tuple(kind for _, kind in found) if found and isinstance(given, dict) else None


def _read_sidecars(folder: Path, files: list[str]) -> dict[str, dict[str, Any]]:
    listed = {}
    for name in files:
        sidecar = (folder / name).with_suffix(".txt")
        if sidecar.exists():
            captions = tuple(line.strip() for line in sidecar.read_text(encoding="utf-8").splitlines() if line.strip())
            listed[name] = {"captions": captions, "split": None, "attributes": {}, "melody": None}
    return listed


def _held_out(names: list[str]) -> list[str]:
    """About TEST_SHARE of the names, by hash, so that new clips do not move old ones; at least one where there are two or more."""
    hashes = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64 for name in names}
    chosen = [name for name in names if hashes[name] < TEST_SHARE]
    if not chosen and len(names) > 1:
        chosen = [min(names, key=hashes.__getitem__)]
    return chosen if len(chosen) < len(names) else chosen[1:]


class _GrowingArray:
    """An int16 .npy file of unknown length, written end to end; it takes its name only when it is complete."""

    def __init__(self, path: Path):
        self._path, self._temporary = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.length = 0

    def __enter__(self) -> _GrowingArray:
        self._file = self._temporary.open("wb")
        self._write_header()
        return self

    def append(self, array: np.ndarray) -> None:
        self._file.write(array.tobytes())
        self.length += len(array)

    def _write_header(self) -> None:
        # NumPy leaves room for a length that grows, so the header written over it at the end is just as long.
        header = {"descr": "<i2", "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def __exit__(self, kind, *exception) -> None:
        with self._file:
            if kind is None:
                self._file.seek(0)
                self._write_header()
                self._file.flush()
                os.fsync(self._file.fileno())
        if kind is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink()


def _chunks(items: list, size: int) -> Iterator[list]:
    iterator = iter(items)
    while some := list(itertools.islice(iterator, size)):
        yield some


# ---------------------------------------------------------------------------------------------------------------------- Sources


def step_rng(seed: int, step: int) -> np.random.Generator:
    """The generator of one step: what a batch draws depends on nothing else."""
    return np.random.default_rng([seed, step])


def draw(rng: np.random.Generator, lengths: np.ndarray, *, batch_size: int) -> np.ndarray:
    """`batch_size` clip numbers, drawn in proportion to `lengths`; all different where there are enough clips."""
    return rng.choice(len(lengths), batch_size, replace=len(lengths) < batch_size, p=lengths / lengths.sum())


def draw_start(rng: np.random.Generator, length: int, crop: int, *, align: int = 1) -> int:
    """The start of a crop that lies in the clip, a multiple of `align`; 0 where the clip is not longer than the crop."""
    return int(rng.integers(max(length - crop, 0) // align + 1)) * align


def draw_caption(rng: np.random.Generator, clip: Clip, text_mix: Mapping[str, float] | None = None) -> str:
    """One of the clip's captions, all alike; with `text_mix` (kind -> weight) a kind by weight among those that the clip has, then one of that kind.

    Captions without kinds are all alike in either case.
    """
    if not text_mix or clip.kinds is None:
        return clip.captions[rng.integers(len(clip.captions))]
    counts = collections.Counter(clip.kinds)
    weights = np.array([text_mix.get(kind, 0.0) / counts[kind] for kind in clip.kinds])
    return clip.captions[rng.choice(len(weights), p=weights / weights.sum())]


def crop_samples(crop_sec: float, sample_rate_hz: int) -> int:
    """The length of a crop of `crop_sec`, a multiple of ALIGN_SAMPLES."""
    return round(crop_sec * sample_rate_hz / ALIGN_SAMPLES) * ALIGN_SAMPLES


def wave_source(
    store: ClipStore,
    *,
    split: str,
    crop_sec: float,
    batch_size: int,
    seed: int,
    encode_text: Callable[[list[str]], tuple[np.ndarray, np.ndarray]] | None = None,
    text_mix: Mapping[str, float] | None = None,
) -> Source:
    """step -> {"wave": float32 [B, N]}, random crops of `crop_sec`, zero-padded on the right where a clip is shorter.

    With `encode_text` (captions -> ids int32 [B, T], mask bool [B, T]) also {"text_ids", "text_mask"} of a caption of each clip, drawn by `draw_caption`.

    Raises:
        UserError: the split has no clips, or one whose captions are all of kinds that have no weight in `text_mix`.
    """
    clips = store.split(split)
    if not clips:
        raise UserError(f"no clip of split {split!r}: give some clips that split in metadata.jsonl")
    for clip in clips:
        if text_mix and clip.kinds is not None and not any(text_mix.get(kind) for kind in clip.kinds):
            kinds = " or ".join(sorted(set(clip.kinds)))
            raise UserError(f"captions of {clip.file_name} are all of kind {kinds}, to which text_mix={dict(text_mix)} gives no weight: add one there")
    crop = crop_samples(crop_sec, store.sample_rate_hz)
    lengths = np.array([clip.length for clip in clips], np.float64)

    def source(step: int) -> dict[str, np.ndarray]:
        rng = step_rng(seed, step)
        chosen = [clips[i] for i in draw(rng, lengths, batch_size=batch_size)]
        starts = [draw_start(rng, clip.length, crop, align=ALIGN_SAMPLES) for clip in chosen]
        batch = {"wave": np.stack([store.wave(clip, start, crop) for clip, start in zip(chosen, starts, strict=True)])}
        if encode_text:
            ids, mask = encode_text([draw_caption(rng, clip, text_mix) for clip in chosen])
            batch |= {"text_ids": np.asarray(ids), "text_mask": np.asarray(mask)}
        return batch

    return source
