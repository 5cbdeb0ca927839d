"""Reads and writes bundles. A bundle is a trained MusicLM as a folder for exchange.

    config.json              format number, package version, every model's config, size and sha256 of every weight file
    <model>.safetensors      one per model, nested names joined by "/": "params/encoder/kernel"
    README.md                the model card

Nothing is pickled: loading a bundle executes none of its contents. A missing, truncated, altered, foreign or crafted file raises UserError, with the name
of the file and the remedy. Files may be links, as in a download cache, since their contents are verified by hash.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

import musiclm_jax
from musiclm_jax.errors import UserError, unreadable
from musiclm_jax.files import AnyPath, as_path, atomic_path, fingerprint, is_dir, is_file, local_copy, parse_json, sha256_file
from musiclm_jax.folders import atomic_folder, readable_folder
from musiclm_jax.records import from_dict

# Version of the format. To be incremented when older versions of the package cannot read new bundles, also for a new field of a config.
FORMAT = 2
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
# First lines of every model card.
CARD_HEAD = ("---", "library_name: musiclm-jax", "tags: [music, text-to-music, jax, flax]", "---", "", "# A MusicLM bundle", "")
_DTYPES = {"float32": np.float32, "float16": np.float16}
# NumPy types of arrays by their names in safetensors files.
_STORED_DTYPES = {"F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
_STORED_NAMES = {dtype: name for name, dtype in _STORED_DTYPES.items()}
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.safetensors")
# Limits far above what any model needs, so that a crafted file cannot exhaust memory or the recursion limit.
_MAX_CONFIG_BYTES, _MAX_DEPTH = 2**24, 64

Variables = dict[str, Any]


# ------------------------------------------------------------------------------------------------- trees of arrays


def flatten(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{"a": {"b": x}} -> {"a/b": x}, as NumPy arrays."""
    return {name: np.asarray(value) for name, value in _leaves(tree).items()}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if "/" in name:
            raise ValueError(f"{prefix}{name}: a name in a tree of weights may not contain '/'")
        flat |= _leaves(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def unflatten(flat: Mapping[str, np.ndarray]) -> Variables:
    """The inverse of `flatten`."""
    tree: Variables = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or name in node:
            raise ValueError(f"{path[:200]!r} is the name of an array and of a folder of arrays at the same time")
        node[name] = value
    return tree


def check_shapes(variables: Mapping[str, Any], expected: Mapping[str, Any], *, where: str) -> None:
    """Checks that weights have the arrays, shapes and types that their config requires.

    Additional arrays are an error as well: otherwise a config with fewer layers than the weights would run as another model.

    Args:
        variables: nested dicts of arrays.
        expected: nested dicts of objects with `shape` and `dtype`, such as the unboxed result of `jax.eval_shape`.
        where: the name of the file, for error messages.

    Raises:
        UserError: an array is missing or unknown, or has another shape or another kind of type (float, whole number, bool).
    """
    found, wanted = _leaves(variables), _leaves(expected)
    problems = [f"lacks {name!r} {_spelled(wanted[name])}, which the config requires" for name in wanted if name not in found]
    problems += [f"has {name[:200]!r} {_spelled(found[name])}, which the config does not have" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        if tuple(found[name].shape) != tuple(wanted[name].shape) or _kind(found[name]) != _kind(wanted[name]):
            problems.append(f"has {name!r} as {_spelled(found[name])} where the config requires {_spelled(wanted[name])}")
    if problems:
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        raise UserError(f"{where}: {min(problems)}{more}; take config and weights from one export")


def _spelled(array: Any) -> str:
    return f"{np.dtype(array.dtype).name}{list(array.shape)}"


def _kind(array: Any) -> str:
    dtype = np.dtype(array.dtype)
    return "f" if dtype.name == "bfloat16" else dtype.kind.replace("u", "i")


# ------------------------------------------------------------------------------------------------- files of arrays


def write_arrays(path: str | os.PathLike, variables: Mapping[str, Any], *, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file atomically. The same content gives the same bytes.

    Args:
        path: the file.
        variables: nested dicts of arrays.
        metadata: strings for the file's header.

    Raises:
        UserError: the file cannot be written.
        ValueError: an array has a type that `_STORED_NAMES` lacks, or a name contains "/".
    """
    arrays = flatten(variables)
    with atomic_path(path) as temporary:
        _write_safetensors(temporary, arrays, metadata or {})


def _write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file. Unlike `safetensors.numpy.save_file`, it has a fixed order of metadata and reports a full disk as an OSError."""
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))  # The widest types come first, so that all arrays are aligned.
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        array = arrays[name]
        if array.dtype.name not in _STORED_NAMES:
            raise ValueError(f"{name} has the type {array.dtype}, expected one of {', '.join(_STORED_NAMES)}")
        header[name] = {"dtype": _STORED_NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(arrays[name].astype(arrays[name].dtype.newbyteorder("<"), order="C", copy=False).data)


def read_arrays(path: str | os.PathLike) -> tuple[Variables, dict[str, str]]:
    """Reads a safetensors file. Returns (its arrays as nested dicts, floats as float32; its metadata). It needs the memory of the arrays once.

    Raises:
        UserError: the file cannot be read, is not a safetensors file, has unsupported types, or has NaN or infinity.
    """
    try:
        with safetensors.safe_open(str(local_copy(path)), framework="numpy") as file:
            arrays = {}
            for name in file.keys():  # noqa: SIM118  (It is not a dict.)
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _STORED_DTYPES or name.count("/") > _MAX_DEPTH:
                    raise ValueError(f"{name[:200]!r} is {dtype}, {name.count('/')} levels deep")
                arrays[name] = file.get_tensor(name)
                if arrays[name].dtype.kind == "f":
                    arrays[name] = arrays[name].astype(np.float32, copy=False)
                    if not np.isfinite(arrays[name]).all():
                        raise ValueError(f"{name[:200]!r} has NaN or infinity")
            return unflatten(arrays), file.metadata() or {}
    except OSError as error:
        raise unreadable(path, error) from error
    except (safetensors.SafetensorError, ValueError) as error:
        reason = error if isinstance(error, ValueError) else "it is truncated, damaged or of another format"
        raise UserError(f"{path}: not a safetensors file of a model: {reason}; copy or make it again") from error


# ------------------------------------------------------------------------------------------------- writing a bundle


def save(
    path: str | os.PathLike,
    *,
    config: Mapping[str, Any],
    models: Mapping[str, Variables],
    metadata: Mapping[str, Mapping[str, str]] | None = None,
    card: str = "",
    dtype: str = "float32",
) -> None:
    """Writes a bundle atomically: at any time `path` is the old bundle or the new one. On an object store it is none, without config.json, in between.

    Args:
        path: the folder. It may be new, empty, or an older bundle, which is replaced.
        config: the config of the models, as JSON types.
        models: {model name: nested dict of arrays}.
        metadata: {model name: strings for the header of its safetensors file}, such as MuLan's text vocabulary.
        card: text of README.md.
        dtype: type of the stored floating-point weights. "float16" halves the size and rounds weights to 11 bits.

    Raises:
        UserError: `path` contains anything else, it cannot be written, `dtype` is unknown, or a weight is not finite or too large for float16.
        ValueError: the name of a model is not usable as a file name.
    """
    if dtype not in _DTYPES:
        raise UserError(f"dtype {dtype!r}: choose 'float32' or 'float16'")
    for name in models:
        if not _FILE_NAME.fullmatch(f"{name}.safetensors"):
            raise ValueError(f"model {name!r}: expected a name of letters, digits, '_' and '-', because its file has this name")
    with atomic_folder(path, check=_check_replaceable, last=CONFIG_FILE) as folder:
        files = {}
        for name, variables in models.items():
            file = folder / f"{name}.safetensors"
            arrays = {key: _store(value, dtype, name=f"{name}/{key}") for key, value in flatten(variables).items()}
            _write_safetensors(file, arrays, (metadata or {}).get(name, {}))
            files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
        document = {"format": FORMAT, "musiclm_jax": musiclm_jax.__version__, "model": config, "files": files}
        document["sha256"] = _digest(document)
        (folder / CONFIG_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        (folder / CARD_FILE).write_bytes(card.encode("utf-8", errors="replace"))


def _check_replaceable(path: AnyPath) -> None:
    """Raises UserError unless the folder is a bundle, of any format, and contains nothing else."""
    for name in sorted(each.name for each in path.iterdir()):
        if not (name in (CONFIG_FILE, CARD_FILE) or name.endswith(".safetensors")) or is_dir(path / name):
            raise UserError(f"{path}: contains something other than a bundle ({name!r}); name a new folder")
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if {"format", "musiclm_jax"} <= _parse(path / CONFIG_FILE).keys():
            return
    raise UserError(f"{path}: contains something other than a bundle; name a new folder")


def _store(value: np.ndarray, dtype: str, *, name: str) -> np.ndarray:
    """A floating-point array as `dtype`; other arrays are unchanged. Raises UserError where values are not finite or do not fit."""
    if not np.issubdtype(value.dtype, np.floating) and value.dtype.name != "bfloat16":
        return value
    with np.errstate(over="ignore"):
        stored = np.asarray(value, dtype=_DTYPES[dtype])
    if not np.isfinite(stored).all():
        finite = np.isfinite(np.asarray(value, np.float64)).all()
        raise UserError(f"{name}: " + (f"does not fit into {dtype}; save as float32" if finite else "has NaN or infinity; train again"))
    return stored


def _digest(document: Mapping[str, Any]) -> str:
    """The hash of a bundle's config without its field "sha256". Raises ValueError for NaN and infinity, which JSON lacks."""
    rest = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------- reading a bundle


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """The entry of a file of weights in config.json."""

    bytes: int
    sha256: str

    def __post_init__(self):
        if self.bytes < 0 or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError("expected a size of 0 or more and 64 hexadecimal digits")


@dataclasses.dataclass(frozen=True)
class Document:
    """The fields of config.json."""

    format: int
    # Version of the package that wrote the bundle.
    musiclm_jax: str
    # The fields of `MusicLMConfig`, which `MusicLMConfig.from_dict` checks.
    model: dict[str, Any]
    files: dict[str, StoredFile]
    # Hash of all other fields.
    sha256: str

    def __post_init__(self):
        for name in self.files:
            if not _FILE_NAME.fullmatch(name):
                raise ValueError(f"files has {name[:60]!r}, expected a name such as coarse.safetensors of a file beside {CONFIG_FILE}")


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An opened bundle: its config has been checked, and `load` reads the weights of a model.

    Attributes: path: the folder. config: the argument of `save`. files: sizes and hashes by file name.
    """

    path: AnyPath
    config: dict[str, Any]
    files: dict[str, StoredFile]

    def load(self, name: str) -> tuple[Variables, dict[str, str]]:
        """Reads one model. Returns (its variables, floats as float32; its metadata).

        Raises:
            UserError: the bundle lacks the model, or its file is missing, damaged, or has another size or hash than config.json states.
        """
        file = f"{name}.safetensors"
        if file not in self.files:
            raise UserError(f"{self.path}: this bundle has no {file}; use a bundle that has it, or train that part")
        _check_size(self.path / file, self.files[file])
        if sha256_file(self.path / file) != self.files[file].sha256:
            raise UserError(f"{self.path / file}: its contents do not match the sha256 in {CONFIG_FILE}; copy or export the bundle again")
        return read_arrays(self.path / file)


def open_bundle(path: str | os.PathLike) -> Bundle:
    """Opens a bundle: reads its config, and checks that all its files exist and have the right sizes.

    Raises:
        UserError: the folder is missing or not a bundle, has another format, or has a missing, truncated, altered or crafted file.
    """
    path = readable_folder(path)
    if not is_dir(path):
        raise UserError(f"{path}: no such folder; name a bundle's folder, or 'demo' for the model that is packaged")
    file = path / CONFIG_FILE
    if not is_file(file):
        if is_file(path / "export" / "bundle" / CONFIG_FILE):
            raise UserError(f"{path}: the work folder of a fit, not a bundle; its bundle is {path / 'export' / 'bundle'}")
        raise UserError(f"{path}: not a bundle, because it has no {CONFIG_FILE}; `musiclm fit` makes one, WORKDIR/export/bundle, as its last step")
    try:
        document = _parse(file)
        digest = _digest(document) if isinstance(document, dict) else ""
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error}); copy or export the bundle again") from error
    number = document.get("format") if isinstance(document, dict) else None
    if type(number) is not int or number < 1:
        raise UserError(f"{path}: not a musiclm_jax bundle, because its {CONFIG_FILE} has no format number; make one with `musiclm fit`")
    if number < FORMAT:
        remedy = "rewrite it with `python tools/upgrade_bundle.py OLD NEW` of the repository"
        raise UserError(f"{path}: bundle format {number}, which is from before the first release; {remedy}")
    if number > FORMAT:
        raise UserError(f"{path}: bundle format {number}, but this version reads {FORMAT}; upgrade musiclm-jax")
    if document.get("sha256") != digest:
        raise UserError(f"{file}: was altered after it was written; copy or export the bundle again")
    try:
        checked = from_dict(Document, document, where="")
    except UserError as error:
        raise UserError(f"{file}: {error}; copy or export the bundle again") from error
    for name, expected in checked.files.items():
        _check_size(path / name, expected)
    return Bundle(path=path, config=checked.model, files=checked.files)


def read_card(path: str | os.PathLike) -> str:
    """The model card of the bundle in the folder `path`, or "" if it has none. Bytes that are not UTF-8 become U+FFFD. Raises UserError on errors."""
    file = as_path(path) / CARD_FILE
    if not is_file(file):  # Reading a FIFO would not end.
        return ""
    try:
        return file.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise unreadable(file, error) from error


def _parse(file: AnyPath) -> Any:
    if fingerprint(file)[0] > _MAX_CONFIG_BYTES:
        raise ValueError(f"it has more than {_MAX_CONFIG_BYTES >> 20} MiB")
    return parse_json(file.read_bytes())


def _check_size(file: AnyPath, expected: StoredFile) -> None:
    try:
        size = fingerprint(file)[0] if is_file(file) else None
    except OSError as error:
        raise unreadable(file, error) from error
    if size is None:
        raise UserError(f"{file}: is missing; copy the bundle again")
    if size != expected.bytes:
        raise UserError(f"{file}: has {size} bytes, expected {expected.bytes}; copy the bundle again")
