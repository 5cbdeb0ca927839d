"""Training of the spectral codec: its spectrum against that of the clip, with codebooks learned by moving averages."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.arrays import Array, Float, Key
from musiclm_jax.features import mel_filterbank
from musiclm_jax.losses import mel_distance
from musiclm_jax.models.spectral_codec import SpectralCodec, SpectralCodecConfig, invert, log_magnitudes, waver
from musiclm_jax.nn.quantize import RVQConfig, RVQState, perplexity, quantize_train, rvq_decode, rvq_encode
from musiclm_jax.optim import OptimizerConfig, make_optimizer
from musiclm_jax.tasks.codec import draw_levels
from musiclm_jax.tasks.task import Batch, Metrics, TrainState, gradient_step


@dataclasses.dataclass(frozen=True)
class SpectralCodecTask:
    """Trains a SpectralCodec. Batches: {"wave": float32 [B, N]} in [-1, 1]. State: params, stats {"quantizer": RVQState}.

    Loss: mean |difference| of log-magnitudes, bins weighted by how densely the mel scale lies there and by how far they are above the floor, plus
    the same, without weights, of `loss_mels` mel bands: the bands see to the power of noise, whose single bins nobody can know. These are losses of
    the smooth spectrum, before it wavers; that it wavers as much as the clip's is `roughness`, the mean |difference| of how far log-magnitudes
    are from those of the next frame and the next bin, on average over neighbourhoods of `rough_frames` frames and one of `rough_mels` bands.
    """

    name: str = "soundstream"
    model: SpectralCodecConfig = SpectralCodecConfig()
    quantizer: RVQConfig = RVQConfig()
    sample_rate_hz: int = 24_000
    loss_mels: int = 150
    # Weight of a bin at the floor; each neper above the floor adds 1.
    floor_weight: float = 0.3
    roughness_weight: float = 1.0
    rough_frames: int = 8
    rough_mels: int = 64
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, weight_decay=0.0)
    # Before this step the decoder gets the latents as they are, while the codebooks already follow them.
    quantizer_start_step: int = 0
    # Part of the examples that use a random number of levels, uniform on 1 .. Q; the others use all of them.
    quantizer_dropout: float = 0.5
    commitment_weight: float = 0.25

    def __post_init__(self):
        if not 0 <= self.quantizer_dropout <= 1:
            raise ValueError(f"quantizer_dropout={self.quantizer_dropout} is a part of the examples: choose it in [0, 1]")

    @property
    def codec(self) -> SpectralCodec:
        return SpectralCodec(self.model)

    def init_state(self, rng: Key) -> TrainState:
        params = self.codec.init(rng, jnp.zeros((1, self.model.frame_samples)))["params"]
        quantizer = RVQState.empty(num_levels=self.model.num_levels, num_codes=self.model.num_codes, dim=self.model.dim)
        return TrainState(jnp.zeros((), jnp.int32), params, make_optimizer(self.optimizer).init(params), {"quantizer": quantizer})

    def train_step(self, state: TrainState, batch: Batch, rng: Key) -> tuple[TrainState, Metrics]:
        return gradient_step(state, lambda params: self._loss(params, state, batch, rng), self.optimizer, has_stats=True)

    def eval_step(self, state: TrainState, batch: Batch, rng: Key) -> Metrics:
        """Reconstruction with all levels: `loss` of the spectrum, `mel_distance` of the wave, and that with one level alone; perplexity of each
        level on this batch."""
        wave, codebooks = jnp.asarray(batch["wave"]), state.stats["quantizer"].codebooks
        spectrum = log_magnitudes(self.model, wave)
        params = {"params": state.params}
        codes = rvq_encode(codebooks, self.codec.apply(params, spectrum, method="encode_spectrum"))
        decode = lambda codes: self.codec.apply(params, rvq_decode(codebooks, codes), method="decode_spectrum")[:2]  # noqa: E731
        ours, one_level = (decode(codes[..., :levels]) for levels in (self.model.num_levels, 1))

        def distance(decoded):
            theirs = invert(self.model, waver(self.model, *decoded, 0))[0]
            return mel_distance(theirs[:, : wave.shape[1]], wave, sample_rate_hz=self.sample_rate_hz)

        counts = jnp.sum(jax.nn.one_hot(codes.reshape(-1, self.model.num_levels), self.model.num_codes), axis=0)
        metrics = {f"perplexity_{q + 1}": value for q, value in enumerate(perplexity(counts))}
        distances = {"mel_distance": distance(ours), "mel_distance_1_level": distance(one_level)}
        return metrics | distances | {"loss": self._difference(ours[0], spectrum), "roughness": self._roughness(waver(self.model, *ours, 0), spectrum)}

    def variables(self, state: TrainState) -> dict[str, Any]:
        return {"params": nn.meta.unbox(state.params), "quantizer": {"codebooks": state.stats["quantizer"].codebooks}}

    def _loss(self, params: Any, state: TrainState, batch: Batch, rng: Key):
        rng_levels, rng_quantizer, rng_noise = jax.random.split(rng, 3)
        spectrum = log_magnitudes(self.model, jnp.asarray(batch["wave"]))
        latents = self.codec.apply({"params": params}, spectrum, method="encode_spectrum")
        num_levels = draw_levels(rng_levels, len(latents), num_levels=self.model.num_levels, dropout=self.quantizer_dropout)
        quantized, _, commitment, quantizer, metrics = quantize_train(
            latents, state.stats["quantizer"], self.quantizer, num_levels=num_levels, rng=rng_quantizer
        )
        quantized = jnp.where(state.step >= self.quantizer_start_step, quantized, latents)
        smooth, noisiness, _ = self.codec.apply({"params": params}, quantized, method="decode_spectrum")
        reconstruction = self._difference(smooth, spectrum)
        start = jax.random.randint(rng_noise, (), 0, 2**20)  # Other noise at each step.
        roughness = self._roughness(waver(self.model, smooth, noisiness, start), spectrum)
        loss = reconstruction + self.roughness_weight * roughness + self.commitment_weight * commitment
        metrics |= {"loss": loss, "reconstruction": reconstruction, "roughness": roughness, "commitment": commitment}
        return loss, (metrics, {"quantizer": quantizer})

    def _difference(self, ours: Float[Array, "B T F"], theirs: Float[Array, "B T F"]) -> Float[Array, ""]:
        filters = self._bands(self.loss_mels)
        density = filters.sum(axis=1)
        weight = density * (self.floor_weight + theirs - np.log(self.model.floor))
        bins = jnp.sum(jnp.abs(ours - theirs) * weight) / jnp.sum(weight)
        bands = lambda spectrum: jnp.log(jnp.exp(spectrum) @ filters + 1e-3)  # noqa: E731
        return bins + jnp.mean(jnp.abs(bands(ours) - bands(theirs)))

    def _roughness(self, ours: Float[Array, "B T F"], theirs: Float[Array, "B T F"]) -> Float[Array, ""]:
        filters = self._bands(self.rough_mels)
        frames = max(1, min(self.rough_frames, theirs.shape[1] - 1))

        def rough(spectrum):
            over_time = jnp.abs(jnp.diff(spectrum, axis=1)) @ filters
            over_bins = (jnp.abs(jnp.diff(spectrum, axis=2)) @ filters[1:])[:, 1:]
            both = jnp.concatenate([over_time, over_bins], axis=-1)
            whole = both.shape[1] // frames * frames
            return jnp.mean(both[:, :whole].reshape(len(both), -1, frames, both.shape[-1]), axis=2)

        return jnp.mean(jnp.abs(rough(ours) - rough(theirs)))

    def _bands(self, num_mels: int) -> Float[np.ndarray, "F M"]:
        """Mel bands whose weights add to 1; the lowest, narrower than a bin, may hold none and are left out."""
        filters = mel_filterbank(
            sample_rate_hz=self.sample_rate_hz, num_fft=self.model.window_samples, num_mels=num_mels, min_hz=0.0, max_hz=self.sample_rate_hz / 2
        )
        used = filters.sum(axis=0) > 0
        return filters[:, used] / filters[:, used].sum(axis=0)
