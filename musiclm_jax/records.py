"""Frozen dataclasses to JSON and back, and small files written whole or not at all. No JAX here."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import types
import typing
from pathlib import Path
from typing import Any

from musiclm_jax.errors import UserError


def to_dict(value: Any) -> Any:
    """`value`, a tree of dataclasses, tuples, dicts and scalars, as plain JSON types. Tuples become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} {value!r} has no JSON form: a config holds numbers, strings, tuples and dataclasses")


def from_dict(cls: type, data: Any, *, where: str = "config"):
    """The dataclass `cls` of a dict that `to_dict` made. Every field must be there and no other: raises `UserError` with its path."""
    if not isinstance(data, dict):
        raise UserError(f"{where} is {data!r}, expected the fields of {cls.__name__}: repair the file or take it from the original")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"the fields are {', '.join(fields)}"
            raise UserError(f"{where}.{key} is not a field of {cls.__name__}: {hint}")
    missing = [name for name in fields if name not in data]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)} of {cls.__name__}: it was written by another version; export it again")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _from_json(hints[name], data[name], where=f"{where}.{name}") for name in fields})


def coerce(config: Any, *, where: str = "config") -> Any:
    """The dataclass tree `config` with its values brought to their declared types: 1 to 1.0, [1, 2] to (1, 2). Raises `UserError` where that fails."""
    hints = typing.get_type_hints(type(config))
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    changes = {
        name: coerce(value, where=f"{where}.{name}") if dataclasses.is_dataclass(value) else _from_json(hints[name], to_dict(value), where=f"{where}.{name}")
        for name, value in values.items()
    }
    return dataclasses.replace(config, **changes)


def _from_json(hint: Any, value: Any, *, where: str) -> Any:
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        # Files carry no class names: of several dataclasses it is the one that has most of the fields.
        choices = [argument for argument in arguments if argument is not type(None)]
        hint = max(choices, key=lambda choice: _num_shared(choice, value))
        return _from_json(hint, value, where=where)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where=where)
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where} is {value!r}, expected a list")
        item_hints = [arguments[0]] * len(value) if arguments[-1:] == (Ellipsis,) else arguments
        return tuple(_from_json(item, x, where=f"{where}[{i}]") for i, (item, x) in enumerate(zip(item_hints, value, strict=True)))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
        raise UserError(f"{where} is {value!r}, expected {hint.__name__}")
    return value


def _num_shared(hint: Any, value: Any) -> int:
    """How many keys of `value` are fields of `hint`; 0 if the one is no dict or the other no dataclass."""
    if not (dataclasses.is_dataclass(hint) and isinstance(value, dict)):
        return 0
    return len({field.name for field in dataclasses.fields(hint)} & value.keys())


def differences(ours: Any, theirs: Any, *, where: str = "") -> list[str]:
    """Where two JSON trees differ, one line each: "model.dim: 512, was 256"."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        lines = []
        for key in sorted({*ours, *theirs}):
            lines += differences(ours.get(key), theirs.get(key), where=f"{where}.{key}" if where else key)
        return lines
    return [] if ours == theirs else [f"{where}: {ours!r}, was {theirs!r}"]


def write_text(path: Path, text: str) -> None:
    """Writes `path` whole or not at all: a killed process leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): delete it and make it again") from None
