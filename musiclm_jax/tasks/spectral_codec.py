"""Training of the spectral codec: its spectrum against that of the clip, with codebooks learned by moving averages."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.arrays import Array, Float, Int, Key
from musiclm_jax.audio.features import magnitude, mel_filterbank, stft
from musiclm_jax.models.spectral_codec import SpectralCodec, SpectralCodecConfig, invert, log_magnitudes, waver
from musiclm_jax.nn.quantize import RVQConfig, RVQState, perplexity, quantize_train, rvq_decode, rvq_encode
from musiclm_jax.tasks.codec import draw_levels
from musiclm_jax.training.losses import mel_distance
from musiclm_jax.training.optim import OptimizerConfig, make_optimizer
from musiclm_jax.training.task import Batch, Metrics, TrainState, gradient_step

# Of `_roughness`: window and hop in samples, 43 and 10 ms at 24 kHz; mel bands; power below which nothing is heard (60 dB below full scale); frames of
# a neighbourhood.
_ROUGH_WINDOW, _ROUGH_HOP, _ROUGH_MELS, _ROUGH_FLOOR, _ROUGH_FRAMES = 1024, 240, 64, 0.0625, 20


@dataclasses.dataclass(frozen=True)
class SpectralCodecTask:
    """Trains a SpectralCodec. Batches: {"wave": float32 [B, N]} in [-1, 1], N above 1024. State: params, stats {"quantizer": RVQState}.

    Loss: mean |difference| of log-magnitudes, bins weighted by how densely the mel scale lies there and by how far they are above the floor, plus
    the same, without weights, of `loss_mels` mel bands: the bands see to the power of noise, whose single bins nobody can know. These are losses of
    the smooth spectrum, before it wavers. Of the wave that is heard in the end: `mel_distance` and `roughness`, for which see `_roughness`.
    """

    name: str = "soundstream"
    model: SpectralCodecConfig = SpectralCodecConfig()
    quantizer: RVQConfig = RVQConfig()
    sample_rate_hz: int = 24_000
    loss_mels: int = 150
    # Weight of a bin at the floor; each neper above the floor adds 1.
    floor_weight: float = 0.3
    mel_distance_weight: float = 0.5
    roughness_weight: float = 40.0
    # Before this step these two count nothing: they teach little while the spectrum is far off, and disturb what does.
    heard_start_step: int = 0
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, weight_decay=0.0)
    # Before this step the decoder gets the latents as they are, while the codebooks already follow them.
    quantizer_start_step: int = 0
    # Part of the examples that use a random number of levels, uniform on 1 .. Q; the others use all of them.
    quantizer_dropout: float = 0.5
    commitment_weight: float = 0.25
    # From this step on encoder and codebooks learn no more (the encoder's momentum runs out within tens of steps), and the decoder learns to make the
    # most of the first `finish_levels`, all that it gets of examples without dropout: where a coarse stage writes no more, that is what is heard. None:
    # never.
    finish_step: int | None = None
    finish_levels: int = 1

    def __post_init__(self):
        if not 1 <= self.finish_levels <= self.model.num_levels:
            raise ValueError(f"finish_levels={self.finish_levels}: choose 1 to the {self.model.num_levels} levels of the codec")
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
        counts = jnp.sum(jax.nn.one_hot(codes.reshape(-1, self.model.num_levels), self.model.num_codes), axis=0)
        metrics = {f"perplexity_{q + 1}": value for q, value in enumerate(perplexity(counts))}
        heard = self._heard(*ours, 0, wave)
        alone = {f"{name}_1_level": value for name, value in self._heard(*one_level, 0, wave).items()}
        return metrics | heard | alone | {"loss": self._difference(ours[0], spectrum)}

    def variables(self, state: TrainState) -> dict[str, Any]:
        return {"params": nn.meta.unbox(state.params), "quantizer": {"codebooks": state.stats["quantizer"].codebooks}}

    def _loss(self, params: Any, state: TrainState, batch: Batch, rng: Key):
        rng_levels, rng_quantizer, rng_noise = jax.random.split(rng, 3)
        wave = jnp.asarray(batch["wave"])
        spectrum = log_magnitudes(self.model, wave)
        latents = self.codec.apply({"params": params}, spectrum, method="encode_spectrum")
        finishes = jnp.asarray(False) if self.finish_step is None else state.step >= self.finish_step
        latents = jnp.where(finishes, jax.lax.stop_gradient(latents), latents)
        others = jnp.where(finishes, self.finish_levels, self.model.num_levels)
        num_levels = draw_levels(rng_levels, len(latents), num_levels=self.model.num_levels, dropout=self.quantizer_dropout, others=others)
        quantized, _, commitment, quantizer, metrics = quantize_train(
            latents, state.stats["quantizer"], self.quantizer, num_levels=num_levels, rng=rng_quantizer
        )
        quantizer = jax.tree.map(lambda new, old: jnp.where(finishes, old, new), quantizer, state.stats["quantizer"])
        quantized = jnp.where(state.step >= self.quantizer_start_step, quantized, latents)
        smooth, noisiness, _ = self.codec.apply({"params": params}, quantized, method="decode_spectrum")
        reconstruction = self._difference(smooth, spectrum)
        start = jax.random.randint(rng_noise, (), 0, 2**20)  # Other noise at each step.
        heard = self._heard(smooth, noisiness, start, wave)
        of_the_wave = self.mel_distance_weight * heard["mel_distance"] + self.roughness_weight * heard["roughness"]
        loss = reconstruction + jnp.where(state.step >= self.heard_start_step, of_the_wave, 0.0) + self.commitment_weight * commitment
        metrics |= heard | {"loss": loss, "reconstruction": reconstruction, "commitment": commitment}
        return loss, (metrics, {"quantizer": quantizer})

    def _heard(self, smooth: jax.Array, noisiness: jax.Array, start: Int[Array, ""] | int, wave: Float[Array, "B N"]) -> Metrics:
        """How far the wave of a decoded spectrum, whose noise starts at frame `start`, is from `wave`."""
        ours = invert(self.model, waver(self.model, smooth, noisiness, start))[0][:, : wave.shape[1]]
        return {"mel_distance": mel_distance(ours, wave, sample_rate_hz=self.sample_rate_hz), "roughness": self._roughness(ours, wave)}

    def _difference(self, ours: Float[Array, "B T F"], theirs: Float[Array, "B T F"]) -> Float[Array, ""]:
        filters = self._bands(self.loss_mels, num_fft=self.model.window_samples)
        density = filters.sum(axis=1)
        weight = density * (self.floor_weight + theirs - np.log(self.model.floor))
        bins = jnp.sum(jnp.abs(ours - theirs) * weight) / jnp.sum(weight)
        bands = lambda spectrum: jnp.log(jnp.exp(spectrum) @ filters + 1e-3)  # noqa: E731
        return bins + jnp.mean(jnp.abs(bands(ours) - bands(theirs)))

    def _roughness(self, ours: Float[Array, "B N"], theirs: Float[Array, "B N"]) -> Float[Array, ""]:
        """Mean square difference of how much waves waver: of the mean change of a mel band, in nepers within 20 and 40 ms, over 200 ms.

        What beats, a bow or a breath do to a band is no partial's place or power, yet tells strings from a flute. Squares, since a decoder that does not
        know is to waver as much as is usual; less than half of the time there is more, and absolute differences would make it smooth.
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
        """Mel bands whose weights add to 1; the lowest, narrower than a bin, may hold none and are left out."""
        filters = mel_filterbank(sample_rate_hz=self.sample_rate_hz, num_fft=num_fft, num_mels=num_mels, min_hz=0.0, max_hz=self.sample_rate_hz / 2)
        used = filters.sum(axis=0) > 0
        return filters[:, used] / filters[:, used].sum(axis=0)
