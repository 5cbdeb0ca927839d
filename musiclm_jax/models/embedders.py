"""Functions that MuLan and the melody embedder share: embeddings of sliding windows, and their residual codes."""

from __future__ import annotations

from musiclm_jax.arrays import Array, Float, Int
from musiclm_jax.nn.quantize import rvq_encode


def num_windows(num_samples: int, *, window: int, hop: int) -> int:
    """Number of whole windows in a wave, at least 1. Samples after the last whole window are ignored. All arguments are in samples."""
    return max(0, num_samples - window) // hop + 1


def residual_codes(codebooks: Float[Array, "..."], embeddings: Float[Array, "*B D"], *, num_levels: int, num_codes: int) -> Int[Array, "*B Q"]:
    """Quantizes embeddings with the residual codebooks [Q, C, D] of a model. Returns codes, int32 in [0, C).

    Raises:
        ValueError: the codebooks do not have the sizes of the config.
    """
    expected = (num_levels, num_codes, embeddings.shape[-1])
    if codebooks.shape != expected:
        raise ValueError(f"expected codebooks [Q, C, D] = {expected}, got {codebooks.shape}: the config is another model's")
    return rvq_encode(codebooks, embeddings)
