"""Training of the codec: SoundStream as the generator of a GAN, with codebooks learned by moving averages."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from musiclm_jax.arrays import Key
from musiclm_jax.losses import feature_loss, hinge_discriminator_loss, hinge_generator_loss, mel_distance, multi_scale_mel_loss
from musiclm_jax.models.discriminators import DiscriminatorConfig, Discriminators
from musiclm_jax.models.soundstream import SoundStream, SoundStreamConfig, pad_to_frames
from musiclm_jax.nn.quantize import RVQConfig, RVQState, perplexity, quantize_train, rvq_decode, rvq_encode
from musiclm_jax.optim import OptimizerConfig, make_optimizer
from musiclm_jax.tasks.task import Batch, Metrics, TrainState


@dataclasses.dataclass(frozen=True)
class CodecTask:
    """Trains a SoundStream. Batches: {"wave": float32 [B, N]} in [-1, 1], N a few hundred ms or more.

    State: params {"generator", "discriminator"}, opt_state of the same keys, stats {"quantizer": RVQState}.
    """

    name: str = "soundstream"
    model: SoundStreamConfig = SoundStreamConfig()
    quantizer: RVQConfig = RVQConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    sample_rate_hz: int = 24_000
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-4, betas=(0.8, 0.99), weight_decay=0.0, clip_norm=10.0)
    discriminator_optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-4, betas=(0.8, 0.99), weight_decay=0.0, clip_norm=10.0)
    # Before this step neither the discriminators nor their gradients are computed. A number beyond the last step: no GAN at all.
    discriminator_start_step: int = 0
    # Part of the examples that use a random number of levels, uniform on 1 .. Q; the others use all of them.
    quantizer_dropout: float = 0.5
    # Weights of the generator's loss. The paper's are 1 (reconstruction), 1, 100 on sums where ours are means: see `losses`.
    reconstruction_weight: float = 1.0
    adversarial_weight: float = 0.1
    feature_weight: float = 1.0
    commitment_weight: float = 0.25

    def __post_init__(self):
        if not 0 <= self.quantizer_dropout <= 1:
            raise ValueError(f"quantizer_dropout={self.quantizer_dropout} is a part of the examples: choose it in [0, 1]")

    def init_state(self, rng: Key) -> TrainState:
        rng_generator, rng_discriminator = jax.random.split(rng)
        wave = jnp.zeros((1, 4 * self.model.frame_samples), jnp.float32)
        params = {
            "generator": SoundStream(self.model).init(rng_generator, wave)["params"],
            "discriminator": Discriminators(self.discriminator).init(rng_discriminator, wave)["params"],
        }
        opt_state = {name: optimizer.init(params[name]) for name, optimizer in self._optimizers().items()}
        quantizer = RVQState.empty(num_levels=self.model.num_levels, num_codes=self.model.num_codes, dim=self.model.dim)
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, {"quantizer": quantizer})

    def train_step(self, state: TrainState, batch: Batch, rng: Key) -> tuple[TrainState, Metrics]:
        """One step of the generator and, from `discriminator_start_step` on, of the discriminators on the same batch.

        A step whose loss or gradient is not finite leaves everything but the step number as it was and reports `skipped` = 1.
        """
        wave = pad_to_frames(jnp.asarray(batch["wave"]), self.model.frame_samples)
        new, metrics = jax.lax.cond(
            state.step >= self.discriminator_start_step, self._adversarial_step, self._reconstruction_step, state, wave, rng
        )
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"]) & jnp.isfinite(metrics["discriminator"])
        new = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
        return new.replace(step=state.step + 1), metrics | {"skipped": 1.0 - finite.astype(jnp.float32)}

    def eval_step(self, state: TrainState, batch: Batch, rng: Key) -> Metrics:
        """Reconstruction with all levels: `mel_distance`, `loss` (the spectral loss), perplexity of each level on this batch."""
        wave = pad_to_frames(jnp.asarray(batch["wave"]), self.model.frame_samples)
        params = {"params": state.params["generator"]}
        codebooks = state.stats["quantizer"].codebooks
        codes = rvq_encode(codebooks, SoundStream(self.model).apply(params, wave, method="encode"))
        fake = SoundStream(self.model).apply(params, rvq_decode(codebooks, codes), method="decode")
        counts = jnp.sum(jax.nn.one_hot(codes.reshape(-1, self.model.num_levels), self.model.num_codes), axis=0)
        metrics = {f"perplexity_{q + 1}": value for q, value in enumerate(perplexity(counts))}
        return metrics | {
            "loss": multi_scale_mel_loss(fake, wave, sample_rate_hz=self.sample_rate_hz),
            "mel_distance": mel_distance(fake, wave, sample_rate_hz=self.sample_rate_hz),
        }

    def variables(self, state: TrainState) -> dict[str, Any]:
        return {
            "params": nn.meta.unbox(state.params["generator"]),
            "quantizer": {"codebooks": state.stats["quantizer"].codebooks},
        }

    def _optimizers(self) -> dict[str, optax.GradientTransformation]:
        return {"generator": make_optimizer(self.optimizer), "discriminator": make_optimizer(self.discriminator_optimizer)}

    def _reconstruct(self, params, quantizer: RVQState, wave: jax.Array, rng: Key):
        """(fake wave, weighted reconstruction and commitment loss, new quantizer, metrics)."""
        rng_levels, rng_partial, rng_quantizer = jax.random.split(rng, 3)
        latents = SoundStream(self.model).apply({"params": params}, wave, method="encode")
        levels = jax.random.randint(rng_levels, wave.shape[:1], 1, self.model.num_levels + 1)
        partial = jax.random.bernoulli(rng_partial, self.quantizer_dropout, wave.shape[:1])
        quantized, _, commitment, quantizer, metrics = quantize_train(
            latents, quantizer, self.quantizer, num_levels=jnp.where(partial, levels, self.model.num_levels), rng=rng_quantizer
        )
        fake = SoundStream(self.model).apply({"params": params}, quantized, method="decode")
        reconstruction = multi_scale_mel_loss(fake, wave, sample_rate_hz=self.sample_rate_hz)
        metrics |= {"reconstruction": reconstruction, "commitment": commitment}
        return fake, self.reconstruction_weight * reconstruction + self.commitment_weight * commitment, quantizer, metrics

    def _reconstruction_step(self, state: TrainState, wave: jax.Array, rng: Key) -> tuple[TrainState, Metrics]:
        def loss_fn(params):
            _, loss, quantizer, metrics = self._reconstruct(params, state.stats["quantizer"], wave, rng)
            return loss, (quantizer, metrics)

        (loss, (quantizer, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params["generator"])
        zero = jnp.zeros((), jnp.float32)
        metrics |= {"loss": loss, "adversarial": zero, "feature": zero, "discriminator": zero}
        return self._apply(state, {"generator": grads}, quantizer, metrics)

    def _adversarial_step(self, state: TrainState, wave: jax.Array, rng: Key) -> tuple[TrainState, Metrics]:
        discriminate = lambda params, x: Discriminators(self.discriminator).apply({"params": params}, x)  # noqa: E731

        def loss_fn(params):
            fake, loss, quantizer, metrics = self._reconstruct(params, state.stats["quantizer"], wave, rng)
            ours, theirs = discriminate(state.params["discriminator"], fake), discriminate(state.params["discriminator"], wave)
            adversarial = hinge_generator_loss([one[-1] for one in ours])
            feature = feature_loss(theirs, ours)
            metrics |= {"adversarial": adversarial, "feature": feature}
            return loss + self.adversarial_weight * adversarial + self.feature_weight * feature, (fake, quantizer, metrics)

        def discriminator_loss_fn(params, fake):
            # One pass over both: half the launches of two.
            outputs = discriminate(params, jnp.concatenate([wave, fake]))
            logits = [one[-1] for one in outputs]
            return hinge_discriminator_loss([x[: len(wave)] for x in logits], [x[len(wave) :] for x in logits])

        (loss, (fake, quantizer, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params["generator"])
        discriminator, discriminator_grads = jax.value_and_grad(discriminator_loss_fn)(
            state.params["discriminator"], jax.lax.stop_gradient(fake)
        )
        metrics |= {"loss": loss, "discriminator": discriminator}
        return self._apply(state, {"generator": grads, "discriminator": discriminator_grads}, quantizer, metrics)

    def _apply(self, state: TrainState, grads: dict[str, Any], quantizer: RVQState, metrics: Metrics) -> tuple[TrainState, Metrics]:
        """The state after one optimizer step for each network that has gradients."""
        params, opt_state, optimizers = dict(state.params), dict(state.opt_state), self._optimizers()
        for name, grad in grads.items():
            updates, opt_state[name] = optimizers[name].update(grad, opt_state[name], params[name])
            params[name] = optax.apply_updates(params[name], updates)
        metrics |= {"grad_norm": optax.global_norm(grads["generator"])}
        return state.replace(params=params, opt_state=opt_state, stats={"quantizer": quantizer}), metrics
