"""Training of the spectral codec with losses of its spectrum and of its wave; the codebooks are learned by moving averages."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.arrays import Array, Float, Int, Key
from musiclm_jax.audio.features import magnitude, mel_filterbank, stft
from musiclm_jax.checks import DEPTH, NOT_NEGATIVE, SIZE, STEPS, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.models.spectral_codec import SpectralCodec, SpectralCodecConfig, add_noise, invert, log_magnitudes
from musiclm_jax.nn.quantize import RVQState, quantize_train, rvq_decode, rvq_encode
from musiclm_jax.tasks.codec import CodecRecipe, draw_levels, level_perplexities
from musiclm_jax.training.losses import mel_distance
from musiclm_jax.training.optim import OptimizerConfig
from musiclm_jax.training.task import Batch, Metrics, Task, TrainState, fresh_state, gradient_step

# Constants of `_roughness`: window and hop in samples (43 and 10 ms at 24 kHz), mel bands, the power of silence (60 dB below full scale), and the frames
# over which changes are averaged.
_ROUGH_WINDOW, _ROUGH_HOP, _ROUGH_MELS, _ROUGH_FLOOR, _ROUGH_FRAMES = 1024, 240, 64, 0.0625, 20


@dataclasses.dataclass(frozen=True)
class SpectralCodecRecipe(CodecRecipe):
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, weight_decay=0.0)
    # Mel bands of the loss of the spectrum (see `SpectralCodecTask`).
    loss_mels: int = 150
    # Weight of a bin of the spectrum at the floor of magnitudes. The weight rises by 1 with each neper above the floor.
    floor_weight: float = 0.3
    # Weights of the two losses of the wave.
    mel_distance_weight: float = 0.5
    roughness_weight: float = 40.0
    # Before this step the losses of the wave have weight 0: while the spectrum is far from the clip's, they help little and disturb its loss.
    wave_loss_start_step: int = 0
    # From this step on only the decoder learns, and examples without quantizer dropout use the first `finish_levels` levels alone, so that the decoder
    # adapts to the levels that a coarse stage generates. (The optimizer's momentum still moves the encoder for some tens of steps.) None: never.
    finish_step: int | None = None
    # Levels for `finish_step`, 1 to Q.
    finish_levels: int = 1

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self, loss_mels=SIZE, floor_weight=NOT_NEGATIVE, mel_distance_weight=NOT_NEGATIVE, roughness_weight=NOT_NEGATIVE)
        check_numbers(self, wave_loss_start_step=STEPS, finish_levels=DEPTH)
        if self.finish_step is not None:
            check_numbers(self, finish_step=STEPS)


@dataclasses.dataclass(frozen=True)
class SpectralCodecTask(Task):
    """Trains the spectral codec. Our own recipe; no paper has it.

    Batch: "wave" float32 [B, N] in [-1, 1], N above 1024. State: params, stats {"quantizer": RVQState}.

    The loss of the spectrum compares the decoder's log-magnitudes, before noise is added to them, with those of the clip. It is the mean |difference| over
    bins, each weighted by the density of mel bands and by its height above the floor, plus the unweighted mean over mel bands. The bands learn the power
    of noise, whose single bins cannot be predicted. The losses of the wave compare the decoded wave with the clip: `mel_distance`, and the difference in
    roughness (`_roughness`).
    """

    name: ClassVar[str] = "codec"
    model: SpectralCodecConfig
    recipe: SpectralCodecRecipe = SpectralCodecRecipe()
    # Sample rate of the waves, which places the mel bands of the losses.
    sample_rate_hz: int = dataclasses.field(kw_only=True)

    def __post_init__(self):
        if not 1 <= self.recipe.finish_levels <= self.model.num_levels:
            raise UserError(f"finish_levels={self.recipe.finish_levels}: choose from 1 to {self.model.num_levels}, the codec's number of levels")

    @property
    def codec(self) -> SpectralCodec:
        return SpectralCodec(self.model)

    def init_state(self, rng: Key) -> TrainState:
        params = self.codec.init(rng, jnp.zeros((1, self.model.frame_samples)))["params"]
        quantizer = RVQState.empty(num_levels=self.model.num_levels, num_codes=self.model.num_codes, dim=self.model.dim)
        return fresh_state(params, self.recipe, stats={"quantizer": quantizer})

    def train_step(self, state: TrainState, batch: Batch, rng: Key) -> tuple[TrainState, Metrics]:
        return gradient_step(state, lambda params: self._loss(params, state, batch, rng), self.recipe, has_stats=True)

    def eval_step(self, state: TrainState, batch: Batch, rng: Key) -> Metrics:
        """Metrics of the clips decoded from all levels: loss (of the spectrum), mel_distance and roughness (of the wave), and the perplexity of each level.

        mel_distance_1_level and roughness_1_level are those of the clips decoded from the first level alone.
        """
        wave, codebooks = jnp.asarray(batch["wave"]), state.stats["quantizer"].codebooks
        spectrum = log_magnitudes(self.model, wave)
        params = {"params": state.params}
        codes = rvq_encode(codebooks, self.codec.apply(params, spectrum, method="encode_spectrum"))
        decode = lambda codes: self.codec.apply(params, rvq_decode(codebooks, codes), method="decode_spectrum")[:2]  # noqa: E731
        ours, one_level = (decode(codes[..., :levels]) for levels in (self.model.num_levels, 1))
        metrics = level_perplexities(codes, self.model.num_codes) | {"loss": self._difference(ours[0], spectrum)}
        for suffix, decoded in (("", ours), ("_1_level", one_level)):
            metrics |= {f"{name}{suffix}": value for name, value in self._wave_losses(*decoded, 0, wave).items()}
        return metrics

    def variables(self, state: TrainState) -> dict[str, Any]:
        return {"params": nn.meta.unbox(state.params), "quantizer": {"codebooks": state.stats["quantizer"].codebooks}}

    def _loss(self, params: Any, state: TrainState, batch: Batch, rng: Key):
        recipe = self.recipe
        rng_levels, rng_quantizer, rng_noise = jax.random.split(rng, 3)
        wave = jnp.asarray(batch["wave"])
        spectrum = log_magnitudes(self.model, wave)
        latents = self.codec.apply({"params": params}, spectrum, method="encode_spectrum")
        finishes = jnp.asarray(False) if recipe.finish_step is None else state.step >= recipe.finish_step
        latents = jnp.where(finishes, jax.lax.stop_gradient(latents), latents)
        others = jnp.where(finishes, recipe.finish_levels, self.model.num_levels)
        num_levels = draw_levels(rng_levels, len(latents), num_levels=self.model.num_levels, dropout=recipe.quantizer_dropout, others=others)
        quantized, _, commitment, quantizer, metrics = quantize_train(
            latents, state.stats["quantizer"], recipe.quantizer, num_levels=num_levels, rng=rng_quantizer
        )
        quantizer = jax.tree.map(lambda new, old: jnp.where(finishes, old, new), quantizer, state.stats["quantizer"])
        quantized = jnp.where(state.step >= recipe.quantizer_start_step, quantized, latents)
        smooth, noisiness, _ = self.codec.apply({"params": params}, quantized, method="decode_spectrum")
        reconstruction = self._difference(smooth, spectrum)
        start = jax.random.randint(rng_noise, (), 0, 2**20)  # Different noise in each step.
        of_wave = self._wave_losses(smooth, noisiness, start, wave)
        wave_loss = recipe.mel_distance_weight * of_wave["mel_distance"] + recipe.roughness_weight * of_wave["roughness"]
        wave_loss = jnp.where(state.step >= recipe.wave_loss_start_step, wave_loss, 0.0)
        loss = reconstruction + wave_loss + recipe.commitment_weight * commitment
        metrics |= of_wave | {"loss": loss, "reconstruction": reconstruction, "commitment": commitment}
        return loss, (metrics, {"quantizer": quantizer})

    def _wave_losses(self, smooth: Float[Array, "B T F"], noisiness: Float[Array, "B T F"], start: Int[Array, ""] | int, wave: Float[Array, "B N"]) -> Metrics:
        """Losses of the wave of a decoded spectrum against `wave`. start: frame of the noise sequence at which its noise begins."""
        ours = invert(self.model, add_noise(self.model, smooth, noisiness, start))[0][:, : wave.shape[1]]
        return {"mel_distance": mel_distance(ours, wave, sample_rate_hz=self.sample_rate_hz), "roughness": self._roughness(ours, wave)}

    def _difference(self, ours: Float[Array, "B T F"], theirs: Float[Array, "B T F"]) -> Float[Array, ""]:
        filters = self._bands(self.recipe.loss_mels, num_fft=self.model.window_samples)
        density = filters.sum(axis=1)
        weight = density * (self.recipe.floor_weight + theirs - np.log(self.model.floor))
        bins = jnp.sum(jnp.abs(ours - theirs) * weight) / jnp.sum(weight)
        bands = lambda spectrum: jnp.log(jnp.exp(spectrum) @ filters + 1e-3)  # noqa: E731
        return bins + jnp.mean(jnp.abs(bands(ours) - bands(theirs)))

    def _roughness(self, ours: Float[Array, "B N"], theirs: Float[Array, "B N"]) -> Float[Array, ""]:
        """Mean squared difference in roughness between two waves.

        The roughness of a mel band is the mean |change| of its level, in nepers, within 20 and within 40 ms, averaged over 200 ms. Beating partials, a bow
        or breath make a band fluctuate, while its average stays the same; this distinguishes strings from a flute. The difference is squared, so that a
        decoder that does not know how rough a passage is learns the mean roughness of such passages. Absolute differences would teach it the median,
        which is lower.
        """
        filters = self._bands(_ROUGH_MELS, num_fft=_ROUGH_WINDOW)

        def rough(wave):
            power = jnp.square(magnitude(stft(wave, window=_ROUGH_WINDOW, hop=_ROUGH_HOP))) @ filters
            bands = 0.5 * jnp.log(power + _ROUGH_FLOOR)
            changes = jnp.abs(jnp.stack([bands[:, 2:-2] - bands[:, :-4], bands[:, 4:] - bands[:, :-4]]))
            frames = min(_ROUGH_FRAMES, changes.shape[2])
            whole = changes[:, :, : changes.shape[2] // frames * frames]
            return whole.reshape(*whole.shape[:2], -1, frames, whole.shape[3]).mean(axis=3)

        return jnp.mean(jnp.square(rough(ours) - rough(theirs)))

    def _bands(self, num_mels: int, *, num_fft: int) -> Float[np.ndarray, "F M"]:
        """Mel filters, each with weights that add to 1. Low bands that are narrower than a bin and contain none are left out."""
        filters = mel_filterbank(sample_rate_hz=self.sample_rate_hz, num_fft=num_fft, num_mels=num_mels, min_hz=0.0, max_hz=self.sample_rate_hz / 2)
        used = filters.sum(axis=0) > 0
        return filters[:, used] / filters[:, used].sum(axis=0)
