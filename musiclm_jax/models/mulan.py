"""MuLan (arXiv 2208.12415): joint embeddings of music and text, and MusicLM's 12 tokens of an embedding (arXiv 2301.11325, section 3.1).

`MuLan` is the module with both towers; the rest of the package calls the functions below it. `params` is the tree that `init` returns,
`variables` is {"params": ..., "quantizer": {"audio_mean", "text_mean", "codebooks"}}, the content of mulan.safetensors.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Bool, Float, Int, Key
from musiclm_jax.audio.features import LogMelConfig, log_mel
from musiclm_jax.checks import COUNT, DEPTH, DEPTH_OR_NONE, DTYPES, FINITE, POSITIVE, SECONDS, SIZE, check_choices, check_numbers, name_remat
from musiclm_jax.errors import UserError
from musiclm_jax.models import embedders
from musiclm_jax.models.ast import AST, ASTConfig
from musiclm_jax.models.pitch_rhythm import PitchRhythmConfig, PitchRhythmTower
from musiclm_jax.models.resnet import ResNet, ResNetConfig
from musiclm_jax.models.text_tower import TextTower, TextTowerConfig
from musiclm_jax.nn.layers import Dense, l2_normalize, partitioned
from musiclm_jax.nn.quantize import rvq_decode, rvq_fit


@dataclasses.dataclass(frozen=True)
class SpecAugmentConfig:
    """SpecAugment: masks in training spectrograms (arXiv 1904.08779, section 2, without time warping)."""

    # Masks of frames in each spectrogram. 0: none.
    num_time_masks: int = 2
    # The largest width of such a mask, in frames. Widths are uniform from 0 on.
    max_time_frames: int = 100
    # Masks of mel bins in each spectrogram. 0: none.
    num_mel_masks: int = 2
    # The largest width of such a mask, in mel bins.
    max_mel_bins: int = 10

    def __post_init__(self):
        check_numbers(self, num_time_masks=DEPTH_OR_NONE, max_time_frames=COUNT, num_mel_masks=DEPTH_OR_NONE, max_mel_bins=COUNT)


@dataclasses.dataclass(frozen=True)
class MuLanConfig:
    """Sizes of MuLan. The defaults are the paper's, with the ResNet-50 audio tower that MusicLM uses."""

    mel: LogMelConfig = LogMelConfig(num_mels=64)
    # The network gets (x - mel_mean) / mel_std of the log-mels. Rough values suffice, since a norm follows the first convolution.
    mel_mean: float = -6.0
    mel_std: float = 3.0
    # The audio tower: the paper's ResNet-50, which MusicLM uses, or its Audio Spectrogram Transformer, which expects num_mels=128 in `mel`; or a small
    # tower for little data (PitchRhythmConfig, not from a paper), which expects scale="octave" in `mel`.
    audio: ResNetConfig | ASTConfig | PitchRhythmConfig = ResNetConfig()
    text: TextTowerConfig = TextTowerConfig()
    spec_augment: SpecAugmentConfig = SpecAugmentConfig()
    # Width of the joint embedding space.
    embedding_dim: int = 128
    # The contrastive loss: "decoupled" (MuLan's: the denominator lacks the positive pair, and both directions share it), "infonce" (CLIP's, symmetric)
    # or "sigmoid" (SigLIP's: a binary classification of each pair of the batch, with a learned bias).
    loss: str = "decoupled"
    # The initial temperature, which divides the cosines. It is learned, and is at least min_temperature.
    init_temperature: float = 0.1
    min_temperature: float = 0.01
    # Length of the windows whose embeddings are averaged to that of a longer clip.
    window_sec: float = 10.0
    # Step from one window to the next.
    hop_sec: float = 1.0
    # Sizes of the residual quantizer of the embeddings. A clip and its caption get the same code only if the code's cell is wider than their distance:
    # a small model needs fewer codes and more levels (see `quantizer_report`).
    num_levels: int = 12
    num_codes: int = 1024
    # Type of the towers' matrix products: "float32" or "bfloat16".
    dtype: str = "float32"
    # What the backward pass recomputes of each block and layer: "none"; "products", all but matrix products and convolutions; or "full", which takes the least
    # memory and about a third more time.
    remat: bool | str = "none"

    def __post_init__(self):
        check_numbers(self, embedding_dim=SIZE, num_levels=DEPTH, num_codes=SIZE, mel_mean=FINITE, mel_std=POSITIVE, window_sec=SECONDS, hop_sec=SECONDS)
        check_numbers(self, init_temperature=POSITIVE, min_temperature=POSITIVE)
        check_choices(self, loss=("decoupled", "infonce", "sigmoid"), dtype=DTYPES)
        name_remat(self)
        if not self.min_temperature <= self.init_temperature:
            raise UserError(
                f"min_temperature={self.min_temperature}, init_temperature={self.init_temperature}: choose a min_temperature of at most init_temperature"
            )

    @property
    def window_samples(self) -> int:
        return round(self.window_sec * self.mel.sample_rate_hz)

    @property
    def hop_samples(self) -> int:
        return round(self.hop_sec * self.mel.sample_rate_hz)


_AUDIO_TOWERS = {ResNetConfig: ResNet, ASTConfig: AST, PitchRhythmConfig: PitchRhythmTower}


class MuLan(nn.Module):
    """The audio and the text tower, the temperature and, for the sigmoid loss, the bias. Training needs the rngs "dropout" and "augment"."""

    config: MuLanConfig

    def setup(self):
        config = self.config
        dtype = jnp.dtype(config.dtype)
        self.audio_tower = _AUDIO_TOWERS[type(config.audio)](config.audio, dtype=dtype, remat=config.remat)
        self.text_tower = TextTower(config.text, dtype=dtype, remat=config.remat)
        # The heads are float32, because a low temperature magnifies small differences between embeddings.
        self.audio_head = Dense(config.embedding_dim, axes=("conv", "embed"))
        self.text_head = Dense(config.embedding_dim, axes=("embed", None))
        log_temperature = nn.initializers.constant(jnp.log(config.init_temperature))
        self.log_temperature = self.param("log_temperature", partitioned(log_temperature, ()), (), jnp.float32)
        if config.loss == "sigmoid":
            # SigLIP's initial bias: nearly all pairs of a batch are negative.
            self.bias = self.param("bias", partitioned(nn.initializers.constant(-10.0), ()), (), jnp.float32)

    def __call__(
        self, audio: Float[Array, "B ..."], ids: Int[Array, "B T"], mask: Bool[Array, "B T"], *, train: bool = False
    ) -> tuple[Float[Array, "B D"], Float[Array, "B D"], Float[Array, ""], Float[Array, ""]]:
        """Returns (audio embeddings, text embeddings, temperature, bias). The bias is 0 except with the sigmoid loss. audio: as in `embed_audio`."""
        return self.embed_audio(audio, train=train), self.embed_text(ids, mask, train=train), *self.temperature_and_bias()

    def temperature_and_bias(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """What the contrastive loss divides cosines by, and then adds."""
        temperature = jnp.maximum(jnp.exp(self.log_temperature), self.config.min_temperature)
        return temperature, self.bias if self.config.loss == "sigmoid" else jnp.zeros(())

    def embed_audio(self, audio: Float[Array, "B ..."], *, train: bool = False) -> Float[Array, "B D"]:
        """Unit embeddings of waves [B, N], or of their log-mels [B, T, M]."""
        config = self.config
        mels = audio if audio.ndim == 3 else log_mel(audio, config.mel)
        mels = (mels - config.mel_mean) / config.mel_std
        if train:
            mels = spec_augment(mels, config.spec_augment, rng=self.make_rng("augment"))
        return l2_normalize(self.audio_head(self.audio_tower(mels)))

    def embed_text(self, ids: Int[Array, "B T"], mask: Bool[Array, "B T"], *, train: bool = False) -> Float[Array, "B D"]:
        """Unit embeddings of token ids. mask: True = a token."""
        return l2_normalize(self.text_head(self.text_tower(ids, mask, train=train)))


def spec_augment(mels: Float[Array, "B T M"], config: SpecAugmentConfig, *, rng: Key) -> Float[Array, "B T M"]:
    """SpecAugment: sets random bands of frames and of mel bins to 0, drawn for each example."""
    for axis, count, widest in ((1, config.num_time_masks, config.max_time_frames), (2, config.num_mel_masks, config.max_mel_bins)):
        if not count:
            continue
        rng, width_rng, start_rng = jax.random.split(rng, 3)
        size, shape = mels.shape[axis], (len(mels), count, 1)
        width = jax.random.randint(width_rng, shape, 0, min(widest, size) + 1)
        start = jnp.floor(jax.random.uniform(start_rng, shape) * (size - width + 1)).astype(jnp.int32)
        at = jnp.arange(size)
        blank = jnp.any((start <= at) & (at < start + width), axis=1)
        mels = jnp.where(jnp.expand_dims(blank, 3 - axis), 0.0, mels)
    return mels


def init(config: MuLanConfig, rng: Key) -> Any:
    """Initial parameters, boxed with their logical axis names."""
    # No parameter's shape depends on either length.
    wave, ids = jnp.zeros((1, 32 * config.mel.hop_samples)), jnp.zeros((1, 3), jnp.int32)
    return MuLan(config).init(rng, wave, ids, ids == 0)["params"]


def embed_audio(config: MuLanConfig, params: Any, audio: Float[Array, "B ..."]) -> Float[Array, "B D"]:
    """Unit embeddings of waves [B, N], or of log-mels [B, T, M], one window each. Any length is possible, but training uses 10 s."""
    return MuLan(config).apply({"params": params}, audio, method=MuLan.embed_audio)


def token_mels(config: MuLanConfig, spectra: Float[Array, "V M"], tokens: Int[Array, "B T"], *, token_samples: int) -> Float[Array, "B T2 M"]:
    """Log-mels that semantic tokens of `token_samples` samples stand for. spectra: one log-mel spectrum per token of the vocabulary."""
    return jnp.repeat(spectra[tokens], token_samples // config.mel.hop_samples, axis=1)


def embed_text(config: MuLanConfig, params: Any, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B D"]:
    """Unit embeddings of the ids and masks that `TextTokenizer.encode` returns."""
    return MuLan(config).apply({"params": params}, ids, mask, method=MuLan.embed_text)


def num_windows(config: MuLanConfig, num_samples: int) -> int:
    """Number of windows of a wave: 21 for 30 s, 1 for 10 s or less. Samples after the last whole window are ignored."""
    return embedders.num_windows(num_samples, window=config.window_samples, hop=config.hop_samples)


def fit_quantizer(
    audio_embeddings: Float[Array, "n D"], text_embeddings: Float[Array, "m D"], *, rng: Key, config: MuLanConfig, num_iters: int = 50
) -> dict[str, Array]:
    """Fits one residual quantizer for audio and text. Returns {"audio_mean": [D], "text_mean": [D], "codebooks": [Q, C, D]}.

    Contrastive training may leave audio and text in two separate cones (the modality gap, arXiv 2203.02053), and the distance between the cones would
    then decide the nearest code of every text. So the mean of its modality is subtracted from each embedding, and the codebooks are fitted to both
    modalities together. The paper fits them to audio alone.

    Raises:
        UserError: there are fewer embeddings than codes.
    """
    check_quantizer(config, num_clips=len(audio_embeddings), num_captions=len(text_embeddings))
    means = {"audio_mean": _mean_direction(audio_embeddings), "text_mean": _mean_direction(text_embeddings)}
    both = jnp.concatenate([_centre(audio_embeddings, means["audio_mean"]), _centre(text_embeddings, means["text_mean"])])
    codebooks = rvq_fit(rng, both, num_levels=config.num_levels, num_codes=config.num_codes, num_iters=num_iters)
    return {**means, "codebooks": codebooks}


def check_quantizer(config: MuLanConfig, *, num_clips: int, num_captions: int) -> None:
    """Raises UserError if `num_clips` and `num_captions` embeddings are too few for `fit_quantizer`."""
    if num_clips + num_captions < config.num_codes:
        raise UserError(
            f"{num_clips} clips and {num_captions} captions are too few for num_codes={config.num_codes} codes: "
            "lower num_codes of the MuLan config, or add clips"
        )


def audio_tokens(config: MuLanConfig, variables: Any, embedding: Float[Array, "B D"]) -> Int[Array, "B Q"]:
    """MuLan tokens, int32 in [0, C), of the embeddings of clips: normalized means over their windows."""
    return _tokens(config, variables["quantizer"], embedding, "audio_mean")


def text_tokens(config: MuLanConfig, variables: Any, embedding: Float[Array, "B D"]) -> Int[Array, "B Q"]:
    """MuLan tokens, int32 in [0, C), of embeddings from `embed_text`."""
    return _tokens(config, variables["quantizer"], embedding, "text_mean")


def quantizer_report(config: MuLanConfig, variables: Any, audio_embeddings: Float[Array, "n D"], text_embeddings: Float[Array, "n D"]) -> dict[str, float]:
    """Measures how well MuLan tokens represent the embeddings of n clips and their captions, pair by pair.

    Returns:
        A dict: audio_cosine and text_cosine, the mean cosine of a centred embedding and its quantized form; pair_cosine, the mean cosine of the two
        quantized forms of a pair; level1_agreement, the share of pairs with the same first token; level1_chance, its expectation for shuffled pairs.
    """
    quantizer = variables["quantizer"]
    codes, quantized, cosine = {}, {}, {}
    for name, embedding in (("audio", audio_embeddings), ("text", text_embeddings)):
        codes[name] = _tokens(config, quantizer, embedding, f"{name}_mean")
        quantized[name] = l2_normalize(rvq_decode(quantizer["codebooks"], codes[name]))
        cosine[name] = jnp.mean(jnp.sum(quantized[name] * _centre(embedding, quantizer[f"{name}_mean"]), axis=-1))
    first = {name: codes[name][:, 0] for name in codes}
    shares = [jnp.bincount(first[name], length=config.num_codes) / len(first[name]) for name in first]
    return {
        "audio_cosine": float(cosine["audio"]),
        "text_cosine": float(cosine["text"]),
        "pair_cosine": float(jnp.mean(jnp.sum(quantized["audio"] * quantized["text"], axis=-1))),
        "level1_agreement": float(jnp.mean(first["audio"] == first["text"])),
        "level1_chance": float(jnp.sum(shares[0] * shares[1])),
    }


def variable_shapes(config: MuLanConfig) -> dict[str, Any]:
    """The shapes of `variables`, as a nested dict of ShapeDtypeStructs."""
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)  # noqa: E731
    params = nn.unbox(jax.eval_shape(lambda: init(config, jax.random.key(0))))
    dim = config.embedding_dim
    return {"params": params, "quantizer": {"audio_mean": shape(dim), "text_mean": shape(dim), "codebooks": shape(config.num_levels, config.num_codes, dim)}}


def _mean_direction(embeddings: Float[Array, "n D"]) -> Float[Array, "D"]:
    return jnp.mean(l2_normalize(embeddings), axis=0)


def _centre(embeddings: Float[Array, "n D"], mean: Float[Array, "D"]) -> Float[Array, "n D"]:
    """Normalizes embeddings, subtracts the mean of their modality, and normalizes again."""
    return l2_normalize(l2_normalize(embeddings) - mean)


def _tokens(config: MuLanConfig, quantizer: Any, embeddings: Float[Array, "B D"], mean: str) -> Int[Array, "B Q"]:
    centred = _centre(embeddings, quantizer[mean])
    return embedders.residual_codes(quantizer["codebooks"], centred, num_levels=config.num_levels, num_codes=config.num_codes)
