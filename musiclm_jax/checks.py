"""Checks of numbers and choices in the `__post_init__` of configs. No JAX here.

    check_numbers(self, dim=SIZE, dilations=SIZE, num_layers=DEPTH, dropout=SHARE)
    check_choices(self, dtype=DTYPES)

Types are checked as well, because gin and Python pass arbitrary values of a user to a config.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from musiclm_jax.errors import UserError

# (least, most). If both are whole numbers, the value must be one as well. The largest values are far above those of any model; without these limits, JAX
# would reject them with less clear messages.
SIZE, COUNT = (1, 2**20), (0, 2**20)
# Layers and levels, each of which adds to a compiled program.
DEPTH, DEPTH_OR_NONE = (1, 1024), (0, 1024)
STEPS = (0, 2**31 - 1)
SEED = (0, 2**32 - 1)
# Limits within which float32 can multiply and divide.
FINITE, POSITIVE, NOT_NEGATIVE, SHARE = (-1e30, 1e30), (1e-30, 1e30), (0.0, 1e30), (0.0, 1.0)
# From a millisecond to days.
SECONDS = (1e-3, 1e6)

DTYPES = ("float32", "bfloat16")
# What the backward pass computes again: nothing, all but the results of matrix products and convolutions, or all but the inputs of each layer.
REMATS = ("none", "products", "full")


def check_numbers(config: Any, **limits: tuple[float | int, float | int]) -> None:
    """Raises UserError unless each of these fields of `config` is within its limits (least, most).

    A field is a number. If it is declared as a tuple, it is a tuple or list of numbers, or of such tuples.
    """
    types = {field.name: str(field.type) for field in dataclasses.fields(config)}
    for name, (least, most) in limits.items():
        kind = int if isinstance(least, int) else (int, float)
        value, many = getattr(config, name), types[name].startswith("tuple")
        numbers = _numbers(value) if many else [value]
        if isinstance(value, (list, tuple)) != many or not all(_lies(number, kind, least, most) for number in numbers):
            what = ("a list of whole numbers" if kind is int else "a list of numbers") if many else "a whole number" if kind is int else "a number"
            raise UserError(f"{name}={shown(value)}: choose {what} from " + (f"{least} to {most:,}" if kind is int else f"{least:g} to {most:g}"))


def check_choices(config: Any, **choices: Sequence[str | bool]) -> None:
    """Raises UserError unless each of these fields of `config` is one of its choices."""
    for name, words in choices.items():
        if getattr(config, name) not in words:
            raise UserError(f"{name}={shown(getattr(config, name))}: choose {' or '.join(map(repr, words))}")


def name_remat(config: Any) -> None:
    """Checks the field `remat` of a config. False and True, which older bundles and gin files have, become "none" and "full"."""
    if isinstance(config.remat, bool):
        object.__setattr__(config, "remat", "full" if config.remat else "none")
    check_choices(config, remat=REMATS)


def shown(value: Any) -> str:
    """`value` on one line, truncated if it is long."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lies(value: Any, kind: type | tuple[type, ...], least: float | int, most: float | int) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and least <= value <= most


def _numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _numbers(each)
    else:
        yield value
