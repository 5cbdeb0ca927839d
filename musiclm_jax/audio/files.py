"""Reads audio files of any format to 24 kHz mono float32, and writes 16-bit WAV files atomically. No JAX here."""

from __future__ import annotations

import dataclasses
import io
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import soundfile
import soxr

from musiclm_jax import files
from musiclm_jax.arrays import Float
from musiclm_jax.buckets import StoreError
from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath, as_path, is_bucket
from musiclm_jax.tars import is_file, open_file

SAMPLE_RATE_HZ = 24_000
# A file whose samples are all below this level, -60 dBFS, counts as silent.
_AUDIBLE = 10 ** (-60 / 20)
# Amplitude of the mean of the channels, relative to the loudest channel, below which channels count as cancelling each other: -26 dB.
_CANCELLED = 1 / 20
# A lower rate is an error in the file's header, and resampling would turn the file into hours of audio.
_LEAST_RATE_HZ = 1_000
# Number of values, over all channels, that are decoded at once: 512 kB, which stay in a processor's cache. Results do not depend on it.
_BLOCK_VALUES = 2**17


@runtime_checkable
class Sink(Protocol):
    """The methods of a binary file that `decode` uses."""

    def write(self, data: bytes, /) -> Any: ...

    def seek(self, offset: int, /) -> Any: ...

    def truncate(self) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Decoded:
    """The result of `decode`."""

    # Number of samples that were written.
    num_samples: int
    # The largest magnitude. If it is above 1, divide the samples by it.
    peak: float
    # Of the samples of the file: half the difference of the highest and the lowest, which is 0 for a constant, and the mean of the magnitudes.
    swing: float
    mean: float


def read(
    path: str | os.PathLike,
    *,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    min_samples: int = 960,
    start_sec: float = 0.0,
    end_sec: float | None = None,
) -> Float[np.ndarray, "N"]:
    """Reads an audio file, or a part of it, converted to mono at `sample_rate_hz`, float32 in [-1, 1].

    A file with samples beyond full scale is scaled down, not clipped. For channels, arguments and errors see `decode`.
    """
    sink = io.BytesIO()
    decoded = decode(path, sink, sample_rate_hz=sample_rate_hz, min_samples=min_samples, start_sec=start_sec, end_sec=end_sec)
    return np.frombuffer(sink.getbuffer(), np.float32) / np.float32(max(decoded.peak, 1.0))


def decode(
    path: str | os.PathLike,
    sink: Sink,
    *,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    min_samples: int = 960,
    start_sec: float = 0.0,
    end_sec: float | None = None,
) -> Decoded:
    """Decodes an audio file, or a part of it, to `sink` as mono float32 samples at `sample_rate_hz`, without scaling, block by block to bound memory.

    It reads all formats, bit depths, rates and numbers of channels that libsndfile supports: WAV, FLAC, OGG, MP3, AIFF, ... Channels are averaged. If they
    cancel each other, as in a recording with one channel inverted, the loudest channel replaces the average: namely if the average has less than a
    twentieth of its amplitude (RMS, over the whole file).

    Args:
        path: the file.
        sink: an empty file. It is written from its beginning, and a second time if channels cancel each other.
        sample_rate_hz: rate of the result.
        min_samples: the smallest allowed length of the result. The default, 960, is one semantic token, 40 ms.
        start_sec, end_sec: the part. It ends where the file ends, if `end_sec` is None or after that.

    Raises:
        UserError: the file is missing, not audio, silent (below -60 dB of full scale, or of samples beyond it), too short, or has NaN or infinite samples.
            The message is "path: reason".
        StoreError: the file is on an object store that does not answer.
    """
    path = as_path(path)
    if not is_file(path):
        raise UserError(f"{path}: is not a file; name one audio file" if files.exists(path) else f"{path}: no such file")
    part = {"sample_rate_hz": sample_rate_hz, "start_sec": start_sec, "end_sec": end_sec}
    decoded, loudest = _decode(path, sink, channel=None, **part)
    if loudest is not None:
        sink.seek(0)
        sink.truncate()
        decoded, _ = _decode(path, sink, channel=loudest, **part)
    if decoded.num_samples < min_samples:
        raise UserError(
            f"{path}: {decoded.num_samples / sample_rate_hz:.4f} s is too short; at least {min_samples / sample_rate_hz:.2f} s are needed: "
            "export it again, or remove it"
        )
    if decoded.swing < _AUDIBLE:
        level = f" (its loudest sample is at {20 * np.log10(decoded.swing):.0f} dB of full scale)" if decoded.swing else ""
        raise UserError(f"{path}: is silent{level}; remove it or export it again")
    if decoded.peak > 1 and decoded.mean < _AUDIBLE * decoded.peak:
        raise UserError(f"{path}: is silent but for samples of {decoded.peak:.3g} times full scale; remove them, and export it again")
    return decoded


def _decode(path: AnyPath, sink: Sink, *, channel: int | None, sample_rate_hz: int, start_sec: float, end_sec: float | None) -> tuple[Decoded, int | None]:
    """Decodes a file in one pass. channel: the channel to use. None: the mean of all channels.

    Returns (the result, the number of the loudest channel if the channels cancel each other, else None).
    """
    num_samples, num_read, peak, total, low, high = 0, 0, 0.0, 0.0, np.inf, -np.inf
    power, mean_power, resampler = 0.0, 0.0, None

    def write(wave: np.ndarray) -> None:
        nonlocal num_samples, peak
        num_samples += len(wave)
        peak = max(peak, float(np.abs(wave).max(initial=0.0)))
        sink.write(wave.tobytes())

    for channels, file_rate_hz in _read_blocks(path, start_sec, end_sec):
        wave = _mean(channels) if channel is None else np.ascontiguousarray(channels[:, channel])
        power = power + np.array([_power(each) for each in channels.T])
        mean_power += _power(wave)
        if not np.isfinite(power.sum() + mean_power):
            raise UserError(f"{path}: has NaN or infinite samples; export it again")
        low, high = min(low, float(wave.min())), max(high, float(wave.max()))
        num_read, total = num_read + len(wave), total + float(np.abs(wave).sum())
        if file_rate_hz == sample_rate_hz:
            write(wave)
        else:
            if resampler is None:
                resampler = soxr.ResampleStream(file_rate_hz, sample_rate_hz, num_channels=1)
            write(resampler.resample_chunk(wave))
    if resampler is not None:
        write(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    cancel = channel is None and mean_power < _CANCELLED**2 * np.max(power)
    return Decoded(num_samples, peak, max(high - low, 0.0) / 2, total / max(num_read, 1)), int(np.argmax(power)) if cancel else None


def _mean(channels: Float[np.ndarray, "n channels"]) -> Float[np.ndarray, "n"]:
    """The mean of channels. NumPy's own takes 20 times as long where the channels are few."""
    wave = channels[:, 0].copy()
    for each in channels.T[1:]:
        wave += each
    wave /= channels.shape[1]
    return wave


def _power(wave: Float[np.ndarray, "n"]) -> float:
    """The sum of squares, in float64, in which it is finite where all samples are."""
    exact = wave.astype(np.float64)
    return float(np.einsum("n,n->", exact, exact))


def _native(file: io.IOBase) -> io.IOBase | int:
    """The number of a file that is open in the operating system, which libsndfile reads without calling Python. Other files are returned as they are."""
    try:
        return file.fileno()
    except io.UnsupportedOperation:
        return file


def _read_blocks(path: AnyPath, start_sec: float, end_sec: float | None) -> Iterator[tuple[Float[np.ndarray, "n channels"], int]]:
    """Yields (samples [n, channels] float32, rate in Hz) for each block of a part of a file. A file on an object store is read into memory."""
    try:
        with open_file(path) as opened, soundfile.SoundFile(_native(opened), closefd=False) as file:
            if file.samplerate < _LEAST_RATE_HZ:
                raise UserError(f"{path}: has {file.samplerate} samples per second, expected at least {_LEAST_RATE_HZ}; export it again")
            if start_sec:
                file.seek(min(round(start_sec * file.samplerate), file.frames))
            # The header of a damaged file may have any number of frames, so a whole file is read to its end.
            left = math.inf if end_sec is None else round(end_sec * file.samplerate) - file.tell()
            num_frames = max(1, _BLOCK_VALUES // file.channels)
            while left > 0 and len(block := file.read(min(num_frames, left), dtype="float32", always_2d=True)):
                left -= len(block)
                yield block, file.samplerate
    except StoreError:  # Of the store, not of this file.
        raise
    except (soundfile.SoundFileError, OSError) as error:
        reason = " ".join(str(getattr(error, "error_string", error)).split()).rstrip(".")
        raise UserError(f"{path}: cannot be read as audio ({reason}); convert it to WAV, FLAC, OGG or MP3") from error


def check_writable(path: str | os.PathLike, *, suffixes: Sequence[str] = (".wav",)) -> None:
    """Raises UserError if `write_wav(path, ...)`, or the writing of another of `suffixes`, would fail. To be called before the wave is computed."""
    path = as_path(path)
    if path.suffix.lower() not in suffixes:
        kinds = " or ".join(suffix.removeprefix(".").upper() for suffix in suffixes)
        raise UserError(f"{path}: the output is a {kinds} file; name it {path.with_suffix('.wav') if path.name else 'music.wav'}")
    if files.is_dir(path):
        raise UserError(f"{path}: is a folder; name a file in it, such as {path / 'music.wav'}")
    if not is_bucket(path) and not os.path.isdir(path.parent):
        raise UserError(f"{path}: there is no folder {path.parent}; create it, or write elsewhere")
    files.check_writable(path)


def write_wav(path: str | os.PathLike, wave: Float[np.ndarray, "N"], sample_rate_hz: int = SAMPLE_RATE_HZ) -> None:
    """Writes a 16-bit mono WAV file atomically. A wave beyond [-1, 1] is scaled down, not clipped.

    Raises:
        UserError: the file cannot be written. No part of it is left on the disk.
        ValueError: the wave has NaN or infinite samples.
    """
    path = as_path(path)
    check_writable(path)
    wave = np.asarray(wave, np.float64)
    if not np.isfinite(wave).all():
        raise ValueError(f"{path}: expected a wave of finite samples, got NaN or infinity: the model that made it has diverged")
    peak = np.abs(wave).max(initial=1.0)
    samples = np.round(wave / peak * 32767).astype(np.int16)
    data = io.BytesIO()
    soundfile.write(data, samples, sample_rate_hz, format="WAV", subtype="PCM_16")
    files.write_bytes(path, data.getvalue())
