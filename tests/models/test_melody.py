import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

from musiclm_jax.audio.features import LogMelConfig, log_mel
from musiclm_jax.errors import UserError
from musiclm_jax.models import melody
from musiclm_jax.models.melody import MelodyConfig
from musiclm_jax.nn.quantize import rvq_decode

# 100 Hz "audio": windows of 2.6 s are 260 samples, 13 frames. 3 heads of 2 do not make up the width of 10.
TINY = MelodyConfig(
    mel=LogMelConfig(sample_rate_hz=100, window_samples=40, hop_samples=20, num_fft=64, num_mels=11, max_hz=50.0),
    dim=10,
    num_layers=2,
    num_heads=3,
    head_dim=2,
    mlp_dim=14,
    embedding_dim=7,
    window_sec=2.6,
    hop_sec=1.7,
    num_levels=3,
    num_codes=5,
)


@functools.cache
def params():
    return random_params(melody.init, TINY, jax.random.key(0))


embed = jax.jit(melody.embed, static_argnums=0)


def waves(batch, samples=260, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, samples)), jnp.float32)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_paper_sizes():
    config = MelodyConfig()
    shapes = jax.eval_shape(lambda: nn.unbox(melody.init(config, jax.random.key(0))))
    width, inner, mlp, frames, mels = 512, 6 * 64, 1024, 200, 128
    attention = 3 * (width * inner + inner) + inner * width + width
    layer = attention + (width * mlp + mlp) + (mlp * width + width) + 2 * 2 * width
    assert count(shapes["layers"]) == 12 * layer == 22_083_072
    assert shapes["positions"].shape == (frames, width) and count(shapes["frames"]) == mels * width + width
    assert count(shapes["out"]) == width * 192 + 192
    assert count(shapes) == 12 * layer + frames * width + (mels * width + width) + 2 * width + (width * 192 + 192) == 22_351_040


def test_ten_seconds_are_72_tokens():
    config = MelodyConfig()
    shapes = jax.eval_shape(lambda: nn.unbox(melody.init(config, jax.random.key(0))))
    codebooks = jax.ShapeDtypeStruct((24, 512, 192), jnp.float32)

    def tokens(params, codebooks, wave):
        hop, window = config.hop_samples, config.window_samples
        starts = [hop * i for i in range(melody.num_windows(config, wave.shape[1]))]
        embeddings = jnp.stack([embed(config, params, wave[:, start : start + window]) for start in starts], axis=1)
        assert embeddings.shape == (2, 3, 192)
        return melody.tokens(config, {"quantizer": {"codebooks": codebooks}}, embeddings)

    codes = jax.eval_shape(tokens, shapes, codebooks, jax.ShapeDtypeStruct((2, 240_000), jnp.float32))
    assert codes.shape == (2, 3, 24) and codes.dtype == jnp.int32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embeddings_are_unit_vectors(dtype):
    embedding = embed(dataclasses.replace(TINY, dtype=dtype), params(), waves(3))
    assert embedding.shape == (3, 7) and embedding.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(embedding, axis=1), 1.0, atol=1e-5)


def test_it_is_a_pre_norm_vit_in_numpy():
    """ViT's formulas, one window, one head and one query at a time."""
    weights, wave = jax.tree.map(np.asarray, params()), waves(2)
    mels = (np.asarray(log_mel(wave, TINY.mel)) - TINY.mel_mean) / TINY.mel_std
    gelu = np.vectorize(lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))))

    def norm(x, w):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * w["scale"] + w["bias"]

    def attention(x, w):
        out = np.tile(w["out_bias"], (len(x), 1))
        for head in range(3):
            query, key, value = (x @ w["qkv_kernel"][:, i, head] + w["qkv_bias"][i, head] for i in range(3))
            for t in range(len(x)):
                scores = np.exp(key @ query[t] / math.sqrt(2))
                out[t] += scores / scores.sum() @ value @ w["out_kernel"][head]
        return out

    def vit(frames):
        x = frames @ weights["frames"]["kernel"] + weights["frames"]["bias"] + weights["positions"]
        for i in range(2):
            w = jax.tree.map(lambda leaf: leaf[i], weights["layers"])  # noqa: B023
            x = x + attention(norm(x, w["attention_norm"]), w["attention"])
            wide = gelu(norm(x, w["mlp_norm"]) @ w["widen"]["kernel"] + w["widen"]["bias"])
            x = x + wide @ w["narrow"]["kernel"] + w["narrow"]["bias"]
        y = norm(x, weights["final_norm"]).mean(0) @ weights["out"]["kernel"] + weights["out"]["bias"]
        return y / np.linalg.norm(y)

    assert mels.shape == (2, 13, 11)
    np.testing.assert_allclose(embed(TINY, params(), wave), [vit(frames) for frames in mels], atol=1e-4, rtol=0)


@pytest.mark.parametrize("seconds, windows", [(2.6, 1), (1.0, 1), (4.29, 1), (4.3, 2), (6.0, 3)])
def test_window_count(seconds, windows):
    assert melody.num_windows(TINY, round(seconds * 100)) == windows


def test_a_window_does_not_depend_on_its_batch_mates():
    np.testing.assert_allclose(embed(TINY, params(), waves(3))[1:2], embed(TINY, params(), waves(3)[1:2]), atol=1e-6)


def test_another_length_than_the_windows_is_named():
    with pytest.raises(ValueError, match="windows of 260 samples, got 261"):
        melody.embed(TINY, params(), waves(1, 261))


@pytest.fixture(scope="module")
def fitted():
    """60 embeddings, not of length 1, and the quantizer fitted to them."""
    embeddings = jnp.asarray(np.random.default_rng(3).normal(size=(60, 7)), jnp.float32)
    return embeddings, {"params": params(), "quantizer": melody.fit_quantizer(embeddings, rng=jax.random.key(0), config=TINY, num_iters=10)}


def test_tokens(fitted):
    embeddings, variables = fitted
    assert variables["quantizer"]["codebooks"].shape == (3, 5, 7)
    codes = melody.tokens(TINY, variables, embeddings)
    assert codes.shape == (60, 3) and codes.dtype == jnp.int32 and codes.min() >= 0 and codes.max() < 5
    np.testing.assert_array_equal(codes.reshape(20, 3, 3), melody.tokens(TINY, variables, embeddings.reshape(20, 3, 7)))
    np.testing.assert_array_equal(codes, melody.tokens(TINY, variables, 0.3 * embeddings))  # Only directions count.
    wrong = dataclasses.replace(TINY, num_levels=4)
    with pytest.raises(ValueError, match="another model"):
        melody.tokens(wrong, variables, embeddings)


def test_each_level_comes_nearer(fitted):
    embeddings, variables = fitted
    units = embeddings / jnp.linalg.norm(embeddings, axis=1, keepdims=True)
    codes, codebooks = melody.tokens(TINY, variables, embeddings), variables["quantizer"]["codebooks"]
    errors = [float(jnp.mean(jnp.square(units - rvq_decode(codebooks[:q], codes[:, :q])))) for q in (1, 2, 3)]
    assert errors[0] < float(jnp.mean(jnp.square(units))) and errors == sorted(errors, reverse=True)


def test_too_little_audio_for_the_codebook():
    with pytest.raises(UserError, match="num_codes=5"):
        melody.fit_quantizer(jnp.ones((4, 7)), rng=jax.random.key(0), config=TINY)


def test_every_parameter_has_logical_axes():
    boxed = jax.eval_shape(lambda: melody.init(TINY, jax.random.key(0)))
    for box in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        assert isinstance(box, nn.LogicallyPartitioned) and len(box.names) == box.value.ndim, box


@pytest.mark.parametrize(
    "change, name",
    [
        (dict(num_heads=0), "num_heads=0"),
        (dict(dropout=1.0), "dropout=1.0"),
        (dict(dtype="float16"), "dtype='float16'"),
        (dict(window_sec=0.0), "window_sec=0.0"),
        (dict(hop_sec=0.0), "hop_sec=0.0"),
    ],
)
def test_nonsense_is_refused(change, name):
    with pytest.raises(UserError, match=name):
        dataclasses.replace(TINY, **change)
