"""Names of all axes of a stage's parameters, by which T5X splits them over devices and factors Adafactor's moments.

T5X requires a name for every axis. Those that we name have T5X's names; the others, which no device mesh splits, are named here. "stack" enumerates what
T5X has as separate parameters (queries, keys and values; the two kernels of a gated layer), and "relpos_buckets" are those of a bias. T5X knows both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.core import meta
from flax.linen.partitioning import AxisMetadata

# The axis of an embedding's V + 1 rows. It is not split: V + 1 is odd where V is even, and with rows of padding Adafactor, which scales by a parameter's
# root mean square, would train another model.
IDS = "ids"
# The segments of the keys, in the table of `models.stage.TimeBias`.
SEGMENTS = "segments"
# The last axes without a name of ours.
_UNNAMED = {"qkv_kernel": ("stack",), "in_kernel": ("stack",), "table": (SEGMENTS, "relpos_buckets")}


def params_axes(boxed: Mapping[str, Any]) -> dict[str, Any]:
    """T5X's collection "params_axes" of boxed parameters (`models.stage.init`): {NAME + "_axes": the names of its axes}.

    Raises:
        ValueError: a parameter has no box, or an axis without a name.
    """
    named = jax.tree_util.tree_map_with_path(_names, boxed, is_leaf=lambda leaf: isinstance(leaf, meta.AxisMetadata))
    return _suffixed(named)


def logical_axis_rules() -> tuple[tuple[str, str | None], ...]:
    """Rules to add to T5X's `standard_logical_axis_rules`."""
    return ((IDS, None), (SEGMENTS, None))


def logical_factor_rules() -> dict[str, Any]:
    """T5X's rules by which Adafactor factors moments, with ours. Factored are the same axes of the same parameters as in `training/adafactor.py`."""
    from t5x import adafactor

    return {**adafactor.standard_logical_factor_rules(), IDS: adafactor.FactorDim.COLUMN, SEGMENTS: adafactor.FactorDim.NONE}


def _names(path: tuple[Any, ...], leaf: Any) -> AxisMetadata:
    *_, name = (key.key for key in path)
    if not isinstance(leaf, nn.LogicallyPartitioned):
        raise ValueError(f"{jax.tree_util.keystr(path)} has no axis names")
    names, unnamed = list(leaf.names), [i for i, axis in enumerate(leaf.names) if axis is None]
    for i, axis in zip(reversed(unnamed), reversed(_UNNAMED.get(name, ()))):
        names[i] = axis
    if None in names:
        raise ValueError(f"{jax.tree_util.keystr(path)} has the axes {names}: name all of them")
    return AxisMetadata(names=tuple(IDS if name == "embedding" and axis == "vocab" else axis for axis in names))


def _suffixed(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name if isinstance(value, Mapping) else f"{name}_axes": _suffixed(value) if isinstance(value, Mapping) else value for name, value in tree.items()}
