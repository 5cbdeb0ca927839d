"""Dataclasses to JSON and back, with every wrong shape named in one line."""

import dataclasses
import enum
import json
from typing import Any, ClassVar, Protocol

import numpy as np
import pytest

from musiclm_jax.errors import UserError
from musiclm_jax.records import coerce, differences, from_dict, to_dict


class Mode(enum.StrEnum):
    FAST = "fast"
    SLOW = "slow"


@dataclasses.dataclass(frozen=True)
class Circle:
    kind: ClassVar[str] = "circle"
    radius: float = 1.0

    def __post_init__(self):
        if self.radius <= 0:
            raise ValueError(f"radius={self.radius}: choose one above 0")


@dataclasses.dataclass(frozen=True)
class Box:
    kind: ClassVar[str] = "box"
    sides: tuple[int, int] = (2, 3)

    def __post_init__(self):
        1 / self.sides[0]


@dataclasses.dataclass(frozen=True)
class Plain:
    name: str
    kind: str = "a field like others"


class Work(Protocol):
    pass


@dataclasses.dataclass(frozen=True)
class Leaf:
    pair: tuple[int, str] = (1, "a")
    nested: tuple[tuple[int, int], ...] = ((1, 2), (3, 4))
    maybe: float | None = None
    flag: bool = False
    count: int = 5
    seconds: float | int = 2.5
    label: int | str = 7
    mode: Mode = Mode.FAST
    shape: Circle | Box = Circle()
    no_shape: Circle | Box | None = None
    only: Circle = Circle()
    shapes: tuple[Circle | Box, ...] = (Box(), Circle(3.0))
    by_name: dict[str, Box] = dataclasses.field(default_factory=dict)
    anything: Any = None
    work: Work = Plain("p")
    shared: ClassVar[int] = 11
    derived: int = dataclasses.field(init=False, default=13)


def test_from_dict_restores_types():
    leaf = Leaf(maybe=2.0, shape=Box((5, 7)), no_shape=Circle(0.5), mode=Mode.SLOW, by_name={"a-b": Box((11, 13))})
    data = json.loads(json.dumps(to_dict(leaf)))
    assert from_dict(Leaf, data | {"work": None}) == dataclasses.replace(leaf, work=None)
    assert "shared" not in data and "derived" not in data and data["mode"] == "slow"
    assert list(data["shape"].items()) == [("kind", "box"), ("sides", [5, 7])]
    assert from_dict(Leaf, {"maybe": 3}) == Leaf(maybe=3.0) and isinstance(from_dict(Leaf, {"maybe": 3}).maybe, float)
    assert from_dict(Plain, {"name": "x", "kind": "y"}) == Plain("x", "y") and to_dict(Plain("x", "y")) == {"name": "x", "kind": "y"}


def test_a_missing_field_takes_its_default():
    assert from_dict(Leaf, {}) == Leaf()
    assert from_dict(Leaf, {"shape": {"kind": "box"}}).shape == Box()
    assert from_dict(Leaf, {"only": {}}).only == from_dict(Leaf, {"only": {"kind": "circle"}}).only == Circle()
    with pytest.raises(UserError, match="^config lacks name of Plain: "):
        from_dict(Plain, {})


def test_numbers_have_one_form():
    seconds, count = (from_dict(Leaf, {"seconds": 3}).seconds, from_dict(Leaf, {"count": 3}).count)
    assert (type(seconds), seconds, type(count), count) == (float, 3.0, int, 3)
    assert [from_dict(Leaf, {"label": label}).label for label in (3, "x")] == [3, "x"]
    assert type(coerce(Leaf(maybe=np.float64(3))).maybe) is float


DEEP = json.loads("[" * 300 + "]" * 300)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("pair", [1, 2], "config.pair[1] is 2, expected a string"),
        ("pair", [1], "config.pair is a list of 1, expected a list of 2"),
        ("pair", [1, "a", 2], "config.pair is a list of 3, expected a list of 2"),
        ("pair", {"0": 1}, "config.pair is an object with names, expected a list"),
        ("pair", "ab", "config.pair is 'ab', expected a list"),
        ("nested", [[1, 2], [3]], "config.nested[1] is a list of 1, expected a list of 2"),
        ("nested", [1], "config.nested[0] is 1, expected a list"),
        ("maybe", "x", "config.maybe is 'x', expected a number"),
        ("maybe", True, "config.maybe is True, expected a number"),
        ("maybe", float("nan"), "config.maybe is nan, expected a finite number"),
        ("maybe", -float("inf"), "config.maybe is -inf, expected a finite number"),
        ("maybe", 10**400, "config.maybe is a whole number of 1329 bits, expected a number"),
        ("flag", 1, "config.flag is 1, expected True or False"),
        ("flag", None, "config.flag is None, expected True or False"),
        ("count", True, "config.count is True, expected a whole number"),
        ("count", 3.0, "config.count is 3.0, expected a whole number"),
        ("count", None, "config.count is None, expected a whole number"),
        ("count", -(10**500), "config.count is a whole number of 1661 bits, expected a whole number of at most 64 bits"),
        ("count", DEEP, "config.count is a list of 1, expected a whole number"),
        ("count", "x" * 99, f"config.count is '{'x' * 56}..., expected a whole number"),
        ("seconds", "x", "config.seconds is 'x', expected a number"),
        ("label", 1.5, "config.label is 1.5, expected a whole number or a string"),
        ("label", "\ud800", "config.label is '\\ud800', expected a whole number or a string"),
        ("pair", [1, "\ud800"], "config.pair[1] is '\\ud800', expected text in Unicode"),
        ("mode", "slo", "config.mode is 'slo', expected 'fast' or 'slow'"),
        ("mode", ["slow"], "config.mode is a list of 1, expected 'fast' or 'slow'"),
        ("shape", 3, "config.shape is 3, expected the fields of Circle or the fields of Box"),
        ("shape", None, "config.shape is None, expected the fields of Circle or the fields of Box"),
        ("shape", [], "config.shape is a list of 0, expected the fields of Circle or the fields of Box"),
        ("shape", {"radius": 2.0}, "config.shape lacks its kind: choose 'circle' or 'box'"),
        ("shape", {"kind": "bix"}, "config.shape.kind is 'bix': choose 'circle' or 'box'"),
        ("shape", {"kind": ["box"]}, "config.shape.kind is a list of 1: choose 'circle' or 'box'"),
        ("shape", {"kind": "box", "radius": 2.0}, "config.shape.radius is not a field of Box in this version: the fields are sides"),
        ("no_shape", {"kind": "box", "sides": [1]}, "config.no_shape.sides is a list of 1, expected a list of 2"),
        ("only", {"kind": "box"}, "config.only.kind is 'box': choose 'circle'"),
        ("only", {"radius": 0}, "config.only: radius=0.0: choose one above 0"),
        ("shapes", [{"kind": "box"}, {}], "config.shapes[1] lacks its kind: choose 'circle' or 'box'"),
        ("shapes", [{"kind": "box", "sides": [0, 1]}], "config.shapes[0]: the values of Box do not go together (ZeroDivisionError: "),
        ("by_name", [], "config.by_name is a list of 0, expected names with values"),
        ("by_name", {"a": {"sides": 3}}, "config.by_name.a.sides is 3, expected a list"),
        ("by_name", {"a\nb": {"sides": 3}}, "config.by_name['a\\nb'].sides is 3, expected a list"),
        ("by_name", {3: {}}, "config.by_name is 3, expected a string"),
        ("shapes2", [], "config.shapes2 is not a field of Leaf in this version: did you mean shapes or shape or no_shape?"),
        ("\x1b[2J", 1, "config['\\x1b[2J'] is not a field of Leaf in this version: the fields are "),
        ("derived", 13, "config.derived is not a field of Leaf"),
        (None, [1], "config is a list of 1, expected the fields of Leaf"),
        (None, None, "config is None, expected the fields of Leaf"),
    ],
)
def test_every_wrong_shape_is_one_line_with_its_path(field, value, says):
    with pytest.raises(UserError) as error:
        from_dict(Leaf, value if field is None else {field: value})
    assert str(error.value).startswith(says) and len(str(error.value).splitlines()) == 1


def test_a_programmers_mistake_is_no_user_error():
    twins = dataclasses.make_dataclass("Twins", [("shape", Plain | Leaf)])
    with pytest.raises(TypeError, match="a different class variable `kind`"):
        from_dict(twins, {"shape": {}})
    with pytest.raises(TypeError, match="a field of a config cannot have the type"):
        from_dict(dataclasses.make_dataclass("Odd", [("odd", set[int])]), {"odd": [1]})
    with pytest.raises(TypeError, match="set"):
        to_dict({1})
    with pytest.raises(ValueError, match="finite"):
        to_dict(Circle(float("inf")))


def test_coerce_brings_values_to_their_types():
    coerced = coerce(Leaf(pair=[1, "a"], nested=[[5, 6]], maybe=3, shape=Box([5, 7]), only=Circle(2), by_name={"a": Box([1, 2])}))
    assert coerced == Leaf(nested=((5, 6),), maybe=3.0, shape=Box((5, 7)), only=Circle(2.0), by_name={"a": Box((1, 2))})
    assert isinstance(coerced.maybe, float) and isinstance(coerced.only.radius, float) and hash(dataclasses.replace(coerced, by_name=None))
    # What stands for any type, or for what has some methods, brings its own.
    assert coerce(Leaf(anything=Box([5, 7]), work=Box([1, 2]))) == Leaf(anything=Box((5, 7)), work=Box((1, 2)))
    assert coerce(Leaf(anything=(1, 2))).anything == (1, 2)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"flag": 1}, "config.flag is 1, expected True or False"),
        ({"shape": Plain("x")}, "config.shape is Plain(name='x', kind='a field like others'), expected the fields of Circle or the fields of Box"),
        ({"only": Box()}, "config.only is Box(sides=(2, 3)), expected the fields of Circle"),
        ({"anything": Box((1, "x"))}, "config.anything.sides[1] is 'x', expected a whole number"),
        ({"pair": {1, 2}}, "config.pair is {1, 2}, expected a list"),
    ],
)
def test_coerce_names_what_is_wrong(wrong, says):
    with pytest.raises(UserError) as error:
        coerce(Leaf(**wrong))
    assert str(error.value) == says


def test_differences_name_the_path():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c: 2, was 3"]
    assert differences({"a": 1}, {}) == ["a: 1, was None"] and differences([1], [1]) == []
    # Into lists of objects; what is long is only named.
    assert differences({"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": 1}, {"b": 3}]}) == ["a[1].b: 2, was 3"]
    assert differences({"a": [2, 4]}, {"a": [2, 5]}) == ["a: [2, 4], was [2, 5]"]
    assert differences({"a": [{"b": "x" * 100}]}, {"a": []}) == ["a: a list of 1, was []"]


# ------------------------------------------------------------------------------------------------- files
