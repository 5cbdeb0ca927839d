"""Stacks of equal layers as a scan over stacked parameters: compile time and sharding do not depend on the depth."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

# The allowed names of stacks in a model. Parameters below such a name have a leading axis L, and the optimizer recognizes them by the name.
STACKS = ("layers", "blocks")


def _is_saved(primitive: Any, *avals: Any, **params: Any) -> bool:
    """Whether `remat="products"` saves the result of a primitive: of convolutions, of products with weights and of the fused attention kernel, but not
    attention's [T, S]."""
    if primitive.name == "conv_general_dilated" or "dot_product_attention" in primitive.name:
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *avals, **params)


def recomputed(layer: type[nn.Module], remat: str, *, in_scan: bool = False) -> type[nn.Module]:
    """A layer of which the backward pass recomputes what `remat`, one of `checks.REMATS`, does not save."""
    if remat == "none":
        return layer
    # prevent_cse is not needed inside a scan: XLA cannot merge the recomputation with the first computation there.
    return nn.remat(layer, prevent_cse=not in_scan, policy=_is_saved if remat == "products" else None)


def stacked(layer: type[nn.Module], num_layers: int, *, name: str, remat: str = "none", **fields: Any) -> nn.Module:
    """A stack of `num_layers` layers `layer(**fields)` as one module, called like one layer: (x, *shared) -> (x, the layers' second results, stacked).

    For use inside a compact module. The stack adds one level, `name`, to the parameter tree.

    Args:
        layer: a module called as (x, *shared) -> (x, second result).
        name: one of STACKS.
        remat: one of `checks.REMATS`. "full" takes about a third more time, and memory for the inputs of all layers and the activations of one.

    Raises:
        ValueError: `name` is not one of STACKS.
    """
    if name not in STACKS:
        raise ValueError(f"a stack named {name!r}: expected one of {STACKS}, by which the optimizer recognizes stacked parameters")
    scan = nn.scan(
        recomputed(layer, remat, in_scan=True),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scan(**fields, name=name)
