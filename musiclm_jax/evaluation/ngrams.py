"""Unigram and bigram cross-entropies of codes, the baselines for the nats per token of a stage. NumPy only.

Codes come in chunks, such as those of `TokenArray.chunks`, so that data of any length need little memory.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from musiclm_jax.arrays import Float, Int


def ngram_nats(
    train: Iterable[np.ndarray], held_out: Iterable[np.ndarray], *, num_codes: int, weight: float = 20.0
) -> tuple[Float[np.ndarray, "Q"], Float[np.ndarray, "Q"]]:
    """Cross-entropies of held-out codes under models that count the training codes, in nats per code, for each level.

    The bigram model conditions on the code of the same level one time step before. Its counts are smoothed by `weight` codes distributed like the unigram
    model's, and those of the unigram model by one code of each kind (Dirichlet priors). Clips may be concatenated: the few transitions between clips are
    counted as well.

    Args:
        train: chunks [n, Q] of integers in [0, num_codes), in order. The division into chunks does not matter.
        held_out: the held-out codes in the same form, at least two time steps.
        num_codes: number of codes of each level. Memory is Q * num_codes**2 counts.
        weight: strength of the bigram model's prior.

    Returns:
        (unigram, bigram).

    Raises:
        ValueError: a code is out of range, or there are fewer than two time steps.
    """
    unigram, bigram = [], []
    for (singles, pairs), (held_out_singles, held_out_pairs) in zip(_count(train, num_codes), _count(held_out, num_codes), strict=True):
        p = singles + 1.0
        p /= p.sum()
        after = (pairs + weight * p) / (pairs.sum(axis=1, keepdims=True) + weight)
        unigram.append(-(held_out_singles @ np.log(p)) / held_out_singles.sum())
        bigram.append(-np.einsum("pc,pc->", held_out_pairs, np.log(after)) / held_out_pairs.sum())
    return np.array(unigram), np.array(bigram)


def _count(chunks: Iterable[np.ndarray], num_codes: int) -> list[tuple[Int[np.ndarray, "C"], Int[np.ndarray, "C C"]]]:
    """For each level, the counts of each code and of each pair of consecutive codes."""
    counts: list[tuple[np.ndarray, np.ndarray]] = []
    last = None
    for chunk in chunks:
        if not len(chunk):
            continue
        if not counts:
            counts = [(np.zeros(num_codes, np.int64), np.zeros(num_codes**2, np.int64)) for _ in range(chunk.shape[1])]
        for level, (singles, pairs) in enumerate(counts):
            codes = chunk[:, level].astype(np.int64)
            if codes.min() < 0 or codes.max() >= num_codes:
                raise ValueError(f"expected codes in [0, {num_codes}), got {codes.min()} to {codes.max()}")
            singles += np.bincount(codes, minlength=num_codes)
            if last is not None:  # The pair across the boundary of two chunks.
                codes = np.concatenate([last[level : level + 1], codes])
            np.add.at(pairs, codes[:-1] * num_codes + codes[1:], 1)
        last = chunk[-1].astype(np.int64)
    if not counts or not counts[0][1].any():
        raise ValueError("expected at least two time steps of codes, got fewer: give longer clips")
    return [(singles, pairs.reshape(num_codes, num_codes)) for singles, pairs in counts]
