"""w2v-BERT (arXiv 2108.06209): log-mel frames to features whose k-means clusters are the semantic tokens (arXiv 2209.03143, section III-B).

    wave -> log-mel, 100 Hz -> two strided convolutions, 25 Hz -> conformers -> contrastive context -> conformers -> codes at masked frames

The quantizer sees the unmasked convolution features; its codes are what both losses (tasks/w2v_bert.py) ask for. At inference nothing is
masked, the quantizer is idle and the second stack stops at `feature_layer`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from musiclm_jax.arrays import Array, Bool, Float, Int, Key
from musiclm_jax.audio.features import LogMelConfig, log_mel
from musiclm_jax.checks import DEPTH, DTYPES, FINITE, POSITIVE, SIZE, check_choices, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.nn.clustering import assign, kmeans
from musiclm_jax.nn.conformer import ConformerStack
from musiclm_jax.nn.layers import Dense, LayerNorm, fan_in_init, partitioned

SUBSAMPLING = 4  # Mel frames per feature: two convolutions of stride 2.


@dataclasses.dataclass(frozen=True)
class W2vBertConfig:
    """The defaults are w2v-BERT XL, 0.6B parameters (section 3.2), and MusicLM's 1,024 clusters of layer 7 (arXiv 2301.11325, section 3.1)."""

    mel: LogMelConfig = LogMelConfig()
    # Before the convolutions the log-mel spectrogram is shifted and scaled by these constants: its mean and deviation over our corpus.
    mel_mean: float = -5.0
    mel_std: float = 3.0
    # Output channels of the two 3 x 3 convolutions.
    conv_channels: tuple[int, int] = (128, 32)
    dim: int = 1024
    num_heads: int = 8
    mlp_dim: int = 4096
    # Of the depthwise convolution in each block, in 40 ms steps; odd.
    conv_kernel: int = 5
    # Blocks before the contrastive loss.
    num_contrastive_layers: int = 12
    # Blocks between the contrastive context and the masked prediction.
    num_masked_layers: int = 12
    # The semantic features are the output of this block, counted from 1, of the masked-prediction stack.
    feature_layer: int = 7
    # The quantizer: one codebook of vectors, in whose space the contrastive loss compares.
    num_codes: int = 1024
    code_dim: int = 1024
    # False: the codes stay those of a random projection, as in BEST-RQ (arXiv 2202.01855). In small batches learned ones drift faster than
    # the masked prediction can follow, which then learns nothing.
    learn_codes: bool = True
    # Semantic tokens: k-means clusters.
    num_clusters: int = 1024
    # Whether k-means sees the features whitened, instead of each dimension standardised by itself, as in AudioLM. A few directions that many
    # dimensions share else decide which cluster is nearest, and what the others tell of pitch and timbre is lost.
    whiten: bool = False
    # Recompute blocks in the backward pass, to save memory.
    remat: bool = False
    # Of the matrix products: "float32" or "bfloat16".
    dtype: str = "float32"

    def __post_init__(self):
        check_numbers(self, mel_mean=FINITE, mel_std=POSITIVE, conv_channels=SIZE, dim=SIZE, num_heads=SIZE, mlp_dim=SIZE, conv_kernel=SIZE, num_codes=SIZE)
        check_numbers(self, code_dim=SIZE, num_clusters=SIZE, num_contrastive_layers=DEPTH, num_masked_layers=DEPTH)
        check_choices(self, dtype=DTYPES)
        if self.dim % self.num_heads:
            raise UserError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}: choose widths that divide")
        if self.conv_kernel % 2 == 0:
            raise UserError(f"conv_kernel={self.conv_kernel} is even: choose an odd one, so that a frame sees as far back as ahead")
        if not 1 <= self.feature_layer <= self.num_masked_layers:
            raise UserError(f"feature_layer={self.feature_layer} must lie in 1..num_masked_layers={self.num_masked_layers}")

    @property
    def token_samples(self) -> int:
        """Samples per semantic token: 960 at 24 kHz."""
        return self.mel.hop_samples * SUBSAMPLING


@flax.struct.dataclass
class W2vBertOutput:
    """What the losses need, all at 25 Hz, float32.

    Fields: context: [B, T, E], the contrastive prediction. targets: [B, T, E], the sampled code vectors (straight-through), and sampled_ids:
    int32 [B, T], their ids. code_ids: int32 [B, T], the most probable codes, which are the tokens to predict. code_probs: [B, T, V], the
    quantizer's softmax. logits: [B, T, V], the masked prediction.
    """

    context: jax.Array
    targets: jax.Array
    sampled_ids: jax.Array
    code_ids: jax.Array
    code_probs: jax.Array
    logits: jax.Array


class FeatureEncoder(nn.Module):
    """Log-mel [B, 4T, M] -> [B, T, D]: two 3 x 3 convolutions of stride 2 in time and frequency, then a projection.

    Both pad one frame on each side, whatever the length: frame t of the output is centred on frame 4t of the input, and T = ceil(ceil(4T / 2) / 2).
    The LayerNorm at the end is ours (wav2vec 2.0 has one): the noise that replaces masked features is then of their size.
    """

    channels: tuple[int, int]
    dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, mel: Float[Array, "B T4 M"]) -> Float[Array, "B T D"]:
        x = mel[..., None].astype(self.dtype)
        for i, channels in enumerate(self.channels):
            conv = nn.Conv(
                channels,
                (3, 3),
                strides=(2, 2),
                padding=((1, 1), (1, 1)),
                kernel_init=partitioned(fan_in_init, (None, None, None, "conv")),
                bias_init=partitioned(nn.initializers.zeros, ("conv",)),
                dtype=self.dtype,
                name=f"conv_{i}",
            )
            x = nn.relu(conv(x))
        x = x.reshape(*x.shape[:2], -1)
        x = Dense(self.dim, (None, "embed"), dtype=self.dtype, name="project")(x)
        return LayerNorm(dtype=self.dtype, name="norm")(x)


class GumbelQuantizer(nn.Module):
    """One codebook with a straight-through Gumbel softmax (wav2vec 2.0, arXiv 2006.11477, section 2). All in float32.

    Three things are ours, for batches far below the paper's 2,048. In trials with 8 clips per step, wide logits without them ended in a
    single code for all frames within 20 steps; with all three the codebook stayed in use. They were not ablated one by one.
      * The input is standardised over the batch: what all frames share would choose the same code for all. Inference does not use the
        quantizer, so features stay free of batch mates.
      * The gradient stops there: the encoder cannot make its own targets easy. It learns through the two stacks.
      * Logits start with deviation 3, above the noise's 1.3, so that a code says something about its frame from the first step; their
        kernel is of unit size, so that Adam turns it slowly and the masked prediction can follow.
    """

    num_codes: int
    code_dim: int
    learn_codes: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], *, rng: Key | None, temperature: Float[Array, ""] | float
    ) -> tuple[Float[Array, "B T E"], Int[Array, "B T"], Float[Array, "B T V"]]:
        """(code vectors, their ids, logits). Without `rng` the best code is taken, without noise."""
        x = jax.lax.stop_gradient(x).astype(jnp.float32)
        x = (x - jnp.mean(x, axis=(0, 1))) * jax.lax.rsqrt(jnp.var(x, axis=(0, 1)) + 1e-5)
        dense = Dense(self.num_codes, ("embed", "vocab"), kernel_init=nn.initializers.normal(1.0), name="logits")
        logits = 3 * x.shape[-1] ** -0.5 * dense(x)
        if not self.learn_codes:
            logits = jax.lax.stop_gradient(logits)
        noisy = logits if rng is None else logits + jax.random.gumbel(rng, logits.shape)
        ids = jnp.argmax(noisy, axis=-1).astype(jnp.int32)
        soft = jax.nn.softmax(noisy / temperature, axis=-1)
        weights = jax.nn.one_hot(ids, self.num_codes) + soft - jax.lax.stop_gradient(soft)
        codes = self.param("codes", partitioned(nn.initializers.normal(1.0), ("vocab", None)), (self.num_codes, self.code_dim), jnp.float32)
        return jnp.einsum("btv,ve->bte", weights, codes), ids, logits


class W2vBert(nn.Module):
    """See the top of the file. Parameters: encoder, quantizer, input, contrastive, context, masked, logits."""

    config: W2vBertConfig

    def setup(self):
        c = self.config
        dtype = jnp.dtype(c.dtype)
        block = dict(num_heads=c.num_heads, mlp_dim=c.mlp_dim, conv_kernel=c.conv_kernel, remat=c.remat, dtype=dtype)
        self.encoder = FeatureEncoder(c.conv_channels, c.dim, dtype=dtype)
        self.quantizer = GumbelQuantizer(c.num_codes, c.code_dim, c.learn_codes)
        self.input = Dense(c.dim, ("embed", None), dtype=dtype)
        self.contrastive = ConformerStack(c.num_contrastive_layers, **block)
        self.context = Dense(c.code_dim, ("embed", None))
        self.masked = ConformerStack(c.num_masked_layers, **block)
        self.logits = Dense(c.num_codes, ("embed", "vocab"))

    def __call__(
        self, wave: Float[Array, "B N"], *, mask: Bool[Array, "B T"], rng: Key, temperature: Float[Array, ""] | float, train: bool
    ) -> W2vBertOutput:
        """One pass with the frames of `mask` replaced by noise. train: sample the codes, at this Gumbel temperature."""
        rng_noise, rng_codes = jax.random.split(rng)
        x = self._encode(wave)
        targets, sampled_ids, code_logits = self.quantizer(x, rng=rng_codes if train else None, temperature=temperature)
        x = jnp.where(mask[..., None], jax.random.normal(rng_noise, x.shape, x.dtype), x)
        x = self.contrastive(self.input(x))
        context = self.context(x.astype(jnp.float32))
        logits = self.logits(self.masked(x).astype(jnp.float32))
        # The noise serves the quantizer's gradient; the token to predict is the code that it holds most probable.
        code_ids = jnp.argmax(code_logits, axis=-1).astype(jnp.int32)
        return W2vBertOutput(context, targets, sampled_ids, code_ids, jax.nn.softmax(code_logits, axis=-1), logits)

    def features(self, wave: Float[Array, "B N"]) -> Float[Array, "B T D"]:
        """The output of the last block, nothing masked, float32."""
        return self.masked(self.contrastive(self.input(self._encode(wave)))).astype(jnp.float32)

    def _encode(self, wave):
        return self.encoder((log_mel(wave, self.config.mel) - self.config.mel_mean) / self.config.mel_std)


def sample_mask(rng: Key, shape: tuple[int, int], *, start_rate: float, span: int) -> Bool[Array, "B T"]:
    """Spans of `span` frames from starts drawn with probability `start_rate`; spans may overlap. True = masked."""
    starts = jax.random.bernoulli(rng, start_rate, shape)
    return jax.lax.reduce_window(starts, False, jax.lax.bitwise_or, (1, span), (1, 1), ((0, 0), (span - 1, 0)))


@functools.partial(jax.jit, static_argnums=0)
def features(config: W2vBertConfig, params: Any, wave: Float[Array, "B N"]) -> Float[Array, "B T D"]:
    """Features of `config.feature_layer`, float32, T = ceil(N / 960). Frame t is about samples [960 t, 960 t + 960), seen in context."""
    # Blocks are stacked along their first axis, so a shallower model is a slice and the blocks above cost nothing.
    masked = {**params["masked"], "blocks": jax.tree.map(lambda p: p[: config.feature_layer], params["masked"]["blocks"])}
    model = W2vBert(dataclasses.replace(config, num_masked_layers=config.feature_layer))
    return model.apply({"params": {**params, "masked": masked}}, wave, method="features")


@functools.partial(jax.jit, static_argnums=0)
def semantic_ids(config: W2vBertConfig, variables: dict[str, Any], wave: Float[Array, "B N"]) -> Int[Array, "B T"]:
    """Semantic tokens in [0, num_clusters), int32, T = ceil(N / 960).

    variables: {"params", "standardize": {"mean", "matrix"}, "kmeans": {"centroids"}}, the last two from `fit_kmeans`.
    """
    x = features(config, variables["params"], wave)
    x = _standardize(x, **variables["standardize"])
    return assign(x, variables["kmeans"]["centroids"])


def _standardize(x: Float[Array, "... D"], *, mean: Float[Array, "D"], matrix: Float[Array, "D D"]) -> Float[Array, "... D"]:
    return jnp.matmul(x - mean, matrix, precision=jax.lax.Precision.HIGHEST)


def fit_kmeans(config: W2vBertConfig, features: Float[np.ndarray, "n D"], *, rng: Key, num_iters: int = 30) -> dict[str, Any]:
    """Standardise or whiten features over the fitting set, then cluster (AudioLM, arXiv 2209.03143, section III-B, standardises).

    Args:
      features: One row per frame, from `features`.
      rng: For the start of k-means.

    Returns:
      {"standardize": {"mean" [D], "matrix" [D, D]}, "kmeans": {"centroids" [num_clusters, D]}}, to be merged into the variables. k-means sees
      (x - mean) @ matrix.
    """
    mean = features.mean(0, dtype=np.float64).astype(np.float32)
    if config.whiten:
        # Principal directions, each at unit variance: no matter how strong, all count alike.
        variances, directions = np.linalg.eigh(np.cov(features, rowvar=False, dtype=np.float64))
    else:
        variances, directions = features.var(0, dtype=np.float64), np.eye(config.dim)
    # What hardly varies is rounding, as along the one direction that a LayerNorm leaves empty: it stays out.
    scales = np.where(variances > 1e-6 * variances.max(), variances, np.inf) ** -0.5
    standardize = {"mean": jnp.asarray(mean), "matrix": jnp.asarray((directions * scales).astype(np.float32))}
    centroids = kmeans(rng, _standardize(jnp.asarray(features), **standardize), num_clusters=config.num_clusters, num_iters=num_iters)
    return {"standardize": standardize, "kmeans": {"centroids": centroids}}


def variable_shapes(config: W2vBertConfig) -> dict[str, Any]:
    """The shapes of the variables that `semantic_ids` takes."""
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)  # noqa: E731
    key, wave = jax.eval_shape(lambda: jax.random.key(0)), shape(1, config.token_samples)
    mask = jax.ShapeDtypeStruct((1, 1), bool)
    params = jax.eval_shape(lambda key, wave, mask: W2vBert(config).init(key, wave, mask=mask, rng=key, temperature=1.0, train=False), key, wave, mask)
    return {
        "params": meta.unbox(params["params"]),
        "standardize": {"mean": shape(config.dim), "matrix": shape(config.dim, config.dim)},
        "kmeans": {"centroids": shape(config.num_clusters, config.dim)},
    }
