"""`musiclm data`."""

from __future__ import annotations

import dataclasses
import sys

import click

from musiclm_jax.cli.options import Place
from musiclm_jax.cli.training import GIN, config_options, load_training_config
from musiclm_jax.errors import UserError
from musiclm_jax.files import check_writable, write_json
from musiclm_jax.progress import ProgressLine


@click.group(short_help="Looks at folders of clips.")
def data() -> None:
    """Looks at folders of clips."""


@data.command(context_settings=GIN)
@click.argument("directory", metavar="DIR", type=Place())
@config_options
@click.option("--quick", is_flag=True, help="Read the headers of the files alone: no silence, clipping and duplicates.")
@click.option("--time", "timed", is_flag=True, help="Also say about how long each training takes on this machine.")
@click.option("--json", "json_file", type=Place(), help="Also write the report to this file.")
@click.option("--picture", type=Place(), help="Also draw histograms to this file, .png or .svg.")
def check(directory, size, gin_files, bindings, quick, timed, json_file, picture) -> None:
    """Says what the clips in DIR are, what each part of a model gets of them, and what would stop or spoil its training.

    Exits with status 1 if it found that. Nothing is trained.
    """
    config, _ = load_training_config(size, gin_files, bindings)
    for file in (json_file, picture):
        if file is not None:
            if file.parent.absolute() == directory.absolute():
                raise UserError(f"{file} would lie among the clips: write it elsewhere")
            check_writable(file)
    if picture is not None:
        _figure(picture)  # Whether the package is there, before the clips are read.
    from musiclm_jax.parts.data_check import check_data

    line = ProgressLine(unit="clips")
    try:
        report = check_data(directory, config=config, listen=not quick, on_clip=lambda done, total: line("listening", done, total))
    finally:
        line.clear()
    if json_file is not None:
        write_json(json_file, dataclasses.asdict(report))
    if picture is not None:
        _draw(report, picture)
    click.echo(report)
    if timed:
        _print_hours(config)
    if report.errors:
        sys.exit(1)


def _print_hours(config) -> None:
    from musiclm_jax.parts.fit_time import fit_hours

    hours = fit_hours(config)
    each = ", ".join(f"{name} {value:.2g}" for name, value in hours.items())
    click.echo(f"its trainings take about {sum(hours.values()):.2g} hours on this machine, or half or twice as long: {each}")


def _figure(path):
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: a picture needs the package {error.name}; install it with: pip install matplotlib") from error
    return Figure(figsize=(10, 3), layout="constrained")


def _draw(report, path) -> None:
    figure = _figure(path)
    seconds, formats, scripts = figure.subplots(1, 3)
    seconds.hist(report.seconds, bins=40)
    seconds.set(xlabel="seconds", ylabel="clips", title=f"{report.clips} clips, {report.hours:.2f} hours")
    for axes, counts, title in ((formats, report.rates_hz, "sample rates in Hz"), (scripts, report.kinds or report.scripts, "captions")):
        axes.bar(list(counts), list(counts.values()))
        axes.set_title(title)
        axes.tick_params(axis="x", rotation=30)
    figure.savefig(path)
