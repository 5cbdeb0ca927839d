import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.errors import UserError
from musiclm_jax.models import codec
from musiclm_jax.models.soundstream import SoundStream, SoundStreamConfig
from musiclm_jax.nn.quantize import RVQConfig, RVQState, quantize_train, rvq_decode

TINY = SoundStreamConfig(channels=2, decoder_channels=4, strides=(2, 3), dim=5, num_levels=3, num_codes=7)


def variables(config=TINY):
    import flax.linen as nn

    params = nn.meta.unbox(SoundStream(config).init(jax.random.key(0), jnp.zeros((1, 12)))["params"])
    codebooks = jax.random.normal(jax.random.key(1), (config.num_levels, config.num_codes, config.dim))
    return {"params": params, "quantizer": {"codebooks": codebooks}}


def wave(samples=66, batch=2):
    return 0.3 * jax.random.normal(jax.random.key(2), (batch, samples))


@pytest.mark.parametrize("encoder, decoder, millions", [(32, 32, 8.4), (16, 16, 2.4), (16, 32, 5.5), (8, 32, 4.8), (32, 16, 5.3), (32, 8, 4.4)])
def test_parameter_counts_are_those_of_table_1(encoder, decoder, millions):
    config = SoundStreamConfig(channels=encoder, decoder_channels=decoder, strides=(2, 4, 5, 8))
    shapes = jax.eval_shape(SoundStream(config).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 640), jnp.float32))
    # 5.548 M at (16, 32), where the table says 5.5.
    assert abs(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 - millions) < 0.051


def test_growth_is_that_of_the_width_per_block():
    config = SoundStreamConfig(channels=2, decoder_channels=4, growth=3, strides=(2, 3), dim=5)
    params = variables(config)["params"]
    widths = [params["encoder"][f"CausalConv_{i}"]["kernel"].shape[-1] for i in range(4)]
    assert widths == [2, 6, 18, 5]
    assert params["decoder"]["CausalConv_0"]["kernel"].shape[-1] == 36 and params["decoder"]["CausalConv_1"]["kernel"].shape[-2] == 4


def test_default_is_musiclms_codec():
    config = SoundStreamConfig()
    assert config.frame_samples == 480
    shapes = jax.eval_shape(lambda w: SoundStream(config).init_with_output(jax.random.key(0), w, method="encode")[0], jnp.zeros((2, 72_001)))
    assert shapes.shape == (2, 151, 256)


def test_lengths():
    v = variables()
    for samples, frames in ((1, 1), (6, 1), (7, 2), (66, 11)):
        codes = codec.encode(TINY, v, wave(samples))
        assert codes.shape == (2, frames, 3) and codes.dtype == jnp.int32
        assert codec.decode(TINY, v, codes).shape == (2, 6 * frames)


def test_padding_to_whole_frames_is_zeros():
    v = variables()
    np.testing.assert_array_equal(codec.encode(TINY, v, wave(64)), codec.encode(TINY, v, jnp.pad(wave(64), ((0, 0), (0, 2)))))


def test_encoder_and_decoder_are_causal():
    v, x = variables(), wave(60, batch=1)
    model = SoundStream(TINY).bind({"params": v["params"]})
    latents = model.encode(x)
    for t in (0, 4, 8):
        slope = jax.grad(lambda x, t=t: jnp.sum(model.encode(x)[:, t]))(x)[0]
        assert np.flatnonzero(np.asarray(slope)).max() == 6 * t + 5
        slope = jax.grad(lambda z, t=t: jnp.sum(model.decode(z)[:, 6 * t : 6 * t + 6]))(latents)[0]
        assert np.flatnonzero(np.any(np.asarray(slope) != 0, axis=-1)).max() == t


def test_gradient_reaches_every_parameter():
    v = variables()
    grads = jax.grad(lambda p: jnp.sum(jnp.square(SoundStream(TINY).apply({"params": p}, wave()))))(v["params"])
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert jnp.any(grad != 0), jax.tree_util.keystr(path)


def test_commitment_of_every_level_reaches_the_encoder():
    v, x, levels = variables(), wave(), TINY.num_levels
    codebooks = v["quantizer"]["codebooks"]
    state = RVQState(codebooks, codebooks, jnp.ones(codebooks.shape[:2]), jnp.ones((), bool))

    def encode(params):
        return SoundStream(TINY).apply({"params": params}, x, method="encode")

    @jax.jit
    @jax.grad
    def slope(params, used):
        return quantize_train(encode(params), state, RVQConfig(), num_levels=jnp.full(len(x), used), rng=jax.random.key(3))[2]

    pull_back = jax.jit(lambda params, slope: jax.vjp(encode, params)[1](slope)[0])
    latents, codes = encode(v["params"]), codec.encode(TINY, v, x)
    of_levels = [slope(v["params"], used)["encoder"] for used in range(levels + 1)]  # Of none, the first, the first two, ...
    for q in range(1, levels + 1):
        # The mean over frames, widths and levels of the squares of what level q leaves over: so much of it is due to each parameter.
        residual = latents - rvq_decode(codebooks, codes[..., :q])
        expected = pull_back(v["params"], 2 * residual / (residual.size * levels))["encoder"]
        for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
            assert jnp.any(leaf != 0), (q, jax.tree_util.keystr(path))
        of_level = jax.tree.map(jnp.subtract, of_levels[q], of_levels[q - 1])
        jax.tree.map(lambda ours, leaf: np.testing.assert_allclose(ours, leaf, atol=1e-5), of_level, expected)


@pytest.mark.parametrize("chunks", [(11,), (1,) * 11, (2, 3, 5, 1)])
def test_streaming_is_offline(chunks):
    v = variables()
    codes = codec.encode(TINY, v, wave())
    offline = codec.decode(TINY, v, codes)
    carry, parts, start = codec.init_stream(TINY, v, 2), [], 0
    for size in chunks:
        part, carry = codec.decode_stream(TINY, v, codes[:, start : start + size], carry)
        assert part.shape == (2, 6 * size)
        parts.append(part)
        start += size
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), offline, atol=1e-5)


def test_fewer_levels_decode_too():
    v = variables()
    codes = codec.encode(TINY, v, wave())
    assert codec.decode(TINY, v, codes[..., :1]).shape == (2, 66)


def test_bfloat16_computes_close_to_float32():
    import dataclasses

    v = variables()
    exact = SoundStream(TINY).apply({"params": v["params"]}, wave())
    coarse = SoundStream(dataclasses.replace(TINY, dtype="bfloat16")).apply({"params": v["params"]}, wave())
    assert coarse.dtype == jnp.float32
    np.testing.assert_allclose(coarse, exact, atol=0.05 * float(jnp.max(jnp.abs(exact))) + 1e-3)


def test_nonsense_is_refused():
    with pytest.raises(UserError, match="channels=3"):
        SoundStreamConfig(channels=3)
    with pytest.raises(UserError, match="strides"):
        SoundStreamConfig(strides=())
