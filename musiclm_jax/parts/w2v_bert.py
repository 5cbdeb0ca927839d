"""w2v-BERT: its training, the k-means of its features, and the semantic tokens of all clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from musiclm_jax.checks import POSITIVE, check_numbers
from musiclm_jax.data.prefetch import Source
from musiclm_jax.data.readers import open_source
from musiclm_jax.data.token_store import TokenArray
from musiclm_jax.errors import UserError
from musiclm_jax.models import w2v_bert
from musiclm_jax.models.tokenizers import SemanticTokenizer
from musiclm_jax.parts.encode import encode_settings, perplexities, split_rows, tokenize
from musiclm_jax.parts.part import PREPARE, SPLITS, WEIGHTS, FitConfig, Run, Step, TokenStream, Work, deciding, save_weights
from musiclm_jax.parts.shards import clear, in_shards
from musiclm_jax.parts.trained import TrainedPart, wave_shapes
from musiclm_jax.tasks.w2v_bert import W2vBertRecipe, W2vBertTask
from musiclm_jax.training import hosts
from musiclm_jax.training.sharding import split_points

KMEANS, TOKENS = "kmeans", "semantic_tokens"
# Batches of features in a shard.
_SHARD_BATCHES = 32


@dataclasses.dataclass(frozen=True)
class W2vBertPart(TrainedPart):
    """Trains w2v-BERT on random crops, and clusters the features of crops of the same length."""

    recipe: W2vBertRecipe = W2vBertRecipe()
    # Seconds of audio whose features are clustered.
    kmeans_sec: float | int = 10_000.0

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self, kmeans_sec=POSITIVE)

    @property
    def name(self) -> str:
        return "w2v_bert"

    def task(self, fit: FitConfig) -> W2vBertTask:
        return W2vBertTask(fit.model.w2v_bert, self.recipe)

    def batch_shapes(self, fit: FitConfig) -> dict[str, jax.ShapeDtypeStruct]:
        return wave_shapes(self, fit)

    def source(self, run: Run, split: str, seed: int) -> Source:
        return open_source(run.clips, reader=run.config.reader, split=split, seed=seed, crop_sec=self.crop_sec, batch_size=self.batch_size)

    def settings(self, fit: FitConfig) -> dict[str, Any]:
        return fit.order

    def steps(self, fit: FitConfig) -> tuple[Step, ...]:
        model = deciding(fit.model.w2v_bert)
        crops = {"kmeans_sec": self.kmeans_sec, "crop_sec": self.crop_sec, "batch_size": self.batch_size, "seed": fit.seed, **fit.order}
        title = "clustering w2v-BERT's features into semantic tokens"
        return (
            self.training(fit),
            Step(KMEANS, title, self._cluster, (WEIGHTS,), {"model": model, **crops}, (PREPARE, self.name), reads=(SPLITS,)),
            Step(TOKENS, "tokenizing the clips", _tokenize, ("semantic.npy",), {"model": model, **encode_settings(fit)}, (PREPARE, self.name, KMEANS)),
        )

    def streams(self, fit: FitConfig) -> tuple[TokenStream, ...]:
        stream = fit.model.streams["semantic"]
        tokens = lambda run: TokenArray.open(run.folder(TOKENS) / "semantic.npy", run.clips, rate_hz=stream.rate_hz, spec=fit.model.audio)  # noqa: E731
        return (TokenStream(stream, (TOKENS,), tokens, codebooks=lambda run: run.saved(KMEANS)["kmeans"]["centroids"][None]),)

    def check(self, run: Run) -> None:
        super().check(run)
        model = run.config.model.w2v_bert
        frames = self.num_batches(run) * self.batch_size * int(self.crop_sec * model.mel.sample_rate_hz / model.token_samples)
        if frames < model.num_clusters:
            raise UserError(f"k-means has {frames} frames for num_clusters={model.num_clusters}: raise kmeans_sec, lower num_clusters, or give more clips")

    def num_batches(self, run: Run) -> int:
        """Number of batches for `kmeans_sec` seconds, or for all the training audio if that is less."""
        there = sum(clip.length for clip in run.clips.split("train")) / run.clips.sample_rate_hz
        return max(1, round(min(self.kmeans_sec, there) / (self.crop_sec * self.batch_size)))

    def _cluster(self, run: Run, work: Work) -> dict[str, Any]:
        """Clusters the features of random training crops."""
        config, params = run.config.model.w2v_bert, run.weights(self.name)["params"]
        source = self.source(run, "train", run.config.seed)

        def features(steps: Sequence[int]) -> np.ndarray:
            batches = (w2v_bert.features(config, params, *split_rows(source(step)["wave"])) for step in steps)
            return np.concatenate([np.asarray(batch)[: self.batch_size].reshape(-1, config.dim) for batch in batches])

        steps = range(self.num_batches(run))
        shards = in_shards(work.folder / "shards", steps, features, shard_items=_SHARD_BATCHES, what="features", unit="batches")
        found = w2v_bert.fit_kmeans(config, np.concatenate(shards), rng=jax.random.key(run.config.seed), place=split_points)
        save_weights(work.folder, hosts.gather(found))
        clear(work.folder / "shards")
        return {"seconds_of_audio": len(steps) * self.crop_sec * self.batch_size}


def tokenizer(run: Run) -> SemanticTokenizer:
    """The trained w2v-BERT with its clusters."""
    clusters = {} if "w2v_bert" in run.config.given else run.weights(KMEANS)
    return SemanticTokenizer(run.config.model.w2v_bert, run.weights("w2v_bert") | clusters)


def _tokenize(run: Run, work: Work) -> dict[str, Any]:
    model = run.config.model
    ids = tokenize(run, work, tokenizer(run).encode, rate_hz=model.audio.semantic_rate_hz, file="semantic.npy")
    (perplexity,) = perplexities(ids[:, None], model.w2v_bert.num_clusters)
    repeats = float(np.mean(ids[1:] == ids[:-1]))
    return {"seconds_of_audio": round(len(ids) / model.audio.semantic_rate_hz, 1), "perplexity": perplexity, "repeats": repeats}
