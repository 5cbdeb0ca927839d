from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.models.resnet import Block, ResNetConfig
from musiclm_jax.nn import stack
from musiclm_jax.nn.layers import Dense
from musiclm_jax.nn.stack import recomputed, stacked


class Layer(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, shift):
        y = nn.Dropout(0.5, deterministic=not self.has_rng("dropout"))(jnp.tanh(Dense(self.features, name="up")(x)))
        return x + Dense(x.shape[-1], ("mlp", "embed"), name="down")(y) + shift, y


class Model(nn.Module):
    remat: str = "none"

    @nn.compact
    def __call__(self, x, shift):
        return stacked(Layer, 3, name="layers", remat=self.remat, features=7)(x, shift)


X, SHIFT = jax.random.normal(jax.random.key(0), (2, 5)), jnp.float32(0.1)


def test_a_stack_is_its_layers_one_after_the_other():
    boxed = Model().init(jax.random.key(1), X, SHIFT)["params"]
    assert boxed["layers"]["up"]["kernel"].names == ("layers", "embed", "mlp") and boxed["layers"]["down"]["bias"].names == ("layers", "embed")
    params = nn.meta.unbox(boxed)
    assert params["layers"]["up"]["kernel"].shape == (3, 5, 7) and len(np.unique(params["layers"]["up"]["kernel"])) == 105
    out, inner = Model().apply({"params": params}, X, SHIFT)
    x = X
    for i in range(3):
        x, y = Layer(7).apply({"params": jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])}, x, SHIFT)
        np.testing.assert_allclose(inner[i], y, atol=1e-6)
    np.testing.assert_allclose(out, x, atol=1e-6)


def test_layers_drop_out_apart():
    params = Model().init(jax.random.key(1), X, SHIFT)
    dropped = Model().apply(params, X, SHIFT, rngs={"dropout": jax.random.key(2)})[1] == 0
    assert not np.array_equal(dropped[0], dropped[1]) and 0 < dropped.mean() < 1


def test_remat_recomputes_and_lets_xla_optimize_across_it():
    params = Model().init(jax.random.key(1), X, SHIFT)

    def gradient(remat):
        return jax.jit(jax.grad(lambda params: jnp.sum(Model(remat).apply(params, X, SHIFT)[0] ** 2)))

    plain, remat = (gradient(remat).lower(params).as_text() for remat in ("none", "full"))
    assert remat.count("tanh") > plain.count("tanh") and "optimization_barrier" not in remat
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradient("none")(params), gradient("full")(params))


def test_products_are_saved_and_what_follows_them_is_recomputed():
    block = lambda remat: recomputed(Block, remat)(ResNetConfig(bottleneck=False), 4, (1, 1))  # noqa: E731
    x = jnp.ones((2, 5, 7, 4))
    params = block("none").init(jax.random.key(0), x)

    def programs(remat):
        text = str(jax.make_jaxpr(jax.grad(lambda params: jnp.sum(block(remat).apply(params, x) ** 2)))(params))
        return text.count("conv_general_dilated["), text.count("rsqrt")

    none, products, full = map(programs, ("none", "products", "full"))
    assert none[0] == products[0] < full[0] and none[1] < products[1] == full[1]


def test_a_name_that_the_optimizer_does_not_know_is_refused():
    with pytest.raises(ValueError, match="a stack named 'tower'"):
        stacked(Layer, 3, name="tower", features=7)


def test_products_are_saved_and_so_is_the_fused_kernel():
    saved = lambda name: stack._is_saved(SimpleNamespace(name=name))  # noqa: E731
    assert saved("conv_general_dilated") and saved("dot_product_attention_fwd_wrapper") and not saved("tanh")
