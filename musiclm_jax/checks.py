"""What numbers and words of a config must be for anything to be made of it: said once, in the `__post_init__` of each config. No JAX here.

    check_numbers(self, dim=SIZE, dilations=SIZE, num_layers=DEPTH, dropout=SHARE)
    check_choices(self, dtype=DTYPES)

Types are checked as well: gin and Python give a config whatever a user wrote.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from musiclm_jax.errors import UserError

# (least, most). Where both are whole numbers, so must the value be. The most is far above what any model has: more would be refused by the first array that
# is made of it, in other words.
SIZE, COUNT = (1, 2**20), (0, 2**20)
# Layers and levels, each of which is a part of the program.
DEPTH, DEPTH_OR_NONE = (1, 1024), (0, 1024)
STEPS = (0, 2**31 - 1)
SEED = (0, 2**32 - 1)
# What float32 can multiply and divide by.
FINITE, POSITIVE, NOT_NEGATIVE, SHARE = (-1e30, 1e30), (1e-30, 1e30), (0.0, 1e30), (0.0, 1.0)
# A clip has days at most.
SECONDS = (1e-3, 1e6)

DTYPES = ("float32", "bfloat16")


def check_numbers(config: Any, **limits: tuple[float | int, float | int]) -> None:
    """Raises UserError unless each of these fields of `config` lies within its limits, (least, most).

    A field is a number; where it is declared as a tuple, a tuple or list of numbers, or of such.
    """
    types = {field.name: str(field.type) for field in dataclasses.fields(config)}
    for name, (least, most) in limits.items():
        kind = int if isinstance(least, int) else (int, float)
        value, many = getattr(config, name), types[name].startswith("tuple")
        numbers = _numbers(value) if many else [value]
        if isinstance(value, (list, tuple)) != many or not all(_lies(number, kind, least, most) for number in numbers):
            what = ("a list of whole numbers" if kind is int else "a list of numbers") if many else "a whole number" if kind is int else "a number"
            raise UserError(f"{name}={shown(value)}: choose {what} from " + (f"{least} to {most:,}" if kind is int else f"{least:g} to {most:g}"))


def check_choices(config: Any, **choices: Sequence[str]) -> None:
    """Raises UserError unless each of these fields of `config` is one of its choices."""
    for name, words in choices.items():
        if getattr(config, name) not in words:
            raise UserError(f"{name}={shown(getattr(config, name))}: choose {' or '.join(map(repr, words))}")


def shown(value: Any) -> str:
    """`value` on one line, cut where it is long."""
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
