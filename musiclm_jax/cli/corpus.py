"""`musiclm corpus`."""

from __future__ import annotations

import os

import click

from musiclm_jax.cli.options import LocalPlace, seed_option


@click.command(short_help="Renders a corpus of captioned clips.")
@click.argument("directory", metavar="DIR", type=LocalPlace())
@click.option("--clips", type=click.IntRange(1, 1_000_000), default=2000, show_default=True, help="Number of clips of 30 s; more can be added later.")
@click.option(
    "--instruments",
    type=click.Choice(["synthesized", "sampled"]),
    default="synthesized",
    show_default=True,
    help="sampled: tunes by people, played by FluidSynth; needs packages, which it names.",
)
@click.option("--variants", type=click.IntRange(0, 100), default=0, show_default=True, help="Variants of each clip: its melody by others, hummed or whistled.")
@click.option("--endings", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Share of the pieces that end; the others are cut after 30 s.")
@click.option("--stems", is_flag=True, help="Also writes the lead and the band of each clip apart.")
@seed_option
@click.option("--workers", type=click.IntRange(1, 256), default=os.cpu_count() or 1, show_default="all processors", help="Processes.")
def corpus(directory, clips, instruments, variants, endings, stems, seed, workers) -> None:
    """Renders a corpus of captioned clips into DIR: audio/*.flac and metadata.jsonl.

    Variants have no captions; `musiclm train melody` learns from them, and an accompanist from the stems.
    """
    from musiclm_jax.corpus import make_corpus
    from musiclm_jax.progress import ProgressLine

    line, total = ProgressLine(unit="clips"), clips * (variants + 1 + 2 * stems)
    line("corpus", 0, total)
    try:
        options = {
            "num_clips": clips,
            "instruments": instruments,
            "num_variants": variants,
            "endings": endings,
            "stems": stems,
            "seed": seed,
            "workers": workers,
        }
        unlisted = make_corpus(directory, **options, on_clip=lambda number: line("corpus", number + 1, total))
    finally:
        line.clear()
    click.echo(f"{directory}: {total} clips, {'up to ' if endings else ''}{total / 120:.2f} hours")
    if unlisted:
        click.echo(f"{len(unlisted)} clips of an earlier call are no longer listed, such as {unlisted[0]}; a later call for more clips lists them again")
