"""`musiclm generate`."""

from __future__ import annotations

from pathlib import Path

import click

from musiclm_jax.cli.options import PerStage, Place, Seconds, model_option, overrides, seed_option, short, use_compilation_cache


@click.command(short_help="Generates music from text.")
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@click.option("--seconds", type=Seconds(0, 300, min_open=True), default=10.0, show_default=True, help="Length of each clip.")
@click.option("--out", type=Place(), default=Path("music.wav"), show_default=True, help="WAV file, which is overwritten; several clips are numbered.")
@seed_option
@click.option("--samples", type=int, default=1, show_default=True, help="Clips per prompt.")
@click.option("--candidates", type=int, show_default="the model's", help="Clips generated for each sample; the one closest to the prompt is kept.")
@click.option("--drafts", type=int, show_default="the model's", help="Semantic token sequences drawn for each candidate; the closest to the prompt are kept.")
@click.option("--melody", type=Place(), help="Audio file whose tune the music follows, such as a hum. The model must have been trained for it.")
@click.option("--temperature", "temperatures", type=PerStage(float), multiple=True, help="Higher is more varied. For all stages, or for one: coarse=0.9.")
@click.option("--top-k", "top_ks", type=PerStage(int), multiple=True, help="Sample from the k likeliest tokens; 0: from all. For one stage: fine=64.")
@model_option
def generate(prompts, seconds, out, seed, samples, candidates, drafts, melody, temperatures, top_ks, model) -> None:
    """Generates music for each PROMPT and writes it to a 24 kHz WAV file.

    The same seed, prompt, model and length give the same clip. With --candidates 1 --drafts 1 a short clip is also the beginning of a longer one, up to
    its loudness; the choice among candidates or drafts depends on the length.

    \b
    musiclm generate "a calm piano melody in a minor key" --seconds 10 --out calm.wav
    musiclm generate "a calm guitar" --melody hum.wav --model run/export/bundle
    """
    use_compilation_cache()
    import time

    from musiclm_jax import audio, pretrained
    from musiclm_jax.generation.devices import use_all_cores
    from musiclm_jax.generation.request import check_request, resolve_sampling
    from musiclm_jax.musiclm import MusicLM
    from musiclm_jax.progress import ProgressLine

    request = {"seconds": seconds, "seed": seed, "num_samples": samples, "num_candidates": candidates, "num_drafts": drafts}
    check_request(prompts, **request)
    paths = numbered(out, len(prompts) * samples)
    for path in paths:
        audio.check_writable(path)
    use_all_cores()
    began = time.perf_counter()
    config = pretrained.read_config(pretrained.open_pretrained(model))
    if melody is not None:
        config.check_melody()
    defaults = {stage.name: stage.sampling for stage in config.stages}
    sampling = overrides(list(defaults), temperature=temperatures, top_k=top_ks)
    resolve_sampling(defaults, sampling)  # Raises UserError for invalid values before weights are read.
    musiclm = MusicLM.from_pretrained(model)
    warn(musiclm, prompts)
    line = ProgressLine()
    try:
        music = musiclm.generate(list(prompts), **request, melody=melody, sampling=sampling, on_progress=line)
    finally:
        line.clear()
    elapsed = time.perf_counter() - began
    for path, wave, prompt in zip(paths, music.wave, music.prompts, strict=True):
        audio.write_wav(path, wave, music.sample_rate_hz)
        click.echo(f"{path}  {len(wave) / music.sample_rate_hz:.2f} s  seed {seed}  {short(prompt)}")
    total = music.wave.size / music.sample_rate_hz
    click.echo(f"{total:.1f} s of music in {elapsed:.1f} s, loading and compilation included: real-time factor {elapsed / total:.2f}")


def warn(musiclm, prompts) -> None:
    """Prints a warning for each prompt that the text tower truncates, or that has words outside its vocabulary."""
    for prompt, kept in musiclm.mulan.truncated(prompts):
        click.echo(f"musiclm: the prompt {short(prompt)} is longer than the model reads and is truncated to {short(kept)}", err=True)
    for prompt in prompts:
        unknown, known = musiclm.mulan.unknown_words(prompt)
        if unknown or not known:
            some = f"does not know {', '.join(map(short, unknown[:8]))} in" if known else "does not know a word of"
            click.echo(f"musiclm: the model {some} the prompt {short(prompt)}: it was trained on other words, so the music need not follow it", err=True)


def numbered(path: Path, count: int) -> list[Path]:
    """The paths of `count` clips: [path] for one clip, otherwise path with -1, -2, ... before the suffix."""
    return [path] if count == 1 else [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(1, count + 1)]
