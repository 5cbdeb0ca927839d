import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.errors import UserError
from musiclm_jax.models.discriminators import DiscriminatorConfig, Discriminators

TINY = DiscriminatorConfig(wave_scales=2, wave_channels=4, wave_max_channels=16, stft_channels=2, stft_window_samples=128, stft_hop_samples=32)


def wave(samples=1024, batch=2):
    return 0.3 * jax.random.normal(jax.random.key(1), (batch, samples))


def test_shapes():
    outputs, _ = jax.eval_shape(Discriminators(TINY).init_with_output, jax.random.key(0), wave())
    shapes = [[a.shape for a in one] for one in outputs]
    assert shapes[0] == [(2, 1, 1024, 4), (2, 1, 256, 16), (2, 1, 64, 16), (2, 1, 16, 16), (2, 1, 4, 16), (2, 1, 4, 16), (2, 1, 4, 1)]
    assert shapes[1][-1] == (2, 1, 2, 1)  # Half the rate.
    assert shapes[2] == [
        (2, 32, 64, 2), (2, 32, 32, 4), (2, 16, 16, 8), (2, 16, 8, 8), (2, 8, 4, 16), (2, 8, 2, 16), (2, 4, 1, 32), (2, 4, 1, 1),
    ]  # fmt: skip


def test_paper_shapes():
    def logits(wave):
        return [one[-1] for one in Discriminators(DiscriminatorConfig()).init_with_output(jax.random.key(0), wave)[0]]

    shapes = [x.shape for x in jax.eval_shape(logits, jax.ShapeDtypeStruct((1, 24_576), jnp.float32))]
    # Waves at 1, 1/2, 1/4 of the rate over 256; 24576 / 256 STFT frames over 8.
    assert shapes == [(1, 1, 96, 1), (1, 1, 48, 1), (1, 1, 24, 1), (1, 12, 1, 1)]


def test_gradients_reach_every_parameter_and_the_wave_and_are_finite_at_silence():
    def total(params, x):
        return sum(jnp.sum(jnp.square(one[-1])) for one in Discriminators(TINY).apply(params, x))

    params = jax.jit(Discriminators(TINY).init)(jax.random.key(0), wave())
    gradient = jax.jit(jax.grad(total, argnums=(0, 1)))
    grads, slope = gradient(params, wave())
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert jnp.any(grad != 0), jax.tree_util.keystr(path)
    # Leave out the right edge, which the last strides do not reach.
    assert np.all(np.asarray(slope)[:, :960] != 0)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient(params, jnp.zeros_like(wave()))))


@pytest.mark.parametrize("config, count", [(DiscriminatorConfig(wave_scales=0, stft_channels=2), 1), (DiscriminatorConfig(wave_scales=1, stft_channels=0), 1)])
def test_either_kind_may_be_left_out(config, count):
    outputs = jax.eval_shape(lambda x: Discriminators(config).init_with_output(jax.random.key(0), x)[0], wave(4096))
    assert len(outputs) == count


def test_nonsense_is_refused():
    with pytest.raises(UserError, match="no discriminator"):
        DiscriminatorConfig(wave_scales=0, stft_channels=0)
    with pytest.raises(UserError, match="multiple of 128"):
        DiscriminatorConfig(stft_window_samples=1000)


def seen_by(layers, position):
    """First and last input that output `position` of a stack of "SAME" convolutions, (kernel, stride) each, depends on."""
    first = last = position
    for kernel, stride in reversed(layers):
        left = (kernel - stride) // 2  # Of the kernel - stride zeros of padding, the odd one goes to the right.
        first, last = first * stride - left, last * stride - left + kernel - 1
    return first, last


def test_receptive_fields_are_those_of_their_kernels():
    wave_layers = [(15, 1), *[(41, 4)] * 4, (5, 1), (3, 1)]
    spectrum_layers = [(7, 1), *(layer for stride in (1, 2) * 3 for layer in ((3, 1), (stride + 2, stride)))]
    model, x = Discriminators(TINY), wave(16_384, batch=1)
    params = jax.jit(model.init)(jax.random.key(0), x)

    @jax.jit
    @jax.grad
    def slope(x, weights):  # Of the middle logit of each discriminator, weighted.
        logits = [one[-1].ravel() for one in model.apply(params, x)]
        assert [len(one) for one in logits] == [64, 32, 64]
        return sum(weight * one[len(one) // 2] for weight, one in zip(weights, logits))

    first, last = seen_by(spectrum_layers, 32)
    expected = [
        seen_by(wave_layers, 32),
        seen_by([(4, 2), *wave_layers], 16),  # Averages of four samples at half the rate.
        # Frames of 128 samples, 32 apart; the Hann window's first sample is 0.
        (32 * first + 1, 32 * last + 127),
    ]
    assert [last - first + 1 for first, last in expected[:2]] == [4951, 2 * 4950 + 4]
    for (first, last), weights in zip(expected, jnp.eye(3)):
        np.testing.assert_array_equal(np.flatnonzero(slope(x, weights)[0]), np.arange(first, last + 1))
