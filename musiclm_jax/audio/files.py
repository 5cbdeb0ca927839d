"""Audio files in and out: any format in, 24 kHz mono float32; 16-bit WAV out, whole or not at all. No JAX here."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import soundfile
import soxr

from musiclm_jax.arrays import Float
from musiclm_jax.errors import UserError

SAMPLE_RATE_HZ = 24_000
# ITU-R BS.1770 measures loudness in blocks of this length; a shorter wave is repeated up to it.
_LOUDNESS_BLOCK_SEC = 0.4
# -1 dBFS, the headroom streaming services ask for: no overshoot when a player resamples.
_PEAK = 10 ** (-1 / 20)
# A nearly silent wave is not blown up into loud noise.
_MAX_GAIN = 10 ** (30 / 20)
# Below the half step of 16 bits nothing is heard and nothing would be written.
_SILENCE = 0.5 / 32768


def read(path: str | os.PathLike, *, sample_rate_hz: int = SAMPLE_RATE_HZ, min_samples: int = 960) -> Float[np.ndarray, "N"]:
    """Reads an audio file, converted to mono (mean of the channels) at `sample_rate_hz`, float32 in [-1, 1].

    Any format, depth, rate and number of channels that libsndfile knows: WAV, FLAC, OGG, MP3, AIFF, ...
    A float file that exceeds full scale is scaled down, not clipped.

    Args:
        path: the file.
        sample_rate_hz: rate of the result.
        min_samples: fewest samples of the result that are of use; 960 is one semantic token, 40 ms.

    Raises:
        UserError: the file is missing, not audio, silent, too short, or holds NaN or infinite samples. The message names the file.
    """
    path = Path(path)
    if not os.path.exists(path):  # Not path.exists(), which raises where the name is too long.
        raise UserError(f"{path}: no such file")
    if not os.path.isfile(path):
        raise UserError(f"{path}: not a file; name one audio file")
    try:
        channels, file_rate_hz = soundfile.read(path, dtype="float32", always_2d=True)  # [N, channels]
    except (soundfile.SoundFileError, OSError) as error:
        reason = " ".join(str(getattr(error, "error_string", error)).split()).rstrip(".")
        raise UserError(f"{path}: cannot be read as audio ({reason}); convert it to WAV, FLAC, OGG or MP3") from error
    if not np.isfinite(channels).all():
        raise UserError(f"{path}: holds NaN or infinite samples; export it again")
    wave = channels.mean(axis=1)
    if file_rate_hz != sample_rate_hz:
        wave = soxr.resample(wave, file_rate_hz, sample_rate_hz)
    if len(wave) < min_samples:
        raise UserError(
            f"{path}: {len(wave) / sample_rate_hz:.4f} s is too short; at least {min_samples / sample_rate_hz:.2f} s are needed"
        )
    peak = float(np.abs(wave).max())
    if peak < _SILENCE:
        raise UserError(f"{path}: is silent; remove it or export it again")
    return (wave / max(peak, 1.0)).astype(np.float32)


def check_writable(path: str | os.PathLike) -> None:
    """Raises UserError where `write_wav(path, ...)` would fail, before the work of making the wave is done."""
    path = Path(path)
    if path.suffix.lower() != ".wav":
        raise UserError(f"{path}: the output is a WAV file; name it {path.with_suffix('.wav') if path.name else 'music.wav'}")
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder; name a file in it, such as {path / 'music.wav'}")
    if not os.path.isdir(path.parent):
        raise UserError(f"{path}: there is no folder {path.parent}; create it, or write elsewhere")
    with _whole_or_not_at_all(path, replace=False) as temporary:
        temporary.touch()


def write_wav(path: str | os.PathLike, wave: Float[np.ndarray, "N"], sample_rate_hz: int = SAMPLE_RATE_HZ) -> None:
    """Writes 16-bit mono WAV atomically. A wave beyond [-1, 1] is scaled down, never clipped.

    Raises:
        UserError: the place cannot be written; the message names it, and nothing is left behind.
    """
    path = Path(path)
    check_writable(path)
    wave = np.asarray(wave, np.float64)
    if not np.isfinite(wave).all():
        raise ValueError(f"a wave of finite samples was expected for {path}, got NaN or infinity")
    peak = np.abs(wave).max(initial=1.0)
    samples = np.round(wave / peak * 32767).astype(np.int16)
    with _whole_or_not_at_all(path) as temporary:
        soundfile.write(temporary, samples, sample_rate_hz, format="WAV", subtype="PCM_16")


@contextlib.contextmanager
def _whole_or_not_at_all(path: Path, *, replace: bool = True):
    """Yields a temporary path beside `path`, renamed to it at the end; nothing is left if anything fails, Ctrl-C included."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if replace:
            os.replace(temporary, path)
    except (soundfile.SoundFileError, OSError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "error_string", None) or str(error)
        raise UserError(f"{path}: cannot be written ({reason}); write elsewhere") from error
    finally:
        with contextlib.suppress(OSError):  # Already renamed, or never made.
            temporary.unlink()


def normalize_loudness(
    wave: Float[np.ndarray, "N"], *, target_lufs: float = -14.0, sample_rate_hz: int = SAMPLE_RATE_HZ
) -> Float[np.ndarray, "N"]:
    """Scales a wave to an integrated loudness (ITU-R BS.1770) of `target_lufs`, or less where its peak would pass -1 dBFS.

    -14 LUFS is what streaming services play at. Silence is returned as it came. float32.
    """
    import pyloudnorm  # Here, because it imports SciPy.

    wave = np.asarray(wave, np.float64)
    peak = np.abs(wave).max(initial=0.0)
    if peak < _SILENCE:
        return wave.astype(np.float32)
    block = round(_LOUDNESS_BLOCK_SEC * sample_rate_hz)
    lufs = pyloudnorm.Meter(sample_rate_hz).integrated_loudness(wave if len(wave) >= block else np.resize(wave, block))
    gain = min(10 ** ((target_lufs - lufs) / 20), _MAX_GAIN, _PEAK / peak)  # lufs is -inf below the gate of -70: _MAX_GAIN.
    return (wave * gain).astype(np.float32)
