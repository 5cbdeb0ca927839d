"""`musiclm generate`."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import click

from musiclm_jax.cli import clips, words
from musiclm_jax.cli.options import LocalPlace, PerStage, Place, Seconds, SectionedCommand, model_option, overrides, seed_option, use_compilation_cache
from musiclm_jax.cli.recipe import RECORDINGS, ClipRecipe, find_recordings, read_recipe, read_story
from musiclm_jax.errors import UserError

# What a story lasts after its last line, as in the paper.
_LAST_SEC = 15.0
# What --again may be combined with.
_WITH_AGAIN = {"again", "out", "sample", "model", "json", "index"}
_SECTIONS = {
    "What the music is like": "story fade like image no_prompt again without melody beginning resynthesize voice bpm key meter tries".split(),
    "How long it is, and where it goes": "seconds ending out samples sample json index".split(),
    "How it is drawn": "model seed candidates drafts temperatures top_ks".split(),
}


@click.command(short_help="Generates music from text.", cls=SectionedCommand, sections=_SECTIONS)
@click.argument("prompts", metavar="[PROMPT]...", nargs=-1)
@click.option("--story", type=LocalPlace(), metavar="FILE", help="Instead of PROMPT: a text with lines such as: 0:15 time to wake up.")
@click.option("--fade", type=Seconds(0), default=0.0, help="Seconds in which one line of a story goes over to the next.  [default: 0]")
@click.option("--like", type=Place(), metavar="FILE", help="Instead of PROMPT: a recording that the music resembles.")
@click.option("--image", type=Place(), metavar="FILE", help="Instead of PROMPT: a picture. Its caption is the prompt, and is printed.")
@click.option("--no-prompt", is_flag=True, help="Instead of PROMPT: any music that the model knows.")
@click.option("--again", type=LocalPlace(), metavar="FILE", help="Instead of PROMPT: makes the clip anew that an earlier call wrote to FILE.")
@click.option("--without", multiple=True, metavar="TEXT", help="What to exclude, such as drums. May be given several times.")
@click.option("--melody", type=Place(), metavar="FILE", help="A recording whose tune the music follows, such as a hum. The model must know melodies.")
@click.option("--continue", "beginning", type=Place(), metavar="FILE", help="A recording that the music continues, with or without a PROMPT.")
@click.option("--resynthesize", type=Place(), metavar="FILE", help="A recording whose notes are played anew, with or without a PROMPT.")
@click.option("--accompany", "voice", type=Place(), metavar="FILE", help="A voice that the music accompanies, with or without a PROMPT; a mix is written, too.")
@click.option("--bpm", type=float, help="A tempo, which is measured: the candidate that has it is taken, and a miss is said. Needs the extra eval.")
@click.option("--key", help="A key, such as 'A minor', likewise.")
@click.option("--meter", help="3/4 or 4/4, likewise.")
@click.option("--tries", type=click.IntRange(1), default=4, show_default=True, help="With --bpm, --key or --meter: clips that are made at most.")
@click.option(
    "--seconds", type=Seconds(0, min_open=True), help="Length of each clip.  [default: 10; of a story: 15 after its last line; of a band: its voice's]"
)
@click.option("--ending", is_flag=True, help="The music ends by itself at --seconds. The model must know endings.")
@click.option("--out", type=Place(), default=Path("music.wav"), show_default=True, help="WAV or FLAC file, which is overwritten; several clips are numbered.")
@click.option("--samples", type=int, default=1, show_default=True, help="Clips per prompt.")
@click.option("--sample", type=click.IntRange(1), help="Only this one of them; with --again, another one of the same call.")
@click.option("--json", is_flag=True, help="Prints each clip as a line of JSON: its file and all that decided it.")
@click.option(
    "--check-copies", "index", type=Place(), metavar="INDEX", help="Finds the closest training passage of each clip in `musiclm evaluate index`'s file."
)
@seed_option
@click.option("--candidates", type=int, show_default="the model's", help="Clips generated for each sample; the one closest to the prompt is kept.")
@click.option("--drafts", type=int, show_default="the model's", help="Semantic token sequences drawn for each candidate; the closest to the prompt are kept.")
@click.option("--temperature", "temperatures", type=PerStage(float), multiple=True, help="Higher is more varied. For all stages, or for one: coarse=0.9.")
@click.option("--top-k", "top_ks", type=PerStage(int), multiple=True, help="Sample from the k likeliest tokens; 0: from all. For one stage: fine=64.")
@model_option
def generate(prompts, json, index, tries, samples, out, **options) -> None:
    """Generates music for each PROMPT and writes it to a 24 kHz file. A mixture of prompts is one PROMPT: "0.7: calm piano | 0.3: techno".

    The same seed, prompt and model give the same clip, and a short clip of 10 s or more is the beginning of a longer one, but for the choice among drafts
    near its end: --drafts 1. A single clip may have any length, and is written while it is made; Ctrl-C keeps what is there.

    \b
    musiclm generate "a calm piano melody in a minor key" --seconds 10 --out calm.wav
    """
    check_together(prompts, samples, tries, **options)
    use_compilation_cache()
    from musiclm_jax import audio
    from musiclm_jax.audio.writer import SUFFIXES
    from musiclm_jax.generation.devices import use_all_cores
    from musiclm_jax.musiclm import MusicLM
    from musiclm_jax.progress import ProgressLine

    use_all_cores()
    if options["image"] is not None:
        prompts = (caption(options["image"]),)
    paths = clips.numbered(out, samples * max(1, len(prompts)))
    for path in paths:
        audio.check_writable(path, suffixes=SUFFIXES)
    recipe = make_recipe(prompts, samples, **options)
    spare_recordings(recipe, paths)
    began, line = time.perf_counter(), ProgressLine()
    musiclm = MusicLM.from_pretrained(recipe.model)
    known = None if index is None else open_index(index, musiclm)
    recipe, prompts = with_words(musiclm, recipe, prompts)
    words.warn(musiclm, [*prompts, *(prompt for _, prompt in recipe.story), *recipe.without])
    try:
        if len(paths) > 1:
            made = clips.make_several(musiclm, recipe, prompts or ([] if recipe.is_story else [recipe.prompt]), paths, on_progress=line)
        elif recipe.exact and options["again"] is None:
            made = [clips.make_exact(musiclm, recipe, out, tries=tries, on_progress=line)]
        else:
            made = [clips.make_one(musiclm, recipe, out, on_progress=line)]
            made += [clips.mix_with_voice(made[0], sample_rate_hz=musiclm.config.audio.sample_rate_hz)] if "voice" in recipe.recordings else []
    finally:
        line.clear()
    elapsed, total = time.perf_counter() - began, sum(clip.seconds for clip in made)
    made = made if known is None else clips.find_copies(musiclm, known, made)
    for clip in made:
        click.echo(clip.to_json() if json else clip)
    if not json:
        click.echo(f"{total:.1f} s of music in {elapsed:.1f} s, loading and compilation included: real-time factor {elapsed / total:.2f}")
    if any(clip.is_cut for clip in made):
        raise KeyboardInterrupt


def check_together(
    prompts, samples, tries, seconds, *, story, fade, like, image, no_prompt, again, beginning, resynthesize, voice, sample, bpm, key, meter, **_
) -> None:
    """Raises UsageError for options that exclude each other, before anything is loaded."""
    ways = {"PROMPT": prompts, "--story": story, "--like": like, "--image": image, "--no-prompt": no_prompt, "--again": again}
    chosen = [name for name, value in ways.items() if value]
    begins = [name for name, value in {"--continue": beginning, "--resynthesize": resynthesize, "--accompany": voice}.items() if value]
    fail = lambda message: click.UsageError(message, ctx=click.get_current_context())  # noqa: E731
    if len(chosen) > 1 or not chosen and not begins:
        raise fail(f"Give one of {', '.join(ways)}{f', not {chosen[0]} and {chosen[1]}' if chosen else ''}.")
    if len(begins) > 1:
        raise fail(f"{begins[0]} and {begins[1]} exclude each other: leave one out.")
    if begins and (like or no_prompt or again):
        raise fail(f"{begins[0]} and {chosen[0]} exclude each other: leave one out.")
    single = next((name for name, value in {"--like": like, "--again": again, "--sample": sample, **dict.fromkeys(begins, True)}.items() if value), None)
    if single and (samples > 1 or len(prompts) > 1):
        raise fail(f"With {single} one clip is made: leave --samples and further prompts out.")
    if again and (others := [name for name in click.get_current_context().params if _given(name) and name not in _WITH_AGAIN]):
        raise fail(f"--again makes a clip as it was made: leave {' and '.join(map(_option, others))} out.")
    if fade and not story:
        raise fail("--fade goes from one line of a --story to the next: give a story.")
    if resynthesize and seconds is not None:
        raise fail("--resynthesize makes as much as the recording has: leave --seconds out.")
    exact = next((name for name, value in {"--bpm": bpm, "--key": key, "--meter": meter}.items() if value is not None), None)
    if exact and not (prompts or image):
        raise fail(f"{exact} goes with a PROMPT: clips are chosen by both.")
    if _given("tries") and not exact:
        raise fail("--tries goes with --bpm, --key or --meter: give one of them.")


def make_recipe(prompts, samples, *, model, again, sample, **options) -> ClipRecipe:
    """What the options say: that of the first clip, if there are several. Raises UserError for what the model cannot do, before its weights are read."""
    from musiclm_jax import pretrained
    from musiclm_jax.generation.request import MAX_ROWS, check_request

    old = None if again is None else read_recipe(again)
    model = old.model if old is not None and not _given("model") else model
    opened = pretrained.open_pretrained(model)
    config, digest = pretrained.read_config(opened), pretrained.digest(opened)
    if old is not None and digest != old.model_sha256:
        click.echo(f"musiclm: {again} was made by another model than {model}, so this will be other music: --model names that one", err=True)
    recipe = _new_recipe(prompts, config, **options) if old is None else old
    recipe = dataclasses.replace(recipe, model=str(model), model_sha256=digest, sample=recipe.sample if sample is None else sample - 1)
    for is_wanted, check in (
        ("melody" in recipe.recordings, config.check_melody),
        (recipe.ending, config.check_timing),
        ("voice" in recipe.recordings, config.check_voice),
    ):
        if is_wanted:
            check()
    recipe, changed = find_recordings(recipe, Path() if again is None else again.parent)
    for path in changed:
        click.echo(f"musiclm: {path} is not what it was when {again} was made, so this will be other music", err=True)
    if recipe.sample >= MAX_ROWS:
        raise UserError(f"--sample {recipe.sample + 1}: choose one up to {MAX_ROWS}; with another --seed there are others")
    several = samples > 1 or len(prompts) > 1
    few = {"num_candidates": options["candidates"], "num_drafts": options["drafts"]}
    wanted = list(prompts) or [text for _, text in recipe.story] or [None]
    check_request(wanted, seconds=recipe.seconds if several else 1.0, seed=recipe.seed, num_samples=samples, **few)
    return recipe


def _new_recipe(prompts, config, *, story, seconds, **options) -> ClipRecipe:
    """The recipe of a clip that is made for the first time, but for its model."""
    import jax

    import musiclm_jax
    from musiclm_jax.evaluation.exact import ExactWishes, check_measurable
    from musiclm_jax.generation.request import resolve_sampling
    from musiclm_jax.generation.wishes import parse_wish

    parse_wish(None, without=options["without"])
    lines = read_story(story) if story is not None else [(0.0, prompt) for prompt in prompts[:1]]
    if seconds is None:
        seconds = lines[-1][0] + _LAST_SEC if story is not None else _length_sec(options["voice"], options["resynthesize"])
    tries = config.selection.replace(num_candidates=options["candidates"], num_drafts=options["drafts"])
    if not lines:  # The best of several is that which is nearest to a prompt.
        tries = tries.replace(num_candidates=1, num_drafts=1)
    defaults = {stage.name: stage.sampling for stage in config.stages}
    sampling = resolve_sampling(defaults, overrides(list(defaults), temperature=options["temperatures"], top_k=options["top_ks"]))
    exact = ExactWishes(*(options[name] for name in ("bpm", "key", "meter")))
    if exact:
        check_measurable(seconds)
    return ClipRecipe(
        story=tuple(lines),
        seed=options["seed"],
        seconds=float(seconds),
        sample=0,
        num_candidates=tries.num_candidates,
        num_drafts=tries.num_drafts,
        sampling={stage: dataclasses.asdict(each) for stage, each in sampling.items()},
        recordings={name: str(options[name]) for name in RECORDINGS if options[name] is not None},
        musiclm_jax=musiclm_jax.__version__,
        jax=jax.__version__,
        fade=options["fade"],
        ending=options["ending"],
        without=options["without"],
        exact={name: value for name, value in dataclasses.asdict(exact).items() if value is not None},
    )


def spare_recordings(recipe: ClipRecipe, paths) -> None:
    """Raises UserError if a clip would overwrite a recording from which it is made."""
    inputs = {os.path.realpath(file) for file in recipe.recordings.values()}
    for path in [*paths, *(clips.mixed_path(path) for path in paths if "voice" in recipe.recordings)]:
        if os.path.realpath(path) in inputs:
            raise UserError(f"{path} is the recording from which the music is made, and would be overwritten: name another file with --out")


def with_words(musiclm, recipe: ClipRecipe, prompts) -> tuple[ClipRecipe, list[str]]:
    """The recipe and the prompts with exact wishes in words."""
    from musiclm_jax.evaluation.exact import ExactWishes, word_prompt

    if not recipe.exact or not prompts:
        return recipe, list(prompts)
    prompts = [word_prompt(musiclm, prompt, ExactWishes(**recipe.exact)) for prompt in prompts]
    return dataclasses.replace(recipe, story=((0.0, prompts[0]),)), prompts


def caption(image) -> str:
    """The caption of an image, which is printed, so that a person can mend it and give it as a prompt."""
    from musiclm_jax.interop.captioner import caption_image

    found = caption_image(image)
    click.echo(f"musiclm: {image} shows {found!r}; to change it, give another PROMPT in its place", err=True)
    return found


def _length_sec(voice, resynthesize) -> float:
    """The length of music that no option says: that of a recording, of a voice at most an hour, or 10 s."""
    from musiclm_jax import audio

    if voice is None and resynthesize is None:
        return 10.0
    wave = audio.read(voice, end_sec=3600.0) if resynthesize is None else audio.read(resynthesize)
    return len(wave) / audio.SAMPLE_RATE_HZ


def open_index(path, musiclm):
    """The index of training tokens in a file. Raises UserError if it is not one of this model."""
    from musiclm_jax.evaluation.token_index import check_index, read_index

    index = read_index(path)
    check_index(index, musiclm, path)
    return index


def _option(name: str) -> str:
    """How the user writes a parameter."""
    return next(param.opts[0] for param in click.get_current_context().command.params if param.name == name)


def _given(name: str) -> bool:
    """Whether the user gave an option."""
    return click.get_current_context().get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
