"""Pages that a browser shows from the disk, without a server and without other files than those that they name."""

from __future__ import annotations

import base64
import html
import json
import os
import struct
import urllib.parse
import zlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from musiclm_jax.arrays import Float
from musiclm_jax.audio.features import LogMelConfig, log_mel
from musiclm_jax.evaluation.clips import ClipFile

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222 }
pre { background: #f4f4f4; padding: 1em; overflow-x: auto; font-size: 13px } img { image-rendering: pixelated; width: 20em; height: 6em }
button { font: inherit; padding: .4em 1em; margin: .2em } .clip { display: inline-block; margin: 0 2em 1em 0 } .note { color: #666 }
"""
# Spectrograms: one column for each 40 ms, over 80 dB.
_MEL = LogMelConfig(window_samples=2048, hop_samples=960, num_fft=2048, num_mels=64)
_RANGE = 80 / 20 * np.log(10)


def document(title: str, *parts: str) -> str:
    """A page in HTML. parts: HTML."""
    head = f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>'
    return "\n".join([head, f"<h1>{html.escape(title)}</h1>", *parts, "</html>", ""])


def element(tag: str, text: str) -> str:
    """A text in HTML, such as a paragraph, "p"."""
    return f"<{tag}>{html.escape(text)}</{tag}>"


def link(clip: ClipFile, page: Path) -> str:
    """The address of a clip, relative to the page that names it. Browsers play the part of a file that is after "#t="."""
    part = "" if clip.start_sec is None and clip.end_sec is None else f"#t={clip.start_sec or 0:g}{'' if clip.end_sec is None else f',{clip.end_sec:g}'}"
    return urllib.parse.quote(os.path.relpath(Path(clip.path).resolve(), page.parent.resolve()).replace(os.sep, "/")) + part


def player(clip: ClipFile, page: Path) -> str:
    return f'<audio controls preload="none" src="{html.escape(link(clip, page))}"></audio>'


def as_script(value: Any) -> str:
    """JSON that may stand in a script: no text in it ends the script."""
    return json.dumps(value).replace("<", "\\u003c")


def brightness(wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "M T"]:
    """The log-mel spectrogram of a wave at 24 kHz, from 0 to 1 over 80 dB, one column for each 40 ms, the lowest frequencies first."""
    levels = np.asarray(log_mel(jnp.asarray(wave)[None], _MEL))[0].T
    return np.clip(1 + (levels - levels.max()) / _RANGE, 0, 1)


def spectrogram(wave: Float[np.ndarray, "N"]) -> str:
    """The spectrogram of a wave at 24 kHz as an image in HTML, low frequencies below."""
    data = base64.b64encode(png((255 * brightness(wave)[::-1]).astype(np.uint8))).decode()
    return f'<img alt="spectrogram" src="data:image/png;base64,{data}">'


def png(gray: np.ndarray) -> bytes:
    """A picture of 8 bits per pixel, [rows, columns], as a PNG file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = gray.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    lines = np.pad(gray, ((0, 0), (1, 0))).tobytes()  # Each line begins with the number of its filter, 0: none.
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
