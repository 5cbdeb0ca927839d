"""One of our stages as a model of T5X."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from flax.core import freeze
from t5x import metrics as t5x_metrics
from t5x import models, optimizers, partitioning

from musiclm_jax.errors import UserError
from musiclm_jax.generation.sampler import draw
from musiclm_jax.interop.t5x import axes
from musiclm_jax.interop.t5x.seqio_tasks import StageFeatures
from musiclm_jax.interop.t5x.stage import StageRun
from musiclm_jax.models import stage as stage_model
from musiclm_jax.models.stage import Stage, StageDecoder
from musiclm_jax.training.task import TrainState

Batch = Mapping[str, jax.Array]


class StageModel(models.BaseModel):
    """The parameters, losses and metrics are those of `tasks.stage.StageTask`; batches are its streams.

    It is a BaseModel, not a BaseTransformerModel, because a stage has no vocabulary of text that T5X could verify.

    stage: the stage, its sizes and its recipe, of which T5X uses what makes the loss. optimizer_def: T5X's. It also takes the schedule from T5X's Trainer.
    """

    FEATURE_CONVERTER_CLS = StageFeatures

    def __init__(self, stage: StageRun, optimizer_def: optimizers.OptimizerDefType):
        super().__init__(optimizer_def)
        part = stage.part
        self.layout, self.spec, self.batch_size = stage.layout, part.spec_of(stage.fit), part.batch_size
        self.task = part.task(stage.fit)
        # Codebooks are read here, because T5X traces `get_initial_variables`.
        self._warm_start = part.warm_start(stage.run) if part.codebook_init else None

    def get_initial_variables(self, rng: jax.Array, input_shapes: Mapping[str, Any], input_types: Mapping[str, Any] | None = None) -> Any:
        """The initial parameters and the names of their axes. They do not depend on the input."""
        boxed = stage_model.init(self.spec.model, self.layout, rng)
        params = nn.meta.unbox(boxed)
        if self._warm_start is not None:
            params = self._warm_start(TrainState(0, params, None, {})).params
        return freeze({"params": params, "params_axes": axes.params_axes(boxed)})

    def loss_fn(self, params: Any, batch: Batch, dropout_rng: jax.Array | None) -> tuple[jax.Array, t5x_metrics.MetricsMap]:
        """The mean loss per token, times the share that these rows are of the batch: T5X adds the gradients of microbatches, and by default sums tokens."""
        with _sharded():
            loss, metrics = self.task.loss(params, batch, dropout_rng)
        return loss * (_rows(batch) / self.batch_size), _clu_metrics(metrics)

    def score_batch(self, params: Any, batch: Batch, return_intermediates: bool = False) -> jax.Array:
        """The log-likelihood, in nats, of each example's target given its prefix, [B]."""
        codes = self.layout.target_codes(batch)
        with _sharded():
            logits = Stage(self.spec.model, self.layout).apply({"params": params}, jnp.asarray(self.layout.prefix_ids(batch)), codes)
        return jnp.take_along_axis(jax.nn.log_softmax(logits), codes[..., None], axis=-1).sum(axis=(1, 2, 3))

    def predict_batch_with_aux(self, params: Any, batch: Batch, rng: jax.Array | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Draws one window of target codes, int32 [B, T, Q], for each prefix, with the stage's own sampling. aux: their log-likelihoods, "scores" [B].

        Raises:
            UserError: the stage samples with guidance.
        """
        sampling, layout, target = self.spec.sampling, self.layout, self.layout.target
        if sampling.guidance != 1:
            raise UserError(f"{self.spec.name}: guidance={sampling.guidance:g} is not for T5X: set it to 1, or draw with `musiclm generate`")
        decoder = StageDecoder(self.spec.model, layout)
        params, prefix_ids = decoder.prepare(dict(params)), jnp.asarray(layout.prefix_ids(batch))
        (rows, prefix_length), num_steps = prefix_ids.shape, target.steps(self.spec.window_sec)
        keys = jax.random.split(jax.random.PRNGKey(0) if rng is None else rng, rows)

        def step(carry, index):
            (logits, cache), level = carry, index % target.levels
            codes = draw(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, index), sampling)
            score = jnp.take_along_axis(jax.nn.log_softmax(logits), codes[:, None], axis=-1)[:, 0]
            ids = codes[:, None] + layout.target_offset + target.codes * level
            where = {"num_steps": num_steps, "position": prefix_length + index, "level": (index + 1) % target.levels}
            return decoder(params, ids, cache, **where), (codes, score)

        drawn = num_steps * target.levels
        first = decoder(params, prefix_ids, decoder.init_cache(rows, prefix_length + drawn), num_steps=num_steps, position=0, level=0)
        _, (codes, scores) = jax.lax.scan(step, first, jnp.arange(drawn))
        return codes.T.reshape(rows, num_steps, target.levels), {"scores": scores.sum(axis=0)}


def _rows(batch: Batch) -> int:
    return next(iter(batch.values())).shape[0]


@contextlib.contextmanager
def _sharded():
    """Activations are constrained to T5X's mesh: its way of setting one is not seen by `musiclm_jax.partitioning`."""
    mesh = partitioning.pxla.thread_resources.env.physical_mesh
    with contextlib.nullcontext() if mesh.empty else jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield


def _clu_metrics(metrics: Mapping[str, jax.Array]) -> t5x_metrics.MetricsMap:
    """Our metrics as means over tokens, with T5X's of speed."""
    tokens = metrics["tokens"]
    means = {name: clu_metrics.Average(total=value * tokens, count=tokens) for name, value in metrics.items() if name != "tokens"}
    return means | {
        "timing/seconds": t5x_metrics.Time(),
        "timing/steps_per_second": t5x_metrics.StepsPerTime.from_model_output(),
        "timing/target_tokens_per_second": t5x_metrics.TimeRate.from_model_output(numerator=tokens),
    }
