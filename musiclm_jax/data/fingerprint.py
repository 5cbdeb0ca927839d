"""Fingerprints of audio, by which recordings are found again after re-encoding, cutting and changes of level (Haitsma and Kalker, ISMIR 2002). NumPy only.

A fingerprint is a sequence of 32-bit numbers, `FRAME_RATE_HZ` a second. Each bit says whether the difference of energy between two neighbouring bands rises
or falls from one frame to the next, which neither level nor a filter changes much.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from musiclm_jax.arrays import Float, Shaped

FRAME_RATE_HZ = 80
_WINDOW_SEC = 0.37
_BANDS, _LOW_HZ, _HIGH_HZ = 33, 300.0, 3000.0
# Numbers that occur more often, such as those of silence and of held notes, tell no recordings apart.
_COMMON = 16
# Two clips share a passage if so many numbers of the shorter one are found at one distance in time in the other, and at least so many.
_SHARE, _LEAST = 0.02, 16
# Frames of spectra in memory at once.
_CHUNK = 2048


def fingerprint(wave: Float[np.ndarray, "N"], sample_rate_hz: int) -> Shaped[np.ndarray, "T"]:
    """The fingerprint of a wave, uint32. Frames in which nothing sounds are 0."""
    hop, window = sample_rate_hz // FRAME_RATE_HZ, round(_WINDOW_SEC * sample_rate_hz)
    if len(wave) < window + hop:
        return np.zeros(0, np.uint32)
    frames = np.lib.stride_tricks.sliding_window_view(wave, window)[::hop]
    edges = np.round(np.geomspace(_LOW_HZ, _HIGH_HZ, _BANDS + 1) * window / sample_rate_hz).astype(int)
    taper = np.hanning(window).astype(np.float32)
    energy = np.concatenate(
        [
            np.add.reduceat(np.square(np.abs(np.fft.rfft(frames[first : first + _CHUNK] * taper)[:, : edges[-1]])), edges[:-1], axis=1)
            for first in range(0, len(frames), _CHUNK)
        ]
    )
    slope = energy[:, :-1] - energy[:, 1:]
    bits = (slope[1:] > slope[:-1]).astype(np.uint32)
    sounds = energy[1:].sum(axis=1) > 1e-9 * window**2
    return np.where(sounds, (bits << np.arange(_BANDS - 1, dtype=np.uint32)).sum(axis=1, dtype=np.uint32), 0).astype(np.uint32)


def near_duplicates(prints: Sequence[Shaped[np.ndarray, "_"]]) -> list[tuple[int, int]]:
    """The pairs of fingerprints that share a passage, as (number, higher number), sorted."""
    counts = np.array([len(each) for each in prints])
    if len(counts) < 2 or not counts.sum():
        return []
    hashes = np.concatenate(prints)
    clip = np.repeat(np.arange(len(counts)), counts)
    time = np.arange(len(hashes)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.argsort(hashes, kind="stable")
    hashes, clip, time = hashes[order], clip[order], time[order]
    _, first, occurs = np.unique(hashes, return_index=True, return_counts=True)
    rare = np.repeat((occurs <= _COMMON) & (hashes[first] != 0), occurs)
    hashes, clip, time = hashes[rare], clip[rare], time[rare]
    span, found = 2 * int(counts.max()) + 1, []
    for shift in range(1, _COMMON):  # Equal numbers are neighbours; the clips of a group are in ascending order.
        same = (hashes[shift:] == hashes[:-shift]) & (clip[shift:] != clip[:-shift])
        low, high = clip[:-shift][same], clip[shift:][same]
        distance = time[shift:][same] - time[:-shift][same] + span // 2
        found.append((low * len(counts) + high) * span + distance)
    keys, matches = np.unique(np.concatenate(found), return_counts=True)
    pairs = keys // span
    low, high = pairs // len(counts), pairs % len(counts)
    enough = matches >= np.maximum(_LEAST, _SHARE * np.minimum(counts[low], counts[high]))
    return sorted({(int(a), int(b)) for a, b in zip(low[enough], high[enough], strict=True)})
