"""How the activations of a program are split over devices, by logical names. The names have an effect only within `training.sharding.activate`."""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, PartitionSpec


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains how x is split: a logical name, or None, for each dimension.

    Without constraints XLA propagates the shardings of the parameters to the activations: with FSDP it would split activations by width, and reduce them
    in every layer, instead of gathering the weights.
    """
    spec = _spec(axes, x.shape)
    return x if spec is None else jax.lax.with_sharding_constraint(x, spec)


def by_example(function: Callable[..., jax.Array], x: jax.Array, *weights: jax.Array) -> jax.Array:
    """function(x, *weights), where each device computes the examples, on the leading axis of x, that it has.

    For FFTs and grouped convolutions: XLA would gather the whole batch on each device.
    """
    spec = _spec(("batch",), x.shape)
    if spec is None or spec == PartitionSpec(None):
        return function(x, *weights)
    return jax.shard_map(function, in_specs=(spec, *[PartitionSpec()] * len(weights)), out_specs=spec)(x, *weights)


def fit_spec(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """`spec` without the mesh axes that do not divide their dimension, which is replicated instead."""
    divides = lambda size, axis: axis is None or size % math.prod(mesh.shape[name] for name in np.atleast_1d(axis)) == 0  # noqa: E731
    return PartitionSpec(*(axis if divides(size, axis) else None for size, axis in zip(shape, spec, strict=False)))


def _spec(axes: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec | None:
    """The mesh axes of logical ones. None: outside of `training.sharding.activate`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not nn.get_logical_axis_rules():
        return None
    return fit_spec(nn.logical_to_mesh(PartitionSpec(*axes)), shape, mesh)
