"""Judges that are SavedModels of TensorFlow: TRILL, a classifier with LEAF's front end, and the user's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from musiclm_jax.arrays import Float
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.embeddings import pieces, windows
from musiclm_jax.interop import saved_model
from musiclm_jax.interop.saved_model import SavedModel

# That of TRILL, and of LEAF's experiments.
SAMPLE_RATE_HZ = 16_000
_EXTRA = "savedmodel"
_WHERE = {
    "trill": "google/nonsemantic-speech-benchmark/trill/3 of TensorFlow Hub",
    "leaf": "a classifier that you trained with LEAF, whose authors publish no weights of one",
    "saved-model": "a model that reads a wave",
}


@dataclasses.dataclass(frozen=True, eq=False)
class SavedJudge:
    """One output of a SavedModel, embeddings or logits, of pieces of 10 s or of the length that it reads."""

    model: SavedModel
    output: str
    labels: tuple[str, ...]
    name: str
    sample_rate_hz: int
    min_samples: int

    def embed(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T D"]:
        length = self.model.num_samples
        parts = pieces(wave, self.sample_rate_hz) if length is None else windows(wave, window=length, hop=length)
        return np.concatenate([_rows(self.model(part)[self.output]) for part in parts])

    def logits(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T V"]:
        return self.embed(wave)


def load_trill(weights: str | None, *, output: str | None = None) -> SavedJudge:
    """TRILL (arXiv 2002.12764) from the folder of its SavedModel. output: "embedding" of 512 dimensions, the default, or "layer19" of 12,288."""
    return load_saved(weights, part=output or "embedding", kind="trill")


def load_saved(weights: str | None, *, part: str | None = None, kind: str = "saved-model") -> SavedJudge:
    """A judge from the folder of a SavedModel.

    Args:
        weights: the folder.
        part: "OUTPUT", "@RATE" or "OUTPUT@RATE": the name of its output, by default the only one, and its rate in Hz, by default 16,000.
        kind: the judge's name, for errors and reports.

    Raises:
        UserError: there is no folder, it cannot be loaded, or has no such output.
    """
    if weights is None:
        raise UserError(f"{kind}: name the folder of its SavedModel with --weights, {_WHERE[kind]}")
    output, _, rate = (part or "").partition("@")
    rate_hz = int(rate or SAMPLE_RATE_HZ)
    model = saved_model.load(weights, sample_rate_hz=rate_hz, of=_EXTRA)
    least = model.num_samples or rate_hz
    found = model(np.zeros(least, np.float32))
    if not output and len(found) == 1:
        output = next(iter(found))
    if output not in found:
        raise UserError(f"{weights}: has {'no output ' + repr(output) if output else 'several outputs'}; choose one: {kind}:{f', {kind}:'.join(sorted(found))}")
    if not 1 <= found[output].ndim <= 3:
        raise UserError(f"{weights}: its output {output!r} has the shape {found[output].shape}, expected vectors over time, [T, D]; choose another output")
    labels = tuple(f"class {i}" for i in range(found[output].shape[-1]))
    return SavedJudge(model, output, labels, f"{kind}@{Path(weights).name}:{output}", rate_hz, least)


def _rows(found: np.ndarray) -> Float[np.ndarray, "T D"]:
    """The vectors of an output [D], [T, D] or [1, T, D]."""
    return found.reshape(-1, found.shape[-1])
