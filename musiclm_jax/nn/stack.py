"""Layers of one kind, one after the other, as a scan over stacked parameters: compile time and sharding do not depend on the depth."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

# Names under which stacks stand in a model. Parameters below one of them have a leading axis L, which the optimizer reads off these names.
STACKS = ("layers", "blocks")


def stacked(layer: type[nn.Module], num_layers: int, *, name: str, remat: bool = False, **fields: Any) -> nn.Module:
    """`num_layers` of `layer(**fields)`, as a module that is called like one of them: (x, *shared) -> (x, what each layer returns beside x, stacked).

    A function, for use inside a compact module: it adds no level to the parameter tree.

    Args:
        name: one of STACKS.
        remat: recompute each layer in the backward pass: about a third more time, memory for one layer's activations instead of all.
    """
    if name not in STACKS:
        raise ValueError(f"a stack named {name!r}: expected one of {STACKS}, by which the optimizer knows stacked parameters")
    scan = nn.scan(
        # Inside a scan XLA cannot merge the recomputed layer with the first computation, so nothing has to keep it from that.
        nn.remat(layer, prevent_cse=False) if remat else layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scan(**fields, name=name)
