"""What counting alone would reach: the lines beside which a stage's nats per token are read. NumPy only."""

from __future__ import annotations

import numpy as np

from musiclm_jax.arrays import Float, Int


def ngram_nats(
    train: Int[np.ndarray, "N Q"], held_out: Int[np.ndarray, "M Q"], *, num_codes: int, weight: float = 20.0
) -> tuple[Float[np.ndarray, "Q"], Float[np.ndarray, "Q"]]:
    """Cross-entropy of held-out codes, nats per code and level, under counts over training codes: (unigram, bigram).

    The bigram knows the code of the same level one time step before; its counts are smoothed by `weight` codes drawn from the unigram, and
    the unigram's by one code of each kind (Dirichlet priors). Clips may lie end to end: the few steps from one into the next are counted.
    """
    unigram, bigram = [], []
    for ours, theirs in zip(train.T.astype(np.int64), held_out.T.astype(np.int64)):
        p = np.bincount(ours, minlength=num_codes) + 1.0
        p /= p.sum()
        pairs = np.bincount(ours[:-1] * num_codes + ours[1:], minlength=num_codes**2).reshape(num_codes, num_codes)
        after = (pairs + weight * p) / (pairs.sum(axis=1, keepdims=True) + weight)
        unigram.append(-np.log(p[theirs]).mean())
        bigram.append(-np.log(after[theirs[:-1], theirs[1:]]).mean())
    return np.array(unigram), np.array(bigram)
