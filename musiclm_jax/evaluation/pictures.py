"""Figures by matplotlib: of memorization, and spectrograms for notebooks. Those in pages are in `evaluation/html.py`, and need nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from musiclm_jax.arrays import Float
from musiclm_jax.audio import SAMPLE_RATE_HZ
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.extras import extra
from musiclm_jax.evaluation.html import brightness
from musiclm_jax.files import atomic_path

_COLORS = {"exact": "tab:red", "approximate": "tab:blue"}
_STYLES = {"train": ("-", "training clips"), "test": (":", "held-out clips")}


def require_matplotlib() -> Any:
    """matplotlib.figure. Raises UserError if it is not installed."""
    try:
        return extra("matplotlib.figure")
    except UserError:
        raise UserError("the picture needs the package matplotlib; install it with: pip install matplotlib, or do without it") from None


def draw_spectrogram(wave: Float[np.ndarray, "N"], *, title: str = "") -> Any:
    """The log-mel spectrogram of a wave at 24 kHz as a figure of matplotlib, low frequencies below. Raises UserError if matplotlib is not installed."""
    figure = require_matplotlib().Figure(figsize=(8, 2.2), layout="constrained")
    axes = figure.add_subplot(xlabel="seconds", yticks=[], title=title)
    axes.imshow(brightness(wave), aspect="auto", origin="lower", cmap="magma", vmin=0, vmax=1, extent=(0, len(wave) / SAMPLE_RATE_HZ, 0, 1))
    return figure


def draw_memorization(report: dict[str, Any], path: str | Path) -> None:
    """Draws the shares of matches by the length of the prompt, with 95 % intervals (MusicLM, arXiv 2301.11325, section 5). The suffix is the format.

    Args:
        report: of `evaluate_memorization`.
        path: the file, such as a .png or an .svg.
    """
    figure = require_matplotlib().Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="prompt length T, semantic tokens", ylabel="matches, % of clips")
    for split, rows in report["results"].items():
        line, title = _STYLES[split]
        at = [row["prompt_tokens"] for row in rows]
        for kind, color in _COLORS.items():
            axes.plot(at, [100 * row[kind] for row in rows], line, color=color, marker="o", label=f"{kind}, {title}")
            low, high = zip(*(row[f"{kind}_95"] for row in rows))
            axes.fill_between(at, [100 * each for each in low], [100 * each for each in high], color=color, alpha=0.12)
    axes.set_ylim(bottom=0)
    axes.legend()
    suffix = Path(path).suffix.removeprefix(".").lower()
    if suffix not in figure.canvas.get_supported_filetypes():
        raise UserError(f"{path}: is not a picture that matplotlib writes; name it .png or .svg")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=suffix, dpi=150)
