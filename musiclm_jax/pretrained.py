"""Bundles of MusicLM: opening one by its name, checking its models against its config, describing it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax.errors import FlaxError

from musiclm_jax import bundle
from musiclm_jax.configs import RERANKERS, TOKENIZER_MODELS, MusicLMConfig
from musiclm_jax.errors import UserError
from musiclm_jax.models.text import TextTokenizer

# Key of MuLan's text vocabulary in the metadata of its file.
VOCABULARY = "vocabulary"
_BUNDLES = Path(__file__).parent / "bundles"


def open_pretrained(path: str | os.PathLike) -> bundle.Bundle:
    """Opens a bundle by its folder, or by the name of a packaged one: "demo" is that one, and "./demo" a folder. Raises UserError where there is none."""
    name = os.fspath(path)
    if name == "demo" and not (_BUNDLES / name).is_dir():
        raise UserError("the model 'demo' is not packaged with this installation; install a release, or name a bundle of your own with --model")
    if name and os.path.basename(name) == name and os.path.isdir(_BUNDLES / name):
        return bundle.open_bundle(_BUNDLES / name)
    return bundle.open_bundle(path)


def read_config(opened: bundle.Bundle, *, models: Sequence[str] | None = None) -> MusicLMConfig:
    """The config of an opened bundle. Raises UserError where it is not that of a MusicLM, or where the file of one of `models` (None: all) is missing."""
    try:
        config = MusicLMConfig.from_dict(opened.config)
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"{opened.path / bundle.CONFIG_FILE}: {error}") from error
    missing = [name for name in (config.models if models is None else models) if f"{name}.safetensors" not in opened.files]
    if missing:
        raise UserError(f"{opened.path}: the file {missing[0]}.safetensors, a model of its config, is missing; export the bundle again")
    return config


def digest(opened: bundle.Bundle) -> str:
    """A hash of all weights of a bundle and of its config."""
    content = {"config": opened.config, "files": {name: file.sha256 for name, file in opened.files.items()}}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load(opened: bundle.Bundle, config: MusicLMConfig, name: str) -> dict[str, Any]:
    """The variables of one model. Raises UserError where their shapes are not those of the config."""
    variables, _ = opened.load(name)
    try:
        expected = config.variable_shapes(name)
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, FlaxError) as error:
        # The checks of the configs find wrong values one by one. Wrong combinations, such as a stride beyond the wave, fail when shapes are computed.
        reason = " ".join((str(error).splitlines() or [type(error).__name__])[0].split())[:200]
        raise UserError(f"{opened.path / bundle.CONFIG_FILE}: its values do not define a valid {name} ({reason}); copy or export the bundle again") from error
    bundle.check_shapes(variables, expected, where=f"{opened.path / name}.safetensors")
    return variables


def load_vocabulary(opened: bundle.Bundle) -> TextTokenizer:
    """MuLan's text vocabulary."""
    file = opened.path / "mulan.safetensors"
    metadata = opened.load("mulan")[1]
    if VOCABULARY not in metadata:
        raise UserError(f"{file}: its metadata have no text vocabulary; export the bundle again")
    return TextTokenizer.from_json(metadata[VOCABULARY], where=f"the text vocabulary of {file}")


def describe(path: str | os.PathLike) -> str:
    """The models, streams and stages of a bundle, as text. Reads all of it, so that damage is found."""
    opened = open_pretrained(path)
    config = read_config(opened, models=TOKENIZER_MODELS)
    if is_whole := any(f"{stage.name}.safetensors" in opened.files for stage in config.stages):
        read_config(opened)
    lines = [f"{opened.path}: {'MusicLM bundle' if is_whole else 'tokenizers of a MusicLM'}, format {bundle.FORMAT}", ""]
    for name in (*config.models, *RERANKERS):
        if (file := f"{name}.safetensors") in opened.files:
            lines.append(f"{name:<18} {millions(load(opened, config, name)):>8} parameters  {opened.files[file].bytes / 1e6:8.1f} MB")
    load_vocabulary(opened)
    lines += ["", f"{config.audio.sample_rate_hz} Hz"]
    for stream in config.streams.values():
        often = f"{stream.rate_hz} Hz" if stream.rate_hz else f"{stream.steps} a window" if stream.steps > 1 else "once a clip"
        lines.append(f"{stream.name:<18} {often}, {stream.levels} levels of {stream.codes} codes")
    for stage in config.stages if is_whole else ():
        reads = ", ".join(each.stream for each in stage.prefix)
        drawn = f"temperature {stage.sampling.temperature:g}, top-k {stage.sampling.top_k or 'all'}, guidance {stage.sampling.guidance:g}"
        skipped = "; not used in generation" if stage.name in config.skipped_stages else ""
        lines.append(f"{stage.name:<18} {reads} -> {stage.target.stream}, windows of {stage.window_sec:g} s, {drawn}{skipped}")
    return "\n".join(lines)


def millions(variables: Mapping[str, Any]) -> str:
    return f"{sum(leaf.size for leaf in jax.tree.leaves(variables)) / 1e6:.2f} M"
