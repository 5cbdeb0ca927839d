"""What the commands share: kinds of values, options, and how the machine is set up."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click


class PerStage(click.ParamType):
    """VALUE for all stages, or STAGE=VALUE for one."""

    name = "[STAGE=]VALUE"

    def __init__(self, number: Callable):
        self.number = number

    def convert(self, value, param, ctx) -> tuple[str | None, float | int]:
        stage, equals, number = value.rpartition("=")
        try:
            return (stage if equals else None), self.number(number)
        except ValueError:
            self.fail(f"{value!r} is not a number, nor a stage's number such as coarse=1.", param, ctx)


class Place(click.ParamType):
    """A path. Not the empty one, which pathlib takes for the current folder: a script's variable that is not set."""

    name = "path"

    def convert(self, value, param, ctx) -> Path:
        if isinstance(value, str) and not value.strip():
            self.fail(f"{value!r} is no path; '.' is the current folder.", param, ctx)
        return Path(value)


class Seconds(click.FloatRange):
    """A range that nan is outside of."""

    name = "number"

    def convert(self, value, param, ctx) -> float:
        number = super().convert(value, param, ctx)
        if number != number:
            self.fail("nan is not a length.", param, ctx)
        return number


def overrides(stages: list[str], **options: tuple[tuple[str | None, float | int], ...]) -> dict[str, dict]:
    """Options as {stage: {option: number}}; of choices for the same stage, the last."""
    merged: dict[str, dict] = {}
    for name, choices in options.items():
        for chosen, number in choices:
            for stage in stages if chosen is None else [chosen]:
                merged.setdefault(stage, {})[name] = number
    return merged


model_option = click.option("--model", type=Place(), default="demo", show_default=True, help="A bundle's folder, or 'demo', the one that is packaged.")
seed_option = click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)


def short(text: str, limit: int = 60) -> str:
    """A text in quotes, cut where it is long."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def use_compilation_cache(*, preallocate: bool = False) -> None:
    """Keeps compiled programs between runs, where the user's cache folder can be written. MUSICLM_CACHE_DIR moves it; "" turns it off.

    preallocate: let JAX take three quarters of a GPU's memory at once, which suits training and nothing beside it.
    """
    if not preallocate:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # Read when JAX first asks for a device.
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
    import jax

    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
