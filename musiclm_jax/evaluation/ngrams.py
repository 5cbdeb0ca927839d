"""What counting alone would reach: the lines beside which a stage's nats per token are read. NumPy only.

Codes come in chunks, such as `TokenStore.chunks` cuts them out of its files, so that data of any length are counted in little memory.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from musiclm_jax.arrays import Float, Int


def ngram_nats(
    train: Iterable[np.ndarray], held_out: Iterable[np.ndarray], *, num_codes: int, weight: float = 20.0
) -> tuple[Float[np.ndarray, "Q"], Float[np.ndarray, "Q"]]:
    """Cross-entropy of held-out codes, nats per code and level, under counts over training codes: (unigram, bigram).

    The bigram knows the code of the same level one time step before; its counts are smoothed by `weight` codes drawn from the unigram, and
    the unigram's by one code of each kind (Dirichlet priors). Clips may lie end to end: the few steps from one into the next are counted.

    Args:
        train: chunks [n, Q] of integers in [0, num_codes), in order. How codes are divided into chunks does not matter.
        held_out: the same of the held-out codes, two time steps or more.
        num_codes: codes of each level. Memory is Q * num_codes**2 counts, whatever the number of chunks.
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
    """How often each code, and each pair of a code and the next, is there, for each level."""
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
            if last is not None:  # The pair over the border of two chunks.
                codes = np.concatenate([last[level : level + 1], codes])
            np.add.at(pairs, codes[:-1] * num_codes + codes[1:], 1)
        last = chunk[-1].astype(np.int64)
    if not counts or not counts[0][1].any():
        raise ValueError("expected two time steps of codes or more")
    return [(singles, pairs.reshape(num_codes, num_codes)) for singles, pairs in counts]
