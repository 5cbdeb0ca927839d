"""The clip store: the clips of a folder, decoded once and then memory-mapped, or the records of a data set of TFDS; and batches of random crops of them.
NumPy only, no JAX.

`data/folder.py` finds the clips of a folder, `data/decoding.py` decodes them; `data/records.py` reads data sets of TFDS. `index.json` of the store combines
the decoded clips, or those of the records, with their current metadata. `data/readers.py` has batches in other orders.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from musiclm_jax.arrays import Float
from musiclm_jax.audio import SAMPLE_RATE_HZ
from musiclm_jax.buckets import StoreError, explain
from musiclm_jax.data.decoding import SAMPLES, DecodedClip, decode_clips, forget_progress, read_decoded
from musiclm_jax.data.folder import ClipFolder, Entry
from musiclm_jax.data.prefetch import Rows, Source
from musiclm_jax.data.records import RecordFolder, RecordSamples, open_records
from musiclm_jax.data.walk import printable
from musiclm_jax.errors import UserError, unreadable
from musiclm_jax.files import AnyPath, as_path, local_copy, make_folder, parse_json, write_text
from musiclm_jax.progress import OnProgress

# Crops of waves start at multiples of this, and their length is one: at 24 kHz the samples of a semantic token.
ALIGN_SAMPLES = 960
INDEX, SKIPPED = "index.json", "skipped.log"
MAX_BAD_SHARE = 0.1

# Captions -> ids int32 [B, T], mask bool [B, T].
EncodeText = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]


@runtime_checkable
class Samples(Protocol):
    """The int16 samples of all clips, one clip after the other: a memory-mapped array, or `data.records.RecordSamples`."""

    shape: tuple[int, ...]

    def __getitem__(self, where: slice, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
    """One clip of a store. `offset` and `length` are in samples."""

    file_name: str
    offset: int
    length: int
    captions: tuple[str, ...]
    split: str
    attributes: dict[str, Any]
    # Name of the melody that it renders. None: not given.
    melody: str | None = None
    # The kind of each caption. None: not given.
    kinds: tuple[str, ...] | None = None
    # Name of the clip that it accompanies. None: not given.
    voice: str | None = None


@dataclasses.dataclass(frozen=True)
class ClipStore:
    """All clips of a data set: their samples and the metadata of each."""

    samples: Samples
    clips: tuple[Clip, ...]
    sample_rate_hz: int

    @classmethod
    def open(cls, directory: AnyPath | str) -> ClipStore:
        """Opens the store that `prepare` wrote. Raises UserError if it is missing or damaged."""
        directory = as_path(directory)
        remedy = f"move {directory} away, and prepare the data again"
        tuples = lambda clip: {name: tuple(clip[name]) for name in ("captions", "kinds") if name in clip}  # noqa: E731
        try:
            index = parse_json((directory / INDEX).read_bytes())
            clips = tuple(Clip(**{**clip, **tuples(clip)}) for clip in index["clips"])
            num_samples, sample_rate_hz, records = int(index["num_samples"]), int(index["sample_rate_hz"]), index.get("records")
        except OSError as error:
            raise unreadable(directory / INDEX, error) from error
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{directory / INDEX} is damaged: {remedy}") from error
        if records is not None:
            at = np.sort([*(clip.offset for clip in clips), num_samples])
            return cls(RecordSamples(open_records(as_path(records)), at), clips, sample_rate_hz)
        samples = load_array(directory / SAMPLES)
        if samples.shape != (num_samples,):
            raise UserError(f"{directory / SAMPLES} has shape {list(samples.shape)} where its index has [{num_samples}]: {remedy}")
        return cls(samples, clips, sample_rate_hz)

    def wave(self, clip: Clip, start: int = 0, length: int | None = None) -> np.ndarray:
        """`length` samples of a clip from sample `start` on, float32, zero-padded on the right after the clip's end. None: to the end of the clip."""
        length = clip.length - start if length is None else length
        piece = self.samples[clip.offset + start : clip.offset + min(start + length, clip.length)].astype(np.float32) / 32768
        return np.pad(piece, (0, length - len(piece)))

    def split(self, name: str) -> tuple[Clip, ...]:
        """The clips of the split "train" or "test"."""
        return tuple(clip for clip in self.clips if clip.split == name)

    def captioned(self) -> ClipStore:
        """The store with only the clips that have a caption."""
        return dataclasses.replace(self, clips=tuple(clip for clip in self.clips if clip.captions))


def load_array(path: AnyPath) -> np.ndarray:
    """Memory-maps the array of a .npy file; on an object store, of its local copy. Raises UserError if the file cannot be read or is damaged."""
    try:
        return np.load(local_copy(path), mmap_mode="r")
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged: delete it, and the next training makes it again") from error


# ---------------------------------------------------------------------------------------------------------------------- Prepare


def prepare(
    folder: ClipFolder, directory: AnyPath | str, *, sample_rate_hz: int, workers: int | None = None, on_progress: OnProgress | None = None
) -> ClipStore:
    """Decodes the clips of `folder`, of any format, rate and number of channels, to mono int16 in the store `directory`, completely or not at all. Of a data
    set of TFDS, which is decoded, only the index is written.

    Clips that are missing, damaged, silent, not finite or shorter than 1 s are skipped, counted and listed in `skipped.log`. The next call continues an
    interrupted one. If the store already has these clips, only its index is written again. Two processes must not prepare the same store at once.

    Args:
        folder: the clips, from `read_folder` with hashes, or from `read_record_folder`.
        directory: the folder of the store.
        sample_rate_hz: of the decoded samples.
        workers: number of decoding threads, which bounds memory however long a clip is. None: the number of processors.
        on_progress: called with ("decoding", clips done, clips in all).

    Raises:
        UserError: more than 10% of the clips cannot be used, no usable clip has the split "train", a data set of TFDS has another rate, or the disk is full.
            Clips decoded by then are kept.
    """
    directory, total = as_path(directory), len(folder.entries)
    try:
        make_folder(directory)
        if isinstance(folder, RecordFolder):
            if sample_rate_hz != SAMPLE_RATE_HZ:
                raise UserError(
                    f"{folder.path} has clips at {SAMPLE_RATE_HZ} Hz where AudioSpec has {sample_rate_hz} Hz: give the folder of audio files instead"
                )
            return refresh_index(folder, directory)
        check = lambda skipped: _check_skipped(folder, directory, skipped)  # noqa: E731
        check(())
        _check_train(folder, folder.entries)
        if _is_of(directory, folder, sample_rate_hz):
            forget_progress(directory)
        else:
            on_clip = lambda done: on_progress and on_progress("decoding", done, total)  # noqa: E731
            decode_clips(folder.path, folder.entries, directory, sample_rate_hz=sample_rate_hz, workers=workers, on_skip=check, on_clip=on_clip)
        return refresh_index(folder, directory)
    except StoreError as error:
        raise UserError(explain(error)) from error
    except OSError as error:
        raise UserError(f"{directory} cannot be written ({error.strerror or error}): free some space and run the same command again; it continues") from None


def refresh_index(folder: ClipFolder, directory: AnyPath | str) -> ClipStore:
    """Writes the index of a store again, with the current captions, splits, melodies and attributes of `folder`. Nothing is decoded.

    Raises:
        UserError: the store has other clips than `folder`, too many clips cannot be used, or no usable clip has the split "train".
    """
    directory = as_path(directory)
    if isinstance(folder, RecordFolder):
        _check_train(folder, folder.entries)
        clips = [_clip(*each) for each in zip(folder.entries, folder.offsets, folder.lengths, strict=True)]
        return _write_index(directory, clips, sample_rate_hz=SAMPLE_RATE_HZ, records=str(folder.path))
    decoded = read_decoded(directory)
    if decoded is None or not _is_of(directory, folder, decoded[0]):
        raise UserError(f"{directory} has other clips than {folder.path} has now: prepare the data again")
    sample_rate_hz, found = decoded
    skipped = [clip for clip in found if clip.reason is not None]
    _check_skipped(folder, directory, skipped)
    _write_skipped(folder, directory, skipped)
    pairs = [(clip, entry) for clip, entry in zip(found, folder.entries, strict=True) if clip.reason is None]
    _check_train(folder, [entry for _, entry in pairs])
    clips = [_clip(entry, clip.offset, clip.length) for clip, entry in pairs]
    return _write_index(directory, clips, sample_rate_hz=sample_rate_hz, num_skipped=len(skipped) + len(folder.unusable))


def _clip(entry: Entry, offset: int, length: int) -> Clip:
    return Clip(entry.name, offset, length, entry.captions, entry.split, entry.attributes, entry.melody, entry.kinds, entry.voice)


def _write_index(directory: AnyPath, clips: Sequence[Clip], *, sample_rate_hz: int, **more: Any) -> ClipStore:
    """Writes index.json, last: a store without an index is incomplete. more: further fields, such as "records", the folder of a data set of TFDS."""
    names = [field.name for field in dataclasses.fields(Clip)]
    # Clips without kinds of captions have no key "kinds", and those without a voice no key "voice".
    rows = [{name: getattr(clip, name) for name in names if name not in ("kinds", "voice") or getattr(clip, name) is not None} for clip in clips]
    index = {"sample_rate_hz": sample_rate_hz, "num_samples": sum(clip.length for clip in clips), **more, "clips": rows}
    write_text(directory / INDEX, json.dumps(index, ensure_ascii=False) + "\n")  # Without indents, which would take most of the time.
    return ClipStore.open(directory)


def _is_of(directory: AnyPath, folder: ClipFolder, sample_rate_hz: int) -> bool:
    """Whether the store `directory` has the clips of `folder`, by name and hash, at this rate."""
    if any(entry.sha256 is None for entry in folder.entries):
        raise ValueError("expected a folder with hashes: read it with read_folder(..., hash_files=True)")
    found = [(entry.name, entry.sha256) for entry in folder.entries]
    decoded = read_decoded(directory)
    return decoded is not None and decoded[0] == sample_rate_hz and [(clip.file_name, clip.sha256) for clip in decoded[1]] == found


def _check_skipped(folder: ClipFolder, directory: AnyPath, skipped: Sequence[DecodedClip]) -> None:
    """Raises UserError if more than MAX_BAD_SHARE of the clips cannot be used."""
    count, total = len(folder.unusable) + len(skipped), len(folder.entries) + len(folder.unusable)
    if count > MAX_BAD_SHARE * total:
        lines = _write_skipped(folder, directory, skipped)
        raise UserError(
            f"{count} of {total} clips in {folder.path} cannot be used, such as {lines[0]!r} "
            f"(all that were found: {directory / SKIPPED}): repair or remove them"
        )  # fmt: skip


def _write_skipped(folder: ClipFolder, directory: AnyPath, skipped: Sequence[DecodedClip]) -> list[str]:
    """Writes skipped.log, one line for each clip that is skipped or absent, with the reason. Returns the lines of those that are skipped."""
    lines = sorted(f"{printable(name)}: {reason}" for name, reason in [*folder.unusable, *((clip.file_name, clip.reason) for clip in skipped)])
    write_text(directory / SKIPPED, "".join(f"{line}\n" for line in [*lines, *(f"{name}: its audio is not there" for name in folder.absent)]))
    return lines


def _check_train(folder: ClipFolder, entries: Sequence[Entry]) -> None:
    if not any(entry.split == "train" for entry in entries):
        raise UserError(f"{folder.path} has no clip of split 'train': set it for some clips in metadata.jsonl, or remove all splits there")


# ---------------------------------------------------------------------------------------------------------------------- Sources


def step_rng(seed: int, step: int) -> np.random.Generator:
    """The random generator of one training step: a batch depends on (seed, step) only."""
    return np.random.default_rng([seed, step])


def draw(rng: np.random.Generator, lengths: np.ndarray, *, batch_size: int) -> np.ndarray:
    """Draws `batch_size` clip numbers in proportion to `lengths`, without repetition if there are enough clips."""
    return rng.choice(len(lengths), batch_size, replace=len(lengths) < batch_size, p=lengths / lengths.sum())


def draw_start(rng: np.random.Generator, length: int, crop: int, *, align: int = 1) -> int:
    """Draws the start of a crop inside a clip, a multiple of `align`. It is 0 if the clip is not longer than the crop."""
    return int(rng.integers(max(length - crop, 0) // align + 1)) * align


def draw_caption(rng: np.random.Generator, captions: Sequence[str], kinds: Sequence[str] | None, text_mix: Mapping[str, float] | None = None) -> str:
    """Draws one of the captions of a clip, all with the same probability.

    With `text_mix`, {kind: weight}, it draws a kind by weight among those that the clip has, and then a caption of that kind. Captions without kinds have
    the same probability in either case.
    """
    if not text_mix or kinds is None:
        return captions[rng.integers(len(captions))]
    counts = collections.Counter(kinds)
    weights = np.array([text_mix.get(kind, 0.0) / counts[kind] for kind in kinds])
    return captions[rng.choice(len(weights), p=weights / weights.sum())]


def crop_samples(crop_sec: float, sample_rate_hz: int) -> int:
    """The length of a crop in samples: `crop_sec`, rounded to a multiple of ALIGN_SAMPLES."""
    return round(crop_sec * sample_rate_hz / ALIGN_SAMPLES) * ALIGN_SAMPLES


def clips_of(store: ClipStore, split: str, text_mix: Mapping[str, float] | None = None) -> tuple[Clip, ...]:
    """The clips of a split. Raises UserError if it has none, or the captions of a clip have only kinds without a weight in `text_mix`."""
    clips = store.split(split)
    if not clips:
        raise UserError(f"no clip of split {split!r}: set it for some clips in metadata.jsonl")
    for clip in clips:
        if text_mix and clip.kinds is not None and not any(text_mix.get(kind) for kind in clip.kinds):
            kinds = " or ".join(sorted(set(clip.kinds)))
            raise UserError(f"captions of {clip.file_name} are all of kind {kinds}, to which text_mix={dict(text_mix)} gives no weight: add one there")
    return clips


def make_crops(wave: Float[np.ndarray, "B N"], captions: Sequence[str], encode_text: EncodeText | None) -> dict[str, np.ndarray]:
    """A batch: {"wave": float32 [B, N]}, with `encode_text` also "text_ids" and "text_mask" of the captions, one for each wave."""
    batch = {"wave": wave}
    if encode_text:
        ids, mask = encode_text(list(captions))
        batch |= {"text_ids": np.asarray(ids), "text_mask": np.asarray(mask)}
    return batch


def wave_source(
    store: ClipStore,
    *,
    split: str,
    crop_sec: float,
    batch_size: int,
    seed: int,
    encode_text: EncodeText | None = None,
    text_mix: Mapping[str, float] | None = None,
) -> Source:
    """A source of training batches of random crops: step -> {"wave": float32 [B, N]}. Clips shorter than a crop are zero-padded on the right.

    With `encode_text` batches also have {"text_ids", "text_mask"}, of one caption per clip (`draw_caption`).

    Raises:
        UserError: see `clips_of`.
    """
    clips, crop = clips_of(store, split, text_mix), crop_samples(crop_sec, store.sample_rate_hz)
    lengths = np.array([clip.length for clip in clips], np.float64)

    def source(step: int, rows: Rows = np.arange) -> dict[str, np.ndarray]:
        rng, here = step_rng(seed, step), rows(batch_size)
        chosen = [clips[i] for i in draw(rng, lengths, batch_size=batch_size)]
        starts = [draw_start(rng, clip.length, crop, align=ALIGN_SAMPLES) for clip in chosen]
        captions = [draw_caption(rng, clip.captions, clip.kinds, text_mix) for clip in chosen] if encode_text else [""] * batch_size
        wave = np.stack([store.wave(chosen[row], starts[row], crop) for row in here])
        return make_crops(wave, [captions[row] for row in here], encode_text)

    return source
