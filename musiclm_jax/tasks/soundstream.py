"""Training of SoundStream (arXiv 2107.03312): adversarial, with codebooks learned by moving averages."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from musiclm_jax.arrays import Array, Float, Key
from musiclm_jax.checks import NOT_NEGATIVE, SIZE, STEPS, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.models.discriminators import DiscriminatorConfig, Discriminators
from musiclm_jax.models.soundstream import SoundStream, SoundStreamConfig, pad_to_frames
from musiclm_jax.nn.quantize import RVQState, quantize_train, rvq_decode, rvq_encode
from musiclm_jax.tasks.codec import CodecRecipe, draw_levels, level_perplexities
from musiclm_jax.training.losses import feature_loss, hinge_discriminator_loss, hinge_generator_loss, mel_distance, multi_scale_mel_loss
from musiclm_jax.training.optim import OptimizerConfig, make_optimizer
from musiclm_jax.training.task import Batch, Metrics, Task, TrainState, keep_good


class _Adversary(NamedTuple):
    """The part of a training step that concerns the discriminators."""

    loss: jax.Array  # The weighted adversarial and feature loss of the generator.
    wave_grad: jax.Array  # Its gradient with respect to the fake wave, [B, N].
    params: Any
    opt_state: Any
    metrics: Metrics


@dataclasses.dataclass(frozen=True)
class SoundStreamRecipe(CodecRecipe):
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-4, betas=(0.8, 0.99), weight_decay=0.0, clip_norm=10.0)
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    discriminator_optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-4, betas=(0.8, 0.99), weight_decay=0.0, clip_norm=10.0)
    # Before this step the discriminators are neither computed nor trained. A number beyond the last step: no adversarial training.
    discriminator_start_step: int = 0
    # Windows of the spectral loss, in samples. The two shortest take over half of its time.
    loss_windows: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    # Mel bands for each window. The paper has 64 for all; with a window of 2048 samples, 64 bands are too wide to resolve two partials of a tone.
    loss_mels: tuple[int, ...] = (64,) * 6
    # Weight of the spectral loss. The paper's (equation 6) is 1 as well, but of a sum, of which ours is a mean: see `losses.multi_scale_mel_loss`.
    reconstruction_weight: float = 1.0
    # Weight of the mean |fake - wave|, a loss of EnCodec (arXiv 2210.13438, section 3.4) that SoundStream does not have. Magnitude spectra contain no phase:
    # in a short run without this loss the decoder learns to output noise of the right timbre, and to ignore its codes.
    waveform_weight: float = 0.0
    # Weights of the adversarial and the feature loss; the paper's are 1 and 100.
    adversarial_weight: float = 0.1
    feature_weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self, discriminator_start_step=STEPS, loss_windows=SIZE, loss_mels=SIZE, reconstruction_weight=NOT_NEGATIVE)
        check_numbers(self, waveform_weight=NOT_NEGATIVE, adversarial_weight=NOT_NEGATIVE, feature_weight=NOT_NEGATIVE)
        if len(self.loss_windows) != len(self.loss_mels):
            raise UserError(f"loss_windows={self.loss_windows}, loss_mels={self.loss_mels}: choose as many numbers of mel bands as windows")


@dataclasses.dataclass(frozen=True)
class SoundStreamTask(Task):
    """Trains SoundStream with the losses of arXiv 2107.03312, section III-E.

    Batch: "wave" float32 [B, N] in [-1, 1], N a few hundred ms or more. State: params {"generator", "discriminator"}, opt_state with the same keys, stats
    {"quantizer": RVQState}.
    """

    name: ClassVar[str] = "codec"
    model: SoundStreamConfig
    recipe: SoundStreamRecipe = SoundStreamRecipe()
    # Sample rate of the waves, which places the mel bands of the losses.
    sample_rate_hz: int = dataclasses.field(kw_only=True)

    def init_state(self, rng: Key) -> TrainState:
        rng_generator, rng_discriminator = jax.random.split(rng)
        wave = jnp.zeros((1, 4 * self.model.frame_samples), jnp.float32)
        params = {
            "generator": SoundStream(self.model).init(rng_generator, wave)["params"],
            "discriminator": Discriminators(self.recipe.discriminator).init(rng_discriminator, wave)["params"],
        }
        opt_state = {
            "generator": self._optimizer().init(params["generator"]),
            "discriminator": self._discriminator_optimizer().init(params["discriminator"]),
        }
        quantizer = RVQState.empty(num_levels=self.model.num_levels, num_codes=self.model.num_codes, dim=self.model.dim)
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, {"quantizer": quantizer})

    def train_step(self, state: TrainState, batch: Batch, rng: Key) -> tuple[TrainState, Metrics]:
        """Takes one step of the generator and, from `discriminator_start_step` on, one of the discriminators on the same batch.

        A step whose losses or gradients are not finite, or whose generator's gradient is a spike, is skipped (`keep_good`).
        """
        wave = pad_to_frames(jnp.asarray(batch["wave"]), self.model.frame_samples)
        generate = lambda params: self._generate(params, state, wave, rng)  # noqa: E731
        (fake, commitment), pull_back, (quantizer, metrics) = jax.vjp(generate, state.params["generator"], has_aux=True)
        reconstruction, wave_grad = jax.value_and_grad(self._reconstruction)(fake, wave)
        adversary_args = state.params["discriminator"], state.opt_state["discriminator"], fake, wave
        if self.recipe.discriminator_start_step:
            # The conditional contains the discriminators alone: XLA on CPU runs convolutions 2.5x slower inside a conditional.
            adversary = jax.lax.cond(state.step >= self.recipe.discriminator_start_step, self._adversary_step, self._no_adversary, *adversary_args)
        else:
            adversary = self._adversary_step(*adversary_args)
        (grads,) = pull_back((wave_grad + adversary.wave_grad, jnp.float32(self.recipe.commitment_weight)))
        updates, opt_state = self._optimizer().update(grads, state.opt_state["generator"], state.params["generator"])
        metrics |= adversary.metrics | {
            "loss": reconstruction + self.recipe.commitment_weight * commitment + adversary.loss,
            "reconstruction": reconstruction,
            "commitment": commitment,
            "grad_norm": optax.tree.norm(grads),
        }
        new = state.replace(
            params={"generator": optax.apply_updates(state.params["generator"], updates), "discriminator": adversary.params},
            opt_state={"generator": opt_state, "discriminator": adversary.opt_state},
            stats={"quantizer": quantizer},
        )
        finite = (metrics[name] for name in ("loss", "discriminator", "discriminator_grad_norm"))
        new, skipped = keep_good(state, new, self.recipe, *finite, grad_norm=metrics["grad_norm"])
        return new, metrics | {"skipped": skipped}

    def eval_step(self, state: TrainState, batch: Batch, rng: Key) -> Metrics:
        """Metrics of the waves decoded from all levels: loss, mel_distance, and the perplexity of each level's codes in this batch.

        mel_distance_1_level is that of the waves decoded from the first level alone. Where the two distances are equal, the decoder does not use its codes.
        """
        wave = pad_to_frames(jnp.asarray(batch["wave"]), self.model.frame_samples)
        params = {"params": state.params["generator"]}
        codebooks = state.stats["quantizer"].codebooks
        codes = rvq_encode(codebooks, SoundStream(self.model).apply(params, wave, method="encode"))
        decode = lambda codes: SoundStream(self.model).apply(params, rvq_decode(codebooks, codes), method="decode")  # noqa: E731
        distance = lambda fake: mel_distance(fake, wave, sample_rate_hz=self.sample_rate_hz)  # noqa: E731
        fake = decode(codes)
        return level_perplexities(codes, self.model.num_codes) | {
            "loss": self._reconstruction(fake, wave),
            "mel_distance": distance(fake),
            "mel_distance_1_level": distance(decode(codes[..., :1])),
        }

    def variables(self, state: TrainState) -> dict[str, Any]:
        return {
            "params": nn.meta.unbox(state.params["generator"]),
            "quantizer": {"codebooks": state.stats["quantizer"].codebooks},
        }

    def _optimizer(self) -> optax.GradientTransformation:
        return make_optimizer(self.recipe.optimizer, self.num_steps)

    def _discriminator_optimizer(self) -> optax.GradientTransformation:
        return make_optimizer(self.recipe.discriminator_optimizer, self.num_steps)

    def _reconstruction(self, fake: Float[Array, "B N"], wave: Float[Array, "B N"]) -> Float[Array, ""]:
        recipe = self.recipe
        spectral = multi_scale_mel_loss(fake, wave, sample_rate_hz=self.sample_rate_hz, windows=recipe.loss_windows, num_mels=recipe.loss_mels)
        return recipe.reconstruction_weight * spectral + recipe.waveform_weight * jnp.mean(jnp.abs(fake - wave))

    def _generate(self, params, state: TrainState, wave: jax.Array, rng: Key):
        """Encodes, quantizes and decodes a training batch: ((fake wave, commitment loss), (new quantizer state, its metrics))."""
        rng_levels, rng_quantizer = jax.random.split(rng)
        latents = SoundStream(self.model).apply({"params": params}, wave, method="encode")
        num_levels = draw_levels(rng_levels, len(wave), num_levels=self.model.num_levels, dropout=self.recipe.quantizer_dropout)
        quantized, _, commitment, quantizer, metrics = quantize_train(
            latents, state.stats["quantizer"], self.recipe.quantizer, num_levels=num_levels, rng=rng_quantizer
        )
        quantized = jnp.where(state.step >= self.recipe.quantizer_start_step, quantized, latents)
        fake = SoundStream(self.model).apply({"params": params}, quantized, method="decode")
        return (fake, commitment), (quantizer, metrics)

    def _adversary_step(self, params, opt_state, fake: jax.Array, wave: jax.Array) -> _Adversary:
        """Computes the generator's adversarial and feature loss, and takes one step of the discriminators."""
        discriminate = lambda params, x: Discriminators(self.recipe.discriminator, jnp.dtype(self.model.dtype)).apply({"params": params}, x)  # noqa: E731

        def generator_loss(fake):
            ours, theirs = discriminate(params, fake), discriminate(params, wave)
            adversarial, feature = hinge_generator_loss([one[-1] for one in ours]), feature_loss(theirs, ours)
            loss = self.recipe.adversarial_weight * adversarial + self.recipe.feature_weight * feature
            return loss, {"adversarial": adversarial, "feature": feature}

        def discriminator_loss(params):
            real, ours = discriminate(params, wave), discriminate(params, fake)
            return hinge_discriminator_loss([one[-1] for one in real], [one[-1] for one in ours])

        (loss, metrics), wave_grad = jax.value_and_grad(generator_loss, has_aux=True)(fake)
        metrics["discriminator"], grads = jax.value_and_grad(discriminator_loss)(params)
        metrics["discriminator_grad_norm"] = optax.tree.norm(grads)
        updates, opt_state = self._discriminator_optimizer().update(grads, opt_state, params)
        return _Adversary(loss, wave_grad, optax.apply_updates(params, updates), opt_state, metrics)

    def _no_adversary(self, params, opt_state, fake: jax.Array, wave: jax.Array) -> _Adversary:
        """Replaces `_adversary_step` before `discriminator_start_step`: losses of 0, and unchanged discriminators."""
        zero = jnp.zeros((), jnp.float32)
        names = ("adversarial", "feature", "discriminator", "discriminator_grad_norm")
        return _Adversary(zero, jnp.zeros_like(fake), params, opt_state, dict.fromkeys(names, zero))
