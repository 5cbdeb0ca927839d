"""Codec quality on held-out clips: mel distance, SI-SDR, and the perplexity of the codes of each level."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax import audio
from musiclm_jax.arrays import Float
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.clips import ClipFile, read_clips
from musiclm_jax.evaluation.tables import Table, number, page
from musiclm_jax.files import AnyPath
from musiclm_jax.nn.quantize import perplexity
from musiclm_jax.training.losses import mel_distance


@runtime_checkable
class Codec(Protocol):
    """The interface of the evaluated codec, that of `tokenizers.AcousticTokenizer`. `config.num_codes` is the size of each codebook."""

    config: Any

    def encode(self, wave: Any) -> Any:
        """Waves [B, N] -> codes [B, T, Q]."""
        ...

    def decode(self, codes: Any) -> Any:
        """The first q levels of codes, [B, T, q] -> waves [B, N'], N' >= N."""
        ...


def si_sdr_db(wave: Float[np.ndarray, "N"], reference: Float[np.ndarray, "N"]) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv 1811.02508). The means of both waves are subtracted first."""
    wave, reference = (x.astype(np.float64) - x.mean(dtype=np.float64) for x in (wave, reference))
    target = wave @ reference / (reference @ reference + 1e-12) * reference
    distortion = wave - target
    return float(10 * np.log10((target @ target + 1e-12) / (distortion @ distortion + 1e-12)))


def evaluate_codec(
    codec: Codec,
    data_dir: str | AnyPath,
    *,
    num_clips: int | None = None,
    seconds: float = 10.0,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Encodes and decodes the beginnings of held-out clips and compares the result with the original. Captions are not needed.

    Args:
        codec: the codec.
        data_dir: a folder of clips; see `read_clips` for its splits.
        num_clips: the number of held-out clips. The first ones are used. None: 20, or all if there are fewer.
        seconds: length of the beginning of each clip that is used. Shorter clips are used whole.
        progress: called with one line per clip.

    Returns:
        A report of plain JSON types: "quality", a list of {"levels", "mel_distance", "si_sdr_db"} (means over clips) for the first level
        only, a third of the levels and all levels; "perplexity" of each level over all frames of all clips; "num_codes", "num_frames", "num_clips",
        "seconds". Mel distance is descript-audio-codec's (`losses.mel_distance`): 0 for equal waves, lower is better.

    Raises:
        UserError: there are fewer than `num_clips` held-out clips, or a clip cannot be read.
    """
    folder, num_samples = read_clips(data_dir, progress=progress), round(seconds * audio.SAMPLE_RATE_HZ)
    held_out = folder.split("test")
    if not held_out:
        raise UserError(f"{folder.path} has no held-out clips: give some clips the split 'test' in metadata.jsonl")
    if num_clips is None:
        num_clips = min(20, len(held_out))
    if not 1 <= num_clips <= len(held_out):
        raise UserError(f"{num_clips} clips, but {folder.path} has {len(held_out)} held-out clips: choose 1 to {len(held_out)}")
    distance = jax.jit(functools.partial(mel_distance, sample_rate_hz=audio.SAMPLE_RATE_HZ))
    num_codes, counts, quality = codec.config.num_codes, None, {}
    for i, clip in enumerate(held_out[:num_clips]):
        progress(f"coding held-out clip {i + 1} of {num_clips}")
        wave = ClipFile.of(folder, clip).read()[:num_samples]
        codes = np.asarray(codec.encode(jnp.asarray(wave[None])))
        num_levels = codes.shape[-1]
        if counts is None:
            counts = np.zeros((num_levels, num_codes))
        for level in range(num_levels):
            counts[level] += np.bincount(codes[..., level].ravel(), minlength=num_codes)
        for levels in sorted({1, max(1, num_levels // 3), num_levels}):
            decoded = np.asarray(codec.decode(jnp.asarray(codes[..., :levels])))[:, : len(wave)]
            quality.setdefault(levels, []).append((float(distance(decoded, wave[None])), si_sdr_db(decoded[0], wave)))
    means = {levels: np.mean(values, axis=0) for levels, values in quality.items()}
    return {
        "num_clips": num_clips,
        "seconds": seconds,
        "quality": [{"levels": q, "mel_distance": float(mel), "si_sdr_db": float(sdr)} for q, (mel, sdr) in means.items()],
        "num_codes": num_codes,
        "num_frames": int(counts[0].sum()),
        "perplexity": [float(x) for x in perplexity(jnp.asarray(counts, jnp.float32))],
    }


def format_codec_report(report: dict[str, Any]) -> str:
    """The report as two tables in plain text: quality by number of levels, and the perplexity of each level, marked if it is below half of its codes."""
    half = report["num_codes"] / 2
    quality = tuple((f"{row['levels']}", number(row["mel_distance"]), f"{row['si_sdr_db']:.1f} dB") for row in report["quality"])
    used = tuple((f"{level}", f"{value:.1f}", "below half" if value < half else "") for level, value in enumerate(report["perplexity"], start=1))
    # The number of frames limits the perplexity.
    limits = f"(half of {report['num_codes']} codes is {half:g}; {report['num_frames']} frames)"
    title = f"Codec on {report['num_clips']} held-out clips, {report['seconds']:g} s each"
    return page(title, Table(("levels", "mel distance", "SI-SDR"), quality).text(), Table(("level", "perplexity", limits), used).text())
