"""Rendering of clips, and writing of a corpus: a folder of FLAC files with a JSON-lines file, the layout that `musiclm fit` reads.

    DIR/audio/000000.flac   16 bits, 24 kHz, mono, 30 s; less if the piece ends
    DIR/audio/000000-1.flac variant 1 of clip 0: the same melody with other instruments, hummed or whistled
    DIR/audio/000000-lead.flac, DIR/audio/000000-band.flac  its stems: the lead alone, and all the others
    DIR/metadata.jsonl      {"file_name": "audio/000000.flac", "split": "train", "captions": [...], "attributes": {...}, "melody": "000000"}
    DIR/corpus.json         the corpus that the folder contains: {"seed": 0, "version": 2}, and "endings": the share of pieces that end, if any do

Variants and stems have no captions. "melody" is written only if there are variants; a band has "voice", the file of its lead.

Existing audio files are kept. A call for fewer clips than before lists fewer clips in the metadata; the files of the others stay in the folder, unlisted
and unused, and a later call for more clips lists them again.
"""

import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import re
from collections.abc import Callable

import numpy as np
import soundfile
from jaxtyping import Float

from musiclm_jax.corpus.synthesized import synthesis
from musiclm_jax.corpus.synthesized.attributes import Attributes, Split, clip_rng, clip_split, draw_attributes
from musiclm_jax.corpus.synthesized.captions import write_captions
from musiclm_jax.corpus.synthesized.compose import Note, compose
from musiclm_jax.corpus.synthesized.endings import end, has_ending
from musiclm_jax.corpus.synthesized.variants import arrange
from musiclm_jax.errors import UserError, unwritable
from musiclm_jax.files import atomic_path, local_path, write_text

# The version changes when the music for a seed changes. A folder contains one version. Version 1 had variants without hums; its clips were the same.
CORPUS_VERSION = 2
# 8,333 hours of 30 s clips.
MAX_CLIPS = 1_000_000
_FILE_NAME = re.compile(r"audio/(\d{6,})(?:-([1-9]\d*|lead|band))?\.flac")
# The stems, with numbers of their random streams that no variant has.
STEMS = {"lead": 101, "band": 102}
# 0: the clip itself. 1 and more: a variant. A name: a stem.
Variant = int | str


@dataclasses.dataclass(frozen=True)
class Clip:
    """A rendered clip."""

    # float32 [720000] in [-1, 1]: 30 s at 24 kHz; less if the piece ends.
    wave: Float[np.ndarray, " N"]
    split: Split
    # Ground truth: the fields of attributes.Attributes.
    attributes: dict
    captions: list[str]


def render_clip(*, seed: int, index: int, endings: float = 0.0) -> Clip:
    """Renders clip `index` of the corpus `seed`, both at least 0, in which a share of pieces end. The result depends on these numbers alone.

    Notes and captions are equal on all machines. Samples may differ by rounding, with other versions of NumPy or SciPy or another processor.
    """
    return render_variant(seed=seed, index=index, variant=0, endings=endings)


def render_variant(*, seed: int, index: int, variant: Variant, endings: float = 0.0) -> Clip:
    """Renders variant `variant` of clip `index` of the corpus `seed`, or one of `STEMS`, without captions. Variant 0 is the clip itself, with its captions."""
    attributes, captions = _describe(seed, index, variant)
    notes = arrange(seed=seed, index=index, variant=variant)[1] if _is_number(variant) else clip_notes(seed=seed, index=index)[1]
    num_samples = synthesis.CLIP_SAMPLES
    if has_ending(seed=seed, index=index, share=endings):
        notes, num_samples = end(notes, attributes, seed=seed, index=index)
    if variant in STEMS:
        notes = [note for note in notes if (note.part == "lead") == (variant == "lead")]
    hiss = clip_rng(seed, index, "hiss", variant=STEMS.get(variant, variant))
    wave = synthesis.render(notes, attributes=attributes, rng=hiss, num_samples=num_samples)
    return Clip(wave=wave, split=clip_split(index), attributes=dataclasses.asdict(attributes), captions=captions)


def clip_notes(*, seed: int, index: int) -> tuple[Attributes, list[Note]]:
    """Composes clip `index` of the corpus `seed`, both at least 0: its attributes and notes."""
    attributes = draw_attributes(split=clip_split(index), rng=clip_rng(seed, index, "attributes"))
    return attributes, compose(attributes, rng=clip_rng(seed, index, "music"))


def make_corpus(
    directory: str | os.PathLike,
    *,
    num_clips: int,
    seed: int,
    num_variants: int = 0,
    endings: float = 0.0,
    stems: bool = False,
    workers: int = 1,
    on_clip: Callable[[int], None] | None = None,
) -> list[str]:
    """Writes clips 0 .. num_clips - 1, variants 1 .. num_variants of each, and their metadata into `directory`.

    Every file is written completely or not at all, the metadata last. A second call continues after an interruption, or adds clips or variants. The
    result does not depend on `workers` or on interruptions. With several workers a script needs `if __name__ == "__main__":`, since processes are spawned.

    Args:
        directory: made if it is missing.
        num_clips: at least 1.
        seed: at least 0.
        num_variants: variants of each clip, at least 0. The melody embedder learns from them.
        endings: share of the pieces that end (`corpus/synthesized/endings.py`), 0 to 1. The others are cut after 30 s.
        stems: whether the lead and the band of each clip are written apart, too. An accompanist learns from them.
        workers: processes, at least 1.
        on_clip: called with 0, 1, 2, ..., each time one more file is done.

    Returns:
        The audio files of earlier calls that the metadata do not list now, such as "audio/000007.flac". They are kept.

    Raises:
        UserError: a number is out of range; the directory cannot be written; it contains another corpus, or files of the user in the places of this one;
            or its metadata were edited, and would be overwritten.
    """
    for name, value, least in (("num_clips", num_clips, 1), ("seed", seed, 0), ("num_variants", num_variants, 0), ("workers", workers, 1)):
        if value < least:
            raise UserError(f"{name}={value}: choose {least} or more")
    if not 0 <= endings <= 1:
        raise UserError(f"endings={endings}: choose a share from 0 to 1")
    variants = (*range(num_variants + 1), *(STEMS if stems else ()))
    if num_clips * len(variants) > MAX_CLIPS:
        raise UserError(f"num_clips={num_clips} with num_variants={num_variants} are more than {MAX_CLIPS:,} clips: choose smaller numbers")
    directory = local_path(directory)
    renderings = [(index, variant) for index in range(num_clips) for variant in variants]
    try:
        _claim(directory, seed, endings)
        (directory / "audio").mkdir(exist_ok=True)
        write_clip = functools.partial(_write_clip, directory, seed, endings)
        if workers == 1:
            _count(map(write_clip, renderings), on_clip)
        else:
            with multiprocessing.get_context("spawn").Pool(workers) as pool:
                _count(pool.imap(write_clip, renderings, chunksize=4), on_clip)
        _check_unedited(directory / "metadata.jsonl", seed)  # Again, since rendering takes long.
        melody = lambda index, variant: {"melody": f"{index:06d}"} if num_variants and variant not in STEMS else {}  # noqa: E731
        lines = [json.dumps(_metadata(seed, index, variant) | melody(index, variant)) + "\n" for index, variant in renderings]
        write_text(directory / "metadata.jsonl", "".join(lines))
        listed = {_file_name(index, variant) for index, variant in renderings}
        there = (f"audio/{path.name}" for path in (directory / "audio").iterdir())
        return sorted(name for name in there if _FILE_NAME.fullmatch(name) and name not in listed)
    except OSError as error:
        raise unwritable(directory, error) from error
    except soundfile.LibsndfileError as error:
        raise unwritable(directory, OSError(None, error.error_string)) from error


def _count(written, on_clip: Callable[[int], None] | None) -> None:
    for number, _ in enumerate(written):
        if on_clip is not None:
            on_clip(number)


def _is_number(variant: Variant) -> bool:
    """Whether it is a variant: neither the clip itself nor a stem."""
    return bool(variant) and variant not in STEMS


def _describe(seed: int, index: int, variant: Variant) -> tuple[Attributes, list[str]]:
    if _is_number(variant):
        return arrange(seed=seed, index=index, variant=variant)[0], []
    attributes = draw_attributes(split=clip_split(index), rng=clip_rng(seed, index, "attributes"))
    return attributes, [] if variant else write_captions(attributes, split=clip_split(index), rng=clip_rng(seed, index, "captions"))


def _file_name(index: int, variant: Variant) -> str:
    return f"audio/{index:06d}-{variant}.flac" if variant else f"audio/{index:06d}.flac"


def _is_variant(name: str) -> bool:
    found = _FILE_NAME.fullmatch(f"audio/{name}")
    return found is not None and found[2] is not None


def _metadata(seed: int, index: int, variant: Variant) -> dict:
    attributes, captions = _describe(seed, index, variant)
    return {
        "file_name": _file_name(index, variant),
        "split": clip_split(index),
        "captions": captions,
        "attributes": dataclasses.asdict(attributes),
    } | ({"voice": _file_name(index, "lead")} if variant == "band" else {})


def _claim(directory: pathlib.Path, seed: int, endings: float) -> None:
    """Writes corpus.json. Raises UserError where the folder contains another corpus or files of the user."""
    path, mine = directory / "corpus.json", {"seed": seed, "version": CORPUS_VERSION} | ({"endings": endings} if endings else {})
    if path.exists():
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            theirs = None
        if theirs == mine | {"version": 1} and not any(_is_variant(each.name) for each in (directory / "audio").glob("*.flac")):
            write_text(path, json.dumps(mine) + "\n")
        elif theirs != mine:
            raise UserError(f"{path} is of the corpus {theirs}, expected {mine}: choose another directory, or remove that one")
        _check_unedited(directory / "metadata.jsonl", seed)
    elif directory.is_dir() and (others := sorted(each.name for each in directory.iterdir() if not each.name.startswith("."))):
        raise UserError(f"{directory} has files that are not of a corpus, such as {others[0]}: choose a new or empty directory")
    else:
        directory.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(mine) + "\n")


def _check_unedited(path: pathlib.Path, seed: int) -> None:
    """Raises UserError where a line of the metadata differs from what this corpus writes: the user's change would be lost."""
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line and not _is_ours(line, seed):
            raise UserError(f"{path} line {number} was edited: keep that file under another name, or choose another directory")


def _is_ours(line: bytes, seed: int) -> bool:
    try:
        found = json.loads(line)
        index, name = _FILE_NAME.fullmatch(found["file_name"]).groups(default="0")
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    variant = name if name in STEMS else int(name)
    return found.pop("melody", f"{int(index):06d}") == f"{int(index):06d}" and found == _metadata(seed, int(index), variant)


def _write_clip(directory: pathlib.Path, seed: int, endings: float, rendering: tuple[int, Variant]) -> None:
    index, variant = rendering
    path = directory / _file_name(index, variant)
    if not _is_clip(path):
        wave = render_variant(seed=seed, index=index, variant=variant, endings=endings).wave
        with atomic_path(path) as temporary:
            soundfile.write(temporary, wave, synthesis.SAMPLE_RATE_HZ, subtype="PCM_16", format="FLAC")


def _is_clip(path: pathlib.Path) -> bool:
    """Whether the file is a clip. Checking the header is enough, since files are written completely or not at all."""
    try:
        info = soundfile.info(path)
    except (OSError, soundfile.LibsndfileError):
        return False
    return 0 < info.frames <= synthesis.CLIP_SAMPLES and (info.samplerate, info.channels) == (synthesis.SAMPLE_RATE_HZ, 1)
