"""Loads configs from gin files. This is the only module that uses gin: the library itself sees plain dataclasses.

Use:

    config = load_config("demo", ["mine.gin"], ["SEMANTIC_STEPS=500", "semantic/StageConfig.dim=128"])

The last of several values for the same name counts.
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
from musiclm_jax.folders import gin_folder
from musiclm_jax.parts.fit import FitConfig
from musiclm_jax.records import coerce


def sizes() -> list[str]:
    """The sizes that ship with the package, such as "demo"."""
    return sorted(path.stem for path in (gin_folder() / "models").glob("*.gin"))


def load_config(size: str | None, gin_files: Sequence[str | Path] = (), bindings: Sequence[str] = ()) -> FitConfig:
    """Loads the config of a size, changed by gin files and by bindings.

    Args:
        size: a name of `sizes`. None: that of the last file which has one, such as "base" for runs/semantic_base.gin (see `_size_of`), else "demo".
        gin_files: paths, or names in `gin_folder`; a later file overrides an earlier one.
        bindings: "NAME=VALUE"; they override the files, and a later one an earlier one. A value that is not a gin value is a string, so that strings need
            no quotes.

    Raises:
        UserError: an unknown size, file or name (the message lists similar names), an invalid value, or a binding that nothing reads.
    """
    paths = [_find(name) for name in gin_files]
    for binding in bindings:
        if new := _renamed(name := binding.partition("=")[0].strip()):
            raise UserError(f"{name} is {new} now")
    for path in paths:
        _check_text(path)
    size = (_size_of(paths) or "demo") if size is None else size
    if size not in sizes():
        raise UserError(f"size {size!r}: choose one of {', '.join(sizes())}")
    files = [str(path) for path in (gin_folder() / "models" / f"{size}.gin", *paths)]
    gin.clear_config()
    since: dict[_Bound, int] = {}
    # Our folder comes first: gin would otherwise look for `include 'models/base.gin'` in a Python module named models.
    gin.config._LOCATION_PREFIXES[:] = [str(gin_folder()), ""]
    try:
        since = _parse(files, [_quoted(binding) for binding in bindings])
        _check_required()
        config = gin.get_configurable(FitConfig)()
    except UserError as error:
        message, *account = str(error).splitlines()
        raise UserError(f"{message}{_place(account)}") from error
    except Exception as error:  # gin raises ValueError, SyntaxError, NameError, ImportError, TypeError ... and appends the place to the message.
        raise UserError(_explain(error, bindings, since)) from error
    unused = _unused(since)
    if unused:
        if new := _renamed(unused[0]):
            raise UserError(f"{unused[0]} is {new} now")
        raise UserError(f"{unused[0]} is set but nothing reads it: {_near(unused[0], [name for name in _known_names() if name not in unused])}")
    return coerce(config)


def operative_config() -> str:
    """The values that the last call of `load_config` used, as the text of a gin file."""
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
    """Disables logging: gin logs an error for each folder in which it does not find an included file."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _find(name: str | Path) -> Path:
    for path in (Path(name), gin_folder() / name):
        if os.path.isfile(path):  # path.is_file() raises if the name is too long.
            return path
    shipped = sorted(str(path.relative_to(gin_folder())) for path in gin_folder().rglob("*.gin"))
    raise UserError(f"{name}: no such gin file; name a path, or one of {', '.join(shipped)}")


def _check_text(path: Path) -> None:
    """Raises UserError, with the path, where a file is unreadable, not text, or has an open bracket or quotation. gin's error lacks the path."""
    try:
        _check_closed(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a gin file, since it is not UTF-8 text (byte {error.start}): save it as UTF-8, or name another file") from error


def _check_closed(text: str, where: str) -> None:
    """Raises UserError where a bracket or a quotation is open at the end. where: the file or binding, for the message."""
    try:
        collections.deque(tokenize.generate_tokens(io.StringIO(text).readline), maxlen=0)
    except (tokenize.TokenError, SyntaxError) as error:
        raise UserError(f"{where}: {error.args[0]}: close all brackets and quotation marks") from error


def _check_required() -> None:
    """Raises UserError where a macro is still %gin.REQUIRED. gin would pass on that object as a value."""
    for (scope, selector), values in gin.config._CONFIG.items():
        if selector == "gin.macro" and any(str(value) == "%gin.REQUIRED" for value in values.values()):
            raise UserError(f"{scope} is required: give it with --gin.{scope}=VALUE, or in a file with --gin_file")


def _size_of(paths: Sequence[Path]) -> str | None:
    """The size that the last of the files is for: one in its name, if it is a recipe PART_SIZE.gin, or one that it includes, models/SIZE.gin. Else None."""
    recipes, found = {path.name for path in (gin_folder() / "runs").glob("*.gin")}, []
    for path in paths:
        found += re.findall(r"^include\s+['\"](?:\S*/)?models/(\w+)\.gin", path.read_text(encoding="utf-8"), re.MULTILINE)
        found += [path.stem.rpartition("_")[2]] if path.name in recipes else []
    return next((size for size in reversed(found) if size in sizes()), None)


def _quoted(binding: str) -> str:
    """The binding as a line of a gin file, in which a value that is not a gin value is a quoted string."""
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


# ---------------------------------------------------------------------------------------------------------------------- Errors

_MACROS = "the macros CODEC_STEPS, W2V_BERT_STEPS, MULAN_STEPS, RERANKER_STEPS, SEMANTIC_STEPS, COARSE_STEPS, FINE_STEPS, MELODY_STEPS"
# Names from before the first release -> their replacements. The first match counts.
_RENAMED = {
    r"^SOUNDSTREAM_(\w+)": r"CODEC_\1",
    r"\b(?:Spectral)?CodecTask\.model\b": "MusicLMConfig.codec",
    r"\b(?:Spectral)?CodecTask\.sample_rate_hz\b": "AudioSpec.sample_rate_hz",
    r"\bSpectralCodecTask\.heard_start_step\b": "SpectralCodecRecipe.wave_loss_start_step",
    r"\bCodecTask\.(?!name\b)(\w+)": r"SoundStreamRecipe.\1",
    r"\bCodecTask\b": "SoundStreamRecipe",
    r"\bW2vBertTask\.model\b": "MusicLMConfig.w2v_bert",
    r"\bMuLanTask\.model\b": "MusicLMConfig.mulan",
    r"\bMelodyTask\.model\b": "MelodyPart.model",
    r"\bStageTask\.name\b": "StagePart.stage",
    r"\bStageTask\.(model|prefix_dropout)\b": r"StageSpec.\1",
    r"\bStageTask\.codebook_init\b": "StagePart.codebook_init",
    r"\bStageTask\.fine_sees_mulan\b": "fine/StageSpec.prefix",
    r"\bStageTask\.tokens\b": "StageSpec.prefix and StageSpec.target, for each of MusicLMConfig.stages",
    r"\b(SpectralCodec|W2vBert|MuLan|Stage|Melody)Task\.(?!name\b)(\w+)": r"\1Recipe.\2",
    r"\b(SpectralCodec|W2vBert|MuLan|Stage|Melody)Task\b": r"\1Recipe",
    r"\bTokenSpec\.mulan_(levels|codes)\b": r"MuLanConfig.num_\1",
    r"\bTokenSpec\.semantic_codes\b": "W2vBertConfig.num_clusters",
    r"\bTokenSpec\.acoustic_(levels|codes)\b": r"SoundStreamConfig.num_\1, or SpectralCodecConfig.num_\1",
    r"\bTokenSpec\.coarse_levels\b": "the macro COARSE_LEVELS",
    r"\bTokenSpec\b": "MusicLMConfig.stages",
    r"\bTraining\.task\b": "the recipe of the part: CodecPart.recipe, W2vBertPart.recipe, MuLanPart.recipe, StagePart.recipe, ...",
    r"\bTraining\.crop_sec\b": "a field of the part: CodecPart.crop_sec, W2vBertPart.crop_sec, MuLanPart.crop_sec, ..., and for a stage StageSpec.window_sec",
    r"\bTraining\.(batch_size|loop)\b": r"a field of the part: CodecPart.\1, W2vBertPart.\1, MuLanPart.\1, StagePart.\1, ...",
    r"\bTraining\b": "a part, such as W2vBertPart or StagePart",
    r"\bTrainConfig\.num_steps\b": f"num_steps of the recipe, such as StageRecipe.num_steps; see {_MACROS}",
    r"\bOptimizerConfig\.total_steps\b": f"num_steps of the recipe, such as StageRecipe.num_steps, where the schedule ends; see {_MACROS}",
    r"\bWindowConfig\.(semantic|coarse|fine)_(window|hop)_sec\b": r"\1/StageSpec.\2_sec",
    r"\bWindowConfig\.max_fine_batch\b": "fine/StageSpec.max_windows",
    r"\bWindowConfig\b": "StageSpec",
    r"\bMusicLMConfig\.soundstream\b": "MusicLMConfig.codec",
    r"\bMusicLMConfig\.coarse_levels\b": "the macro COARSE_LEVELS",
    r"\bMusicLMConfig\.(semantic|coarse|fine)\b": r"\1/StageSpec.model, for each of MusicLMConfig.stages",
    r"\bMusicLMConfig\.windows\b": "StageSpec.window_sec and StageSpec.hop_sec, for each of MusicLMConfig.stages",
    r"\bMusicLMConfig\.use_fine\b": "MusicLMConfig.skipped_stages, such as ('fine',)",
    r"\bMusicLMConfig\.fine_sees_mulan\b": "fine/StageSpec.prefix",
    r"\bMusicLMConfig\.(num_candidates|num_drafts|draft_sec)\b": r"SelectionConfig.\1",
    r"\bMusicLMConfig\.(semantic|coarse|fine)_sampling\b": r"\1/StageSpec.sampling",
    r"\bSamplingConfig\.cooling\b": "SamplingConfig.temperature for all levels",
    r"\bFitConfig\.text_share\b": "the macro TEXT_SHARE",
    r"\bFitConfig\.text_mix\b": "the macro TEXT_MIX",
    r"\bFitConfig\.kmeans_sec\b": "W2vBertPart.kmeans_sec",
    r"\bFitConfig\.mulan_hop_sec\b": "MuLanPart.condition_hop_sec",
    r"\bFitConfig\.bundle_dtype\b": "ExportPart.dtype",
    r"\bFitConfig\.(soundstream|w2v_bert|mulan|reranker|semantic_reranker|semantic|coarse|fine|melody)\b": "FitConfig.parts",
    r"^soundstream/(?:\w+\.)?(\w+\.\w+)$": r"codec/\1",
}
# Modules from before the first release -> their replacements.
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
    """The replacement of a name from before the first release; None: not such a name."""
    for old, new in _RENAMED.items():
        if match := re.search(old, name):
            return match.expand(new)
    return None


def _explain(error: Exception, bindings: Sequence[str], since: dict[_Bound, int]) -> str:
    """Turns any of gin's errors into a message of one line, with the names that the user may have meant. since: from `_parse`, {} if that failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    module = re.search(r"cannot import name '(\w+)' from 'musiclm_jax'|No module named 'musiclm_jax\.(\w+)'", str(error))
    if module and (name := module[1] or module[2]) in _MOVED:
        return f"musiclm_jax.{name} is musiclm_jax.{_MOVED[name]} now: `from musiclm_jax.{_MOVED[name].replace('.', ' import ')}`"
    place = _place(lines)
    if isinstance(error, RecursionError):
        return f"a file or a value contains itself{place}: remove what leads back to it"
    if (macro := re.search(r"\(in (.+)/macro\)", place)) and isinstance(error, TypeError):
        return f"%{macro[1]} is read and not set: give it with --gin.{macro[1]}=VALUE, or in a file with --gin_file"
    field = re.search(r"Configurable '(.+?)' doesn't have a parameter named '(.+?)'", lines[0])
    if field:
        cls, name = field[1].rpartition(".")[2], field[2]
        if new := _renamed(f"{cls}.{name}"):
            return f"{cls}.{name} is {new} now{place}"
        return f"{cls} has no field {name!r}{place}: {_near(name, _fields(field[1]))}"
    unknown = re.search(r"No configurable matching '(?:.+\.)?(.+?)'|Couldn't resolve selector .* has no attribute (\w+)", lines[0])
    if unknown:
        name = unknown[1] or re.search(rf"\b{unknown[2]}(\.\w+)?", lines[-1])[0]  # The last line is the statement.
        if new := _renamed(name):
            return f"{name} is {new} now{place}"
        return f"there is no {name!r}{place}: {_near(name, _classes())}"
    if isinstance(error, (TypeError, AttributeError)) and (cls := re.search(r"(\w+)\)$", place)):
        names = " or ".join(sorted({field for (_, selector, field), number in since.items() if number and selector.endswith(f".{cls[1]}")}))
        what = f"a value of {names}" if names else "a value"
        return f"{what} is of another kind than is expected{place}: {lines[0]}; see the files in {gin_folder()} for how values are written"
    if binding := re.search(r"\(line (\d+)\)|bindings string line (\d+)", str(error)):  # A line of the bindings: for a file, gin gives its name.
        number = int(binding[1] or binding[2])
        place = place or f" (--gin.{bindings[min(number, len(bindings)) - 1]})" if bindings else place
    return f"{lines[0] if not lines[0].startswith('In ') else type(error).__name__}{place}: see the files in {gin_folder()} for how values are written"


def _place(lines: Sequence[str]) -> str:
    """The place of an error as the end of a message, such as " (in semantic/StageConfig)". lines: those of gin's message."""
    place = next((line.strip().removeprefix("In ") for line in lines if line.strip().startswith("In ")), "")
    call = re.search(r"call to configurable '(.+?)'.*?(?:in scope '(.+)')?$", place)
    if call:
        place = f"in {call[2]}/{call[1]}" if call[2] else f"in {call[1]}"
    return f" ({place})" if place and "bindings string" not in place else ""


def _unused(since: dict[_Bound, int]) -> list[str]:
    """Names that are bound but were passed to no call: nothing reads them, or a narrower scope overrides them everywhere.

    A value is not among them if a later file or binding overrides it in narrower scopes. gin itself reports no such names, and has no public view of
    its bindings.
    """
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
    """The parameters of the class or function that gin has registered as `name`."""
    return sorted(inspect.signature(gin.config._REGISTRY.get_match(name).wrapped).parameters)


def _classes() -> list[str]:
    """The short names of all classes that the parsed files can bind."""
    return sorted({selector.rpartition(".")[2] for selector, _ in gin.config._REGISTRY.items() if selector.startswith("musiclm_jax.")})


def _known_names() -> list[str]:
    """All names that a binding may have, with the scopes in use."""
    names = [scope for scope, selector in gin.config._CONFIG if selector == "gin.macro"]
    for scope, selector in gin.config._OPERATIVE_CONFIG:
        if selector != "gin.macro":
            prefix = f"{scope}/" if scope else ""
            names += [f"{prefix}{selector.rpartition('.')[2]}.{field}" for field in gin.config._OPERATIVE_CONFIG[scope, selector]]
    return sorted(names)


def _near(name: str, known: Sequence[str]) -> str:
    found = [each for each in difflib.get_close_matches(name, known, n=4, cutoff=0.5) if each != name]
    return f"did you mean {' or '.join(found)}?" if found else f"choose from {', '.join(known)}"
