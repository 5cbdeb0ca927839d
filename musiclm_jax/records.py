"""Frozen dataclasses to JSON and back, and files written whole or not at all. No JAX here.

Where a field may be one of several dataclasses, each of them has a class variable `kind`, which `to_dict` writes and `from_dict` picks by:

    @dataclasses.dataclass(frozen=True)
    class ASTConfig:
        kind: ClassVar[str] = "ast"
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import difflib
import enum
import functools
import glob
import hashlib
import json
import math
import os
import platform
import types
import typing
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from musiclm_jax.errors import UserError, unreadable, unwritable

# ------------------------------------------------------------------------------------------------- dataclasses to JSON


def to_dict(value: Any) -> Any:
    """`value`, a tree of dataclasses, tuples, dicts, enums and scalars, as plain JSON types. Tuples become lists; a dataclass's `kind` comes first."""
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
        raise ValueError(f"{value} has no JSON form: a config has finite numbers only")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} {value!r} has no JSON form: a config holds numbers, strings, tuples and dataclasses")


# ------------------------------------------------------------------------------------------------- JSON to dataclasses


def from_dict(cls: type, data: Any, *, where: str = "config") -> Any:
    """The dataclass `cls` of what `to_dict` made of it, also after JSON.

    A field that is not there takes the default of its dataclass, so that a field can be added without breaking the files of before. A name that is no
    field is an error: it says something that this version would ignore.

    Args:
        where: what stands before the first "." of the paths in messages; "" for nothing.

    Raises:
        UserError: a missing, unknown or wrongly typed field, or values that the dataclass refuses, with the path of the field.
    """
    return _read_record([cls], data, where)


def coerce(config: Any, *, where: str = "config") -> Any:
    """The dataclass tree `config` with its values brought to their declared types: 1 to 1.0, [1, 2] to (1, 2). Raises `UserError` where that fails."""
    return _read_record([type(config)], config, where)


def _read(hint: Any, value: Any, where: str) -> Any:
    """`value`, from JSON or from a user's Python, as the type `hint`. In both a list stands for a tuple and an int for a float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or getattr(hint, "_is_protocol", False):  # What is there brings its own types.
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
        raise TypeError(f"{where}: {hint} is no type of a config's field: use numbers, str, bool, enums, tuples, dict[str, ...] and dataclasses")
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and _fits(value):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _unexpected(value, [hint], where)
    value = hint(value)  # Not a subclass, such as np.float64, whose repr differs.
    if hint is int and not _fits(value):
        raise UserError(f"{where} is {_shown(value)}, expected a whole number of at most 64 bits")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{where} is {value}, expected a finite number")
    if hint is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # Half a surrogate pair, which JSON can spell and no file or terminal takes.
            raise UserError(f"{where} is {_shown(value)}, expected text in Unicode") from None
    return value


def _read_union(hints: Sequence[Any], value: Any, where: str) -> Any:
    if value is None and types.NoneType in hints:
        return None
    records = [hint for hint in hints if dataclasses.is_dataclass(hint)]
    others = [hint for hint in hints if hint not in (*records, types.NoneType)]
    if float in others and int in others:  # Written out for type checkers: any number, and always read as a float.
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
    """The one of `choices` that `value` is an instance of, or a dict of its fields."""
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
            raise UserError(f"{where or cls.__name__} lacks {', '.join(missing)} of {cls.__name__}: add what is missing, or export it again")
    else:
        raise _unexpected(value, choices, where)
    hints = _hints(cls)
    values = {name: _read(hints[name], item, _path(where, name)) for name, item in values.items()}
    before = f"{where}: " if where else ""
    try:
        return cls(**values)
    except (UserError, ValueError) as error:
        raise UserError(f"{before}{error}") from error
    except (ArithmeticError, LookupError) as error:  # Of values that its checks did not expect, such as a division by one that is 0.
        raise UserError(f"{before}the values of {cls.__name__} do not go together ({type(error).__name__}: {error}): correct them") from error


def _by_kind(choices: Sequence[type], data: dict, where: str) -> tuple[type, dict]:
    """The one of `choices` whose kind `data` has, and `data` without it. Where there is but one the kind may be left out."""
    kinds = {_kind(choice): choice for choice in choices}
    if len(choices) > 1 and (None in kinds or len(kinds) < len(choices)):
        raise TypeError(f"{where}: give each of {_expected(choices)} a class variable `kind` of its own")
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
    return [field for field in dataclasses.fields(cls) if field.init]  # The others are computed from these.


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _kind(cls: type) -> str | None:
    """The class variable `kind`; a field of that name is a field like others."""
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
    """One line, whatever a crafted file has for a name."""
    if not (isinstance(key, str) and key.isidentifier() and len(key) < 60):
        return f"{where}[{_shown(key)}]"
    return f"{where}.{key}" if where else key


def _shown(value: Any) -> str:
    """`value` in a few words: neither lines, nor depth, nor a million digits."""
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object with names"
    if isinstance(value, int) and not _fits(value):
        return f"a whole number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fits(value: int) -> bool:
    return -(2**63) <= value < 2**63


def differences(ours: Any, theirs: Any, *, where: str = "") -> list[str]:
    """Where two JSON trees differ, one line each: "model.dim: 512, was 256"."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        lines = []
        for key in sorted({*ours, *theirs}):
            lines += differences(ours.get(key), theirs.get(key), where=f"{where}.{key}" if where else key)
        return lines
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs) and any(isinstance(item, (dict, list)) for item in ours):
        return [line for i, pair in enumerate(zip(ours, theirs)) for line in differences(*pair, where=f"{where}[{i}]")]
    shown = [text if len(text := repr(value)) <= 60 else _shown(value) for value in (ours, theirs)]
    return [] if ours == theirs else [f"{where}: {shown[0]}, was {shown[1]}"]


# ------------------------------------------------------------------------------------------------- files

_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`, which replaces `path` once the body has written it and its data are on the disk.

    A killed process, or a loss of power, leaves the old file or the new one. The temporary files of processes that were killed are removed by the next
    write of the same path; processes that write it at the same time do not disturb each other, and the last one wins. Missing folders are made. (Give
    `np.save` an open file: to a name that does not end in .npy it appends that.)

    Raises:
        UserError: it cannot be written; the message names `path` and says why.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # Renamed already, or never made.
            temporary.unlink()


def check_writable(path: str | os.PathLike) -> None:
    """Raises UserError where `atomic_path(path)` would fail at once. The folder must exist."""
    temporary = _temporary(Path(path))
    try:
        temporary.touch()
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _temporary(path: Path) -> Path:
    """A name that no other process uses: `.NAME.MACHINE-PROCESS.tmp`."""
    return path.with_name(f".{path.name}.{_MACHINE}-{os.getpid()}.tmp")


def _remove_abandoned(path: Path) -> None:
    """Removes the temporary files of `path` whose process, on this machine, has ended or was this one."""
    for abandoned in path.parent.glob(f".{glob.escape(path.name)}.{_MACHINE}-*.tmp"):
        number = abandoned.name.removesuffix(".tmp").rpartition("-")[2]
        if number.isdigit() and (int(number) == os.getpid() or not _runs(int(number))):
            abandoned.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # It is another user's.
        return True
    return True


def sync(path: Path) -> None:
    """Waits until a file, or the list of names of a folder, is on the disk."""
    if path.is_dir():
        with contextlib.suppress(OSError):  # Not every file system can do that with a folder.
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        return
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes `path` whole or not at all. Raises `UserError` where it cannot be written."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    try:
        return parse_json(Path(path).read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): delete it and make it again") from error


def parse_json(data: bytes | str) -> Any:
    """JSON in UTF-8, with or without a byte order mark. Raises ValueError for all else, for a name that an object has twice, and for endless nesting."""
    text = data if isinstance(data, str) else data.decode("utf-8-sig")
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None


def _without_doubles(pairs: Sequence[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = collections.Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{_shown(name)} stands twice in one object")
    return found


def sha256_file(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's contents, in hexadecimal. Raises `UserError` where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error
