"""Adafactor (arXiv 1804.04235) with T5X's settings, over leaves of which some are several of T5X's parameters side by side.

Adafactor treats a parameter as a whole: it scales the update by the root mean square of the parameter, clips it by its own, and keeps second moments
for its rows and columns. Our queries, keys and values are one leaf, so are the two kernels of a gated feed-forward, and the layers of a stack. Taken as
one, queries, which T5 draws 1/8 as large as keys, would move 8 times as far for their size. Here every statistic is of one of T5X's parameters, and
so is its shape: heads and their widths count as one dimension. Reduced axes stay, with length 1, so that a moment is sharded as its parameter is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from musiclm_jax.nn.stack import STACKS

# Of leaves that T5X has in another form: the axes that are one dimension of a T5X parameter, counted from the last. The axes between and before them
# number parameters.
_DIMENSIONS = {
    "qkv_kernel": ((-4,), (-2, -1)),  # [D, 3, H, K]
    "qkv_bias": ((-2, -1),),  # [3, H, K]
    "out_kernel": ((-3, -2), (-1,)),  # [H, K, D]
    "in_kernel": ((-3,), (-1,)),  # [D, 2, F]
}
# Where the second largest dimension of a parameter is smaller, it keeps a second moment for each number.
_MIN_FACTORED = 128
# What the root mean square of a parameter counts at least.
_MIN_SCALE = 1e-3


class AdafactorState(NamedTuple):
    """count: steps taken. rows, columns: of each leaf, running means of squared gradients, one for each row and for each column of its parameters; where
    they are not factored, `rows` has one for each number, and `columns` a single 0. Trees of the parameters' structure."""

    count: Any
    rows: Any
    columns: Any


def scale_by_adafactor() -> optax.GradientTransformation:
    """The gradient -> Adafactor's update at a learning rate of 1, with T5X's decay of 1 - step^-0.8 and clipping at 1."""

    def init(params):
        def moments(path, leaf):
            _, rows, columns = _axes(path, leaf.shape)
            return _zeros(leaf.shape, columns), _zeros(leaf.shape, rows or range(leaf.ndim))

        return AdafactorState(jnp.zeros((), jnp.int32), *_map_with_path(moments, 2, params))

    def update(grads, state, params):
        decay = 1 - (state.count + 1.0) ** -0.8

        def step(path, grad, row, column, param):
            own, rows, columns = _axes(path, grad.shape)
            square = jnp.square(grad) + 1e-30
            row = decay * row + (1 - decay) * jnp.mean(square, columns, keepdims=True)
            grad = grad * jax.lax.rsqrt(row / jnp.mean(row, rows, keepdims=True) if rows else row)
            if rows:
                column = decay * column + (1 - decay) * jnp.mean(square, rows, keepdims=True)
                grad = grad * jax.lax.rsqrt(column)
            rms = lambda x: jnp.sqrt(jnp.mean(jnp.square(x), own, keepdims=True))  # noqa: E731
            return grad / jnp.maximum(rms(grad), 1) * jnp.maximum(rms(param), _MIN_SCALE), row, column

        updates, rows, columns = _map_with_path(step, 3, grads, state.rows, state.columns, params)
        return updates, AdafactorState(optax.safe_increment(state.count), rows, columns)

    return optax.GradientTransformation(init, update)


def dict_names(path: tuple[Any, ...]) -> list[str]:
    """The names in the path of a leaf, those of modules and of the leaf, without the attributes of flax's boxes."""
    return [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]


def _axes(path: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The axes of a leaf that lie within one parameter, and which of them are its rows and its columns: () and () where it is not factored."""
    *above, name = ["", *dict_names(path)]
    if name in _DIMENSIONS:
        dimensions = [tuple(axis % len(shape) for axis in axes) for axes in _DIMENSIONS[name]]
    else:
        in_stack = any(module in STACKS for module in above)
        dimensions = [(axis,) for axis in range(int(in_stack), len(shape))]
    own = tuple(axis for axes in dimensions for axis in axes)
    size = lambda axes: math.prod(shape[axis] for axis in axes)  # noqa: E731
    largest = sorted(dimensions, key=size)[-2:]
    return (own, *largest) if len(largest) == 2 and size(largest[0]) >= _MIN_FACTORED else (own, (), ())


def _zeros(shape: tuple[int, ...], reduced: Iterable[int]) -> jax.Array:
    return jnp.zeros([1 if axis in reduced else size for axis, size in enumerate(shape)], jnp.float32)


def _map_with_path(function: Any, count: int, tree: Any, *rest: Any) -> tuple[Any, ...]:
    """`jax.tree_util.tree_map_with_path` of a function that returns `count` leaves, as so many trees."""
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    results = [function(path, leaf, *more) for (path, leaf), *more in zip(paths, *map(jax.tree.leaves, rest), strict=True)]
    return tuple(structure.unflatten(result[i] for result in results) for i in range(count))
