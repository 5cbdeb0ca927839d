"""Packaged vectors of word pieces, distilled from a sentence encoder, so that MuLan's text tower knows words that no caption of the training has.

They are made by tools/word_vectors.py. "minilm": of all-MiniLM-L6-v2 (Apache-2.0), 128 numbers for each piece.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
from safetensors import safe_open

from musiclm_jax.arrays import Float
from musiclm_jax.errors import UserError

_FOLDER = Path(__file__).parent / "weights"
NAMES = ("minilm",)


@dataclasses.dataclass(frozen=True, eq=False)
class WordVectors:
    # Pieces as `text.TextTokenizer` reads them, in the order of ids.
    pieces: tuple[str, ...]
    # float32; zeros for special tokens. Pieces that are rare have longer vectors.
    vectors: Float[np.ndarray, "V D"]


def path_of(name: str) -> Path:
    return _FOLDER / f"words-{name}.safetensors"


@functools.cache
def load(name: str) -> WordVectors:
    """The vectors of a name in NAMES. Raises UserError for another name."""
    if name not in NAMES:
        raise UserError(f"word_vectors={name!r}: choose one of {', '.join(NAMES)}, or none")
    with safe_open(path_of(name), framework="numpy") as file:
        vectors = file.get_tensor("vectors").astype(np.float32) * file.get_tensor("scale")
        return WordVectors(tuple(json.loads(file.metadata()["pieces"])), vectors)
