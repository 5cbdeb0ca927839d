"""`musiclm export` and `musiclm info`."""

from __future__ import annotations

import click

from musiclm_jax.cli.options import Model, Place, use_compilation_cache
from musiclm_jax.errors import UserError
from musiclm_jax.files import exists, fingerprint, is_dir


@click.command(short_help="Copies the bundle of a finished fit.")
@click.argument("source", metavar="WORKDIR", type=Place())
@click.argument("out", metavar="FOLDER", type=Place())
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True, help="Stored dtype; float16 halves the size.")
def export(source, out, dtype) -> None:
    """Copies the bundle that a finished `fit` left in WORKDIR to the new folder FOLDER, with the chosen dtype. WORKDIR may also be a bundle."""
    if exists(out) and not (is_dir(out) and not any(out.iterdir())):
        raise UserError(f"{out} exists already, and is not overwritten: name a new folder")
    from musiclm_jax import bundle
    from musiclm_jax.musiclm import MusicLM

    made = source / "export" / "bundle"
    found = made if is_dir(made) else source
    musiclm = MusicLM.from_pretrained(found)
    musiclm.save_pretrained(out, dtype=dtype, card=bundle.read_card(found))
    size = sum(fingerprint(path)[0] for path in out.iterdir())
    click.echo(f"{out}: {size / 1e6:.1f} MB, {dtype}")


@click.command(short_help="Describes a bundle and checks it.")
@click.argument("model", type=Model(), default="demo")
def info(model) -> None:
    """Describes a bundle, and checks that its files are complete and undamaged. MODEL: its folder, or 'demo'."""
    use_compilation_cache()
    from musiclm_jax.pretrained import describe

    click.echo(describe(model))
