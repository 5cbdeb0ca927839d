"""`musiclm live`."""

from __future__ import annotations

import sys
import threading

import click

from musiclm_jax.cli.options import Seconds, model_option, seed_option, short, use_compilation_cache
from musiclm_jax.cli.words import warn
from musiclm_jax.errors import UserError


@click.command(short_help="Plays music that is made while it plays.")
@click.argument("prompt")
@click.option("--seconds", type=Seconds(0, min_open=True), help="Length.  [default: until Ctrl-C]")
@seed_option
@click.option("--candidates", type=click.IntRange(1), default=1, show_default=True, help="Beginnings that are tried; more sound better, and later.")
@click.option("--drafts", type=click.IntRange(1), default=1, show_default=True, help="Semantic token sequences that are tried all along.")
@model_option
def live(prompt, seconds, seed, candidates, drafts, model) -> None:
    """Makes music for PROMPT and plays it meanwhile, by the package sounddevice if it is installed; else it goes to the standard output, 16 bits, mono.

    A line that is typed is the prompt from then on.

    \b
    musiclm live "a calm piano melody" | aplay -f S16_LE -r 24000
    """
    use_compilation_cache()
    import time

    from musiclm_jax.audio.writer import to_int16
    from musiclm_jax.generation.devices import use_all_cores
    from musiclm_jax.musiclm import MusicLM

    use_all_cores()
    musiclm = MusicLM.from_pretrained(model)
    warn(musiclm, [prompt])
    stream = musiclm.stream(prompt, seconds=seconds, seed=seed, num_candidates=candidates, num_drafts=drafts)
    rate = musiclm.config.audio.sample_rate_hz
    play = open_output(rate)
    if sys.stdin is not None and sys.stdin.isatty():
        threading.Thread(target=read_prompts, args=(stream, musiclm), daemon=True).start()
    began, first = time.perf_counter(), None
    for piece in stream:
        now = time.perf_counter() - began
        if first is None:
            first, first_seconds = now, stream.seconds
            click.echo(f"musiclm: first audio after {first:.1f} s", err=True)
        play(to_int16(piece[0]).tobytes())
    if stream.seconds > first_seconds:
        click.echo(f"musiclm: {(now - first) / (stream.seconds - first_seconds):.2f} s for each second of music after that", err=True)


def open_output(rate: int):
    """A function that plays 16-bit samples, or writes them to the standard output."""
    try:
        import sounddevice

        device = sounddevice.RawOutputStream(samplerate=rate, channels=1, dtype="int16")
        device.start()
        return device.write
    except Exception as error:  # The package, its library or a sound card is missing.
        if sys.stdout.isatty():
            raise click.UsageError(
                f"There is no sound card that can be used ({str(error) or type(error).__name__}); install sounddevice, or add: | aplay -f S16_LE -r {rate}",
                ctx=click.get_current_context(),
            ) from None

    def write(samples: bytes) -> None:
        sys.stdout.buffer.write(samples)
        sys.stdout.buffer.flush()

    return write


def read_prompts(stream, musiclm) -> None:
    """Takes lines from the terminal as prompts."""
    for line in sys.stdin:
        if not (text := line.strip()):
            continue
        try:
            stream.prompt = text
        except UserError as error:  # Such as half a mixture: the prompt stays.
            click.echo(f"musiclm: {error}", err=True)
            continue
        warn(musiclm, [text])
        click.echo(f"musiclm: {short(text)} from {stream.seconds:.0f} s on, or soon after", err=True)
