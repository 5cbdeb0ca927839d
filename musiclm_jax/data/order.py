"""The order of examples in a training: each once an epoch, each epoch in another order, as a pure function of the number of the example."""

from __future__ import annotations

import functools
import zlib

import numpy as np

from musiclm_jax.errors import UserError

# Below this number of examples the order of an epoch is an array: the cipher has blocks of 16 bits, and is slow for fewer.
_LISTED = 2**16
# Rounds of the block cipher.
_ROUNDS = 4


def shuffled(number: int, total: int, *, seed: int) -> int:
    """Which of `total` clips or records the example `number` of a training is. Of many, the order is computed and not stored, by grain.

    Raises:
        UserError: there are many, and the package grain is missing.
    """
    epoch, position = divmod(number, total)
    if total < _LISTED:
        return int(_order(total, seed, epoch)[position])
    try:
        from grain.experimental import index_shuffle
    except ModuleNotFoundError as error:
        raise UserError(f"the order of {total} examples needs the package {error.name}; install it with: pip install 'musiclm-jax[data]'") from error
    return index_shuffle(position, max_index=total - 1, seed=zlib.crc32(f"{seed} {epoch}".encode()), rounds=_ROUNDS)


@functools.lru_cache(maxsize=8)
def _order(total: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(total)
