"""What the embedders of music share: windows that slide over a clip, and codes of their embeddings."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Float, Int
from musiclm_jax.nn.quantize import rvq_encode


def num_windows(num_samples: int, *, window: int, hop: int) -> int:
    """Windows of a wave, one if it is shorter than a window. Samples after the last whole window are not seen."""
    return max(0, num_samples - window) // hop + 1


def embed_windows(
    embed: Callable[[Array], Array], wave: Float[Array, "B N"] | Int[Array, "B N"], *, window: int, hop: int
) -> Float[Array, "B W D"]:
    """`embed` ([B, window] -> [B, D]) of all windows, one each `hop` samples. A wave shorter than a window is zero-padded on the right.

    Tokens do in place of a wave, with windows counted in them; code 0 would pad them.

    One window of the batch is computed at a time, so that memory does not grow with the length of the wave.
    """
    wave = jnp.pad(wave, ((0, 0), (0, max(0, window - wave.shape[1]))))
    starts = jnp.arange(num_windows(wave.shape[1], window=window, hop=hop)) * hop
    windows = jax.lax.map(lambda start: embed(jax.lax.dynamic_slice_in_dim(wave, start, window, axis=1)), starts)
    return jnp.swapaxes(windows, 0, 1)


def residual_codes(codebooks: Float[Array, "..."], embeddings: Float[Array, "*B D"], *, num_levels: int, num_codes: int) -> Int[Array, "*B Q"]:
    """Codes of embeddings under the codebooks [Q, C, D] of a model, which must have the sizes that its config says."""
    expected = (num_levels, num_codes, embeddings.shape[-1])
    if codebooks.shape != expected:
        raise ValueError(f"expected codebooks [Q, C, D] = {expected}, got {codebooks.shape}: the config is another model's")
    return rvq_encode(codebooks, embeddings)
