"""Checks that no file stops the reading of data: `python checks/bad_data.py [FILES] [SEED]`, by default 1,000 files and seed 0.

Writes FILES damaged, odd and good files of the kinds below into a folder. Then `read_folder`, the decoding of `prepare`, and `musiclm data check` read it. A
table says how many files of each kind are used and left out, and why. It exits with 1 if anything but a UserError is raised, if a stored clip sounds like
nothing, if a file is neither used nor left out, or if a reason names no remedy.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import os
import re
import socket
import struct
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
from click.testing import CliRunner

from musiclm_jax.cli.main import cli as musiclm
from musiclm_jax.data.decoding import SAMPLES, decode_clips, read_decoded
from musiclm_jax.data.folder import read_folder

# Of the store: ten hours are then small, and every file but one is resampled.
RATE_HZ = 2_000
REMEDY = re.compile(r"[;:,] (?:or )?(?:put|remove|rename|export|convert|change|copy|name|correct|decompress|join)\b")
FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III", "aiff": "PCM_24", "opus": "OPUS"}
# -60 dB of full scale, in 16 bits.
SILENT = 2**15 / 1000
# The least share of samples above it of a stored clip.
LEAST_SHARE = 0.01


# ---------------------------------------------------------------------------------------------------------------------- Contents of files


def noise(rng: np.random.Generator, seconds: float = 2.0, channels: int = 1, rate_hz: int = 24_000) -> np.ndarray:
    return rng.uniform(-0.5, 0.5, (round(seconds * rate_hz), channels))


def encoded(wave: np.ndarray, suffix: str = "wav", rate_hz: int = 24_000, subtype: str | None = None) -> bytes:
    file, format = io.BytesIO(), {"opus": "OGG"}.get(suffix, suffix.upper())
    soundfile.write(file, wave, rate_hz, format=format, subtype=subtype or FORMATS[suffix])
    return file.getvalue()


def any_file(rng: np.random.Generator) -> tuple[str, bytes]:
    """(suffix, contents) of a good file of any format."""
    suffix = rng.choice(list(FORMATS))
    return suffix, encoded(noise(rng), suffix)


def wav_with(rng: np.random.Generator, *, format: int = 1, channels: int = 1, rate_hz: int = 24_000, bits: int = 16, size: int | None = None) -> bytes:
    """A WAV file whose header may say what is not so."""
    data = (noise(rng) * 2**15).astype("<i2").tobytes()
    block = max(1, channels * bits // 8)
    header = struct.pack("<4sIHHIIHH", b"fmt ", 16, format, channels, rate_hz, (rate_hz * block) % 2**32, block % 2**16, bits)
    body = b"WAVE" + header + struct.pack("<4sI", b"data", len(data) if size is None else size) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def spoiled(rng: np.random.Generator) -> tuple[str, bytes]:
    """A file with up to 50 wrong bytes anywhere, or in its first 100 bytes."""
    suffix, data = any_file(rng)
    data, end = bytearray(data), rng.choice([100, len(data)])
    for place in rng.integers(0, min(end, len(data)), rng.integers(1, 50)):
        data[place] = rng.integers(256)
    return suffix, bytes(data)


def cut(rng: np.random.Generator) -> tuple[str, bytes]:
    suffix, data = any_file(rng)
    return suffix, data[: int(rng.integers(1, len(data)))]


def start_alone(rng: np.random.Generator) -> tuple[str, bytes]:
    suffix, mark = [("wav", b"RIFF\xff\xff\xff\xffWAVEfmt "), ("flac", b"fLaC\0\0\0\x22"), ("ogg", b"OggS\0\2"), ("mp3", b"ID3\4\0\0\x7f\x7f\x7f\x7f")][
        rng.integers(4)
    ]
    return suffix, mark + rng.bytes(3000)


def with_samples(rng: np.random.Generator, value: float) -> bytes:
    wave = noise(rng)
    wave[rng.integers(len(wave))] = value
    return encoded(wave, subtype="FLOAT")


def out_of_phase(rng: np.random.Generator) -> bytes:
    return encoded(noise(rng) * [1, -1], "flac")


def declared_flac(rng: np.random.Generator) -> bytes:
    """A FLAC file whose header says that it has 2^36 - 1 samples."""
    data = bytearray(encoded(noise(rng), "flac"))
    data[21:26] = bytes((data[21] | 15, 255, 255, 255, 255))
    return bytes(data)


def ten_hours(rng: np.random.Generator) -> bytes:
    return encoded(np.resize(noise(rng, 10, rate_hz=1000)[:, 0], 36_000_000), rate_hz=1000, subtype="PCM_U8")


def tar(rng: np.random.Generator, *, damage: str) -> bytes:
    """A tar of three clips, with damage."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number in range(3):
            data = encoded(noise(rng), "flac")
            info = tarfile.TarInfo(f"{'../' if damage == 'outside' and number == 1 else ''}{number}.flac")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    data = bytearray(file.getvalue())
    if damage == "cut":
        del data[int(rng.integers(600, len(data) - 11_000)) :]
    if damage == "bytes":
        for place in rng.integers(0, len(data), 30):
            data[place] = rng.integers(256)
    return bytes(data)


# ---------------------------------------------------------------------------------------------------------------------- Kinds of files

# Kind -> the contents of a file, (suffix, contents), or the contents of a WAV file, from a random generator.
CONTENTS: dict[str, Callable[[np.random.Generator], tuple[str, bytes] | bytes]] = {
    "good, of any format": any_file,
    "truncated": cut,
    "some wrong bytes": spoiled,
    "wrong extension": lambda rng: (str(rng.choice(list(FORMATS))), any_file(rng)[1]),
    "text or picture called .wav": lambda rng: (b"not music\n" * 500, b"\x89PNG\r\n\x1a\n" + rng.bytes(999), b"<html></html>")[rng.integers(3)],
    "empty": lambda rng: (str(rng.choice(list(FORMATS))), b""),
    "zero bytes": lambda rng: (str(rng.choice(list(FORMATS))), bytes(4096)),
    "random bytes": lambda rng: (str(rng.choice(list(FORMATS))), rng.bytes(4096)),
    "beginning of a format, then random bytes": start_alone,
    "NaN": lambda rng: with_samples(rng, np.nan),
    "infinite": lambda rng: with_samples(rng, rng.choice([-np.inf, np.inf])),
    "1e30": lambda rng: with_samples(rng, 1e30),
    "silent": lambda rng: encoded(np.zeros(48_000)),
    "below -60 dB": lambda rng: encoded(noise(rng) * 1e-4, "flac"),
    "constant": lambda rng: encoded(np.full(48_000, rng.uniform(-1, 1)), subtype="FLOAT"),
    "clipped": lambda rng: encoded(np.sign(noise(rng))),
    "1 sample": lambda rng: encoded(np.ones(1)),
    "no sample": lambda rng: encoded(np.ones(0)),
    "0.5 s": lambda rng: encoded(noise(rng, 0.5), "flac"),
    "10 hours": ten_hours,
    "7 channels": lambda rng: encoded(noise(rng, channels=7), "flac"),
    "300 channels": lambda rng: encoded(noise(rng, 1.1, channels=300, rate_hz=1000), rate_hz=1000),
    "one channel inverted": out_of_phase,
    "0 Hz": lambda rng: wav_with(rng, rate_hz=0),
    "100 Hz": lambda rng: wav_with(rng, rate_hz=100),
    "4 GHz": lambda rng: wav_with(rng, rate_hz=4_000_000_000),
    "0 channels": lambda rng: wav_with(rng, channels=0),
    "65,535 channels": lambda rng: wav_with(rng, channels=65_535),
    "0 bits": lambda rng: wav_with(rng, bits=0),
    "wrong codec": lambda rng: wav_with(rng, format=int(rng.integers(2, 65_536))),
    "length of 4 GB in a header": lambda rng: wav_with(rng, size=2**32 - 1),
    "length of 0 in a header": lambda rng: wav_with(rng, size=0),
    "2^36 samples in a header": lambda rng: ("flac", declared_flac(rng)),
    "tar with wrong bytes": lambda rng: ("tar", tar(rng, damage="bytes")),
    "tar, cut off": lambda rng: ("tar", tar(rng, damage="cut")),
    "tar with ../": lambda rng: ("tar", tar(rng, damage="outside")),
    "no tar": lambda rng: ("tar", rng.bytes(9999)),
    "compressed tar": lambda rng: ("tar.gz", rng.bytes(999)),
}
# Kinds of which one file is enough.
ONCE = ("10 hours",)
# Kind -> bytes of a name, in which {} is a number. The contents are good.
NAMES = {
    "name in other scripts": "{} 日本語 Ünïcödé 🎵 עברית.flac".encode(),
    "name with newlines and tabs": b"{} a\nb\r\tc.flac",
    "name in Latin-1": b"{} caf\xe9.flac",
    "name with signs": b"-{} 'a' \"b\" [c] {{d}} $HOME %20 ;:.flac",
    "name of 250 bytes": b"{}" + b"n" * 240 + b".flac",
    "hidden": b"._{}.flac",
}


def link(target: str) -> Callable[[bytes], None]:
    return lambda path: os.symlink(target.encode(), path)


def listening(path: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def unreadable(path: bytes) -> None:
    Path(os.fsdecode(path)).write_bytes(encoded(noise(np.random.default_rng(0))))
    os.chmod(path, 0)


# Kind -> what makes a file of it that is no regular file.
PLACES: dict[str, Callable[[bytes], None]] = {
    "link to nothing": link("nowhere"),
    "link to itself": lambda path: os.symlink(os.path.basename(path), path),
    "link to a device": link("/dev/zero"),
    "pipe": os.mkfifo,
    "socket": listening,
    "unreadable, but for root": unreadable,
}
KINDS = (*CONTENTS, *NAMES, *PLACES)
# Neither used nor named.
PASSED = ("hidden",)


def write_files(folder: Path, kinds: Sequence[str], count: int, seed: int) -> dict[str, str]:
    """Writes the files, tars below "shards" and the others below "clips". Returns {name as `read_folder` prints it: kind}."""
    written = {}
    for part in ("clips", "shards"):
        (folder / part).mkdir()
    for number in range(count):
        kind = kinds[number % len(kinds)] if number < len(kinds) or kinds[number % len(kinds)] not in ONCE else "good, of any format"
        name, data = _file(kind, number, np.random.default_rng([seed, number]))
        path = os.path.join(os.fsencode(folder), b"shards" if b".tar" in name else b"clips", name)
        if data is None:
            PLACES[kind](path)
        else:
            with open(path, "wb") as file:
                file.write(data)
        written[name.decode("utf-8", "backslashreplace")] = kind  # As `printable` in data/walk.py, but for newlines.
    os.symlink(".", folder / "clips" / "loop")
    (folder / "clips" / "folder.wav").mkdir()
    return written


def _file(kind: str, number: int, rng: np.random.Generator) -> tuple[bytes, bytes | None]:
    """(name, contents) of a file. None: it is no regular file."""
    if kind in PLACES:
        return f"{number}.wav".encode(), None
    if kind in NAMES:
        return NAMES[kind].replace(b"{}", str(number).encode()), encoded(noise(rng), "flac")
    made = CONTENTS[kind](rng)
    suffix, data = made if isinstance(made, tuple) else ("wav", made)
    return f"{number}.{suffix}".encode(), data


# ---------------------------------------------------------------------------------------------------------------------- Reading them


@dataclasses.dataclass
class Outcome:
    """What became of the files of one kind: of their clips where they are tars."""

    used: int = 0
    left_out: int = 0
    passed: int = 0
    reasons: collections.Counter = dataclasses.field(default_factory=collections.Counter)


def read_all(folder: Path, work: Path) -> tuple[list[str], dict[str, str]]:
    """Reads and decodes all clips of a folder. Returns (names of the clips that are used, {name: reason} of the others)."""
    work.mkdir()
    found = read_folder(folder, hashes=work / "hashes.json")
    decode_clips(folder, found.entries, work, sample_rate_hz=RATE_HZ)
    decoded = read_decoded(work)[1]
    left_out = {**dict(found.unusable), **{clip.file_name: clip.reason for clip in decoded if clip.reason}}
    samples = np.load(work / SAMPLES, mmap_mode="r")
    for clip in decoded:
        wave = samples[clip.offset : clip.offset + clip.length]
        if not clip.reason and (len(wave) < RATE_HZ or np.mean(np.abs(wave[: 60 * RATE_HZ].astype(int)) > SILENT) < LEAST_SHARE):
            raise AssertionError(f"{clip.file_name} is stored and sounds like nothing")
    return [clip.file_name for clip in decoded if not clip.reason], left_out


def outcomes(written: dict[str, str], used: list[str], left_out: dict[str, str]) -> tuple[dict[str, Outcome], list[str]]:
    """Returns ({kind: what became of its files}, what is wrong, one line each)."""
    kinds, wrong = collections.defaultdict(Outcome), []
    seen = set()
    of = lambda name: name if name in written else name.split("/")[0]  # noqa: E731
    for name in used:
        kinds[written[of(name)]].used += 1
        seen.add(of(name))
    for name, reason in left_out.items():
        outcome = kinds[written[of(name)]]
        outcome.left_out += 1
        outcome.reasons[re.sub(r"-?\b\d+(\.\d+)?(e[+-]\d+)?\b", "N", reason)] += 1
        seen.add(of(name))
        if not REMEDY.search(reason):
            wrong.append(f"{name!r}: the reason names no remedy: {reason}")
    wrong += [f"{name!r} is used and left out" for name in {*used} & {*left_out}]
    for name, kind in written.items():
        if name not in seen:
            kinds[kind].passed += 1
            if kind not in PASSED:
                wrong.append(f"{name!r} ({kind}) is neither used nor left out")
    return kinds, wrong


def check(place: Path, kinds: Sequence[str], *, count: int, seed: int) -> tuple[dict[str, Outcome], list[str]]:
    """Writes and reads the files in `place`. Returns as `outcomes`."""
    written, used, left_out, wrong = write_files(place, kinds, count, seed), [], {}, []
    for part in ("clips", "shards"):
        some, others = read_all(place / part, place / f"store of {part}")
        used += some
        left_out |= others
        checked = CliRunner().invoke(musiclm, ["data", "check", str(place / part), "--size", "demo"])
        if checked.exit_code not in (0, 1) or not isinstance(checked.exception, SystemExit | None):
            wrong.append(f"`musiclm data check` ends with {checked.exit_code}: {checked.exception!r} {checked.output[-500:]}")
    found, more = outcomes(written, used, left_out)
    return found, wrong + more


def main() -> None:
    count, seed = (int(value) for value in (*sys.argv[1:], *("1000", "0")[len(sys.argv) - 1 :]))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        kinds, wrong = check(Path(place), KINDS, count=count, seed=seed)
    print("| kind | used | left out | passed over | most frequent reason |\n|---|---|---|---|---|")
    for kind in KINDS:
        if kind in kinds:
            each = kinds[kind]
            reason = "".join(reason.split(";")[0] for reason, _ in each.reasons.most_common(1))
            print(f"| {kind} | {each.used} | {each.left_out} | {each.passed} | {reason} |")
    print(f"{count} files in {time.perf_counter() - start:.0f} s, {len(wrong)} faults")
    print("\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
