"""`musiclm generate`."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
from pathlib import Path

import click

from musiclm_jax.cli.options import LocalPlace, PerStage, Place, Seconds, model_option, overrides, seed_option, short, use_compilation_cache
from musiclm_jax.cli.recipe import ClipRecipe, read_recipe, read_story

# What a story lasts after its last line, as in the paper.
_LAST_SEC = 15.0


@click.command(short_help="Generates music from text.")
@click.argument("prompts", metavar="[PROMPT]...", nargs=-1)
@click.option("--seconds", type=Seconds(0, min_open=True), help="Length of each clip.  [default: 10; of a story: 15 after its last line]")
@click.option("--out", type=Place(), default=Path("music.wav"), show_default=True, help="WAV or FLAC file, which is overwritten; several clips are numbered.")
@click.option("--story", type=LocalPlace(), metavar="FILE", help="Instead of PROMPT: a text with lines such as: 0:15 time to wake up.")
@click.option("--like", type=Place(), metavar="FILE", help="Instead of PROMPT: a recording that the music resembles.")
@click.option("--continue", "beginning", type=Place(), metavar="FILE", help="A recording that the music continues, with or without a PROMPT.")
@click.option("--melody", type=Place(), metavar="FILE", help="A recording whose tune the music follows, such as a hum. The model must know melodies.")
@click.option("--again", type=LocalPlace(), metavar="FILE", help="Instead of PROMPT: makes the clip anew that an earlier call wrote to FILE.")
@seed_option
@click.option("--samples", type=int, default=1, show_default=True, help="Clips per prompt.")
@click.option("--candidates", type=int, show_default="the model's", help="Clips generated for each sample; the one closest to the prompt is kept.")
@click.option("--drafts", type=int, show_default="the model's", help="Semantic token sequences drawn for each candidate; the closest to the prompt are kept.")
@click.option("--temperature", "temperatures", type=PerStage(float), multiple=True, help="Higher is more varied. For all stages, or for one: coarse=0.9.")
@click.option("--top-k", "top_ks", type=PerStage(int), multiple=True, help="Sample from the k likeliest tokens; 0: from all. For one stage: fine=64.")
@click.option(
    "--check-copies", "index", type=Place(), metavar="INDEX", help="Finds the closest training passage of each clip in `musiclm evaluate index`'s file."
)
@model_option
def generate(prompts, seconds, out, story, like, beginning, melody, again, seed, samples, candidates, drafts, temperatures, top_ks, index, model) -> None:
    """Generates music for each PROMPT and writes it to a 24 kHz file.

    The same seed, prompt and model give the same clip, and a short clip of 10 s or more is the beginning of a longer one, but for the choice among drafts
    near its end: --drafts 1. A single clip may have any length, and is written while it is made; Ctrl-C keeps what is there.

    \b
    musiclm generate "a calm piano melody in a minor key" --seconds 10 --out calm.wav
    """
    ways = {"PROMPT": bool(prompts), "--story": story, "--like": like, "--again": again}
    chosen = [name for name, value in ways.items() if value]
    if len(chosen) > 1 or not chosen and beginning is None:
        raise click.UsageError(f"Give one of {', '.join(ways)}{f', not {chosen[0]} and {chosen[1]}' if chosen else ''}.", ctx=click.get_current_context())
    if (like or beginning) and (again or samples > 1 or len(prompts) > 1):
        raise click.UsageError("With --like and --continue one clip is made: leave --again and --samples out.", ctx=click.get_current_context())
    use_compilation_cache()
    from musiclm_jax import audio, pretrained
    from musiclm_jax.audio.writer import SUFFIXES
    from musiclm_jax.generation.devices import use_all_cores
    from musiclm_jax.generation.request import check_request, resolve_sampling

    lines, first_sample = [(0.0, prompt) for prompt in prompts], 0
    if story is not None:
        lines = read_story(story)
        seconds = lines[-1][0] + _LAST_SEC if seconds is None else seconds
    seconds = 10.0 if seconds is None else seconds
    if again is not None:
        made = read_recipe(again)
        lines, seed, seconds, first_sample, candidates, drafts = made.story, made.seed, made.seconds, made.sample, made.num_candidates, made.num_drafts
        like, beginning, melody = (None if name not in made.recordings else Path(made.recordings[name]) for name in ("like", "beginning", "melody"))
        model = model if given("model") else made.model
    is_one = samples == 1 and (len(lines) == 1 or not prompts)
    recordings = {name: path for name, path in (("like", like), ("beginning", beginning)) if path is not None}
    request = {"seed": seed, "num_samples": samples, "num_candidates": candidates, "num_drafts": drafts}
    check_request([prompt for _, prompt in lines] or ["a recording"], seconds=1.0 if is_one else seconds, **request)
    paths = numbered(out, samples if not prompts else len(prompts) * samples)
    for path in paths:
        audio.check_writable(path, suffixes=SUFFIXES)
    use_all_cores()
    opened = pretrained.open_pretrained(model)
    config = pretrained.read_config(opened)
    if melody is not None:
        config.check_melody()
    defaults = {stage.name: stage.sampling for stage in config.stages}
    sampling = overrides(list(defaults), temperature=temperatures, top_k=top_ks) if again is None else made.sampling
    resolved = resolve_sampling(defaults, sampling)  # Raises UserError for invalid values before weights are read.
    if again is not None and pretrained.digest(opened) != made.model_sha256:
        click.echo(f"musiclm: {again} was made by another model than {model}, so this will be other music: --model names that one", err=True)
    request |= {"seconds": seconds, "sampling": sampling, "story": list(lines) if lines and not prompts else None}
    request |= {name: audio.read(path, sample_rate_hz=config.audio.sample_rate_hz) for name, path in recordings.items()}
    if melody is not None:
        request["melody"] = recordings["melody"] = melody
    recipe = make_recipe(lines, request, resolved, sample=first_sample, recordings=recordings, model=model, opened=opened)
    make_clips(list(prompts), request, paths, recipe, is_one=is_one, index=index)


def given(name: str) -> bool:
    """Whether the user gave an option."""
    return click.get_current_context().get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def make_recipe(lines, request, sampling, *, sample, recordings, model, opened) -> ClipRecipe:
    """What decides the clips of a call. Of several, `story` and `sample` are those of the first."""
    import dataclasses

    import jax

    import musiclm_jax
    from musiclm_jax import pretrained

    tries = pretrained.read_config(opened).selection.replace(num_candidates=request["num_candidates"], num_drafts=request["num_drafts"])
    stages = {stage: {name: float(value) for name, value in dataclasses.asdict(each).items()} for stage, each in sampling.items()}
    return ClipRecipe(
        story=tuple(lines) if request["story"] is not None else tuple(lines[:1]),
        seed=request["seed"],
        seconds=float(request["seconds"]),
        sample=sample,
        num_candidates=tries.num_candidates,
        num_drafts=tries.num_drafts,
        sampling=stages,
        recordings={name: str(path) for name, path in recordings.items()},
        model=str(model),
        model_sha256=pretrained.digest(opened),
        musiclm_jax=musiclm_jax.__version__,
        jax=jax.__version__,
    )


def make_clips(prompts, request, paths, recipe, *, is_one: bool, index) -> None:
    """Makes and writes the clips of a call: a single one piece by piece, several together."""
    import dataclasses
    import time

    from musiclm_jax.audio.writer import open_writer
    from musiclm_jax.files import atomic_path, is_bucket
    from musiclm_jax.musiclm import MusicLM
    from musiclm_jax.progress import ProgressLine

    began, line = time.perf_counter(), ProgressLine()
    musiclm = MusicLM.from_pretrained(recipe.model)
    warn(musiclm, list(dict.fromkeys([*prompts, *(prompt for _, prompt in request["story"] or ())])))
    known = None if index is None else open_index(index, musiclm)
    rate = musiclm.config.audio.sample_rate_hz
    made: dict[Path, float] = {}
    try:
        if is_one and not is_bucket(paths[0]):
            few = {name: value for name, value in request.items() if name != "num_samples"}
            stream = musiclm.stream(*prompts, **few, sample=recipe.sample, on_progress=line)
            with contextlib.ExitStack() as stack:
                stopped, file = stack.enter_context(stop_at_interrupt()), None
                for piece in stream:  # Until the first one is there, an older file stays.
                    file = file or stack.enter_context(open_writer(paths[0], sample_rate_hz=rate, comment=str(recipe)))
                    file.write(piece[0])
                    if stopped():
                        break
            made[paths[0]], texts = stream.seconds, [stream.prompt if request["story"] is None else request["story"][0][1]]
        else:
            music = musiclm.generate(prompts, **request, on_progress=line)
            texts, seen = music.prompts, collections.Counter()
            for path, wave, prompt in zip(paths, music.wave, texts, strict=True):
                own = recipe if request["story"] is not None else dataclasses.replace(recipe, story=((0.0, prompt),))
                comment = str(dataclasses.replace(own, sample=seen[prompt]))
                seen[prompt] += 1
                with atomic_path(path) as temporary, open_writer(temporary, sample_rate_hz=rate, comment=comment, suffix=path.suffix) as file:
                    file.write(wave)
                made[path] = len(wave) / rate
    finally:
        line.clear()
    elapsed, total = time.perf_counter() - began, sum(made.values())
    for (path, length), prompt in zip(made.items(), texts, strict=True):
        click.echo(f"{path}  {length:.2f} s  seed {recipe.seed}  {short(prompt)}")
    if known is not None:
        tell_copies(musiclm, known, list(made))
    click.echo(f"{total:.1f} s of music in {elapsed:.1f} s, loading and compilation included: real-time factor {elapsed / total:.2f}")
    if is_one and total < recipe.seconds - 0.01:
        raise KeyboardInterrupt


@contextlib.contextmanager
def stop_at_interrupt():
    """Yields a function that says whether Ctrl-C was pressed. A second time it stops at once."""
    pressed = []

    def handler(number, frame):
        if pressed:
            signal.signal(number, before)
            return os.kill(os.getpid(), number)
        pressed.append(number)
        os.write(2, b"\nstopping after this piece, which is kept with those before it; a second Ctrl-C stops at once\n")

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def warn(musiclm, prompts) -> None:
    """Prints a warning for each prompt that the text tower truncates, or that has words outside its vocabulary."""
    for prompt, kept in musiclm.mulan.truncated(prompts):
        click.echo(f"musiclm: the prompt {short(prompt)} is longer than the model reads and is truncated to {short(kept)}", err=True)
    for prompt in prompts:
        unknown, known = musiclm.mulan.unknown_words(prompt)
        if unknown or not known:
            some = f"does not know {', '.join(map(short, unknown[:8]))} in" if known else "does not know a word of"
            click.echo(f"musiclm: the model {some} the prompt {short(prompt)}: it was trained on other words, so the music need not follow it", err=True)


def open_index(path, musiclm):
    """The index of training tokens in a file. Raises UserError if it is not one of this model."""
    from musiclm_jax.evaluation.token_index import check_index, read_index

    index = read_index(path)
    check_index(index, musiclm, path)
    return index


def tell_copies(musiclm, index, paths) -> None:
    """Prints the closest training passage of each clip."""
    from musiclm_jax import audio
    from musiclm_jax.evaluation.token_index import check_copies, format_passage

    for path in paths:
        (passage,) = check_copies(musiclm, index, audio.read(path, sample_rate_hz=musiclm.config.audio.sample_rate_hz)[None])
        click.echo(f"{path}  closest to {format_passage(passage, index)}")


def numbered(path: Path, count: int) -> list[Path]:
    """The paths of `count` clips: [path] for one clip, otherwise path with -1, -2, ... before the suffix."""
    return [path] if count == 1 else [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(1, count + 1)]
