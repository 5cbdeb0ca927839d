"""Writing of a corpus: a folder of FLAC files with a JSON-lines file, the layout that `musiclm fit` reads.

    DIR/audio/000000.flac   16 bits, 24 kHz, mono, 30 s; less if the piece ends
    DIR/audio/000000-1.flac variant 1 of clip 0: the same melody with other instruments; of synthesized clips also hummed or whistled
    DIR/audio/000000-lead.flac, DIR/audio/000000-band.flac  its stems: the lead alone, and all the others
    DIR/metadata.jsonl      {"file_name": "audio/000000.flac", "split": "train", "captions": [...], "attributes": {...}, "melody": "000000"}
    DIR/NOTICE              whose sounds and tunes the clips have, if others'; the card of a bundle that is trained on them contains it
    DIR/corpus.json         the corpus that the folder contains, such as {"seed": 0, "version": 2}: `Corpus.identity`

Variants and stems have no captions. "melody" is written only if there are variants; a band has "voice", the file of its lead.

Existing audio files are kept. A call for fewer clips than before lists fewer clips in the metadata; the files of the others stay in the folder, unlisted
and unused, and a later call for more clips lists them again.
"""

import functools
import json
import multiprocessing
import os
import pathlib
import re
from collections.abc import Callable
from typing import Literal

import soundfile

from musiclm_jax.corpus.clip import CLIP_SAMPLES, NOTICE, SAMPLE_RATE_HZ, STEMS, Corpus, Variant
from musiclm_jax.corpus.sampled.clip import SampledCorpus
from musiclm_jax.corpus.synthesized.clip import SynthesizedCorpus
from musiclm_jax.errors import UserError, unwritable
from musiclm_jax.files import atomic_path, local_path, write_text

CORPORA = {"synthesized": SynthesizedCorpus, "sampled": SampledCorpus}
# 8,333 hours of 30 s clips.
MAX_CLIPS = 1_000_000
_FILE_NAME = re.compile(r"audio/(\d{6,})(?:-([1-9]\d*|lead|band))?\.flac")


def make_corpus(
    directory: str | os.PathLike,
    *,
    num_clips: int,
    seed: int,
    instruments: Literal["synthesized", "sampled"] = "synthesized",
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
        instruments: "synthesized", which needs nothing else, or "sampled", which needs FluidSynth, soundfonts and drum samples.
        num_variants: variants of each clip, at least 0. The melody embedder learns from them.
        endings: share of the pieces that end, 0 to 1. The others are cut after 30 s.
        stems: whether the lead and the band of each clip are written apart, too. An accompanist learns from them.
        workers: processes, at least 1.
        on_clip: called with 0, 1, 2, ..., each time one more file is done.

    Returns:
        The audio files of earlier calls that the metadata do not list now, such as "audio/000007.flac". They are kept.

    Raises:
        UserError: a number is out of range; the directory cannot be written; it contains another corpus, or files of the user in the places of this one;
            its metadata were edited, and would be overwritten; or what the sampled instruments need is not installed.
    """
    for name, value, least in (("num_clips", num_clips, 1), ("seed", seed, 0), ("num_variants", num_variants, 0), ("workers", workers, 1)):
        if value < least:
            raise UserError(f"{name}={value}: choose {least} or more")
    if not 0 <= endings <= 1:
        raise UserError(f"endings={endings}: choose a share from 0 to 1")
    variants = (*range(num_variants + 1), *(STEMS if stems else ()))
    if num_clips * len(variants) > MAX_CLIPS:
        raise UserError(f"num_clips={num_clips} with num_variants={num_variants} are more than {MAX_CLIPS:,} clips: choose smaller numbers")
    directory, corpus = local_path(directory), CORPORA[instruments](seed, endings)
    corpus.require()
    renderings = [(index, variant) for index in range(num_clips) for variant in variants]
    try:
        _claim(directory, corpus)
        (directory / "audio").mkdir(exist_ok=True)
        write_clip = functools.partial(_write_clip, directory, corpus)
        if workers == 1:
            _count(map(write_clip, renderings), on_clip)
        else:
            with multiprocessing.get_context("spawn").Pool(workers) as pool:
                _count(pool.imap(write_clip, renderings, chunksize=4), on_clip)
        _check_unedited(directory / "metadata.jsonl", corpus)  # Again, since rendering takes long.
        melody = lambda index, variant: {"melody": f"{index:06d}"} if num_variants and variant not in STEMS else {}  # noqa: E731
        lines = [json.dumps(_metadata(corpus, index, variant) | melody(index, variant)) + "\n" for index, variant in renderings]
        write_text(directory / "metadata.jsonl", "".join(lines))
        if notice := corpus.notice:
            write_text(directory / NOTICE, notice)
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


def _file_name(index: int, variant: Variant) -> str:
    return f"audio/{index:06d}-{variant}.flac" if variant else f"audio/{index:06d}.flac"


def _is_variant(name: str) -> bool:
    found = _FILE_NAME.fullmatch(f"audio/{name}")
    return found is not None and found[2] is not None


def _metadata(corpus: Corpus, index: int, variant: Variant) -> dict:
    described = corpus.describe(index, variant)
    return {
        "file_name": _file_name(index, variant),
        "split": described.split,
        "captions": described.captions,
        "attributes": described.attributes,
    } | ({"voice": _file_name(index, "lead")} if variant == "band" else {})


def _claim(directory: pathlib.Path, corpus: Corpus) -> None:
    """Writes corpus.json. Raises UserError where the folder contains another corpus or files of the user."""
    path, mine = directory / "corpus.json", corpus.identity
    if path.exists():
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            theirs = None
        if theirs == mine | {"version": 1} and not any(_is_variant(each.name) for each in (directory / "audio").glob("*.flac")):
            write_text(path, json.dumps(mine) + "\n")
        elif theirs != mine:
            raise UserError(f"{path} is of the corpus {theirs}, expected {mine}: choose another directory, or remove that one")
        _check_unedited(directory / "metadata.jsonl", corpus)
    elif directory.is_dir() and (others := sorted(each.name for each in directory.iterdir() if not each.name.startswith("."))):
        raise UserError(f"{directory} has files that are not of a corpus, such as {others[0]}: choose a new or empty directory")
    else:
        directory.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(mine) + "\n")


def _check_unedited(path: pathlib.Path, corpus: Corpus) -> None:
    """Raises UserError where a line of the metadata differs from what this corpus writes: the user's change would be lost."""
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line and not _is_ours(line, corpus):
            raise UserError(f"{path} line {number} was edited: keep that file under another name, or choose another directory")


def _is_ours(line: bytes, corpus: Corpus) -> bool:
    try:
        found = json.loads(line)
        index, name = _FILE_NAME.fullmatch(found["file_name"]).groups(default="0")
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    variant = name if name in STEMS else int(name)
    ours = json.loads(json.dumps(_metadata(corpus, int(index), variant)))  # With lists for tuples.
    return found.pop("melody", f"{int(index):06d}") == f"{int(index):06d}" and found == ours


def _write_clip(directory: pathlib.Path, corpus: Corpus, rendering: tuple[int, Variant]) -> None:
    path = directory / _file_name(*rendering)
    if not _is_clip(path):
        wave = corpus.render(*rendering)
        with atomic_path(path) as temporary:
            soundfile.write(temporary, wave, SAMPLE_RATE_HZ, subtype="PCM_16", format="FLAC")


def _is_clip(path: pathlib.Path) -> bool:
    """Whether the file is a clip. Checking the header is enough, since files are written completely or not at all."""
    try:
        info = soundfile.info(path)
    except (OSError, soundfile.LibsndfileError):
        return False
    return 0 < info.frames <= CLIP_SAMPLES and (info.samplerate, info.channels) == (SAMPLE_RATE_HZ, 1)
