import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.nn.attention import KVCache, SelfAttention, _qkv_init, cached_attention, dot_product_attention, rotate


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_against_numpy():
    query, key, value, bias = random(0, 2, 3, 5, 7), random(1, 2, 3, 11, 7), random(2, 2, 3, 11, 7), random(3, 1, 3, 5, 11)
    mask = np.asarray(random(4, 2, 1, 5, 11) > 0)
    logits = 0.3 * np.einsum("bhtk,bhsk->bhts", query, key) + np.asarray(bias)
    weights = np.where(mask, np.exp(logits), 0)
    weights /= weights.sum(-1, keepdims=True)
    out = dot_product_attention(query, key, value, bias=bias, mask=jnp.asarray(mask), scale=0.3)
    np.testing.assert_allclose(out, np.einsum("bhts,bhsk->bhtk", weights, value), atol=1e-5)


@pytest.mark.parametrize("num_new", [1, 3])
@pytest.mark.parametrize("filler", [0.0, 1e4])
def test_cached_is_write_then_attend(num_new, filler):
    position, length = 5, 11
    query, key, value = (random(i, 2, 3, num_new, 7) for i in range(3))
    filled = jnp.arange(length)[:, None] < position
    cache = KVCache(*(jnp.where(filled, random(i, 2, 3, length, 7), filler) for i in (3, 4)))
    mask = (jnp.arange(length) <= position + jnp.arange(num_new)[:, None])[None, None]
    written = cache.write(key, value, jnp.int32(position))
    expected = dot_product_attention(
        query, written.key[:, :, : position + num_new], written.value[:, :, : position + num_new], mask=mask[..., : position + num_new], scale=1.0
    )
    out = cached_attention(query, key, value, cache, jnp.int32(position), mask=mask, scale=1.0)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("num_new", [1, 3])
def test_branches_attend_to_their_trunk(num_new):
    trunk = KVCache(*(random(i, 2, 3, 5, 7) for i in range(2)))
    query, key, value = (random(i, 8, 3, num_new, 7) for i in range(2, 5))
    bias = random(5, 1, 3, num_new, 11)
    own = KVCache(*(random(i, 8, 3, 6, 7) for i in (6, 7)))
    branched = trunk.branch(8).grow(11).write(own.key, own.value, jnp.int32(5))
    assert (trunk.branch(8).length, branched.start, branched.length) == (5, 5, 11)
    # The same with a copy of the trunk for each of its four branches.
    copied = KVCache(*(jnp.concatenate([jnp.repeat(x, 4, axis=0), y], axis=2) for x, y in ((trunk.key, own.key), (trunk.value, own.value))))
    attend = lambda cache: cached_attention(query, key, value, cache, jnp.int32(7), bias=bias, scale=0.5)  # noqa: E731
    np.testing.assert_allclose(attend(branched), attend(copied), atol=1e-5)
    written = [cache.write(key, value, jnp.int32(7)).key[:, :, -6:] for cache in (branched, copied)]
    np.testing.assert_array_equal(*written)
    with pytest.raises(ValueError, match="2 rows cannot branch into 5"):
        trunk.branch(5)
    with pytest.raises(ValueError, match="that branched before"):
        branched.branch(16)


@pytest.mark.parametrize("use_bias", [True, False])
def test_module_writes_what_it_attended_to(use_bias):
    attention = SelfAttention(num_heads=3, head_dim=5, use_bias=use_bias, logit_scale=None if use_bias else 1.0)
    x = random(0, 2, 7, 11)
    mask = jnp.tril(jnp.ones((7, 7), bool))[None, None]
    params = attention.init(jax.random.key(1), x)
    full, _ = attention.apply(params, x, mask=mask)
    cache = KVCache.zeros(batch=2, length=4, heads=3, head_dim=5)
    first, cache = attention.apply(params, x[:, :4], mask=mask[..., :4, :4], cache=cache)
    cache = cache.grow(7)
    second, cache = attention.apply(params, x[:, 4:], mask=mask[..., 4:, :], cache=cache, position=4)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), full, atol=1e-5)
    assert cache.length == 7


def test_rotary_products_depend_on_the_distance_alone():
    query, key = random(0, 2, 3, 1, 8), random(1, 2, 3, 1, 8)
    product = lambda p, q: jnp.sum(rotate(query, p, 50.0) * rotate(key, q, 50.0), axis=-1)  # noqa: E731
    np.testing.assert_allclose(product(17, 9), product(8, 0), atol=1e-4)
    assert jnp.abs(product(17, 9) - product(17, 10)).max() > 0.1
    np.testing.assert_allclose(rotate(query, 0, 50.0), query)
    np.testing.assert_allclose(rotate(query, 100, 50.0)[..., [3, 7]], query[..., [3, 7]], atol=1e-4)  # The slowest pair, two turns on.
    pair = rotate(jnp.concatenate([key, query], axis=2), 6, 50.0)
    np.testing.assert_allclose(pair[:, :, 1:], rotate(query, 7, 50.0), atol=1e-5)


def test_rotary_values_say_when_what_is_read_was():
    attention = lambda values: SelfAttention(num_heads=2, head_dim=8, rotary=50.0, rotary_values=values)  # noqa: E731
    x = random(0, 1, 7, 11)
    swapped = x[:, jnp.array([0, 4, 2, 3, 1, 5, 6])]
    params = nn.meta.unbox(attention(0.0).init(jax.random.key(1), x))
    params["params"]["qkv_kernel"] = params["params"]["qkv_kernel"].at[:, :2].set(0)  # all are read alike, whenever they were
    read = lambda values, x: attention(values).apply(params, x)[0][:, -1]  # noqa: E731
    np.testing.assert_allclose(read(0.0, swapped), read(0.0, x), atol=1e-6)
    assert jnp.abs(read(20.0, swapped) - read(20.0, x)).max() > 0.05
    alone = jnp.zeros((1, 7, 11)).at[:, 6].set(x[:, 6])  # distance 0 turns nothing
    np.testing.assert_allclose(read(20.0, alone), read(0.0, alone), atol=1e-6)


def test_rotation_of_the_faster_pairs_and_back():
    x = random(0, 1, 1, 5, 8)
    turned = rotate(x, 3, 32.0, limit=10.0)  # periods 4, 8, 16 and 32
    np.testing.assert_array_equal(turned[..., [2, 3, 6, 7]], x[..., [2, 3, 6, 7]])
    np.testing.assert_allclose(turned[..., [0, 1, 4, 5]], rotate(x, 3, 32.0)[..., [0, 1, 4, 5]])
    np.testing.assert_allclose(rotate(turned, 3, 32.0, limit=10.0, sign=-1), x, atol=1e-6)


def test_dropout_only_in_training_and_shared_by_queries():
    attention = SelfAttention(num_heads=2, head_dim=3, dropout=0.5)
    x = random(0, 1, 5, 7)
    params = attention.init(jax.random.key(1), x)
    still, _ = attention.apply(params, x)
    np.testing.assert_array_equal(attention.apply(params, x)[0], still)
    noisy, _ = attention.apply(params, x, train=True, rngs={"dropout": jax.random.key(2)})
    assert np.abs(noisy - still).max() > 1e-3


def test_t5_folds_the_scale_into_the_query_draw():
    shape = dict(num_heads=4, head_dim=16, use_bias=False)
    x = random(0, 1, 2, 64)
    scaled = SelfAttention(**shape).init(jax.random.key(1), x)["params"]["qkv_kernel"].unbox()
    folded = SelfAttention(**shape, logit_scale=1.0).init(jax.random.key(1), x)["params"]["qkv_kernel"].unbox()
    np.testing.assert_allclose(folded[:, 0] * 4, scaled[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(folded[:, 1:], scaled[:, 1:])


@pytest.mark.parametrize("head_dim", [1, 5, 64])
def test_queries_are_divided_and_nothing_else_changes(head_dim):
    shape = (7, 3, 2, 5)
    whole = lambda rng: jax.random.truncated_normal(rng, -2.0, 2.0, shape) * (7**-0.5 / 0.87962566103423978)  # noqa: E731
    draw = jax.jit(lambda rng: (_qkv_init(head_dim)(rng, shape), whole(rng).at[:, 0].divide(head_dim**0.5)))
    np.testing.assert_array_equal(*draw(jax.random.key(3)))
