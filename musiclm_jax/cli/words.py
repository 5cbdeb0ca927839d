"""What a command says of the words of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from musiclm_jax.cli.options import short

if TYPE_CHECKING:
    from musiclm_jax.musiclm import MusicLM


def warn(musiclm: MusicLM, texts: Sequence[str]) -> None:
    """Prints a warning for each prompt that the text tower truncates, or that has words outside its vocabulary, with words of it that are spelled alike.

    texts: prompts, which may be mixtures.
    """
    from musiclm_jax.generation.wishes import parse_wish

    texts = list(dict.fromkeys(part for text in texts for part in parse_wish(text).texts))
    for text, kept in musiclm.mulan.truncated(texts):
        click.echo(f"musiclm: the prompt {short(text)} is longer than the model reads, which is up to {short('... ' + kept[-40:])}", err=True)
    for text in texts:
        unknown, known = musiclm.mulan.unknown_words(text)
        if known and not unknown:
            continue
        some = f"does not know {', '.join(map(short, unknown[:8]))} in" if known else "knows no word of"
        near = {word: musiclm.text.near_words(word) for word in unknown[:8]}
        hints = [f"for {short(word)} it knows {', '.join(alike)}" for word, alike in near.items() if alike]
        such = "common words of English" if musiclm.config.mulan.text.word_vectors else f"such words as {', '.join(musiclm.text.some_words())}"
        hint = f"; {'; '.join(hints)}" if hints else "" if known else f"; it knows {such}"
        click.echo(f"musiclm: the model {some} the prompt {short(text)}: it was trained on other words, so the music need not follow it{hint}", err=True)
