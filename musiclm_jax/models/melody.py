"""MusicLM's melody embedder (arXiv 2301.11325, section 6 and appendix C): it maps windows of a recording to vectors of their melody.

    wave, 4 s -> log-mel frames -> linear -> Transformer encoder -> mean over frames -> linear -> unit vector [192] -> 24 residual codes of 512

The paper gives the Transformer's 12 layers, 6 heads, width 512 and feed-forward width 1024, one input per spectrogram frame, the window of 4 s, the
embedding of width 192 and its codes; for conditioning, three embeddings 3 s apart for 10 s of audio. 6 heads do not divide 512: here each head has
width 64, as in ViT. The paper does not state the spectrogram, the positions and the pooling; the comments below give the choices.

`params` is the tree that `init` returns, `variables` is {"params": ..., "quantizer": {"codebooks"}}.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Float, Int, Key
from musiclm_jax.audio.features import LogMelConfig, log_mel
from musiclm_jax.checks import DEPTH, DTYPES, FINITE, POSITIVE, SECONDS, SHARE, SIZE, check_choices, check_numbers, name_remat
from musiclm_jax.errors import UserError
from musiclm_jax.models import embedders
from musiclm_jax.nn.encoder import NORM_EPSILON, encoder_layers
from musiclm_jax.nn.layers import Dense, LayerNorm, l2_normalize, partitioned
from musiclm_jax.nn.quantize import rvq_fit


@dataclasses.dataclass(frozen=True)
class MelodyConfig:
    """Sizes of the melody embedder. The defaults are the paper's, with 22.4M parameters."""

    # Windows of 85 ms, 20 ms apart, because shorter ones do not resolve the semitones of a usual melody. Below 1 kHz a mel band is 23 Hz wide, which is
    # a semitone at 400 Hz.
    mel: LogMelConfig = LogMelConfig(window_samples=2048, hop_samples=480, num_fft=2048, num_mels=128)
    # The network gets (x - mel_mean) / mel_std of the log-mels. The defaults are about their mean and standard deviation over the clips of
    # `musiclm corpus`.
    mel_mean: float = -5.0
    mel_std: float = 2.0
    dim: int = 512
    num_layers: int = 12
    num_heads: int = 6
    # num_heads * head_dim need not equal dim.
    head_dim: int = 64
    mlp_dim: int = 1024
    # Dropout rate of embedded frames and sublayer outputs in training: ViT's, as the paper does not state it.
    dropout: float = 0.1
    embedding_dim: int = 192
    # Length of the window of one embedding.
    window_sec: float = 4.0
    # Step from one window of a longer clip to the next.
    hop_sec: float = 3.0
    # Windows whose codes are the conditions of a stage, from the start of its own window on: of 0-4, 3-7 and 6-10 s.
    condition_windows: int = 3
    # Sizes of the residual quantizer of the embeddings.
    num_levels: int = 24
    num_codes: int = 512
    # Type of the matrix products: "float32" or "bfloat16".
    dtype: str = "float32"
    # What the backward pass recomputes of each layer: "none"; "products", all but matrix products; or "full", which takes the least memory and about a
    # third more time.
    remat: bool | str = "none"

    def __post_init__(self):
        check_numbers(self, dim=SIZE, num_layers=DEPTH, num_heads=SIZE, head_dim=SIZE, mlp_dim=SIZE, embedding_dim=SIZE, num_levels=DEPTH, num_codes=SIZE)
        check_numbers(self, condition_windows=SIZE)
        check_numbers(self, mel_mean=FINITE, mel_std=POSITIVE, dropout=SHARE, window_sec=SECONDS, hop_sec=SECONDS)
        check_choices(self, dtype=DTYPES)
        name_remat(self)
        if self.dropout == 1:
            raise UserError(f"dropout={self.dropout}: choose a rate below 1")

    @property
    def window_samples(self) -> int:
        return round(self.window_sec * self.mel.sample_rate_hz)

    @property
    def hop_samples(self) -> int:
        return round(self.hop_sec * self.mel.sample_rate_hz)

    def fitting(self, seconds: float | int) -> int:
        """Number of the `condition_windows` that fit into `seconds`: 3 into 10 s, 1 into 5 s, 0 into 3 s."""
        return min(self.condition_windows, math.floor((seconds - self.window_sec) / self.hop_sec + 1e-6) + 1) if seconds >= self.window_sec else 0

    @property
    def num_frames(self) -> int:
        """Frames of a window, which are the inputs of the Transformer: 200 with the defaults."""
        return -(-self.window_samples // self.mel.hop_samples)


class MelodyEmbedder(nn.Module):
    """The melody embedder: waves [B, N] of one window each -> unit vectors [B, D] float32. Dropout in training needs the rng "dropout".

    A pre-norm ViT (arXiv 2010.11929) over frames instead of patches, with learned positions. The mean over the frames replaces the class token, which
    is no worse (arXiv 2205.01580).

    Raises:
        ValueError: a wave that is not one window long.
    """

    config: MelodyConfig

    @nn.compact
    def __call__(self, wave: Float[Array, "B N"], *, train: bool = False) -> Float[Array, "B D"]:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        if wave.shape[1] != config.window_samples:
            raise ValueError(f"expected windows of {config.window_samples} samples, got {wave.shape[1]}: cut or pad the wave")
        mels = (log_mel(wave, config.mel) - config.mel_mean) / config.mel_std
        positions = self.param("positions", partitioned(nn.initializers.normal(0.02), (None, "embed")), (config.num_frames, config.dim), jnp.float32)
        x = Dense(config.dim, axes=(None, "embed"), dtype=dtype, name="frames")(mels) + positions.astype(dtype)
        x = nn.Dropout(config.dropout, deterministic=not train)(x)
        layers = encoder_layers(
            config.num_layers,
            remat=config.remat,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            mlp_dim=config.mlp_dim,
            pre_norm=True,
            dropout=config.dropout,
            train=train,
            dtype=dtype,
            name="layers",
        )
        x, _ = layers(x)
        # float32 from here on, because small differences between embeddings matter.
        x = jnp.mean(LayerNorm(epsilon=NORM_EPSILON, name="final_norm")(x), axis=1)
        return l2_normalize(Dense(config.embedding_dim, axes=("embed", None), name="out")(x))


def init(config: MelodyConfig, rng: Key) -> Any:
    """Initial parameters, boxed with their logical axis names."""
    return MelodyEmbedder(config).init(rng, jnp.zeros((1, config.window_samples)))["params"]


def embed(config: MelodyConfig, params: Any, wave: Float[Array, "B N"]) -> Float[Array, "B D"]:
    """Unit embeddings, float32, of waves that are one window long."""
    return MelodyEmbedder(config).apply({"params": params}, wave)


def num_windows(config: MelodyConfig, num_samples: int) -> int:
    """Number of windows of a wave: 3 for 10 s, 1 for 4 s or less. Samples after the last whole window are ignored."""
    return embedders.num_windows(num_samples, window=config.window_samples, hop=config.hop_samples)


def check_quantizer(config: MelodyConfig, *, num_windows: int) -> None:
    """Raises UserError where there are fewer windows than codes."""
    if num_windows < config.num_codes:
        raise UserError(f"{num_windows} windows are too few for num_codes={config.num_codes} codes: lower num_codes of the melody config, or add audio")


def fit_quantizer(embeddings: Float[Array, "n D"], *, rng: Key, config: MelodyConfig, num_iters: int = 50) -> dict[str, Array]:
    """Fits the quantizer to embeddings, one row per window, by residual k-means; the paper does not state its method. Returns {"codebooks": [Q, C, D]}.

    Raises:
        UserError: there are fewer windows than codes.
    """
    check_quantizer(config, num_windows=len(embeddings))
    return {"codebooks": rvq_fit(rng, l2_normalize(embeddings), num_levels=config.num_levels, num_codes=config.num_codes, num_iters=num_iters)}


def variable_shapes(config: MelodyConfig) -> dict[str, Any]:
    """The shapes of `variables`, as a nested dict of ShapeDtypeStructs."""
    params = nn.unbox(jax.eval_shape(lambda: init(config, jax.random.key(0))))
    return {"params": params, "quantizer": {"codebooks": jax.ShapeDtypeStruct((config.num_levels, config.num_codes, config.embedding_dim), jnp.float32)}}


def tokens(config: MelodyConfig, variables: Any, embeddings: Float[Array, "*B D"]) -> Int[Array, "*B Q"]:
    codebooks = variables["quantizer"]["codebooks"]
    return embedders.residual_codes(codebooks, l2_normalize(embeddings), num_levels=config.num_levels, num_codes=config.num_codes)
