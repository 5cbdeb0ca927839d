"""What the embedders of music share: windows that slide over a clip, and codes of their embeddings."""

from __future__ import annotations

from musiclm_jax.arrays import Array, Float, Int
from musiclm_jax.nn.quantize import rvq_encode


def num_windows(num_samples: int, *, window: int, hop: int) -> int:
    """Windows of a wave, one if it is shorter than a window. Samples after the last whole window are not seen."""
    return max(0, num_samples - window) // hop + 1


def residual_codes(codebooks: Float[Array, "..."], embeddings: Float[Array, "*B D"], *, num_levels: int, num_codes: int) -> Int[Array, "*B Q"]:
    """Codes of embeddings under the codebooks [Q, C, D] of a model, which must have the sizes that its config says."""
    expected = (num_levels, num_codes, embeddings.shape[-1])
    if codebooks.shape != expected:
        raise ValueError(f"expected codebooks [Q, C, D] = {expected}, got {codebooks.shape}: the config is another model's")
    return rvq_encode(codebooks, embeddings)
