"""The codec's convolutions, and encoder and decoder as wholes, against the same written with torch.nn.functional in float64.

Values and gradients: ours have an ELU with a slope of its own and a transposed convolution that is none.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.models.soundstream import SoundStream, SoundStreamConfig
from musiclm_jax.nn.conv import CausalConv, CausalConvTranspose, Conv2d, ResidualUnit

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.parity

TINY = SoundStreamConfig(channels=2, decoder_channels=4, strides=(2, 3), dim=5)


def random_params(module, *inputs, method=None, seed=1):
    """Every parameter at random, biases too, so that activations stay of order 1."""
    shapes = jax.eval_shape(lambda: nn.unbox(module.init(jax.random.key(0), *inputs, method=method)))["params"]
    rng = np.random.default_rng(seed)

    def draw(leaf):  # A kernel [k, D, F] or a bias [F].
        scale = 0.1 if len(leaf.shape) == 1 else np.prod(leaf.shape[:-1]) ** -0.5
        return (scale * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree.map(draw, shapes)


def tensors(params):
    return jax.tree.map(lambda leaf: torch.from_numpy(leaf).double().requires_grad_(), params)


# The codec in torch: signals are [B, D, T].


def causal_conv(x, params, *, stride=1, dilation=1, activate=False):
    kernel = params["kernel"].permute(2, 1, 0)  # [k, D, F] -> [F, D, k]
    x = torch.nn.functional.elu(x) if activate else x
    x = torch.nn.functional.pad(x, (dilation * (kernel.shape[-1] - 1) + 1 - stride, 0))
    return torch.nn.functional.conv1d(x, kernel, params["bias"], stride=stride, dilation=dilation)


def causal_conv_transpose(x, params, *, stride, activate=False):
    # Ours is a causal convolution of kernel 2 to stride * F channels: tap 1 meets the newest input, so it holds the first outputs.
    kernel = params["conv"]["kernel"]
    kernel = kernel.flip(0).reshape(2, kernel.shape[1], stride, -1)  # [2, D, s * F] -> [2, D, s, F]
    kernel = kernel.permute(1, 3, 0, 2).flatten(2)  # -> [D, F, 2 * s]
    x = torch.nn.functional.elu(x) if activate else x
    return torch.nn.functional.conv_transpose1d(x, kernel, params["bias"], stride=stride)[..., : x.shape[-1] * stride]


def residual_unit(x, params, *, dilation):
    h = causal_conv(x, params["dilated"], dilation=dilation, activate=True)
    return x + causal_conv(h, params["pointwise"], activate=True)


def encoder(x, params, config):
    x, units = causal_conv(x, params["CausalConv_0"]), 0
    for i, stride in enumerate(config.strides, start=1):
        for dilation in config.dilations:
            x, units = residual_unit(x, params[f"ResidualUnit_{units}"], dilation=dilation), units + 1
        x = causal_conv(x, params[f"CausalConv_{i}"], stride=stride, activate=True)
    return causal_conv(x, params[f"CausalConv_{len(config.strides) + 1}"], activate=True)


def decoder(x, params, config):
    x, units = causal_conv(x, params["CausalConv_0"]), 0
    for i, stride in enumerate(reversed(config.strides)):
        x = causal_conv_transpose(x, params[f"CausalConvTranspose_{i}"], stride=stride, activate=True)
        for dilation in config.dilations:
            x, units = residual_unit(x, params[f"ResidualUnit_{units}"], dilation=dilation), units + 1
    return causal_conv(x, params["CausalConv_1"], activate=True)


def same_with_gradients(ours, theirs, params, x):
    """ours(params, x [B, T, D]) and theirs(x [B, D, T], params): outputs, and the slopes of a random projection of them, 1e-4."""
    y = jax.jit(ours)(params, x)
    projection = np.random.default_rng(2).standard_normal(y.shape).astype(np.float32) / np.sqrt(y.size)
    slopes = jax.jit(jax.grad(lambda params, x: jnp.sum(ours(params, x) * projection), argnums=(0, 1)))(params, x)
    torch_params, torch_x = tensors(params), torch.from_numpy(x).double().requires_grad_()
    torch_y = theirs(torch_x.transpose(1, 2), torch_params).transpose(1, 2)
    (torch_y * torch.from_numpy(projection)).sum().backward()
    assert 0.1 < np.std(y) < 10  # Else the tolerance would mean nothing.
    np.testing.assert_allclose(y, torch_y.detach().numpy(), atol=1e-4, rtol=0)
    expected = jax.tree.map(lambda leaf: leaf.grad.numpy(), (torch_params, torch_x))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4, rtol=0), slopes, expected)


@pytest.mark.parametrize(
    ("layer", "theirs"),
    [
        pytest.param(CausalConv(5, 7), causal_conv, id="convolution"),
        pytest.param(CausalConv(5, 3, dilation=9, activate=True), functools.partial(causal_conv, dilation=9, activate=True), id="dilated"),
        pytest.param(CausalConv(5, 8, stride=4), functools.partial(causal_conv, stride=4), id="strided"),
        pytest.param(CausalConvTranspose(5, 3, activate=True), functools.partial(causal_conv_transpose, stride=3, activate=True), id="transposed"),
        pytest.param(ResidualUnit(3), functools.partial(residual_unit, dilation=3), id="residual unit"),
    ],
)
def test_layers_are_torchs(layer, theirs):
    x = np.random.default_rng(0).standard_normal((2, 24, 4)).astype(np.float32)
    same_with_gradients(lambda params, x: layer.apply({"params": params}, x)[0], theirs, random_params(layer, jnp.asarray(x)), x)


@pytest.mark.parametrize("frames, config", [pytest.param(7, TINY, id="tiny"), pytest.param(3, SoundStreamConfig(), id="the paper's")])
def test_encoder_is_the_same_in_torch(frames, config):
    model, x = SoundStream(config), np.random.default_rng(0).standard_normal((2, frames * config.frame_samples, 1)).astype(np.float32)
    ours = lambda params, x: model.apply({"params": params}, x[..., 0], method="encode")  # noqa: E731
    params = random_params(model, jnp.asarray(x[..., 0]), method="encode")
    same_with_gradients(ours, lambda x, params: encoder(x, params["encoder"], config), params, x)


@pytest.mark.parametrize("frames, config", [pytest.param(7, TINY, id="tiny"), pytest.param(3, SoundStreamConfig(), id="the paper's")])
def test_decoder_is_the_same_in_torch(frames, config):
    model, x = SoundStream(config), np.random.default_rng(0).standard_normal((2, frames, config.dim)).astype(np.float32)
    ours = lambda params, x: model.apply({"params": params}, x, method="decode")[..., None]  # noqa: E731
    params = random_params(model, jnp.asarray(x), method="decode")
    same_with_gradients(ours, lambda x, params: decoder(x, params["decoder"], config), params, x)


def test_weight_norm_of_the_discriminators():
    """A grouped, strided convolution with torch's weight normalization: its values, and its gradients by direction, length, bias and input."""
    ours = Conv2d(6, (3, 5), strides=(1, 2), padding="VALID", groups=2, weight_norm=True)
    x, direction = np.random.default_rng(0).standard_normal((2, 2, 7, 11, 4)).astype(np.float32)
    params = random_params(ours, jnp.asarray(x))
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(4, 6, (3, 5), stride=(1, 2), groups=2).double())
    length, kernel = theirs.parametrizations.weight.original0, theirs.parametrizations.weight.original1
    with torch.no_grad():
        length.copy_(torch.from_numpy(params["scale"]).reshape(6, 1, 1, 1))
        kernel.copy_(torch.from_numpy(params["kernel"]).permute(3, 2, 0, 1))  # [h, w, D, F] -> [F, D, h, w]
        theirs.bias.copy_(torch.from_numpy(params["bias"]))
    inputs = torch.from_numpy(x).double().requires_grad_()
    expected = theirs(inputs.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    direction = direction[:, : expected.shape[1], : expected.shape[2], :1] * np.arange(1, 7, dtype=np.float32)
    (expected * torch.from_numpy(direction)).sum().backward()

    def run(params, x):
        y = ours.apply({"params": params}, x)
        return jnp.sum(y * direction), y

    (grads, slope), y = jax.grad(run, argnums=(0, 1), has_aux=True)(params, jnp.asarray(x))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(y, expected.detach())
    close(slope, inputs.grad)
    close(grads["scale"], length.grad.reshape(6))
    close(grads["kernel"], kernel.grad.permute(2, 3, 1, 0))
    close(grads["bias"], theirs.bias.grad)
    assert kernel.grad.abs().amax() > 0.1
