import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.nn.conv import CausalConv, CausalConvTranspose, Conv2d, ResidualUnit, chain, elu

KEY = jax.random.key(0)


def signal(batch=2, length=24, width=3, seed=1):
    return jax.random.normal(jax.random.key(seed), (batch, length, width))


LAYERS = {
    "plain": CausalConv(5, 7),
    "dilated": CausalConv(5, 3, dilation=9, activate=True),
    "strided": CausalConv(5, 8, stride=4),
    "transposed": CausalConvTranspose(5, 3, activate=True),
    "residual": ResidualUnit(3),
}


def test_elu_and_its_slope():
    x = jnp.linspace(-20, 5, 101)
    np.testing.assert_allclose(elu(x), jax.nn.elu(x), atol=2e-7)
    np.testing.assert_allclose(jax.vmap(jax.grad(elu))(x), jax.vmap(jax.grad(jax.nn.elu))(x), atol=2e-7)


@pytest.mark.parametrize("kernel, stride, dilation", [(7, 1, 1), (3, 1, 5), (6, 3, 1)])
def test_causal_conv_is_its_sum(kernel, stride, dilation):
    x, layer = signal(), CausalConv(5, kernel, stride=stride, dilation=dilation)
    params = layer.init(KEY, x)
    weights = np.asarray(params["params"]["kernel"].unbox())
    reach = dilation * (kernel - 1) + 1 - stride
    padded = np.pad(np.asarray(x), ((0, 0), (reach, 0), (0, 0)))
    expected = np.zeros((2, 24 // stride, 5))
    for t in range(24 // stride):
        for k in range(kernel):
            expected[:, t] += padded[:, t * stride + k * dilation] @ weights[k]
    np.testing.assert_allclose(layer.apply(params, x)[0], expected, atol=1e-5)


def test_transposed_conv_is_an_overlap_add():
    x, stride = signal(length=7), 3
    layer = CausalConvTranspose(5, stride)
    params = layer.init(KEY, x)
    older, newer = np.asarray(params["params"]["conv"]["kernel"].unbox()).reshape(2, 3, stride, 5)  # [2, D, s * F] -> 2 x [D, s, F]
    kernel = np.concatenate([newer, older], axis=1)  # A kernel of 2 s outputs for each input, in time order.
    expected = np.zeros((2, (7 + 1) * stride, 5))
    for t in range(7):
        expected[:, t * stride : (t + 2) * stride] += np.einsum("bd,dsf->bsf", x[:, t], kernel)
    np.testing.assert_allclose(layer.apply(params, x)[0], expected[:, : 7 * stride], atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_output_depends_on_no_future_input(name):
    x, layer = signal(batch=1), LAYERS[name]
    params = layer.init(KEY, x)
    y = layer.apply(params, x)[0]
    inputs, outputs = x.shape[1], y.shape[1]
    for t in (0, outputs // 2, outputs - 2):
        slope = jax.grad(lambda x, t=t: jnp.sum(layer.apply(params, x)[0][:, t]))(x)
        last = np.flatnonzero(np.any(np.asarray(slope[0]) != 0, axis=-1)).max()
        # Positions of the output's own input block, and none beyond it.
        assert last == ((t + 1) * inputs - 1) // outputs if inputs >= outputs else last == t * inputs // outputs


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("chunk", [4, 8])
def test_chunks_are_the_whole(name, chunk):
    x, layer = signal(), LAYERS[name]
    params = layer.init(KEY, x)
    whole, _ = layer.apply(params, x)
    past, parts = None, []
    for start in range(0, 24, chunk):
        part, past = layer.apply(params, x[:, start : start + chunk], past)
        parts.append(part)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-5)


def test_chain_threads_one_past_for_each_layer():
    bound = [layer.bind(layer.init(KEY, signal(width=5))) for layer in (CausalConv(5, 7), ResidualUnit(3), CausalConv(2, 4, stride=2))]
    x = signal(width=5)
    whole, past = chain(bound, x)
    assert whole.shape == (2, 12, 2) and [one.shape for one in past] == [(2, 6, 5), (2, 18, 5), (2, 2, 5)]
    first, past = chain(bound, x[:, :10])
    second, _ = chain(bound, x[:, 10:], past)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-5)


def test_a_length_that_is_no_multiple_of_the_stride_is_refused():
    with pytest.raises(ValueError, match="multiple of stride=4"):
        CausalConv(5, 8, stride=4).init(KEY, signal(length=23))


def test_weight_norm_parts_a_kernels_direction_from_its_length():
    x, conv = jax.random.normal(KEY, (2, 3, 11, 4)), Conv2d(6, (2, 5), groups=2, weight_norm=True)
    params = nn.meta.unbox(conv.init(KEY, x)["params"])
    plain = Conv2d(6, (2, 5), groups=2)
    apply = lambda **changes: conv.apply({"params": {**params, **changes}}, x)  # noqa: E731
    fresh = plain.apply({"params": {name: params[name] for name in ("kernel", "bias")}}, x)
    np.testing.assert_allclose(apply(), fresh, atol=1e-6)  # It starts as the plain convolution.
    assert params["scale"].shape == (6,)
    stretch = jnp.array([0.1, 2, 3, 5, 7, 11])
    np.testing.assert_allclose(apply(kernel=stretch * params["kernel"]), apply(), atol=1e-5)
    np.testing.assert_allclose(apply(scale=stretch * params["scale"]), stretch * apply(), atol=1e-5)
    # Hence no gradient along the kernel itself, for any output.
    gradient = jax.grad(lambda kernel: jnp.sum(jnp.sin(apply(kernel=kernel))))(params["kernel"])
    np.testing.assert_allclose(jnp.sum(gradient * params["kernel"], axis=(0, 1, 2)), 0, atol=1e-4)
    assert jnp.all(jnp.max(jnp.abs(gradient), axis=(0, 1, 2)) > 0.1)
