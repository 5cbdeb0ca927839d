"""What the clips of a folder are, before a training: lengths, formats, levels, captions, duplicates. Files are read, and nothing is written."""

from __future__ import annotations

import collections
import dataclasses
import io
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
import soundfile
import soxr

from musiclm_jax import audio
from musiclm_jax.arrays import Shaped
from musiclm_jax.data.decoding import MIN_SEC
from musiclm_jax.data.fingerprint import fingerprint, near_duplicates
from musiclm_jax.data.folder import ClipFolder, Entry
from musiclm_jax.data.prefetch import map_ahead
from musiclm_jax.errors import UserError
from musiclm_jax.tars import open_file

# Of longer clips only the beginning is decoded.
_LONGEST_SEC = 600.0
# The rate for fingerprints, whose bands end at 3 kHz.
_PRINT_RATE_HZ = 8_000
# A sample from this level on counts as clipped, one below the other as silent: 0 and -60 dB of full scale.
_FULL, _SILENT = 0.9999, 1e-3
# Shares of clipped samples and of silent tenths of a second from which a clip is named.
CLIPPED_SHARE, SILENT_SHARE = 1e-3, 0.5


@dataclasses.dataclass(frozen=True)
class ClipFacts:
    """What is known of one clip. Where `reason` says why it cannot be used, the other facts are those that are known."""

    entry: Entry
    seconds: float = 0.0
    sample_rate_hz: int = 0
    channels: int = 0
    format: str = ""
    reason: str | None = None
    # Shares of samples at full scale, and of tenths of a second without a sound. None: not decoded.
    clipped: float | None = None
    silent: float | None = None
    fingerprint: Shaped[np.ndarray, "_"] | None = None


def inspect_clips(folder: ClipFolder, *, listen: bool = True, on_clip: Callable[[int, int], None] = lambda done, total: None) -> list[ClipFacts]:
    """The facts of all clips of a folder, in order.

    listen: whether the clips are decoded. False: their headers are read alone. on_clip: called with (clips done, clips in all).
    """
    found = []
    for done, (_, facts) in enumerate(map_ahead(lambda entry: _inspect(folder, entry, listen), folder.entries), start=1):
        found.append(facts)
        on_clip(done, len(folder.entries))
    return found


def _inspect(folder: ClipFolder, entry: Entry, listen: bool) -> ClipFacts:
    path = folder.path / entry.file_name
    facts = ClipFacts(entry)
    try:
        with open_file(path) as file:
            header = soundfile.info(file)
        end = header.duration if entry.end_sec is None else min(entry.end_sec, header.duration)
        seconds = max(0.0, end - (entry.start_sec or 0.0))
        facts = ClipFacts(entry, seconds, header.samplerate, header.channels, f"{header.format} {header.subtype}")
        if seconds < MIN_SEC:
            return dataclasses.replace(facts, reason=f"{seconds:.2f} s is too short; at least {MIN_SEC:.2f} s are needed: export it again, or remove it")
        if not listen:
            return facts
        start = entry.start_sec or 0.0
        sink = io.BytesIO()
        audio.decode(path, sink, start_sec=start, end_sec=start + min(seconds, _LONGEST_SEC))
    except (soundfile.SoundFileError, OSError) as error:
        return dataclasses.replace(facts, reason=f"cannot be read as audio ({error}); convert it to WAV, FLAC, OGG or MP3")
    except UserError as error:
        return dataclasses.replace(facts, reason=str(error).removeprefix(f"{path}: "))
    wave = np.frombuffer(sink.getbuffer(), np.float32)
    tenth = audio.SAMPLE_RATE_HZ // 10
    loudest = np.abs(wave[: len(wave) // tenth * tenth].reshape(-1, tenth)).max(axis=1, initial=0.0)
    low = soxr.resample(wave, audio.SAMPLE_RATE_HZ, _PRINT_RATE_HZ)
    clipped, silent = float(np.mean(np.abs(wave) >= _FULL)), float(np.mean(loudest < _SILENT)) if len(loudest) else 0.0
    return dataclasses.replace(facts, clipped=clipped, silent=silent, fingerprint=fingerprint(low, _PRINT_RATE_HZ))


def equal_files(clips: Sequence[ClipFacts]) -> list[tuple[Entry, Entry]]:
    """Pairs of clips that are the same part of files with the same contents: each with the first of its kind."""
    first: dict[tuple, Entry] = {}
    pairs = []
    for clip in clips:
        entry = clip.entry
        other = first.setdefault((entry.sha256, entry.start_sec, entry.end_sec), entry)
        if other is not entry and entry.sha256 is not None:
            pairs.append((other, entry))
    return pairs


def similar_clips(clips: Sequence[ClipFacts]) -> list[tuple[Entry, Entry]]:
    """Pairs of clips that share a passage by their fingerprints, but are neither the same file nor renderings of one melody."""
    decoded = [clip for clip in clips if clip.fingerprint is not None]
    pairs = [(decoded[i].entry, decoded[j].entry) for i, j in near_duplicates([clip.fingerprint for clip in decoded])]
    same = lambda a, b: (a.sha256 is not None and a.sha256 == b.sha256) or (a.melody is not None and a.melody == b.melody)  # noqa: E731
    return [pair for pair in pairs if not same(*pair)]


def scripts_of(captions: Sequence[str]) -> collections.Counter[str]:
    """The number of captions by the script that most of their letters have, such as "latin", "cyrillic", "cjk"; "none" for a caption without letters."""
    found: collections.Counter[str] = collections.Counter()
    for caption in captions:
        letters = collections.Counter(unicodedata.name(letter, "OTHER").split()[0].lower() for letter in caption if letter.isalpha())
        found[letters.most_common(1)[0][0] if letters else "none"] += 1
    return found
