"""Converts frozen dataclasses to JSON and back. No JAX here.

If a field may have one of several dataclasses, each of these has a class variable `kind`, which `to_dict` writes and by which `from_dict` chooses the class:

    @dataclasses.dataclass(frozen=True)
    class ASTConfig:
        kind: ClassVar[str] = "ast"
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import enum
import functools
import math
import types
import typing
from collections.abc import Sequence
from typing import Any

from musiclm_jax.checks import shown
from musiclm_jax.errors import UserError

# ------------------------------------------------------------------------------------------------- dataclasses to JSON


def to_dict(value: Any) -> Any:
    """Converts a tree of dataclasses, tuples, dicts, enums and scalars to JSON types. Tuples become lists; the `kind` of a dataclass comes first.

    Raises:
        TypeError: a value has another type.
        ValueError: a number is not finite.
    """
    if _is_record(value):
        kind = _kind(type(value))
        return ({} if kind is None else {"kind": kind}) | {field.name: to_dict(getattr(value, field.name)) for field in _fields(type(value))}
    if isinstance(value, enum.Enum):
        return to_dict(value.value)
    if isinstance(value, dict):
        return {str(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} cannot be written as JSON: use finite numbers only")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} {value!r} cannot be written as JSON: use numbers, strings, tuples and dataclasses only")


# ------------------------------------------------------------------------------------------------- JSON to dataclasses


def from_dict(cls: type, data: Any, *, where: str = "config") -> Any:
    """Converts the result of `to_dict`, also after JSON, back to the dataclass `cls`.

    A missing field gets the default of its dataclass, so that files from before a field was added can be read. An unknown name is an error, because it
    states something that this version would ignore.

    Args:
        where: the beginning of the paths in error messages, before the first ".". May be "".

    Raises:
        UserError: a field without a default is missing, a field is unknown or has a wrong type, or the dataclass rejects its values. The message has the
            path of the field.
    """
    return _read_record([cls], data, where)


def coerce(config: Any, *, where: str = "config") -> Any:
    """Converts the values of a tree of dataclasses to their declared types: 1 to 1.0, [1, 2] to (1, 2). Raises UserError as `from_dict`."""
    return _read_record([type(config)], config, where)


def _read(hint: Any, value: Any, where: str) -> Any:
    """Converts `value`, from JSON or from a user's Python, to the type `hint`. Lists are accepted as tuples, and ints as floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or getattr(hint, "_is_protocol", False):  # A dataclass has its own types.
        return coerce(value, where=where) if _is_record(value) else value
    if origin in (typing.Union, types.UnionType):
        return _read_union(arguments, value, where)
    if dataclasses.is_dataclass(hint):
        return _read_record([hint], value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise _unexpected(value, [hint], where)
        hints = [arguments[0]] * len(value) if arguments[-1:] == (Ellipsis,) else arguments
        if len(hints) != len(value):
            raise UserError(f"{where} is {_shown(value)}, expected a list of {len(hints)}")
        return tuple(_read(item, each, f"{where}[{i}]") for i, (item, each) in enumerate(zip(hints, value)))
    if origin is dict:
        if not isinstance(value, dict):
            raise _unexpected(value, [hint], where)
        return {_read(arguments[0], key, where): _read(arguments[1], item, _path(where, key)) for key, item in value.items()}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        for member in hint:
            if value is member or (type(value) is type(member.value) and value == member.value):
                return member
        raise _unexpected(value, [hint], where)
    return _read_scalar(hint, value, where)


def _read_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint not in _NAMES:
        raise TypeError(f"{where}: a field of a config cannot have the type {hint}: use numbers, str, bool, enums, tuples, dict[str, ...] and dataclasses")
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and _fits(value):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _unexpected(value, [hint], where)
    value = hint(value)  # Converts subclasses, such as np.float64, whose repr differs.
    if hint is int and not _fits(value):
        raise UserError(f"{where} is {_shown(value)}, expected a whole number of at most 64 bits")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{where} is {value}, expected a finite number")
    if hint is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # Half a surrogate pair, which JSON can express, but files and terminals cannot.
            raise UserError(f"{where} is {_shown(value)}, expected text in Unicode") from None
    return value


def _read_union(hints: Sequence[Any], value: Any, where: str) -> Any:
    if value is None and types.NoneType in hints:
        return None
    records = [hint for hint in hints if dataclasses.is_dataclass(hint)]
    others = [hint for hint in hints if hint not in (*records, types.NoneType)]
    if float in others and int in others:  # float | int is for type checkers: it means any number, which is read as a float.
        others.remove(int)
    if records and (not others or isinstance(value, dict) or _is_record(value)):
        return _read_record(records, value, where)
    if len(others) == 1:
        return _read(others[0], value, where)
    for hint in others:
        with contextlib.suppress(UserError):
            return _read(hint, value, where)
    raise _unexpected(value, [*records, *others], where)


def _read_record(choices: Sequence[type], value: Any, where: str) -> Any:
    """Converts `value`, an instance of one of `choices` or a dict of its fields, to that dataclass."""
    if isinstance(value, tuple(choices)):
        cls, values = type(value), {field.name: getattr(value, field.name) for field in _fields(type(value))}
    elif isinstance(value, dict):
        cls, values = _by_kind(choices, value, where)
        fields = {field.name: field for field in _fields(cls)}
        for key in values:
            if key not in fields:
                near = difflib.get_close_matches(str(key)[:60], fields, n=3)
                hint = f"did you mean {' or '.join(near)}?" if near else f"the fields are {', '.join(fields)}"
                raise UserError(f"{_path(where, key)} is not a field of {cls.__name__} in this version: {hint}")
        missing = [name for name, field in fields.items() if name not in values and not _has_default(field)]
        if missing:
            raise UserError(f"{where or cls.__name__} lacks {', '.join(missing)} of {cls.__name__}: add the missing fields, or export it again")
    else:
        raise _unexpected(value, choices, where)
    hints = _hints(cls)
    values = {name: _read(hints[name], item, _path(where, name)) for name, item in values.items()}
    before = f"{where}: " if where else ""
    try:
        return cls(**values)
    except (UserError, ValueError) as error:
        raise UserError(f"{before}{error}") from error
    except (ArithmeticError, LookupError) as error:  # From values that its checks did not expect, such as a division by 0.
        raise UserError(f"{before}the values of {cls.__name__} do not go together ({type(error).__name__}: {error}): correct them") from error


def _by_kind(choices: Sequence[type], data: dict, where: str) -> tuple[type, dict]:
    """Returns (the one of `choices` with the kind of `data`, `data` without the kind). With only one choice the kind is optional."""
    kinds = {_kind(choice): choice for choice in choices}
    if len(choices) > 1 and (None in kinds or len(kinds) < len(choices)):
        raise TypeError(f"{where}: give each of {_expected(choices)} a different class variable `kind`")
    if len(choices) == 1 and ("kind" not in data or None in kinds):
        return choices[0], data
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        found = f"{_path(where, 'kind')} is {_shown(kind)}" if "kind" in data else f"{where or 'the config'} lacks its kind"
        raise UserError(f"{found}: choose {' or '.join(map(repr, kinds))}")
    return kinds[kind], {key: value for key, value in data.items() if key != "kind"}


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _fields(cls: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cls) if field.init]  # The other fields are computed from these.


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _kind(cls: type) -> str | None:
    """The class variable `kind`, or None. A field with this name is an ordinary field."""
    is_field = any(field.name == "kind" for field in dataclasses.fields(cls))
    return None if is_field else getattr(cls, "kind", None)


# ------------------------------------------------------------------------------------------------- words of the messages

_NAMES = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}


def _unexpected(value: Any, hints: Sequence[Any], where: str) -> UserError:
    return UserError(f"{where} is {_shown(value)}, expected {_expected(hints)}")


def _expected(hints: Sequence[Any]) -> str:
    def named(hint: Any) -> str:
        if typing.get_origin(hint) in (tuple, dict):
            return "a list" if typing.get_origin(hint) is tuple else "names with values"
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            return " or ".join(repr(member.value) for member in hint)
        return _NAMES.get(hint) or f"the fields of {hint.__name__}"

    return " or ".join(map(named, hints))


def _path(where: str, key: Any) -> str:
    """The path of a field or key, on one line for any name in a crafted file."""
    if not (isinstance(key, str) and key.isidentifier() and len(key) < 60):
        return f"{where}[{_shown(key)}]"
    return f"{where}.{key}" if where else key


def _shown(value: Any) -> str:
    """A short form of `value` for error messages, on one line."""
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object with names"
    if isinstance(value, int) and not _fits(value):
        return f"a whole number of {value.bit_length()} bits"
    return shown(value)


def _fits(value: int) -> bool:
    return -(2**63) <= value < 2**63


def differences(ours: Any, theirs: Any, *, where: str = "") -> list[str]:
    """The differences of two JSON trees, one line each, such as "model.dim: 512, was 256"."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        lines = []
        for key in sorted({*ours, *theirs}):
            lines += differences(ours.get(key), theirs.get(key), where=f"{where}.{key}" if where else key)
        return lines
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs) and any(isinstance(item, (dict, list)) for item in ours):
        return [line for i, pair in enumerate(zip(ours, theirs)) for line in differences(*pair, where=f"{where}[{i}]")]
    now, before = (text if len(text := repr(value)) <= 60 else _shown(value) for value in (ours, theirs))
    return [] if ours == theirs else [f"{where}: {now}, was {before}"]
