import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

from musiclm_jax.audio.features import LogMelConfig
from musiclm_jax.errors import UserError
from musiclm_jax.models import mulan
from musiclm_jax.models.mulan import MuLanConfig, SpecAugmentConfig
from musiclm_jax.models.resnet import ResNetConfig
from musiclm_jax.models.text import TextTokenizer
from musiclm_jax.models.text_tower import TextTower, TextTowerConfig
from musiclm_jax.models.tokenizers import MuLanTokenizer

# 100 Hz "audio": windows of 10 s are 1000 samples, 50 frames.
TINY = MuLanConfig(
    mel=LogMelConfig(sample_rate_hz=100, window_samples=40, hop_samples=20, num_fft=64, num_mels=11, max_hz=50.0),
    audio=ResNetConfig(depths=(1, 1), widths=(4, 8), strides=((1, 1), (2, 2)), bottleneck=False, stem_width=4, stem_pool=False),
    text=TextTowerConfig(vocab_size=19, max_tokens=13, dim=10, num_layers=2, num_heads=2, mlp_dim=14, dropout=0.1),
    spec_augment=SpecAugmentConfig(num_time_masks=1, max_time_frames=9, num_mel_masks=1, max_mel_bins=3),
    embedding_dim=7,
    num_levels=3,
    num_codes=5,
)


@functools.cache
def params():
    return random_params(mulan.init, TINY, jax.random.key(0))


embed_audio = jax.jit(mulan.embed_audio, static_argnums=0)
embed_text = jax.jit(mulan.embed_text, static_argnums=0)


def waves(batch, samples, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, samples)), jnp.float32)


def texts(batch, length, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(4, 19, (batch, length)), jnp.int32), jnp.ones((batch, length), bool)


def random_units(num, dim=7, seed=0, shift=0.0):
    x = np.random.default_rng(seed).normal(size=(num, dim)) + shift
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embeddings_are_unit_vectors(dtype):
    config = dataclasses.replace(TINY, dtype=dtype)
    audio = embed_audio(config, params(), waves(3, 1000))
    text = embed_text(config, params(), *texts(3, 11))
    for embedding in (audio, text):
        assert embedding.shape == (3, 7) and embedding.dtype == jnp.float32
        np.testing.assert_allclose(jnp.linalg.norm(embedding, axis=1), 1.0, atol=1e-5)


def test_pre_norm_adds_one_norm():
    config = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, pre_norm=True))
    shapes = jax.eval_shape(lambda: nn.unbox(mulan.init(config, jax.random.key(0))))
    assert set(shapes["text_tower"]) - set(params()["text_tower"]) == {"final_norm"}


def test_what_the_mask_hides_has_no_influence():
    ids, mask = texts(2, 5)
    padded = jnp.concatenate([ids, jnp.full((2, 6), 17)], axis=1)
    padded_mask = jnp.concatenate([mask, jnp.zeros((2, 6), bool)], axis=1)
    short, long = embed_text(TINY, params(), ids, mask), embed_text(TINY, params(), padded, padded_mask)
    np.testing.assert_allclose(short, long, atol=1e-6)
    assert jnp.abs(short - embed_text(TINY, params(), ids.at[:, 3].set(4), mask)).max() > 1e-4


def test_too_long_a_text_is_named():
    with pytest.raises(ValueError, match="max_tokens=13 tokens, got 14"):
        embed_text(TINY, params(), *texts(1, 14))


@pytest.mark.parametrize("seconds, windows", [(30, 21), (10, 1), (3, 1), (11.5, 2)])
def test_window_count(seconds, windows):
    assert mulan.num_windows(TINY, int(seconds * 100)) == windows


def test_a_clip_is_the_mean_of_its_windows():
    wave = np.asarray(waves(2, 1250))
    tokenizer = MuLanTokenizer(TINY, {"params": params()}, TextTokenizer.train(["a piano"], vocab_size=19))
    windows = np.stack([embed_audio(TINY, params(), wave[:, 100 * i : 100 * i + 1000]) for i in range(3)])
    mean = windows.mean(0)
    np.testing.assert_allclose(tokenizer.embed_audio(wave), mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-5)
    short = np.pad(wave[:, :300], ((0, 0), (0, 700)))
    np.testing.assert_allclose(tokenizer.embed_audio(wave[:, :300]), embed_audio(TINY, params(), short), atol=1e-5)


def test_a_clip_does_not_depend_on_its_batch_mates():
    wave, (ids, mask) = waves(3, 1000), texts(3, 9)
    np.testing.assert_allclose(embed_audio(TINY, params(), wave)[1:2], embed_audio(TINY, params(), wave[1:2]), atol=1e-6)
    np.testing.assert_allclose(embed_text(TINY, params(), ids, mask)[1:2], embed_text(TINY, params(), ids[1:2], mask[1:2]), atol=1e-6)


def test_spec_augment_blanks_bands():
    mels = jnp.ones((23, 53, 17))
    config = SpecAugmentConfig(num_time_masks=1, max_time_frames=11, num_mel_masks=1, max_mel_bins=5)
    out = np.asarray(jax.jit(lambda rng: mulan.spec_augment(mels, config, rng=rng))(jax.random.key(0)))
    rows, columns = (out == 0).all(2).sum(1), (out == 0).all(1).sum(1)
    assert rows.max() <= 11 and columns.max() <= 5 and rows.max() > 5 and columns.max() > 2
    assert len(set(rows)) > 3  # drawn for each example
    kept = (~(out == 0).all(2))[:, :, None] & (~(out == 0).all(1))[:, None]
    assert (out[kept] == 1).all()
    off = SpecAugmentConfig(num_time_masks=0, num_mel_masks=0)
    np.testing.assert_array_equal(mulan.spec_augment(mels, off, rng=jax.random.key(0)), mels)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_paper_sizes():
    shapes = jax.eval_shape(lambda: nn.unbox(mulan.init(MuLanConfig(), jax.random.key(0))))
    # torchvision's ResNet-50 less its classifier, 25,557,032 - 2,049,000, less two of its stem's three input channels.
    assert count(shapes["audio_tower"]) == 23_508_032 - 2 * 7 * 7 * 64
    # BERT-base-uncased, 109,482,240, less its pooler and its sentence types.
    assert count(shapes["text_tower"]) == 109_482_240 - (768 * 768 + 768) - 2 * 768
    assert count(shapes["audio_head"]) == 2048 * 128 + 128 and count(shapes["text_head"]) == 768 * 128 + 128
    embedding = jax.eval_shape(lambda p, w: mulan.embed_audio(MuLanConfig(), p, w), shapes, jax.ShapeDtypeStruct((1, 240_000), jnp.float32))
    assert embedding.shape == (1, 128)


def test_every_parameter_has_logical_axes():
    boxed = jax.eval_shape(lambda: mulan.init(TINY, jax.random.key(0)))
    boxes = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    for box in boxes:
        assert isinstance(box, nn.LogicallyPartitioned) and len(box.names) == box.value.ndim, box


def test_post_norm_tower_is_bert_in_numpy():
    """BERT's formulas, one example, one head and one query at a time."""
    weights = jax.tree.map(np.asarray, params()["text_tower"])
    ids, mask = texts(3, 11)
    mask = mask.at[1, 7:].set(False)
    gelu = np.vectorize(lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))))

    def norm(x, w):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * w["scale"] + w["bias"]

    def attention(x, w):
        out = np.tile(w["out_bias"], (len(x), 1))
        for head in range(2):
            query, key, value = (x @ w["qkv_kernel"][:, i, head] + w["qkv_bias"][i, head] for i in range(3))
            for t in range(len(x)):
                scores = np.exp(key @ query[t] / math.sqrt(5))
                out[t] += scores / scores.sum() @ value @ w["out_kernel"][head]
        return out

    def bert(tokens):
        x = norm(weights["tokens"]["embedding"][tokens] + weights["positions"][: len(tokens)], weights["embedding_norm"])
        for i in range(2):
            w = jax.tree.map(lambda leaf: leaf[i], weights["layers"])  # noqa: B023
            x = norm(x + attention(x, w["attention"]), w["attention_norm"])
            wide = gelu(x @ w["widen"]["kernel"] + w["widen"]["bias"])
            x = norm(x + wide @ w["narrow"]["kernel"] + w["narrow"]["bias"], w["mlp_norm"])
        return x[0]

    ours = jax.jit(TextTower(TINY.text, jnp.dtype("float32")).apply)({"params": params()["text_tower"]}, ids, mask)
    expected = [bert(np.asarray(row)[np.asarray(seen)]) for row, seen in zip(ids, mask, strict=True)]
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.fixture(scope="module")
def pairs():
    """Audio and text embeddings of 60 pairs in 5 themes, the texts in a cone far from the audio: a modality gap."""
    themes = np.random.default_rng(0).normal(size=(5, 7)) * 2
    which = np.arange(60) % 5
    noise = np.random.default_rng(1).normal(size=(2, 60, 7)) * 0.1
    gap = np.array([9.0, 0, 0, 0, 0, 0, -3.0])
    audio, text = themes[which] + noise[0] + gap, themes[which] + noise[1] - gap
    units = lambda x: jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)  # noqa: E731
    return units(audio), units(text)


@pytest.fixture(scope="module")
def variables(pairs):
    return {"params": params(), "quantizer": mulan.fit_quantizer(*pairs, rng=jax.random.key(0), config=TINY, num_iters=20)}


def test_quantizer_closes_the_modality_gap(pairs, variables):
    audio, text = pairs
    assert jnp.mean(audio @ text.T) < -0.5  # the gap
    report = mulan.quantizer_report(TINY, variables, audio, text)
    assert report["level1_agreement"] == 1.0 and abs(report["level1_chance"] - 0.2) < 0.01
    assert min(report["audio_cosine"], report["text_cosine"]) > 0.97 and report["pair_cosine"] > 0.9


def test_tokens(pairs, variables):
    audio, text = pairs
    for tokens, embedding in ((mulan.audio_tokens, audio), (mulan.text_tokens, text)):
        codes = tokens(TINY, variables, embedding)
        assert codes.shape == (60, 3) and codes.dtype == jnp.int32 and codes.min() >= 0 and codes.max() < 5
        np.testing.assert_array_equal(codes[7:8], tokens(TINY, variables, embedding[7:8]))
        # Length does not matter, so a mean of windows may be passed as it is.
        np.testing.assert_array_equal(codes, tokens(TINY, variables, 0.3 * embedding))
    wrong = dataclasses.replace(TINY, num_levels=4)
    with pytest.raises(ValueError, match="another model"):
        mulan.audio_tokens(wrong, variables, audio)


def test_too_little_data_for_the_codebook():
    with pytest.raises(UserError, match="num_codes=5"):
        mulan.fit_quantizer(random_units(2), random_units(2), rng=jax.random.key(0), config=TINY)


@pytest.mark.parametrize(
    "change",
    [
        dict(loss="triplet"),
        dict(init_temperature=0.0),
        dict(audio=dict(depths=(1,))),
        dict(text=dict(num_heads=3)),
        dict(text=dict(max_tokens=2)),
        dict(dtype="float8"),
        dict(hop_sec=0.0),
        dict(mel=dict(num_mels=0)),
        dict(spec_augment=dict(max_mel_bins=-1)),
    ],
)
def test_nonsense_is_refused(change):
    with pytest.raises(UserError):
        nested = {k: dataclasses.replace(getattr(TINY, k), **v) if isinstance(v, dict) else v for k, v in change.items()}
        dataclasses.replace(TINY, **nested)
