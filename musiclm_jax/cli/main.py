"""The `musiclm` command. Thin: each command checks its input, calls one function of the library and prints what it did.

Everything heavy is imported inside the commands, so that `musiclm --help` is instant. A user's mistake is one line on stderr and status 2.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

import musiclm_jax
from musiclm_jax.errors import UserError


def main(argv: list[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 2 a user's mistake, 130 Ctrl-C."""
    try:
        sys.exit(cli.main(args=argv, prog_name="musiclm", standalone_mode=False))
    except UserError as error:
        _fail(str(error), status=2)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(0)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "musiclm"
        _fail(f"{error.format_message()} See `{command} --help`.", status=2)
    except click.ClickException as error:
        _fail(error.format_message(), status=2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)  # As shells report a program ended by Ctrl-C.
    except BrokenPipeError:  # `musiclm ... | head`: the reader left. The devnull keeps Python from failing once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: str, *, status: int) -> None:
    click.echo("musiclm: " + " ".join(message.split()), err=True)
    sys.exit(status)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(musiclm_jax.__version__, prog_name="musiclm")
def cli() -> None:
    """MusicLM in JAX: music from text, and everything needed to train it."""


class PerStage(click.ParamType):
    """VALUE for all stages, or STAGE=VALUE for one."""

    name = "[STAGE=]VALUE"
    stages = ("semantic", "coarse", "fine")

    def __init__(self, number: Callable):
        self.number = number

    def convert(self, value, param, ctx) -> dict[str, float | int]:
        stage, equals, number = value.rpartition("=")
        if equals and stage not in self.stages:
            self.fail(f"{stage!r} is not a stage; choose {', '.join(self.stages)}.", param, ctx)
        try:
            number = self.number(number)
        except ValueError:
            self.fail(f"{value!r} is not a number, nor a stage's number such as coarse=1.", param, ctx)
        return {name: number for name in ([stage] if equals else self.stages)}


class Seconds(click.FloatRange):
    """A range that nan is outside of."""

    name = "seconds"

    def convert(self, value, param, ctx) -> float:
        number = super().convert(value, param, ctx)
        if number != number:
            self.fail("nan is not a length.", param, ctx)
        return number


def overrides(**options: tuple[dict, ...]) -> dict[str, dict]:
    """Options as {stage: {option: number}}; of choices for the same stage, the last."""
    merged: dict[str, dict] = {}
    for name, choices in options.items():
        for choice in choices:
            for stage, number in choice.items():
                merged.setdefault(stage, {})[name] = number
    return merged


model_option = click.option("--model", default="demo", show_default=True, help="A bundle's folder, or 'demo', the one that is packaged.")


@cli.command(short_help="Makes music from text.")
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@click.option("--seconds", type=Seconds(0, 300, min_open=True), default=10.0, show_default=True, help="Length of each clip.")
@click.option("--out", type=Path, default=Path("music.wav"), show_default=True, help="WAV file; several clips are numbered.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed, prompt and model give the same clip.")
@click.option("--samples", type=int, default=1, show_default=True, help="Clips per prompt.")
@click.option("--candidates", type=int, show_default="the model's", help="Clips made for each, of which the nearest to the prompt is kept.")
@click.option("--drafts", type=int, show_default="the model's", help="Semantic token sequences drawn for each candidate; the nearest go on.")
@click.option("--temperature", "temperatures", type=PerStage(float), multiple=True, help="Higher is more varied. All stages, or coarse=0.9.")
@click.option("--top-k", "top_ks", type=PerStage(int), multiple=True, help="Choose among the k likeliest tokens; 0: all. Or fine=64.")
@model_option
def generate(prompts, seconds, out, seed, samples, candidates, drafts, temperatures, top_ks, model) -> None:
    """Writes music that fits each PROMPT to a 24 kHz WAV file.

    Several prompts are made together, in little more time than one.

    \b
    musiclm generate "a calm piano melody in a minor key" --seconds 10 --out calm.wav
    """
    _use_compilation_cache()
    import time

    from musiclm_jax import audio
    from musiclm_jax.musiclm import MusicLM, check_request
    from musiclm_jax.progress import ProgressLine
    from musiclm_jax.training import sharding

    sampling = overrides(temperature=temperatures, top_k=top_ks)
    request = {"seconds": seconds, "seed": seed, "num_samples": samples, "num_candidates": candidates, "num_drafts": drafts, "sampling": sampling}
    check_request(prompts, **request)
    sharding.use_all_cores()
    paths = numbered(out, len(prompts) * samples)
    for path in paths:
        audio.check_writable(path)
    began = time.perf_counter()
    musiclm = MusicLM.from_pretrained(model)
    for prompt, kept in musiclm.mulan.truncated(prompts):
        click.echo(f"musiclm: the prompt {_short(prompt)} is longer than the model reads; it reads {_short(kept)}", err=True)
    line = ProgressLine()
    try:
        music = musiclm.generate(list(prompts), **request, on_progress=line)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # JAX has no class of its own for it.
            raise
        raise UserError(f"not enough memory for {len(paths)} clips of {seconds:g} s; make fewer or shorter ones at once") from error
    finally:
        line.clear()
    elapsed = time.perf_counter() - began
    for path, wave in zip(paths, music.wave, strict=True):
        audio.write_wav(path, wave, music.sample_rate_hz)
        click.echo(f"{path}  {len(wave) / music.sample_rate_hz:.2f} s  seed {seed}")
    total = music.wave.size / music.sample_rate_hz
    click.echo(f"{total:.1f} s of music in {elapsed:.1f} s, loading and compilation included: real-time factor {elapsed / total:.2f}")


def numbered(path: Path, count: int) -> list[Path]:
    """[path] for one, else path with -1, -2, ... before the suffix."""
    return [path] if count == 1 else [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(1, count + 1)]


def _short(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


@cli.command(short_help="Renders a corpus of captioned clips.")
@click.argument("directory", metavar="DIR", type=Path)
@click.option("--clips", type=int, default=2000, show_default=True, help="Number of clips, 30 s each; more can be added later.")
@click.option("--variants", type=int, default=0, show_default=True, help="The same melody by other instruments, so often for each clip.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, other music.")
@click.option("--workers", type=int, default=os.cpu_count() or 1, show_default="all processors", help="Processes.")
def corpus(directory, clips, variants, seed, workers) -> None:
    """Renders a corpus of captioned clips into DIR: audio/*.flac and metadata.jsonl.

    Variants have no captions; `musiclm train melody` learns from them.
    """
    from musiclm_jax.corpus import make_corpus
    from musiclm_jax.progress import ProgressLine

    line, total = ProgressLine(unit="clips"), clips * (variants + 1)
    try:
        make_corpus(directory, num_clips=clips, num_variants=variants, seed=seed, workers=workers, on_clip=lambda number: line("corpus", number + 1, total))
    finally:
        line.clear()
    click.echo(f"{directory}: {total} clips, {total / 120:.1f} hours")


def training_options(*, workdir_required: bool):
    """The options of `fit` and `train`: what is trained, and where."""

    def decorate(command):
        command = click.argument("bindings", metavar="[--gin.NAME=VALUE]...", nargs=-1, type=click.UNPROCESSED)(command)
        gin_file = click.option("--gin_file", "gin_files", multiple=True, help="Gin file on top of the size's; repeatable, the later one wins.")
        workdir = click.option("--workdir", type=Path, required=workdir_required, help="Folder for checkpoints, logs and the bundle.")
        size = click.option("--size", help="A file of gin_configs/models: test, demo or base.  [default: demo; with a recipe of gin_configs/runs, its own]")
        return size(workdir(gin_file(command)))

    return decorate


# Lets --gin.NAME=VALUE through to the arguments.
_GIN = {"ignore_unknown_options": True}


def _load_config(size: str | None, gin_files: tuple[str, ...], bindings: tuple[str, ...], workdir: Path | None):
    """The FitConfig, its gin form also written into the work folder, if there is one."""
    for binding in bindings:
        if not binding.startswith("--gin."):
            raise click.UsageError(f"No such option or argument: {binding}", ctx=click.get_current_context())
    try:
        from musiclm_jax.cli.gin_config import load_config, operative_config
    except ModuleNotFoundError as error:
        raise UserError(f"training needs the package {error.name}; install it with: pip install 'musiclm-jax[train]'") from error
    from musiclm_jax.records import write_text

    config = load_config(size, gin_files, [binding.removeprefix("--gin.") for binding in bindings])
    try:
        if workdir:
            write_text(workdir / "config.gin", operative_config())
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written ({error.strerror}); choose another work folder") from error
    return config


@cli.command(context_settings=_GIN, short_help="Trains everything on your captioned clips.")
@click.argument("data", metavar="DATA", type=Path)
@training_options(workdir_required=True)
def fit(data, size, workdir, gin_files, bindings) -> None:
    """Trains everything on the captioned clips in the folder DATA, and makes a bundle.

    Stop it whenever you like: the same command continues. A single value is changed with --gin.NAME=VALUE, such as --gin.SEMANTIC_STEPS=500.
    """
    _use_compilation_cache(preallocate=True)
    config = _load_config(size, gin_files, bindings, workdir)
    from musiclm_jax.parts.fit import fit as fit_all

    bundle = fit_all(data, config=config, workdir=workdir)
    click.echo(f'{bundle}: the bundle; try: musiclm generate "..." --model {bundle}')


@cli.command(context_settings=_GIN, short_help="Runs one step of fit, or trains the melody embedder.")
@click.argument("step")
@click.argument("data", metavar="[DATA]", required=False)
@training_options(workdir_required=False)
@click.option("--dry_run", is_flag=True, help="Print sizes, memory and arithmetic of a step, and train nothing. Needs no DATA and no --workdir.")
def train(step, data, size, workdir, gin_files, bindings, dry_run) -> None:
    """Runs one STEP of `fit`; those before it must be done.

    Steps: prepare, soundstream, w2v_bert, kmeans, mulan, rvq, reranker, semantic_reranker, semantic_tokens, acoustic_tokens, semantic, coarse, fine,
    export. And melody, the melody embedder, which bundles do not hold yet; it learns from clips with a "melody".

    \b
    musiclm train semantic --gin_file runs/semantic_base.gin --dry_run --gin.MeshConfig.data=2 --gin.MeshConfig.fsdp=4
    """
    if data and data.startswith("--"):  # Without DATA, click takes the first binding for it.
        data, bindings = None, (data, *bindings)
    _use_compilation_cache(preallocate=not dry_run)
    if dry_run:
        from musiclm_jax.parts.dry_run import dry_run as weigh

        return click.echo(weigh(step, _load_config(size, gin_files, bindings, None)))
    if not data or not workdir:
        raise click.UsageError("Training needs DATA, the folder of the clips, and --workdir; only --dry_run does without.", ctx=click.get_current_context())
    config = _load_config(size, gin_files, bindings, workdir)
    from musiclm_jax.parts.fit import run_step

    for name, value in run_step(step, data, config=config, workdir=workdir).items():
        click.echo(f"{name}: {value}")


@cli.command(short_help="Copies the bundle of a finished fit.")
@click.argument("source", metavar="WORKDIR", type=Path)
@click.argument("out", metavar="FOLDER", type=Path)
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True, help="float16 halves the size.")
def export(source, out, dtype) -> None:
    """Copies the bundle of a finished `fit` in WORKDIR to FOLDER, to keep or to pass on. WORKDIR may also be a bundle."""
    from musiclm_jax.bundle import CARD_FILE
    from musiclm_jax.musiclm import MusicLM

    made = source / "export" / "bundle"
    bundle = made if made.is_dir() else source
    musiclm = MusicLM.from_pretrained(bundle)
    card = (bundle / CARD_FILE).read_text(encoding="utf-8") if (bundle / CARD_FILE).exists() else None
    musiclm.save_pretrained(out, dtype=dtype, card=card)
    size = sum(path.stat().st_size for path in out.iterdir())
    click.echo(f"{out}: {size / 1e6:.1f} MB, {dtype}")


# What the evaluations share.
corpus_argument = click.argument("directory", metavar="DIR", type=Path)
clip_seconds_option = click.option("--seconds", type=Seconds(1, 300), default=10.0, show_default=True, help="Of each clip, from its start.")
_say = functools.partial(click.echo, err=True)


@cli.group()
def evaluate() -> None:
    """Measures a model."""


@evaluate.command()
@corpus_argument
@click.option("--captions", type=int, default=100, show_default=True, help="Held-out captions, one clip each.")
@click.option("--seconds", type=Seconds(2, 300), default=10.0, show_default=True, help="Length of the clips.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=10, show_default=True, help="Clips made together.")
@click.option("--out", type=Path, help="Folder for adherence.json and the clips; without it nothing is kept.")
@model_option
def adherence(directory, captions, seconds, seed, batch_size, out, model) -> None:
    """Does the music have the instrument, drums, mode and tempo that the caption names?

    DIR is a corpus made by `musiclm corpus`; its held-out captions are the prompts.
    """
    _use_compilation_cache()
    from musiclm_jax.evaluation.adherence import evaluate_adherence, format_report
    from musiclm_jax.musiclm import MusicLM
    from musiclm_jax.training import sharding

    sharding.use_all_cores()
    report = evaluate_adherence(
        MusicLM.from_pretrained(model),
        directory,
        num_captions=captions,
        seconds=seconds,
        seed=seed,
        batch_size=batch_size,
        out_dir=out,
        progress=_say,
    )
    click.echo(format_report(report))


@evaluate.command()
@corpus_argument
@click.option("--clips", type=int, default=20, show_default=True, help="Held-out clips.")
@clip_seconds_option
@model_option
def codec(directory, clips, seconds, model) -> None:
    """How close to the original is a clip after SoundStream's encoder and decoder?

    DIR is a corpus made by `musiclm corpus`; its held-out clips are coded.
    """
    _use_compilation_cache()
    from musiclm_jax.evaluation.codec import evaluate_codec, format_codec_report
    from musiclm_jax.musiclm import MusicLM

    musiclm = MusicLM.from_pretrained(model)
    click.echo(format_codec_report(evaluate_codec(musiclm.acoustic, directory, num_clips=clips, seconds=seconds, progress=_say)))


@evaluate.command()
@corpus_argument
@click.option("--clips", type=int, show_default="all", help="Held-out clips.")
@clip_seconds_option
@click.option("--fit-clips", type=int, default=334, show_default=True, help="Training clips for the reference, k-means of log-mel frames.")
@model_option
def semantic(directory, clips, seconds, fit_clips, model) -> None:
    """Do semantic tokens tell instruments apart, and does a note get the same token again?

    DIR is a corpus made by `musiclm corpus`; its held-out clips are coded.
    """
    _use_compilation_cache()
    from musiclm_jax.evaluation.semantic import evaluate_semantic, format_semantic_report
    from musiclm_jax.musiclm import MusicLM

    tokenizer = MusicLM.from_pretrained(model).semantic
    report = evaluate_semantic(tokenizer, directory, num_clips=clips, seconds=seconds, fit_clips=fit_clips, progress=_say)
    click.echo(format_semantic_report(report))


@evaluate.command()
@corpus_argument
@click.option("--clips", type=int, show_default="all", help="Held-out clips, one caption each.")
@clip_seconds_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of clips and captions.")
@model_option
def mulan(directory, clips, seconds, seed, model) -> None:
    """Does MuLan find the clip of a caption, and the caption of a clip? And does it know instruments, drums, mode and tempo?

    DIR is a corpus made by `musiclm corpus`; its held-out clips and captions are embedded.
    """
    _use_compilation_cache()
    from musiclm_jax.evaluation.mulan import evaluate_mulan, format_mulan_report
    from musiclm_jax.musiclm import MusicLM

    embedder = MusicLM.from_pretrained(model).mulan
    click.echo(format_mulan_report(evaluate_mulan(embedder, directory, num_clips=clips, seconds=seconds, seed=seed, progress=_say)))


@evaluate.command()
@click.argument("workdir", metavar="WORKDIR", type=Path)
def melody(workdir) -> None:
    """Does the melody embedder find a tune again that another instrument plays?

    WORKDIR is that of `musiclm train melody`; the tunes are those that it held out.
    """
    _use_compilation_cache()
    from musiclm_jax.evaluation.melody import evaluate_melody, format_melody_report

    click.echo(format_melody_report(evaluate_melody(workdir, progress=_say)))


@cli.command(short_help="Describes a bundle and checks it.")
@click.argument("model", default="demo")
def info(model) -> None:
    """Describes a bundle, and checks that all of it is there and whole. MODEL: its folder, or 'demo'."""
    from musiclm_jax.musiclm import describe

    click.echo(describe(model))


def _use_compilation_cache(*, preallocate: bool = False) -> None:
    """Keeps compiled programs between runs, where the user's cache folder can be written. MUSICLM_CACHE_DIR moves it; "" turns it off.

    preallocate: let JAX take three quarters of a GPU's memory at once, which suits training and nothing beside it.
    """
    if not preallocate:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # Read when JAX first asks for a device.
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.environ.get("MUSICLM_CACHE_DIR", os.path.join(base, "musiclm_jax"))
    if not folder:
        return
    folder = os.path.join(folder, "compiled")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
