"""`musiclm tokenize`."""

from __future__ import annotations

import click

from musiclm_jax.cli.options import Model, Place, Seconds, use_compilation_cache
from musiclm_jax.data.splits import GROUPINGS


@click.command(context_settings={"ignore_unknown_options": True}, short_help="Makes the tokens of a folder of clips, once.")
@click.argument("data", metavar="DATA", type=Place())
@click.argument("out", metavar="OUT", type=Place())
@click.option("--model", type=Model(), required=True, help="The bundle whose tokenizers are used, or a folder of tokenizers.")
@click.option("--record_sec", type=Seconds(min=1), default=30.0, show_default=True, help="Longest record: a crop of a training lies in one.")
@click.option("--context_sec", type=Seconds(min=0), default=5.0, show_default=True, help="Context on each side, with which a record is encoded.")
@click.option("--batch_size", type=click.IntRange(1), default=4, show_default=True, help="Records that are computed at once.")
@click.option("--group_by", type=click.Choice(GROUPINGS), default="listed", show_default=True, help="What makes a group of clips, which is in one split.")
@click.argument("flags", metavar="[--BEAM_OPTION=VALUE]...", nargs=-1, type=click.UNPROCESSED)
def tokenize(data, out, model, record_sec, context_sec, batch_size, group_by, flags) -> None:
    """Makes the tokens of the clips in the folder DATA, in shards in the folder OUT, on which stages are trained: `musiclm fit OUT`.

    It can be stopped at any time; the same command continues. Other options are those of Apache Beam, such as --runner=DataflowRunner: without any, the
    shards are made in this process, one after the other.
    """
    use_compilation_cache()
    from musiclm_jax.tokenizing.run import tokenize as make_tokens

    tokens = make_tokens(
        data, out, model=model, record_sec=record_sec, context_sec=context_sec, batch_size=batch_size, group_by=group_by, flags=flags
    )  # fmt: skip
    info = tokens.info
    click.echo(f"{out}: tokens of {info.clips} clips, {info.hours:g} hours, in {sum(info.records.values())} records; train on them: musiclm fit {out}")
