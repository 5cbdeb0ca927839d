"""The semantic reranker: a copy of MuLan, fine-tuned on semantic tokens. It scores drafts of them. Ours, from no paper.

The audio tower receives each token as the mean log-mel spectrum of the frames with that token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.audio.features import log_mel
from musiclm_jax.checks import POSITIVE, check_numbers
from musiclm_jax.data.clips import load_array
from musiclm_jax.data.prefetch import Source
from musiclm_jax.files import AnyPath
from musiclm_jax.models import mulan
from musiclm_jax.models.tokenizers import SemanticTokenizer
from musiclm_jax.parts import w2v_bert
from musiclm_jax.parts.encode import split_rows
from musiclm_jax.parts.mulan import ContrastivePart, vocabulary
from musiclm_jax.parts.part import PREPARE, FitConfig, Run, save_array
from musiclm_jax.parts.reranker import replace_wave, start_from_mulan
from musiclm_jax.parts.w2v_bert import KMEANS
from musiclm_jax.progress import ProgressLine
from musiclm_jax.training import hosts
from musiclm_jax.training.task import TrainState

_SPECTRA = "spectra.npy"


@dataclasses.dataclass(frozen=True)
class SemanticRerankerPart(ContrastivePart):
    """Fine-tunes MuLan on semantic tokens in place of waves."""

    # Seconds of audio over which the spectra of tokens are averaged.
    spectra_sec: float | int = 10_000.0

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self, spectra_sec=POSITIVE)

    @property
    def name(self) -> str:
        return "semantic_reranker"

    def needs(self, fit: FitConfig) -> tuple[str, ...]:
        return (PREPARE, "w2v_bert", KMEANS, "mulan")

    def settings(self, fit: FitConfig) -> dict[str, Any]:
        return super().settings(fit) | {"spectra_sec": self.spectra_sec, "spectra_seed": fit.seed}

    def batch_shapes(self, fit: FitConfig) -> dict[str, jax.ShapeDtypeStruct]:
        audio, mel = fit.model.audio, fit.model.mulan.mel
        frames = audio.semantic_tokens(self.crop_sec) * (audio.semantic_samples // mel.hop_samples)
        shapes = {name: shape for name, shape in super().batch_shapes(fit).items() if name != "wave"}
        return shapes | {"mels": jax.ShapeDtypeStruct((self.batch_size, frames, mel.num_mels), np.float32)}

    def outputs(self) -> tuple[str, ...]:
        return (_SPECTRA,)

    def begin(self, run: Run, folder: AnyPath) -> None:
        if not hosts.first((folder / _SPECTRA).exists):
            hosts.first(lambda: save_array(folder / _SPECTRA, self._token_spectra(run, w2v_bert.tokenizer(run))))

    def source(self, run: Run, split: str, seed: int) -> Source:
        config, semantic = run.config.model.mulan, w2v_bert.tokenizer(run)
        spectra = jnp.asarray(load_array(run.folder(self.name) / _SPECTRA))

        def through_tokens(wave: np.ndarray) -> dict[str, np.ndarray]:
            ids = semantic.encode(*split_rows(wave))[: len(wave)]
            mels = mulan.token_mels(config, spectra, jnp.asarray(ids), token_samples=semantic.config.token_samples)
            return {"mels": np.asarray(mels)}

        return replace_wave(self.captioned_source(run, split, seed, vocabulary(run)), through_tokens)

    def check(self, run: Run) -> None:
        """The check of MuLan covers it."""

    def warm_start(self, run: Run) -> Callable[[TrainState], TrainState]:
        return start_from_mulan(run)

    def finish(self, run: Run, variables: dict[str, Any], results: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return variables | {"spectra": load_array(run.folder(self.name) / _SPECTRA)}, results

    def _token_spectra(self, run: Run, semantic: SemanticTokenizer) -> np.ndarray:
        """Mean log-mel spectrum of the frames of each semantic token, in MuLan's front end: float32 [V, M]. Tokens that do not occur have the mean of
        all frames."""
        mel, codes = run.config.model.mulan.mel, semantic.config.num_clusters
        frames = jax.jit(lambda wave: log_mel(wave, mel))
        total, count = np.zeros((codes, mel.num_mels)), np.zeros(codes)
        there = sum(clip.length for clip in run.clips.captioned().split("train")) / run.clips.sample_rate_hz
        num_batches = max(1, round(min(self.spectra_sec, there) / (self.crop_sec * self.batch_size)))
        source, progress = self.captioned_source(run, "train", run.config.seed, vocabulary(run)), ProgressLine(unit="batches")
        for step in range(num_batches):
            wave = source(step)["wave"]
            spectra = np.asarray(frames(wave))
            ids = np.repeat(semantic.encode(*split_rows(wave))[: len(wave)], semantic.config.token_samples // mel.hop_samples, axis=1)[:, : spectra.shape[1]]
            np.add.at(total, ids, spectra)
            count += np.bincount(ids.ravel(), minlength=codes)
            progress("spectra", step + 1, num_batches)
        everything = total.sum(axis=0) / count.sum()
        return np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], everything).astype(np.float32)
