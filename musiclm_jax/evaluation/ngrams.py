"""What counting alone would reach: the lines beside which a stage's nats per token are read. NumPy only."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from musiclm_jax.arrays import Float, Int


def ngram_nats(
    train: Iterable[Int[np.ndarray, "_ Q"]], held_out: Iterable[Int[np.ndarray, "_ Q"]], *, num_codes: int, weight: float = 20.0
) -> tuple[Float[np.ndarray, "Q"], Float[np.ndarray, "Q"]]:
    """Cross-entropy of held-out codes, nats per code and level, under counts over training codes: (unigram, bigram).

    The bigram knows the code of the same level one time step before; its counts are smoothed by `weight` codes drawn from the unigram, and
    the unigram's by one code of each kind (Dirichlet priors).

    Args:
        train, held_out: codes along time, piece by piece, such as clip by clip; pairs are counted within a piece. Only one is in memory at a time.
    """
    singles, pairs = _count(train, num_codes)
    held_singles, held_pairs = _count(held_out, num_codes)
    p = (singles + 1.0) / (singles + 1.0).sum(axis=1, keepdims=True)  # [Q, C]
    after = (pairs + weight * p[:, None]) / (pairs.sum(axis=2, keepdims=True) + weight)  # [Q, C, C]
    unigram = -np.sum(held_singles * np.log(p), axis=1) / held_singles.sum(axis=1)
    bigram = -np.sum(held_pairs * np.log(after), axis=(1, 2)) / np.maximum(held_pairs.sum(axis=(1, 2)), 1)
    return unigram, bigram


def _count(pieces: Iterable[Int[np.ndarray, "_ Q"]], num_codes: int) -> tuple[Int[np.ndarray, "Q C"], Int[np.ndarray, "Q C C"]]:
    """How often each code, and each pair of neighbours, occurs at each level."""
    singles = pairs = np.zeros(0, np.int64)
    for piece in pieces:
        levels = piece.astype(np.int64).T  # [Q, n]
        if not len(singles):
            singles, pairs = np.zeros((len(levels), num_codes), np.int64), np.zeros((len(levels), num_codes**2), np.int64)
        for level, codes in enumerate(levels):
            singles[level] += np.bincount(codes, minlength=num_codes)
            pairs[level] += np.bincount(codes[:-1] * num_codes + codes[1:], minlength=num_codes**2)
    return singles, pairs.reshape(len(singles), num_codes, num_codes)
