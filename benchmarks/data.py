"""Measures how fast audio files become waves at 24 kHz, mono: `python benchmarks/data.py [REPEATS]`.

Writes files of 3 minutes, 44.1 kHz, stereo, as FLAC and MP3. On one core it reads them whole, and crops of 10 s at random places: by this package, and by
librosa, torchcodec, torchaudio and Hugging Face datasets as far as they can be imported. It prints seconds of audio per CPU second, medians of REPEATS (5),
and ratios to the fastest of the others. Afterwards come crops from the store of `prepare`, which decodes each file once.
"""

from __future__ import annotations

import io
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import soundfile  # noqa: E402

from musiclm_jax import audio  # noqa: E402
from musiclm_jax.data.clips import ClipStore, prepare  # noqa: E402
from musiclm_jax.data.folder import read_folder  # noqa: E402

FILE_HZ, FILE_SEC, FILES = 44_100, 180, 3
CROP_SEC, CROPS = 10.0, 18
# A reader: (file, start in seconds, length in seconds or None for all of it) -> mono wave at 24 kHz.
Reader = Callable[[Path, float, float | None], np.ndarray]


def write_files(folder: Path, suffix: str) -> list[Path]:
    """Writes stereo music of a kind: chords of decaying partials, and noise."""
    folder.mkdir()
    time_sec = np.arange(FILE_HZ * FILE_SEC) / FILE_HZ
    paths = [folder / f"{number}.{suffix}" for number in range(FILES)]
    for number, path in enumerate(paths):
        rng = np.random.default_rng(number)
        notes = np.repeat(rng.integers(40, 80, (2 * FILE_SEC, 4)), FILE_HZ // 2, axis=0)
        tone = sum(np.sin(2 * np.pi * np.cumsum(440 * 2 ** ((notes[:, i] - 69) / 12)) * k / FILE_HZ) / k for i in range(4) for k in (1, 2, 3))
        tone *= np.exp(-4 * (time_sec % 0.5)) / 8
        soundfile.write(path, np.stack([tone + rng.normal(0, 0.01, len(tone)) for _ in range(2)], axis=1), FILE_HZ)
    return paths


# ---------------------------------------------------------------------------------------------------------------------- Readers


def ours(path: Path, start: float, seconds: float | None) -> np.ndarray:
    sink = io.BytesIO()
    audio.decode(path, sink, start_sec=start, end_sec=None if seconds is None else start + seconds)
    return np.frombuffer(sink.getbuffer(), np.float32)


def of_librosa() -> Reader:
    import librosa

    return lambda path, start, seconds: librosa.load(path, sr=audio.SAMPLE_RATE_HZ, offset=start, duration=seconds)[0]


def of_torchcodec() -> Reader:
    from torchcodec.decoders import AudioDecoder

    def read(path: Path, start: float, seconds: float | None) -> np.ndarray:
        decoder = AudioDecoder(path, sample_rate=audio.SAMPLE_RATE_HZ, num_channels=1)
        return decoder.get_samples_played_in_range(start, None if seconds is None else start + seconds).data[0].numpy()

    return read


def of_torchaudio() -> Reader:
    import torchaudio

    def read(path: Path, start: float, seconds: float | None) -> np.ndarray:
        frames = -1 if seconds is None else round(seconds * FILE_HZ)
        wave, rate_hz = torchaudio.load(path, frame_offset=round(start * FILE_HZ), num_frames=frames)
        return torchaudio.functional.resample(wave.mean(0), rate_hz, audio.SAMPLE_RATE_HZ).numpy()

    return read


def of_datasets() -> Reader:
    import datasets
    from torchcodec.decoders import AudioDecoder  # noqa: F401  # What `datasets` decodes with.

    feature = datasets.Audio(sampling_rate=audio.SAMPLE_RATE_HZ, num_channels=1)
    tables = {}

    def read(path: Path, start: float, seconds: float | None) -> np.ndarray:
        table = tables.setdefault(path, datasets.Dataset.from_dict({"audio": [str(path)]}).cast_column("audio", feature))
        return table[0]["audio"].get_samples_played_in_range(start, None if seconds is None else start + seconds).data[0].numpy()

    return read


OTHERS = {"librosa": of_librosa, "torchcodec": of_torchcodec, "torchaudio": of_torchaudio, "Hugging Face datasets": of_datasets}


def readers() -> dict[str, Reader]:
    found = {}
    for name, make in OTHERS.items():
        try:
            found[name] = make()
        except Exception as error:  # Also of libraries that are missing.
            print(f"{name} cannot be imported: {' '.join(str(error).split())[:120]}")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    return found


# ---------------------------------------------------------------------------------------------------------------------- Measuring


def rates(works: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Seconds of audio per CPU second of each work, which returns its number of samples at 24 kHz: medians of `repeats` rounds, after one to warm up."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for round_number in range(repeats + 1):
        for name, work in works.items():
            start = time.process_time()
            seconds = work() / audio.SAMPLE_RATE_HZ
            if round_number:
                found[name].append(seconds / (time.process_time() - start))
    return {name: statistics.median(each) for name, each in found.items()}


def measure(paths: list[Path], others: dict[str, Reader], repeats: int, place: Path) -> dict[str, dict[str, float]]:
    """Returns {what: {reader: rate}}."""
    rng = np.random.default_rng(0)
    crops = [(paths[i % len(paths)], float(rng.uniform(0, FILE_SEC - CROP_SEC))) for i in range(CROPS)]
    folder, stores = read_folder(paths[0].parent), iter(range(100))

    def first() -> int:
        return len(prepare(folder, place / f"store{next(stores)}", sample_rate_hz=audio.SAMPLE_RATE_HZ, workers=1).samples)

    whole = {"ours, to the store": first, "ours": lambda: sum(len(ours(path, 0.0, None)) for path in paths)}
    whole |= {name: lambda read=read: sum(len(read(path, 0.0, None)) for path in paths) for name, read in others.items()}
    cropped = {name: lambda read=read: sum(len(read(path, at, CROP_SEC)) for path, at in crops) for name, read in {"ours": ours, **others}.items()}
    found = {"whole files": rates(whole, repeats), "crops of files": rates(cropped, repeats)}
    store = ClipStore.open(place / "store0")
    clips, length = {path.name: clip for path, clip in zip(paths, store.clips, strict=True)}, round(CROP_SEC * audio.SAMPLE_RATE_HZ)
    stored = lambda: sum(len(store.wave(clips[path.name], round(at * audio.SAMPLE_RATE_HZ), length)) for path, at in crops)  # noqa: E731
    return {**found, "crops of the store": rates({"ours": stored}, repeats)}


def _processor() -> str:
    """The model of the processor, where Linux says it."""
    try:
        return next(line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def main() -> None:
    repeats = int((*sys.argv[1:], "5")[0])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    others = readers()
    print(f"{_processor()}, {platform.system()}, one core; seconds of audio per CPU second, medians of {repeats}")
    print("| | what | reader | rate | to the fastest other |\n|---|---|---|---|---|")
    for suffix in ("flac", "mp3"):
        with tempfile.TemporaryDirectory() as place:
            paths = write_files(Path(place) / "files", suffix)
            found = measure(paths, others, repeats, Path(place))
        for what, each in found.items():
            peers = found["crops of files" if what == "crops of the store" else what]
            fastest = max((rate for name, rate in peers.items() if name in others), default=float("nan"))
            for name, rate in each.items():
                print(f"| {suffix} | {what} | {name} | {rate:,.0f} | {rate / fastest:.2f} |")


if __name__ == "__main__":
    main()
