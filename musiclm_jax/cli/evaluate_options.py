"""What the commands of `musiclm evaluate` share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from musiclm_jax.cli.options import OutFile, Place, Seconds

clips_argument = click.argument("directory", metavar="DIR", type=Place())
excerpt_option = click.option("--seconds", type=Seconds(0.5, 3600), show_default="whole clips", help="Length of the beginning of each clip that is used.")
weights_option = click.option("--weights", metavar="PATH", type=str, help="Weights of a judge that is not packaged: a folder, a file, or a name on the hub.")
json_option = click.option("--out", type=OutFile(), help="JSON file for the whole report, with the figures of each clip.")
say = functools.partial(click.echo, err=True)


def tell(report: dict[str, Any], show: Callable[[dict[str, Any]], str], out: Path | None) -> None:
    """Prints a report, and writes it to a file as JSON."""
    from musiclm_jax.files import write_json

    if out is not None:
        write_json(out, report)
    click.echo(show(report))
