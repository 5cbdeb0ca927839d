"""What the commands share: parameter types, options, and the compilation cache."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import click

from musiclm_jax.files import AnyPath, as_path, check_writable, local_path


class PerStage(click.ParamType):
    """A number for all stages, VALUE, or for one, STAGE=VALUE. Converts to (stage or None, number)."""

    name = "[STAGE=]VALUE"

    def __init__(self, number: Callable):
        self.number = number

    def convert(self, value, param, ctx) -> tuple[str | None, float | int]:
        stage, equals, number = value.rpartition("=")
        try:
            return (stage if equals else None), self.number(number)
        except ValueError:
            self.fail(f"{value!r}: expected a number, or a stage and a number, such as coarse=1.", param, ctx)


class Place(click.ParamType):
    """A path (`files.as_path`). The empty path is an error: pathlib takes it for the current folder, but it is usually an unset variable of a script."""

    name = "path"

    def convert(self, value, param, ctx) -> AnyPath:
        if isinstance(value, str) and not value.strip():
            self.fail(f"{value!r} is not a path; use '.' for the current folder.", param, ctx)
        return as_path(value)


class LocalPlace(Place):
    """A path on the local disk."""

    def convert(self, value, param, ctx) -> Path:
        return local_path(super().convert(value, param, ctx))


class OutFile(Place):
    """A file to write, in an existing folder. A folder or a device of this name is an error, because files are replaced whole."""

    def convert(self, value, param, ctx) -> Path:
        path = super().convert(value, param, ctx)
        if os.path.exists(path) and not os.path.isfile(path):
            self.fail(f"{str(path)!r} is a folder or a device; name a file.", param, ctx)
        if not os.path.isdir(path.parent):
            self.fail(f"{str(path)!r}: there is no folder {str(path.parent)!r}; create it, or write elsewhere.", param, ctx)
        check_writable(path)  # Before the work whose result is written.
        return path


class Model(Place):
    """A bundle: its folder, or the name of a packaged one. It stays a string, because "./demo" is a folder and "demo" is not."""

    name = "model"

    def convert(self, value, param, ctx) -> str:
        super().convert(value, param, ctx)
        return value


class Seconds(click.FloatRange):
    """A range of numbers that excludes nan and infinity."""

    name = "number"

    def convert(self, value, param, ctx) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a length; choose a number of seconds.", param, ctx)
        return number


class SectionedCommand(click.Command):
    """A command whose help lists its options in sections. sections: {title: names of parameters}; the others stand under "Options"."""

    def __init__(self, *args, sections: dict[str, list[str]], **kwargs):
        super().__init__(*args, **kwargs)
        self.sections = sections

    def format_options(self, ctx, formatter) -> None:
        records = {param.name: param.get_help_record(ctx) for param in self.get_params(ctx) if isinstance(param, click.Option)}
        listed = {name for names in self.sections.values() for name in names}
        for title, names in {**self.sections, "Options": [name for name in records if name not in listed]}.items():
            if rows := [records[name] for name in names if records.get(name)]:
                with formatter.section(title):
                    formatter.write_dl(rows)


def overrides(stages: list[str], **options: tuple[tuple[str | None, float | int], ...]) -> dict[str, dict]:
    """Merges the values of PerStage options to {stage: {option: number}}. A later value for the same stage wins."""
    merged: dict[str, dict] = {}
    for name, choices in options.items():
        for chosen, number in choices:
            for stage in stages if chosen is None else [chosen]:
                merged.setdefault(stage, {})[name] = number
    return merged


model_option = click.option("--model", type=Model(), default="demo", show_default=True, help="The folder of a bundle, or 'demo', the packaged bundle.")
seed_option = click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)


def short(text: str, limit: int = 60) -> str:
    """A text in quotes, shortened to `limit` characters."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def use_compilation_cache(*, preallocate: bool = False) -> None:
    """Keeps compiled programs between runs, if the user's cache folder is writable. MUSICLM_CACHE_DIR sets another folder; "" turns the cache off.

    preallocate: whether JAX allocates three quarters of a GPU's memory at once. This is best for training alone on a GPU.
    """
    if not preallocate:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX reads it when it first uses a device.
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.environ.get("MUSICLM_CACHE_DIR", os.path.join(base, "musiclm_jax"))
    if not folder:
        return
    folder = os.path.join(folder, "compiled")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    import warnings

    import jax

    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")  # One for each program on a full disk.
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
