"""The reranker: a copy of MuLan, fine-tuned on clips that the codec has encoded and decoded. It scores generated candidates. Ours, from no paper.

MuLan may miss in a decoded clip what it recognizes in a recording, such as the lead instrument. Fine-tuning a copy leaves MuLan's own tokens, on which
the stages are conditioned, unchanged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from musiclm_jax.data.prefetch import Rows, Source
from musiclm_jax.parts import codec
from musiclm_jax.parts.encode import split_rows
from musiclm_jax.parts.mulan import ContrastivePart, vocabulary
from musiclm_jax.parts.part import PREPARE, FitConfig, Run
from musiclm_jax.training.task import TrainState


@dataclasses.dataclass(frozen=True)
class RerankerPart(ContrastivePart):
    """Fine-tunes MuLan on clips that are reconstructed from the coarse levels of the codec."""

    @property
    def name(self) -> str:
        return "reranker"

    def needs(self, fit: FitConfig) -> tuple[str, ...]:
        return (PREPARE, "codec", "mulan")

    def settings(self, fit: FitConfig) -> dict[str, Any]:
        return super().settings(fit) | {"coarse_levels": fit.model.coarse_levels}

    def source(self, run: Run, split: str, seed: int) -> Source:
        acoustic, levels = codec.tokenizer(run), run.config.model.coarse_levels

        def through_codec(wave: np.ndarray) -> dict[str, np.ndarray]:
            codes = acoustic.encode(*split_rows(wave))[: len(wave), :, :levels]
            return {"wave": acoustic.decode(codes)[:, : wave.shape[1]]}

        return replace_wave(self.captioned_source(run, split, seed, vocabulary(run)), through_codec)

    def check(self, run: Run) -> None:
        """The check of MuLan covers it."""

    def warm_start(self, run: Run) -> Callable[[TrainState], TrainState]:
        return start_from_mulan(run)


def replace_wave(batches: Source, make: Callable[[np.ndarray], dict[str, np.ndarray]]) -> Source:
    """Replaces the wave of each batch by make(wave)."""

    def source(step: int, rows: Rows = np.arange) -> dict[str, np.ndarray]:
        batch = batches(step, rows)
        return batch | make(batch.pop("wave"))

    return source


def start_from_mulan(run: Run) -> Callable[[TrainState], TrainState]:
    """A warm start with MuLan's trained weights."""
    params = run.saved("mulan")["params"]
    return lambda state: state.replace(params=state.params | {"mulan": params})
