"""w2v-BERT: frame counts, sizes, masks, and semantic tokens that depend on their clip alone."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.audio.features import LogMelConfig
from musiclm_jax.errors import UserError
from musiclm_jax.models import w2v_bert
from musiclm_jax.models.w2v_bert import GumbelQuantizer, W2vBert, W2vBertConfig, features, fit_kmeans, sample_mask, semantic_ids

TINY = W2vBertConfig(
    mel=LogMelConfig(num_mels=13, num_fft=1024),
    conv_channels=(2, 3),
    dim=6,
    num_heads=2,
    mlp_dim=11,
    num_contrastive_layers=1,
    num_masked_layers=3,
    feature_layer=2,
    num_codes=17,
    code_dim=5,
    num_clusters=7,
)


def waves(batch=3, samples=5 * 960, seed=0):
    return jax.random.normal(jax.random.key(seed), (batch, samples)) * jnp.linspace(0.01, 0.3, samples)


@pytest.fixture(scope="module")
def params():
    init = lambda rng: W2vBert(TINY).init(  # noqa: E731
        rng, jnp.zeros((1, 960)), mask=jnp.zeros((1, 1), bool), rng=rng, temperature=1.0, train=False
    )
    return nn.unbox(jax.jit(init)(jax.random.key(1)))["params"]


def frames(config, params):
    """Features [n, D] of three batches of waves."""
    return np.concatenate([features(config, params, waves(seed=s)).reshape(-1, config.dim) for s in range(3)])


@pytest.fixture(scope="module")
def variables(params):
    return {"params": params, **fit_kmeans(TINY, frames(TINY, params), rng=jax.random.key(3), num_iters=5)}


@pytest.mark.parametrize("samples", [1, 240, 959, 960, 961, 1919, 1921, 30 * 24_000 - 1, 30 * 24_000])
def test_one_frame_per_960_samples_rounded_up(params, samples):
    shape = jax.eval_shape(lambda w: features(TINY, params, w), jax.ShapeDtypeStruct((2, samples), jnp.float32))
    assert shape.shape == (2, -(-samples // 960), 6) and shape.dtype == jnp.float32


def test_thirty_seconds_are_750_tokens(variables):
    shape = jax.eval_shape(lambda w: semantic_ids(TINY, variables, w), jax.ShapeDtypeStruct((1, 720_000), jnp.float32))
    assert shape.shape == (1, 750) and shape.dtype == jnp.int32


def test_the_default_is_xl():
    config = W2vBertConfig()
    init = lambda rng: W2vBert(config).init(  # noqa: E731
        rng, jnp.zeros((1, 960)), mask=jnp.zeros((1, 1), bool), rng=rng, temperature=1.0, train=False
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, jax.random.key(0))))
    assert round(count / 1e9, 1) == 0.6


def test_features_end_at_the_named_layer(params):
    """Layer 2 of 3: the third block has no say (not even NaN), the second has."""

    def spoiled(layer):
        blocks = jax.tree.map(lambda p: p.at[layer].set(jnp.nan), params["masked"]["blocks"])
        return features(TINY, {**params, "masked": {**params["masked"], "blocks": blocks}}, waves())

    np.testing.assert_array_equal(spoiled(2), features(TINY, params, waves()))
    assert np.isnan(spoiled(1)).all()


def test_frame_t_is_centred_on_sample_960_t_whatever_the_length(params):
    """A click moves the convolution features of the frames near it, and the same ones when the clip is a frame longer."""

    def moved(samples):
        wave = jnp.zeros((1, samples))
        encode = jax.jit(lambda w: W2vBert(TINY).apply({"params": params}, w, method="_encode"))
        difference = jnp.abs(encode(wave.at[0, 10 * 960 + 480].set(1.0)) - encode(wave)).max(-1)[0]
        return np.flatnonzero(difference > 1e-4).tolist()

    frames = moved(20 * 960)
    assert frames in ([9, 10], [10], [10, 11], [9, 10, 11])
    assert frames == moved(20 * 960 + 240) == moved(20 * 960 + 480) == moved(20 * 960 + 720)


def test_tokens_of_a_clip_do_not_depend_on_its_batch_mates(variables):
    wave = waves()
    together = semantic_ids(TINY, variables, wave)
    alone = jnp.concatenate([semantic_ids(TINY, variables, wave[i : i + 1]) for i in range(3)])
    np.testing.assert_array_equal(together, alone)
    assert together.min() >= 0 and together.max() < 7


def test_fit_standardises_each_dimension(params, variables):
    x = frames(TINY, params)
    z = (x - variables["standardize"]["mean"]) @ variables["standardize"]["matrix"]
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(z.std(0), 1, atol=1e-4)
    # Each centroid is the mean of its frames, in standardised units.
    ids = np.asarray(semantic_ids(TINY, variables, waves(seed=0)))
    assert len(np.unique(ids)) > 1 and variables["kmeans"]["centroids"].shape == (7, 6)


def test_fit_whitens(params):
    config = dataclasses.replace(TINY, whiten=True)
    fitted = fit_kmeans(config, frames(config, params), rng=jax.random.key(3), num_iters=5)
    x = frames(config, params)
    z = (x - fitted["standardize"]["mean"]) @ fitted["standardize"]["matrix"]
    # The features come from a LayerNorm: one of six directions is empty.
    np.testing.assert_allclose(np.cov(z, rowvar=False), np.diag([0, 1, 1, 1, 1, 1]), atol=1e-3)


def test_fit_is_deterministic(params, variables):
    again = fit_kmeans(TINY, frames(TINY, params), rng=jax.random.key(3), num_iters=5)
    jax.tree.map(np.testing.assert_array_equal, again, {k: variables[k] for k in ("standardize", "kmeans")})


def test_masks_are_spans_at_the_expected_rate():
    mask = np.asarray(sample_mask(jax.random.key(0), (64, 997), start_rate=0.065, span=10))
    assert abs(mask[:, 10:].mean() - (1 - (1 - 0.065) ** 10)) < 0.01  # 49 %: the first frames have fewer starts before them.
    edges = np.diff(np.pad(mask.astype(int), ((0, 0), (1, 1))), axis=1)
    for row in edges[:5]:
        runs = np.flatnonzero(row == -1) - np.flatnonzero(row == 1)
        assert (runs[:-1] >= 10).all()  # The last may be cut by the end of the clip.


def test_masked_frames_are_noise_to_the_stacks_and_plain_to_the_quantizer(params):
    """With everything masked the predictions know nothing of the wave; the targets still do."""
    run = jax.jit(lambda wave, mask: W2vBert(TINY).apply({"params": params}, wave, mask=mask, rng=jax.random.key(5), temperature=1.0, train=False))
    a, b = (run(waves(2, seed=s), jnp.ones((2, 5), bool)) for s in (0, 1))
    np.testing.assert_array_equal(a.logits, b.logits)
    np.testing.assert_array_equal(a.context, b.context)
    assert not np.array_equal(a.code_probs, b.code_probs)
    c = run(waves(2, seed=0), jnp.zeros((2, 5), bool))
    np.testing.assert_array_equal(a.code_ids, c.code_ids)
    assert not np.array_equal(a.logits, c.logits)


@pytest.mark.parametrize("change", [dict(num_heads=4), dict(conv_kernel=4), dict(feature_layer=0), dict(feature_layer=4), dict(dtype="float16")])
def test_nonsense_is_named(change):
    with pytest.raises(UserError, match=next(iter(change))):
        dataclasses.replace(TINY, **change)


def test_subsampling_matches_the_semantic_rate():
    assert TINY.token_samples == 960 and w2v_bert.SUBSAMPLING == 4


@pytest.mark.parametrize("learn", [True, False])
def test_codes_are_learned_or_a_fixed_random_projection(learn):
    quantizer = GumbelQuantizer(num_codes=7, code_dim=5, learn_codes=learn)
    x = jax.random.normal(jax.random.key(0), (2, 11, 3))
    params = quantizer.init(jax.random.key(1), x, rng=jax.random.key(2), temperature=1.0)["params"]
    weights = jax.random.normal(jax.random.key(3), (2, 11, 5))
    loss = lambda params: jnp.sum(weights * quantizer.apply({"params": params}, x, rng=jax.random.key(2), temperature=1.0)[0])  # noqa: E731
    gradient = nn.meta.unbox(jax.grad(loss)(params))
    assert bool(jnp.any(gradient["logits"]["kernel"] != 0)) == learn
    assert bool(jnp.any(gradient["codes"] != 0))  # The vectors that the contrastive loss compares are always learned.
