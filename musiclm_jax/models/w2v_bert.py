"""w2v-BERT (arXiv 2108.06209): features of audio, whose k-means clusters are the semantic tokens (AudioLM, arXiv 2209.03143, section III-B).

    wave -> log-mel, 100 Hz -> two strided convolutions, 25 Hz -> Conformer blocks -> contrastive context -> Conformer blocks -> codes at masked frames

The quantizer gets the unmasked output of the convolutions; its codes are the targets of both losses (tasks/w2v_bert.py). At inference nothing is masked,
the quantizer is not used, and the second stack ends at `feature_layer`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from musiclm_jax.arrays import Array, Bool, Float, Int, Key
from musiclm_jax.audio.features import LogMelConfig, log_mel
from musiclm_jax.checks import DEPTH, DTYPES, FINITE, POSITIVE, SIZE, check_choices, check_numbers, name_remat
from musiclm_jax.errors import UserError
from musiclm_jax.nn.clustering import assign, kmeans
from musiclm_jax.nn.conformer import ConformerStack
from musiclm_jax.nn.layers import Dense, LayerNorm, fan_in_init, partitioned

SUBSAMPLING = 4  # Mel frames per feature: two convolutions of stride 2.


@dataclasses.dataclass(frozen=True)
class W2vBertConfig:
    """Sizes of w2v-BERT. The defaults are w2v-BERT XL, 0.6B parameters (section 3.2).

    MusicLM takes 1,024 clusters of layer 7 (arXiv 2301.11325, section 3.1).
    """

    mel: LogMelConfig = LogMelConfig()
    # The convolutions get (x - mel_mean) / mel_std of the log-mels. The defaults are about their mean and standard deviation over the clips of
    # `musiclm corpus`.
    mel_mean: float = -5.0
    mel_std: float = 3.0
    # Output channels of the two 3 x 3 convolutions.
    conv_channels: tuple[int, int] = (128, 32)
    dim: int = 1024
    num_heads: int = 8
    mlp_dim: int = 4096
    # Kernel size of the depthwise convolution in each block, in steps of 40 ms. It must be odd.
    conv_kernel: int = 5
    # Blocks of the first stack, before the contrastive loss.
    num_contrastive_layers: int = 12
    # Blocks of the second stack, between the contrastive context and the masked prediction.
    num_masked_layers: int = 12
    # The block of the second stack, counted from 1, whose outputs are the features for the semantic tokens.
    feature_layer: int = 7
    # Codes of the quantizer.
    num_codes: int = 1024
    # Width of its code vectors, which the contrastive loss compares with the context.
    code_dim: int = 1024
    # False: codes are assigned by a fixed random projection, as in BEST-RQ (arXiv 2202.01855). In small batches learned codes change faster than the masked
    # prediction can follow, so that it learns nothing.
    learn_codes: bool = True
    # Number of k-means clusters, which are the semantic tokens.
    num_clusters: int = 1024
    # Whether features are whitened for k-means, instead of standardized per dimension as in AudioLM. Otherwise a few directions that many dimensions share
    # dominate the distances, and information about pitch and timbre in the other directions is lost.
    whiten: bool = False
    # What the backward pass recomputes of each block: "none"; "products", all but matrix products; or "full", which takes the least memory and about a
    # third more time.
    remat: bool | str = "none"
    # Type of the matrix products: "float32" or "bfloat16".
    dtype: str = "float32"

    def __post_init__(self):
        check_numbers(self, mel_mean=FINITE, mel_std=POSITIVE, conv_channels=SIZE, dim=SIZE, num_heads=SIZE, mlp_dim=SIZE, conv_kernel=SIZE, num_codes=SIZE)
        check_numbers(self, code_dim=SIZE, num_clusters=SIZE, num_contrastive_layers=DEPTH, num_masked_layers=DEPTH)
        check_choices(self, dtype=DTYPES)
        name_remat(self)
        if self.dim % self.num_heads:
            raise UserError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}: choose widths that divide")
        if self.conv_kernel % 2 == 0:
            raise UserError(f"conv_kernel={self.conv_kernel} is even: choose an odd one, so that the kernel is centred on its frame")
        if not 1 <= self.feature_layer <= self.num_masked_layers:
            raise UserError(f"feature_layer={self.feature_layer}, num_masked_layers={self.num_masked_layers}: choose a layer from 1 to num_masked_layers")

    @property
    def token_samples(self) -> int:
        """Samples per semantic token: 960 at 24 kHz."""
        return self.mel.hop_samples * SUBSAMPLING


@flax.struct.dataclass
class W2vBertOutput:
    """Outputs of w2v-BERT for its losses, at 25 Hz, float32 unless stated otherwise.

    Attributes:
        context: [B, T, E], the contrastive prediction.
        targets: [B, T, E], the vectors of the sampled codes, with a straight-through gradient.
        sampled_ids: [B, T] int32, the ids of the sampled codes.
        code_ids: [B, T] int32, the most probable codes, which are the tokens to predict.
        code_probs: [B, T, V], the quantizer's softmax.
        logits: [B, T, V], the masked prediction.
    """

    context: jax.Array
    targets: jax.Array
    sampled_ids: jax.Array
    code_ids: jax.Array
    code_probs: jax.Array
    logits: jax.Array


class FeatureEncoder(nn.Module):
    """The feature encoder: log-mel [B, T4, M] -> [B, T, D], two 3 x 3 convolutions of stride 2 in time and frequency, then a projection.

    Both convolutions pad one frame on each side, so that output frame t is centred on input frame 4t, and T = ceil(ceil(T4 / 2) / 2). The LayerNorm at
    the end is wav2vec 2.0's, not w2v-BERT's: it gives the features the scale of the noise that replaces masked ones.
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
    """The quantizer: one codebook with a straight-through Gumbel softmax (wav2vec 2.0, arXiv 2006.11477, section 2), in float32.

    It differs from the paper's in three points, for batches far below the paper's 2,048. In trials with 8 clips per step, the codebook collapsed to a
    single code within 20 steps without them, and stayed in use with all three; they were not ablated one by one.
      * The input is standardized over the batch, because a component that all frames share would select the same code for all of them. Inference does
        not use the quantizer, so features do not depend on the other clips of a batch.
      * The gradient stops at the input, so that the encoder cannot make its own targets easy. The encoder learns through the two stacks.
      * The initial logits have a standard deviation of 3, above the noise's 1.3, so that codes depend on their frames from the first step. Their kernel has
        unit scale, so that Adam changes it slowly and the masked prediction can follow.
    """

    num_codes: int
    code_dim: int
    learn_codes: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], *, rng: Key | None, temperature: Float[Array, ""] | float
    ) -> tuple[Float[Array, "B T E"], Int[Array, "B T"], Float[Array, "B T V"]]:
        """Returns (vectors of the chosen codes, their ids int32, logits). Without `rng` there is no noise, and the most probable code is chosen."""
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
    """The w2v-BERT model, as shown in the docstring of this file. Parameters: encoder, quantizer, input, contrastive, context, masked, logits."""

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

    def __call__(self, wave: Float[Array, "B N"], *, mask: Bool[Array, "B T"], rng: Key, temperature: Float[Array, ""] | float, train: bool) -> W2vBertOutput:
        """A pass for training or evaluation.

        Args:
            wave: 24 kHz.
            mask: True at the frames whose features are replaced by noise.
            rng: for the noise and the sampling of codes.
            temperature: of the Gumbel softmax.
            train: whether codes are sampled. If False, the most probable ones are chosen.
        """
        rng_noise, rng_codes = jax.random.split(rng)
        x = self._encode(wave)
        targets, sampled_ids, code_logits = self.quantizer(x, rng=rng_codes if train else None, temperature=temperature)
        x = jnp.where(mask[..., None], jax.random.normal(rng_noise, x.shape, x.dtype), x)
        x = self.contrastive(self.input(x))
        context = self.context(x.astype(jnp.float32))
        logits = self.logits(self.masked(x).astype(jnp.float32))
        # The Gumbel noise is for the quantizer's gradient. The token to predict is the most probable code.
        code_ids = jnp.argmax(code_logits, axis=-1).astype(jnp.int32)
        return W2vBertOutput(context, targets, sampled_ids, code_ids, jax.nn.softmax(code_logits, axis=-1), logits)

    def features(self, wave: Float[Array, "B N"]) -> Float[Array, "B T D"]:
        """Outputs of the last block without masking, float32, T = ceil(N / 960)."""
        return self.masked(self.contrastive(self.input(self._encode(wave)))).astype(jnp.float32)

    def _encode(self, wave):
        return self.encoder((log_mel(wave, self.config.mel) - self.config.mel_mean) / self.config.mel_std)


def sample_mask(rng: Key, shape: tuple[int, int], *, start_rate: float, span: int) -> Bool[Array, "B T"]:
    """Draws the mask: spans of `span` frames, each frame starting one with probability `start_rate`. Spans may overlap. True = masked."""
    starts = jax.random.bernoulli(rng, start_rate, shape)
    return jax.lax.reduce_window(starts, False, jax.lax.bitwise_or, (1, span), (1, 1), ((0, 0), (span - 1, 0)))


@functools.partial(jax.jit, static_argnums=0)
def features(config: W2vBertConfig, params: Any, wave: Float[Array, "B N"]) -> Float[Array, "B T D"]:
    """Features of block `config.feature_layer`, float32, T = ceil(N / 960). Frame t belongs to samples [960 t, 960 t + 960)."""
    # Parameters of blocks are stacked along their first axis, so a slice gives a shallower model, without the cost of the blocks above.
    masked = {**params["masked"], "blocks": jax.tree.map(lambda p: p[: config.feature_layer], params["masked"]["blocks"])}
    model = W2vBert(dataclasses.replace(config, num_masked_layers=config.feature_layer))
    return model.apply({"params": {**params, "masked": masked}}, wave, method="features")


@functools.partial(jax.jit, static_argnums=0)
def semantic_ids(config: W2vBertConfig, variables: dict[str, Any], wave: Float[Array, "B N"]) -> Int[Array, "B T"]:
    """Semantic tokens of 24 kHz waves, int32 in [0, num_clusters), T = ceil(N / 960).

    variables: {"params", "standardize": {"mean", "matrix"}, "kmeans": {"centroids"}}, the last two from `fit_kmeans`.
    """
    x = features(config, variables["params"], wave)
    x = _standardize(x, **variables["standardize"])
    return assign(x, variables["kmeans"]["centroids"])


def _standardize(x: Float[Array, "... D"], *, mean: Float[Array, "D"], matrix: Float[Array, "D D"]) -> Float[Array, "... D"]:
    return jnp.matmul(x - mean, matrix, precision=jax.lax.Precision.HIGHEST)


def fit_kmeans(
    config: W2vBertConfig,
    features: Float[np.ndarray, "n D"],
    *,
    rng: Key,
    num_iters: int = 30,
    place: Callable[[np.ndarray], tuple[jax.Array, jax.Array | None]] = lambda points: (jnp.asarray(points), None),
) -> dict[str, Any]:
    """Fits k-means to features, standardized per dimension as in AudioLM (arXiv 2209.03143, section III-B) or whitened.

    Args:
        features: one row per frame, from `features`.
        rng: for the initialization of k-means.
        place: puts the features on the devices. Returns them, with further rows at the end if need be, and which rows are features (None: all).

    Returns:
        {"standardize": {"mean" [D], "matrix" [D, D]}, "kmeans": {"centroids" [num_clusters, D]}}, to be merged into the variables. The centroids are in
        the space of (x - mean) @ matrix.
    """
    mean = features.mean(0, dtype=np.float64).astype(np.float32)
    if config.whiten:
        # Principal directions, each scaled to unit variance, so that all of them count equally.
        variances, directions = np.linalg.eigh(np.cov(features, rowvar=False, dtype=np.float64))
    else:
        variances, directions = features.var(0, dtype=np.float64), np.eye(config.dim)
    # Directions of almost no variance have rounding errors only, such as the one that a LayerNorm removes. They get the factor 0.
    scales = np.where(variances > 1e-6 * variances.max(), variances, np.inf) ** -0.5
    standardize = {"mean": jnp.asarray(mean), "matrix": jnp.asarray((directions * scales).astype(np.float32))}
    points, valid = place(features)
    centroids = kmeans(rng, _standardize(points, **standardize), num_clusters=config.num_clusters, num_iters=num_iters, valid=valid)
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
