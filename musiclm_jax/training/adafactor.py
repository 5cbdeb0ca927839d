"""Adafactor (arXiv 1804.04235) with T5X's settings, for parameter trees in which one leaf may contain several of T5X's parameters.

Adafactor keeps statistics of each parameter: second moments of its rows and columns, its root mean square, which scales the update, and the root mean
square of the update, by which the update is clipped. Some of our leaves contain several of T5X's parameters: queries, keys and values; the two kernels of
a gated feed-forward layer; the layers of a stack. With common statistics, queries, which T5 initializes 1/8 as large as keys, would move 8 times as far
relative to their size. Every statistic here is therefore computed over one of T5X's parameters in T5X's shape, where heads and head width are one
dimension. Reduced axes are kept with length 1, so that a moment is sharded like its parameter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from musiclm_jax.nn.stack import STACKS

# For leaves that T5X stores in another form: the axes that make up each dimension of one T5X parameter, counted from the last. All other axes
# enumerate parameters.
_DIMENSIONS = {
    "qkv_kernel": ((-4,), (-2, -1)),  # [D, 3, H, K]
    "qkv_bias": ((-2, -1),),  # [3, H, K]
    "out_kernel": ((-3, -2), (-1,)),  # [H, K, D]
    "in_kernel": ((-3,), (-1,)),  # [D, 2, F]
}
# A parameter whose second largest dimension is smaller than this is not factored: it keeps a second moment for each element.
_MIN_FACTORED = 128
# Lower bound of the root mean square of a parameter, where it scales the update.
_MIN_SCALE = 1e-3


class AdafactorState(NamedTuple):
    """The optimizer's state.

    count: int32 scalar, steps taken. rows, columns: float32 trees with the structure of the parameters, the running means of the squared gradient over
    each row and each column of a parameter. For a parameter that is not factored, `rows` has one number per element and `columns` is 0.
    """

    count: Any
    rows: Any
    columns: Any


def scale_by_adafactor() -> optax.GradientTransformation:
    """Adafactor's update at a learning rate of 1, with T5X's second-moment decay of 1 - step^-0.8 and updates clipped to a root mean square of 1."""

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
    """The names of the modules in a leaf's path and of the leaf itself, without the attributes of flax's boxes."""
    return [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]


def _axes(path: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Returns the axes of a leaf that lie within one parameter, the axes of its rows and those of its columns; the last two are () if not factored."""
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
    """`jax.tree_util.tree_map_with_path` for a function that returns `count` leaves. Returns `count` trees."""
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    results = [function(path, leaf, *more) for (path, leaf), *more in zip(paths, *map(jax.tree.leaves, rest), strict=True)]
    return tuple(structure.unflatten(result[i] for result in results) for i in range(count))
