"""Conformer blocks: NumPy parity of the parts, symmetry, slicing of stacks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.nn.conformer import ConformerStack, ConvModule, DepthwiseConv

SIZES = dict(num_heads=2, mlp_dim=13, conv_kernel=5)


def inputs(shape=(2, 11, 6)):
    return jax.random.normal(jax.random.key(0), shape)


def init(module, x):
    return nn.unbox(jax.jit(module.init)(jax.random.key(1), x))


def test_depthwise_convolution_is_one_correlation_per_channel():
    x = inputs()
    conv = DepthwiseConv(5)
    params = init(conv, x)
    y = conv.apply(params, x)
    kernel = np.asarray(params["params"]["kernel"])
    for b in range(2):
        for d in range(6):
            np.testing.assert_allclose(y[b, :, d], np.correlate(np.asarray(x)[b, :, d], kernel[:, d], mode="same"), atol=1e-6)


def test_conv_module_reaches_two_frames_to_each_side():
    x = inputs()
    module = ConvModule(5)
    params = init(module, x)
    reach = jnp.abs(jax.jit(jax.grad(lambda x: module.apply(params, x)[0, 5].sum()))(x)[0]).sum(-1) > 0
    np.testing.assert_array_equal(np.flatnonzero(reach), [3, 4, 5, 6, 7])


def test_every_block_sees_the_whole_clip_and_only_its_own():
    x = inputs()
    stack = ConformerStack(1, **SIZES)
    params = init(stack, x)
    reach = jnp.abs(jax.jit(jax.grad(lambda x: stack.apply(params, x)[0, 5, 0]))(x)).sum(-1) > 0
    np.testing.assert_array_equal(reach, [[True] * 11, [False] * 11])


def test_the_first_layers_of_a_stack_are_a_stack():
    x = inputs()
    params = init(ConformerStack(3, **SIZES), x)["params"]
    y = x
    for i in range(3):
        layer = {**params, "blocks": jax.tree.map(lambda p, i=i: p[i : i + 1], params["blocks"])}
        y = ConformerStack(1, **SIZES).apply({"params": layer}, y)
    np.testing.assert_allclose(ConformerStack(3, **SIZES).apply({"params": params}, x), y, atol=1e-5)


def test_a_fresh_stack_is_close_to_the_identity():
    x = inputs((2, 11, 16))
    stack = ConformerStack(6, **SIZES)
    y = stack.apply(init(stack, x), x)
    normed = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    assert jnp.mean(jnp.square(y - normed)) < 0.1


def test_remat_changes_no_gradient():
    x = inputs()
    params = init(ConformerStack(2, **SIZES), x)

    def gradient(remat):
        stack = ConformerStack(2, remat=remat, **SIZES)
        return jax.jit(jax.grad(lambda params: jnp.sum(stack.apply(params, x)[..., 0] ** 2)))(params)

    grads = gradient("none"), gradient("full")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), *grads)


def test_parameters_carry_names_and_the_layer_axis():
    boxes = jax.eval_shape(ConformerStack(3, **SIZES).init, jax.random.key(1), inputs())["params"]
    assert boxes["blocks"]["block"]["mlp_in"]["up"]["kernel"].names == ("layers", "embed", "mlp")
    assert boxes["blocks"]["block"]["mlp_in"]["up"]["kernel"].unbox().shape == (3, 6, 13)


def test_bfloat16_stays_close():
    x = inputs()
    params = init(ConformerStack(2, **SIZES), x)
    low = ConformerStack(2, dtype=jnp.bfloat16, **SIZES).apply(params, x)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), ConformerStack(2, **SIZES).apply(params, x), atol=0.1)


def test_the_shortest_clip():
    x = inputs((1, 1, 6))
    stack = ConformerStack(1, **SIZES)
    assert np.isfinite(stack.apply(init(stack, x), x)).all()
