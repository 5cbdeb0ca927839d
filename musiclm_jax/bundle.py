"""A bundle: a trained MusicLM as a folder that people exchange.

    config.json              format number, package version, every model's config, size and sha256 of every weight file
    <model>.safetensors      one per model, nested names joined by "/": "params/encoder/kernel"
    README.md                the model card

No pickle: loading a bundle runs none of its contents. A missing, cut, altered or foreign file raises UserError, naming it and the remedy.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

import musiclm_jax
from musiclm_jax.errors import UserError

# Raised whenever an older reader could not make sense of a newer bundle.
FORMAT = 1
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
# First lines of every model card.
CARD_HEAD = ("---", "library_name: musiclm-jax", "tags: [music, text-to-music, jax, flax]", "---", "", "# A MusicLM bundle", "")
_DTYPES = {"float32": np.float32, "float16": np.float16}

Variables = dict[str, Any]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """{"a": {"b": x}} -> {"a/b": x}, as NumPy arrays."""
    flat = {}
    for name, value in tree.items():
        if "/" in name:
            raise ValueError(f"{prefix}{name}: a name in a tree of weights may not contain '/'")
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = np.asarray(value)
    return flat


def unflatten(flat: Mapping[str, np.ndarray]) -> Variables:
    """The inverse of `flatten`."""
    tree: Variables = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def save(
    path: str | os.PathLike,
    *,
    config: Mapping[str, Any],
    models: Mapping[str, Variables],
    metadata: Mapping[str, Mapping[str, str]] | None = None,
    card: str = "",
    dtype: str = "float32",
) -> None:
    """Writes a bundle, atomically: `path` is the old bundle or the new one, never half of one.

    Args:
        path: the folder. It may be new, empty, or an older bundle, which is replaced.
        config: what describes the models, JSON-able.
        models: nested dicts of arrays by model name.
        metadata: strings kept in a model's safetensors header, such as MuLan's text vocabulary.
        card: text of README.md.
        dtype: how floating-point weights are stored; "float16" halves the download, and loses what 11 bits cannot hold.

    Raises:
        UserError: `path` holds something else, cannot be written, or a weight does not fit into float16.
    """
    if dtype not in _DTYPES:
        raise UserError(f"dtype {dtype!r}: choose 'float32' or 'float16'")
    path = Path(path)
    _refuse_other_folders(path)
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        staging.mkdir(parents=True)
        files = {}
        for name, variables in models.items():
            arrays = {key: _store(value, dtype, name=f"{name}/{key}") for key, value in flatten(variables).items()}
            blob = safetensors.numpy.save(arrays, metadata=dict((metadata or {}).get(name, {})) or None)
            (staging / f"{name}.safetensors").write_bytes(blob)
            files[f"{name}.safetensors"] = {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
        document = {"format": FORMAT, "musiclm_jax": musiclm_jax.__version__, "model": config, "files": files}
        document["sha256"] = _digest(document)
        (staging / CONFIG_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        (staging / CARD_FILE).write_text(card, encoding="utf-8")
        _swap(staging, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); write elsewhere") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _refuse_other_folders(path: Path) -> None:
    if not os.path.lexists(path):
        return
    if not os.path.isdir(path):
        raise UserError(f"{path}: is a file; a bundle is a folder, name a new one")
    others = [name for name in os.listdir(path) if not (name in (CONFIG_FILE, CARD_FILE) or name.endswith(".safetensors"))]
    if others or (os.listdir(path) and not _is_ours(path)):
        raise UserError(f"{path}: holds something other than a bundle{f' ({others[0]})' if others else ''}; name a new folder")


def _is_ours(path: Path) -> bool:
    try:
        document = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and "format" in document and "musiclm_jax" in document


def _swap(staging: Path, path: Path) -> None:
    if not os.path.lexists(path):
        staging.rename(path)
        return
    # Two renames: a crash between them leaves the old bundle whole, under its other name.
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    path.rename(old)
    try:
        staging.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _store(value: np.ndarray, dtype: str, *, name: str) -> np.ndarray:
    if not np.issubdtype(value.dtype, np.floating) and value.dtype.name != "bfloat16":
        return np.asarray(value, order="C")  # Not ascontiguousarray, which gives scalars an axis.
    with np.errstate(over="ignore"):
        stored = np.asarray(value, dtype=_DTYPES[dtype], order="C")
    if not np.isfinite(stored).all():
        finite = np.isfinite(np.asarray(value, np.float32)).all()
        raise UserError(f"{name}: " + (f"does not fit into {dtype}; save as float32" if finite else "holds NaN or infinity; train again"))
    return stored


def _digest(document: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An opened bundle: its config is checked, its weights are read when asked for.

    Fields: path: the folder. config: what `save` was given. files: size and sha256 by file name.
    """

    path: Path
    config: dict[str, Any]
    files: dict[str, dict[str, Any]]

    def load(self, name: str) -> tuple[Variables, dict[str, str]]:
        """The variables of one model, floats as float32, and its metadata. Checks the file's size and hash."""
        file = f"{name}.safetensors"
        if file not in self.files:
            raise UserError(f"{self.path}: this bundle has no {file}; use one that has, or train that part")
        try:
            blob = (self.path / file).read_bytes()
        except OSError as error:
            raise UserError(f"{self.path / file}: {error.strerror or 'cannot be read'}; copy the bundle again") from error
        expected = self.files[file]
        if len(blob) != expected["bytes"]:
            raise UserError(f"{self.path / file}: has {len(blob)} bytes where {expected['bytes']} belong; copy the bundle again")
        if hashlib.sha256(blob).hexdigest() != expected["sha256"]:
            raise UserError(f"{self.path / file}: its contents do not match the sha256 in {CONFIG_FILE}; copy the bundle again")
        try:
            arrays = safetensors.numpy.load(blob)
        except safetensors.SafetensorError as error:  # Only where someone wrote a matching hash.
            raise UserError(f"{self.path / file}: not a safetensors file; export the bundle again") from error
        header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
        floats = {key: value.astype(np.float32) if np.issubdtype(value.dtype, np.floating) else value for key, value in arrays.items()}
        return unflatten(floats), header.get("__metadata__", {})


def open_bundle(path: str | os.PathLike) -> Bundle:
    """Checks the config of a bundle, and that all its files are there with their sizes.

    Raises:
        UserError: no bundle, another program's folder, a newer format, or a missing, cut or altered file.
    """
    path = Path(path)
    if not os.path.isdir(path):
        raise UserError(f"{path}: no such folder; name a bundle's folder, or 'demo' for the model that is packaged")
    config_path = path / CONFIG_FILE
    if not os.path.isfile(config_path):
        raise UserError(f"{path}: not a bundle, for it has no {CONFIG_FILE}; make one with `musiclm fit`")
    try:
        document = json.loads(config_path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{config_path}: cannot be read as JSON; copy the bundle again") from error
    if not isinstance(document, dict) or not isinstance(document.get("format"), int):
        raise UserError(f"{path}: not a musiclm_jax bundle, for its {CONFIG_FILE} has no format number; make one with `musiclm fit`")
    if document["format"] > FORMAT:
        raise UserError(f"{path}: bundle format {document['format']}, but this version reads up to {FORMAT}; upgrade musiclm-jax")
    if document.get("sha256") != _digest(document) or not {"model", "files"} <= document.keys():
        raise UserError(f"{config_path}: was altered after it was written; copy or export the bundle again")
    for file, expected in document["files"].items():
        if not os.path.isfile(path / file):
            raise UserError(f"{path / file}: is missing; copy the bundle again")
        if os.path.getsize(path / file) != expected["bytes"]:
            raise UserError(f"{path / file}: is cut short or replaced; copy the bundle again")
    return Bundle(path=path, config=document["model"], files=document["files"])
