"""Functions that MuLan and the melody embedder share: embeddings of sliding windows, and their residual codes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Float, Int
from musiclm_jax.nn.quantize import rvq_encode


def num_windows(num_samples: int, *, window: int, hop: int) -> int:
    """Number of whole windows in a wave, at least 1. Samples after the last whole window are ignored. All arguments are in samples."""
    return max(0, num_samples - window) // hop + 1


def embed_windows(embed: Callable[[Array], Array], wave: Float[Array, "B N"] | Int[Array, "B N"], *, window: int, hop: int) -> Float[Array, "B W D"]:
    """Applies `embed` ([B, window] -> [B, D]) to all windows of a wave, one every `hop` samples. Shorter waves are zero-padded on the right.

    The wave may be a sequence of tokens, whose windows are then counted in tokens; padding is code 0. One window of the batch is computed at a time,
    so that memory does not grow with the length of the wave.
    """
    wave = jnp.pad(wave, ((0, 0), (0, max(0, window - wave.shape[1]))))
    starts = jnp.arange(num_windows(wave.shape[1], window=window, hop=hop)) * hop
    windows = jax.lax.map(lambda start: embed(jax.lax.dynamic_slice_in_dim(wave, start, window, axis=1)), starts)
    return jnp.swapaxes(windows, 0, 1)


def residual_codes(codebooks: Float[Array, "..."], embeddings: Float[Array, "*B D"], *, num_levels: int, num_codes: int) -> Int[Array, "*B Q"]:
    """Quantizes embeddings with the residual codebooks [Q, C, D] of a model. Returns codes, int32 in [0, C).

    Raises:
        ValueError: the codebooks do not have the sizes of the config.
    """
    expected = (num_levels, num_codes, embeddings.shape[-1])
    if codebooks.shape != expected:
        raise ValueError(f"expected codebooks [Q, C, D] = {expected}, got {codebooks.shape}: the config is another model's")
    return rvq_encode(codebooks, embeddings)
