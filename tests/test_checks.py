"""What the checks of configs refuse, and that the message names the value."""

import dataclasses

import pytest

from musiclm_jax.checks import SHARE, SIZE, check_numbers, name_remat
from musiclm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 3
    widths: tuple[int, ...] = (3, 5)
    strides: tuple[tuple[int, int], ...] = ((1, 2),)
    share: float = 0.5

    def __post_init__(self):
        check_numbers(self, width=SIZE, widths=SIZE, strides=SIZE, share=SHARE)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("width", 0, "a whole number from 1 to 1,048,576"),
        ("width", 0.5, "a whole number from 1 to 1,048,576"),
        ("width", True, "a whole number from 1 to 1,048,576"),
        ("width", [], "a whole number from 1 to 1,048,576"),
        ("width", (3,), "a whole number from 1 to 1,048,576"),
        ("widths", 3, "a list of whole numbers from 1 to 1,048,576"),
        ("widths", (3, 0), "a list of whole numbers from 1 to 1,048,576"),
        ("strides", ((1, "x"),), "a list of whole numbers from 1 to 1,048,576"),
        ("share", [0.5], "a number from 0 to 1"),
        ("share", float("nan"), "a number from 0 to 1"),
        ("share", None, "a number from 0 to 1"),
    ],
)
def test_numbers(name, value, expected):
    with pytest.raises(UserError) as error:
        Config(**{name: value})
    assert str(error.value) == f"{name}={value!r}: choose {expected}"


def test_lists_and_tuples_are_taken():
    Config(widths=[3, 5], strides=[[1, 2], (3, 4)], share=0)


@dataclasses.dataclass(frozen=True)
class Recomputing:
    remat: bool | str = "none"

    def __post_init__(self):
        name_remat(self)


def test_older_configs_say_whether_to_recompute():
    assert [Recomputing(value).remat for value in (False, True, "products", "full")] == ["none", "full", "products", "full"]
    with pytest.raises(UserError, match="remat='dots': choose 'none' or 'products' or 'full'"):
        Recomputing("dots")
