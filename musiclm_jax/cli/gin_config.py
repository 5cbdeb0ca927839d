"""Configs from gin files. The only place that knows gin: the library itself sees plain dataclasses.

    config = load_config("demo", ["mine.gin"], ["SEMANTIC_STEPS=500", "semantic/StageConfig.dim=128"])

Of several values for the same name, the last one counts.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import difflib
import importlib.util  # noqa: F401  (gin 0.5 uses it without importing it)
import inspect
import io
import logging
import os
import re
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

import gin

from musiclm_jax.errors import UserError, unreadable
from musiclm_jax.parts.fit import FitConfig
from musiclm_jax.records import coerce

_PACKAGE = Path(__file__).parents[1]


def gin_folder() -> Path:
    """The .gin files: inside the installed package, beside the package in the repository."""
    installed = _PACKAGE / "gin_configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "gin_configs"


def sizes() -> list[str]:
    """The sizes that ship with the package, such as "demo"."""
    return sorted(path.stem for path in (gin_folder() / "models").glob("*.gin"))


def load_config(size: str | None, gin_files: Sequence[str | Path] = (), bindings: Sequence[str] = ()) -> FitConfig:
    """The config of `size`, changed by the gin files, then by the bindings "NAME=VALUE"; the later one wins.

    size: None is "demo", or where one of the files is a recipe, such as runs/semantic_base.gin, the size that it names, "base".

    A value that is not a gin value is taken as a string, so that quotes are not needed.

    Raises:
        UserError: an unknown size, file or name (with the names that are near), a value that does not fit, or a binding that nothing reads.
    """
    paths = [_find(name) for name in gin_files]
    for binding in bindings:
        if new := _renamed(name := binding.partition("=")[0].strip()):
            raise UserError(f"{name} is {new} now")
    for path in paths:
        _check_text(path)
    size = (_size_of_recipe(paths) or "demo") if size is None else size
    if size not in sizes():
        raise UserError(f"size {size!r}: choose one of {', '.join(sizes())}")
    files = [str(path) for path in (gin_folder() / "models" / f"{size}.gin", *paths)]
    gin.clear_config()
    since: dict[_Bound, int] = {}
    # Our folder first: gin would look for `include 'models/base.gin'` in a module named models before.
    gin.config._LOCATION_PREFIXES[:] = [str(gin_folder()), ""]
    try:
        since = _parse(files, [_quoted(binding) for binding in bindings])
        _check_required()
        config = gin.get_configurable(FitConfig)()
    except UserError as error:
        message, *account = str(error).splitlines()
        raise UserError(f"{message}{_place(account)}") from error
    except Exception as error:  # gin raises ValueError, SyntaxError, NameError, ImportError, TypeError ... with the place appended.
        raise UserError(_explain(error, bindings, since)) from error
    unused = _unused(since)
    if unused:
        if new := _renamed(unused[0]):
            raise UserError(f"{unused[0]} is {new} now")
        raise UserError(f"{unused[0]} is set but nothing reads it: {_near(unused[0], [name for name in _known_names() if name not in unused])}")
    return coerce(config)


def operative_config() -> str:
    """The values that the last `load_config` used, as a gin file."""
    return gin.operative_config_str()


_VALUES = "give a number, a text in quotes, a list, %MACRO or @reference"
# (scope, selector, field), of all that is bound.
_Bound = tuple[str, str, str]


def _parse(files: Sequence[str], bindings: Sequence[str]) -> dict[_Bound, int]:
    """Parses the files, then the bindings. Returns the number of the file that gave each value; the bindings count as the last one."""
    since: dict[_Bound, tuple[int, object]] = {}
    with _without_log():
        for number, file in enumerate((*files, None)):
            try:
                gin.parse_config_files_and_bindings([file] if file else [], [] if file else bindings, finalize_config=False)
            except (ValueError, SyntaxError) as error:
                if file and (token := re.search(r"Failed to parse token '(.+)'", str(error))):
                    raise UserError(f"{file}: {token[1]!r} is no value that gin reads: {_VALUES}") from error
                raise
            for (scope, selector), values in gin.config._CONFIG.items():
                for field, value in values.items():
                    if (scope, selector, field) not in since or since[scope, selector, field][1] is not value:
                        since[scope, selector, field] = number, value
    return {bound: number for bound, (number, _) in since.items()}


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    """gin logs an error for each place where an included file is not, before it finds it."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _find(name: str | Path) -> Path:
    for path in (Path(name), gin_folder() / name):
        if os.path.isfile(path):  # Not path.is_file(), which raises where the name is too long.
            return path
    shipped = sorted(str(path.relative_to(gin_folder())) for path in gin_folder().rglob("*.gin"))
    raise UserError(f"{name}: no such gin file; name a path, or one of {', '.join(shipped)}")


def _check_text(path: Path) -> None:
    """Raises UserError where a file cannot be gin, which gin would say without naming it."""
    try:
        _check_closed(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no gin file, for it is not text in UTF-8 (byte {error.start}): save it as UTF-8, or name another") from error


def _check_closed(text: str, where: str) -> None:
    """Raises UserError where a bracket or a quotation is open at the end, which gin would say without naming the file or value."""
    try:
        collections.deque(tokenize.generate_tokens(io.StringIO(text).readline), maxlen=0)
    except (tokenize.TokenError, SyntaxError) as error:
        raise UserError(f"{where}: {error.args[0]}: close all brackets and quotation marks") from error


def _check_required() -> None:
    """Raises UserError where a macro is %gin.REQUIRED: gin would hand on a value that says nothing."""
    for (scope, selector), values in gin.config._CONFIG.items():
        if selector == "gin.macro" and any(str(value) == "%gin.REQUIRED" for value in values.values()):
            raise UserError(f"{scope} is required: give it with --gin.{scope}=VALUE, or in a file with --gin_file")


def _size_of_recipe(paths: Sequence[Path]) -> str | None:
    """The size that the last recipe among the files has in its name, PART_SIZE.gin."""
    recipes = {path.name for path in (gin_folder() / "runs").glob("*.gin")}
    named = (path.stem.rpartition("_")[2] for path in reversed(paths) if path.name in recipes)
    return next((size for size in named if size in sizes()), None)


def _quoted(binding: str) -> str:
    name, equals, value = binding.partition("=")
    if not equals or not name.strip():
        raise UserError(f"--gin.{binding}: expected NAME=VALUE, such as --gin.SEMANTIC_STEPS=500")
    value = value.strip()
    if not value.startswith(("@", "%", "[", "(", "{")):
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = repr(value)
    _check_closed(value, f"--gin.{name.strip()}")
    return f"{name.strip()} = {value}"


# ---------------------------------------------------------------------------------------------------------------------- Mistakes

# Names of before the first release, and what has taken their place.
_RENAMED = {
    r"SOUNDSTREAM_(\w+)": r"CODEC_\1",
    r"soundstream/": "codec/",
    r"\bCodecTask\b": "SoundStreamRecipe",
    r"\b(\w+)Task\.(\w+)": r"\1Recipe.\2",
    r"\b(\w+)Task\b": r"\1Recipe",
    r"\bTraining\.(batch_size|crop_sec|loop)": r"a field of the part: W2vBertPart.\1, MuLanPart.\1, ..., and semantic/StagePart.\1 for a stage",
    r"\bTraining\b": "a part, such as W2vBertPart or StagePart",
    r"\bTrainConfig\.num_steps": "num_steps of the recipe, or the macros CODEC_STEPS, W2V_BERT_STEPS, MULAN_STEPS, SEMANTIC_STEPS, ...",
    r"\bOptimizerConfig\.total_steps": "num_steps of the recipe, where the schedule ends",
    r"\bWindowConfig\.(semantic|coarse|fine)_(window|hop)_sec": r"\1/StageSpec.\2_sec",
    r"\bWindowConfig\.max_fine_batch": "fine/StageSpec.max_windows",
    r"\bWindowConfig\b": "StageSpec",
    r"\bMusicLMConfig\.soundstream": "MusicLMConfig.codec",
    r"\bMusicLMConfig\.coarse_levels": "the macro COARSE_LEVELS",
    r"\bMusicLMConfig\.use_fine": "MusicLMConfig.skipped_stages, such as ('fine',)",
    r"\bMusicLMConfig\.fine_sees_mulan": "fine/StageSpec.prefix",
    r"\bMusicLMConfig\.(num_candidates|num_drafts|draft_sec)": r"SelectionConfig.\1",
    r"\bMusicLMConfig\.(\w+)_sampling": r"\1/SamplingConfig",
    r"\bFitConfig\.text_share": "the macro TEXT_SHARE",
    r"\bFitConfig\.text_mix": "the macro TEXT_MIX",
    r"\bFitConfig\.kmeans_sec": "W2vBertPart.kmeans_sec",
    r"\bFitConfig\.mulan_hop_sec": "MuLanPart.condition_hop_sec",
    r"\bFitConfig\.bundle_dtype": "ExportPart.dtype",
    r"\bFitConfig\.(codec|soundstream|w2v_bert|mulan|reranker|semantic_reranker|semantic|coarse|fine|melody)\b": "FitConfig.parts",
}
_MOVED = {
    "steps": "parts.fit",
    "fit": "parts.fit",
    "train": "training.loop",
    "optim": "training.optim",
    "sharding": "training.sharding",
    "windows": "generation.stages",
    "sampling": "generation.sampler",
    "features": "audio.features",
}


def _renamed(name: str) -> str | None:
    """What has taken the place of a name of before the first release; None: it is no such name."""
    for old, new in _RENAMED.items():
        if match := re.search(old, name):
            return match.expand(new)
    return None


def _explain(error: Exception, bindings: Sequence[str], since: dict[_Bound, int]) -> str:
    """One line for gin's many kinds of errors, with the names that the user may have meant. since: of `_parse`; empty where that failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    module = re.search(r"cannot import name '(\w+)' from 'musiclm_jax'|No module named 'musiclm_jax\.(\w+)'", str(error))
    if module and (name := module[1] or module[2]) in _MOVED:
        return f"musiclm_jax.{name} is musiclm_jax.{_MOVED[name]} now: `from musiclm_jax.{_MOVED[name].replace('.', ' import ')}`"
    place = _place(lines)
    if isinstance(error, RecursionError):
        return f"a file or a value contains itself{place}: remove what leads back to it"
    if (macro := re.search(r"\(in (.+)/macro\)", place)) and isinstance(error, TypeError):
        return f"%{macro[1]} is read and not set: give it with --gin.{macro[1]}=VALUE, or in a file with --gin_file"
    if isinstance(error, (TypeError, AttributeError)) and (cls := re.search(r"(\w+)\)$", place)):
        names = " or ".join(sorted({field for (_, selector, field), number in since.items() if number and selector.endswith(f".{cls[1]}")}))
        what = f"a value of {names}" if names else "a value"
        return f"{what} is of another kind than is expected{place}: {lines[0]}; see the files in {gin_folder()} for how values are written"
    field = re.search(r"Configurable '(.+?)' doesn't have a parameter named '(.+?)'", lines[0])
    if field:
        cls, name = field[1].rpartition(".")[2], field[2]
        if new := _renamed(f"{cls}.{name}"):
            return f"{cls}.{name} is {new} now{place}"
        return f"{cls} has no field {name!r}{place}: {_near(name, _fields(field[1]))}"
    unknown = re.search(r"No configurable matching '(.+?)'", lines[0])
    if unknown:
        name = unknown[1].rpartition(".")[2]
        if new := _renamed(name):
            return f"{name} is {new} now{place}"
        return f"there is no {name!r}{place}: {_near(name, _classes())}"
    if binding := re.search(r"\(line (\d+)\)|bindings string line (\d+)", str(error)):  # Of the bindings; a file would be named.
        number = int(binding[1] or binding[2])
        place = place or f" (--gin.{bindings[min(number, len(bindings)) - 1]})" if bindings else place
    return f"{lines[0] if not lines[0].startswith('In ') else type(error).__name__}{place}: see the files in {gin_folder()} for how values are written"


def _place(lines: Sequence[str]) -> str:
    """Where it happened, by gin's account of it, as the end of a line: " (in semantic/StageConfig)"."""
    place = next((line.strip().removeprefix("In ") for line in lines if line.strip().startswith("In ")), "")
    call = re.search(r"call to configurable '(.+?)'.*?(?:in scope '(.+)')?$", place)
    if call:
        place = f"in {call[2]}/{call[1]}" if call[2] else f"in {call[1]}"
    return f" ({place})" if place and "bindings string" not in place else ""


def _unused(since: dict[_Bound, int]) -> list[str]:
    """What is bound and no call has got, since nothing reads it or a narrower scope has another value for each that does: gin itself keeps silent
    about these. A value that a later file or binding replaces in narrower scopes is none of them. gin has no public view of its bindings."""
    bound = gin.config._CONFIG
    used = set()
    for (where, selector), fields in gin.config._OPERATIVE_CONFIG.items():
        scopes = [scope for scope, other in bound if other == selector and f"{where}/".startswith(f"{scope}/" if scope else "")]
        for field in fields:
            used.add((max((scope for scope in scopes if field in bound[scope, selector]), key=len, default=None), selector, field))

    def is_replaced(scope: str, *name: str) -> bool:
        narrower = [each for each in used if each[1:] == tuple(name) and f"{each[0]}/".startswith(f"{scope}/" if scope else "")]
        return any(since.get(each, 0) > since[scope, *name] for each in narrower)

    unused = []
    for (scope, selector), values in bound.items():
        for field in values:
            if (scope, selector, field) not in used and not is_replaced(scope, selector, field):
                short = selector.rpartition(".")[2]
                unused.append(scope if selector == "gin.macro" else f"{scope}/{short}.{field}" if scope else f"{short}.{field}")
    return sorted(unused)


def _fields(name: str) -> list[str]:
    """Parameters of what gin knows as `name`, a class or function."""
    return sorted(inspect.signature(gin.config._REGISTRY.get_match(name).wrapped).parameters)


def _classes() -> list[str]:
    """Short names of everything that the parsed files can bind."""
    return sorted({selector.rpartition(".")[2] for selector, _ in gin.config._REGISTRY.items() if selector.startswith("musiclm_jax.")})


def _known_names() -> list[str]:
    """Everything that a binding may name, with the scopes in use."""
    names = [scope for scope, selector in gin.config._CONFIG if selector == "gin.macro"]
    for scope, selector in gin.config._OPERATIVE_CONFIG:
        if selector != "gin.macro":
            prefix = f"{scope}/" if scope else ""
            names += [f"{prefix}{selector.rpartition('.')[2]}.{field}" for field in gin.config._OPERATIVE_CONFIG[scope, selector]]
    return sorted(names)


def _near(name: str, known: Sequence[str]) -> str:
    found = [each for each in difflib.get_close_matches(name, known, n=4, cutoff=0.5) if each != name]
    return f"did you mean {' or '.join(found)}?" if found else f"choose from {', '.join(known)}"
