"""Writes docs/configuration.md from the source: `python docs/configuration.py`.

Every dataclass that `FitConfig` can be made of, with its fields, types, defaults and the comment above each field; the macros and scopes of the gin files.
The same source gives the same file, and a test compares the two, so run this after a config has changed.
"""

import ast
import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from musiclm_jax.cli.gin_config import gin_folder, load_config, operative_config, sizes
from musiclm_jax.parts.part import FitConfig

OUT = Path(__file__).with_suffix(".md")
ROOMS = {
    "parts": "Parts: what `fit` trains, and on which batches",
    "tasks": "Recipes: losses and lengths of the trainings",
    "training": "The training loop, optimizers, devices",
    "configs": "The model: what a bundle's `config.json` contains",
    "specs": "Rates",
    "tokens": "Levels of a stream",
    "generation": "Stages, sampling, selection",
    "models": "Models",
    "nn": "Layers",
    "audio": "Spectrograms",
}

INTRODUCTION = """\
# Configuration

`python docs/configuration.py` writes this page from the source. Do not edit it by hand.

`musiclm fit` and `musiclm train` build one frozen dataclass, [`FitConfig`](#fitconfig), out of gin files. The library itself sees dataclasses only. This
page lists their fields, the macros and the scopes.

## How values are set

A later item wins over an earlier one:

1. The defaults of the dataclasses. For the models they are the paper's sizes.
2. A size, `--size NAME`: a file of `gin_configs/models/`, which includes `gin_configs/system.gin`. `test` is for tests, `demo` trains on two CPU cores,
   `base` has the paper's sizes and includes all recipes.
3. Recipes and files of your own, `--gin_file FILE`, repeatable. `gin_configs/runs/semantic_base.gin` and its neighbours say how each part is trained at
   the size `base`, and where each value is from. With such a recipe and no `--size`, the size is the one in the recipe's name, and
   with a file that includes one, such as `models/test.gin`, that one.
4. Single values, `--gin.NAME=VALUE`, repeatable. Strings need no quotes.

```sh
musiclm fit clips --size demo --workdir run --gin.SEMANTIC_STEPS=20000
musiclm fit clips --size demo --workdir run --gin.semantic/StageConfig.dim=256 --gin.StageConfig.num_layers=6
musiclm train semantic clips --gin_file runs/semantic_base.gin --workdir run --gin.MeshConfig.fsdp=4
```

A NAME is a macro, such as `SEMANTIC_STEPS`, or a field, such as `StageConfig.dim`. A *scope* before a field selects one of several configs of the same
class: `StageConfig.dim` sets all three stages, `semantic/StageConfig.dim` one. The value with the longest matching scope wins. An unknown name, a value of
the wrong type and a value that nothing reads are errors. `WORKDIR/STEP/config.gin` records all values with which a step was last run.

A file of your own imports the modules whose classes it names:

```
from __gin__ import dynamic_registration

from musiclm_jax.models import stage
from musiclm_jax.training import optim

SEMANTIC_STEPS = 20_000
semantic/stage.StageConfig.dim = 256
stage/semantic/optim.OptimizerConfig.learning_rate = 1e-3
```

`NAME = @semantic/stage.StageConfig()` uses the config of that scope, and `%SEMANTIC_STEPS` the value of a macro. See `gin_configs/models/demo.gin` for a
complete example, and [training.md](training.md) for which changes begin another training.
"""


# ---------------------------------------------------------------------------------------------------------------------- Classes


def configs() -> list[type]:
    """The dataclasses that configs may be made of, beginning with FitConfig."""
    parts = list(dict.fromkeys(type(part) for size in sizes() for part in load_config(size).parts))
    found, wanted = [], [FitConfig]
    while wanted:
        cls = wanted.pop(0)
        if cls in found:
            continue
        found.append(cls)
        hints = typing.get_type_hints(cls)
        for field in settable(cls):
            wanted += [each for each in classes_in(hints[field.name]) if not inspect.isabstract(each)]
        if cls is FitConfig:
            wanted += parts
    return [cls for cls in found if settable(cls)]


def settable(cls: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cls) if field.init]


def classes_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for argument in typing.get_args(hint):
        yield from classes_in(argument)


def written(cls: type) -> dict[str, tuple[str, str, str]]:
    """What stands in the source of a class of its fields: {name: (type, default, comment)}."""
    source = Path(inspect.getsourcefile(cls)).read_text(encoding="utf-8")
    lines = source.splitlines()
    body = next(node.body for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    fields = {}
    for node in body:
        if isinstance(node, ast.AnnAssign):
            above, comment = node.lineno - 2, []
            while lines[above].strip().startswith("#"):
                comment.insert(0, lines[above].strip().removeprefix("#").strip())
                above -= 1
            default = "" if node.value is None else ast.get_source_segment(source, node.value)
            fields[node.target.id] = (ast.get_source_segment(source, node.annotation), " ".join(default.split()), " ".join(comment))
    return fields


def describe(cls: type, scopes: list[str]) -> list[str]:
    fields: dict[str, tuple[str, str, str]] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            fields |= written(base)
    doc = " ".join(inspect.getdoc(cls).split("\n\n")[0].split()) if has_docstring(cls) else ""
    module = Path(*cls.__module__.split(".")).with_suffix(".py").as_posix()
    lines = [f"### {cls.__name__}", "", f"{doc}{' ' if doc else ''}`{module}`.", ""]
    if scopes:
        lines[-1:] = [f"Scopes: {', '.join(f'`{scope}/`' for scope in scopes)}.", ""]
    for field in settable(cls):
        kind, default, comment = fields[field.name]
        lines.append(f"- `{field.name}: {kind}{f' = {default}' if default else ''}`{f' {comment}' if comment else ''}")
    return [*lines, ""]


def has_docstring(cls: type) -> bool:
    """Whether a person wrote it; a dataclass without one gets its signature."""
    return "__doc__" in vars(cls) and not (cls.__doc__ or "").startswith(f"{cls.__name__}(")


# ---------------------------------------------------------------------------------------------------------------------- gin files


def macros(path: Path) -> Iterator[tuple[str, str, str]]:
    """(name, value, comment above it) of the macros of a gin file and of those that it includes, in their order."""
    comment = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if include := re.fullmatch(r"include '(.+)'", line):
            yield from macros(gin_folder() / include[1])
        if macro := re.fullmatch(r"([A-Z][A-Z0-9_]*) = (.+)", line):
            yield macro[1], macro[2], " ".join(comment)
        comment = [*comment, line.removeprefix("#").strip()] if line.startswith("#") else []


def macro_table() -> list[str]:
    values: dict[str, dict[str, str]] = {}
    comments: dict[str, str] = {}
    for size in sizes():
        found = {}
        for name, value, _ in macros(gin_folder() / "models" / f"{size}.gin"):
            found[name] = value
        for name, value in found.items():
            while value.startswith("%"):
                value = found[value.removeprefix("%")]
            values.setdefault(name, {})[size] = value
    for path in ("system.gin", "models/demo.gin"):
        for name, _, comment in macros(gin_folder() / path):
            if path == "system.gin" or not name.endswith("_STEPS"):
                comments.setdefault(name, comment)
    lines = [f"| macro | {' | '.join(sizes())} | |", f"|---|{'---|' * len(sizes())}---|"]
    for name, by_size in values.items():
        what = comments.get(name) or ("Length of a training, in steps." if name.endswith("_STEPS") else "")
        row = [f"`{name}`", *(f"`{by_size[size]}`" if size in by_size else "" for size in sizes()), what]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def scopes() -> dict[str, list[str]]:
    """The scopes in which the sizes use each class."""
    found: dict[str, list[str]] = {}
    for size in sizes():
        load_config(size)
        for scope, name in re.findall(r"^# Parameters for (?:(.+)/)?[\w.]*?(\w+):$", operative_config(), re.MULTILINE):
            if scope and scope not in found.setdefault(name, []):
                found[name].append(scope)
    return {name: sorted(each) for name, each in found.items()}


# ---------------------------------------------------------------------------------------------------------------------- The page


def page() -> str:
    lines = [INTRODUCTION, "## Macros", "", "Values that several fields share, or that are changed often.", "", *macro_table(), ""]
    rooms, of_class = {room: [] for room in ROOMS}, scopes()
    for cls in configs():
        rooms[cls.__module__.split(".")[1]].append(cls)
    for room, classes in rooms.items():
        if classes:
            lines += [f"## {ROOMS[room]}", ""]
            for cls in classes:
                lines += describe(cls, of_class.get(cls.__name__, []))
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    OUT.write_text(page(), encoding="utf-8")
