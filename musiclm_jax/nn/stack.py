"""Stacks of equal layers as a scan over stacked parameters: compile time and sharding do not depend on the depth."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

# The allowed names of stacks in a model. Parameters below such a name have a leading axis L, and the optimizer recognizes them by the name.
STACKS = ("layers", "blocks")
# What the backward pass finds saved of a layer, by the value of `remat`.
_SAVED = {True: None, "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def stacked(layer: type[nn.Module], num_layers: int, *, name: str, remat: bool | str = False, **fields: Any) -> nn.Module:
    """A stack of `num_layers` layers `layer(**fields)` as one module, called like one layer: (x, *shared) -> (x, the layers' second results, stacked).

    For use inside a compact module. The stack adds one level, `name`, to the parameter tree.

    Args:
        layer: a module called as (x, *shared) -> (x, second result).
        name: one of STACKS.
        remat: recompute each layer in the backward pass, which takes about a third more time, and memory for the activations of one layer only.
            "products": recompute all but the matrix products.

    Raises:
        ValueError: `name` is not one of STACKS.
    """
    if name not in STACKS:
        raise ValueError(f"a stack named {name!r}: expected one of {STACKS}, by which the optimizer recognizes stacked parameters")
    scan = nn.scan(
        # prevent_cse is not needed inside a scan: XLA cannot merge the recomputation with the first computation there.
        layer if not remat else nn.remat(layer, prevent_cse=False, policy=_SAVED[remat]),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scan(**fields, name=name)
