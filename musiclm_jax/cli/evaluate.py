"""`musiclm evaluate`.

Two kinds of evaluation: of a model or of one of its parts on clips of its training, here; and, in cli/evaluate_folders.py, of folders of audio, by judges
from outside or from a bundle.
"""

from __future__ import annotations

import click

from musiclm_jax.cli import evaluate_folders
from musiclm_jax.cli.evaluate_options import clips_argument, json_option, say, tell
from musiclm_jax.cli.options import OutFile, Place, Seconds, model_option, seed_option, use_compilation_cache

clip_seconds_option = click.option("--seconds", type=Seconds(1, 300), default=10.0, show_default=True, help="Length measured, from each clip's start.")


@click.group(short_help="Evaluates a model.")
def evaluate() -> None:
    """Evaluates a model."""


@evaluate.command()
@clips_argument
@click.option("--captions", type=int, default=100, show_default=True, help="Held-out captions, one clip each.")
@click.option("--seconds", type=Seconds(2, 300), default=10.0, show_default=True, help="Length of the clips.")
@seed_option
@click.option("--batch-size", type=click.IntRange(min=1), default=10, show_default=True, help="Clips generated in one batch.")
@click.option("--out", type=Place(), help="Folder for adherence.json and the clips; without it none are written.")
@model_option
def adherence(directory, captions, seconds, seed, batch_size, out, model) -> None:
    """Measures how often the music has the instrument, drums, mode and tempo that its caption names.

    DIR is a corpus made by `musiclm corpus`; its held-out captions are the prompts.
    """
    use_compilation_cache()
    from musiclm_jax.evaluation.adherence import evaluate_adherence, format_report
    from musiclm_jax.generation.devices import use_all_cores
    from musiclm_jax.musiclm import MusicLM

    use_all_cores()
    options = {"num_captions": captions, "seconds": seconds, "seed": seed, "batch_size": batch_size, "out_dir": out, "progress": say}
    click.echo(format_report(evaluate_adherence(MusicLM.from_pretrained(model), directory, **options)))


@evaluate.command()
@clips_argument
@click.option("--clips", type=int, show_default="20, or all if there are fewer", help="Held-out clips.")
@clip_seconds_option
@model_option
def codec(directory, clips, seconds, model) -> None:
    """Measures how close clips are to the originals after the codec's encoder and decoder.

    DIR is a folder of clips, as for `musiclm fit`; the held-out clips are encoded.
    """
    use_compilation_cache()
    from musiclm_jax.evaluation.codec import evaluate_codec, format_codec_report
    from musiclm_jax.musiclm import MusicLM

    musiclm = MusicLM.from_pretrained(model)
    click.echo(format_codec_report(evaluate_codec(musiclm.acoustic, directory, num_clips=clips, seconds=seconds, progress=say)))


@evaluate.command()
@clips_argument
@click.option("--clips", type=int, show_default="all", help="Held-out clips.")
@clip_seconds_option
@click.option("--fit-clips", type=int, default=334, show_default=True, help="Training clips for the baseline, k-means of log-mel frames.")
@model_option
def semantic(directory, clips, seconds, fit_clips, model) -> None:
    """Measures whether semantic tokens distinguish instruments, and whether a repeated note gets the same token.

    DIR is a folder of clips, as for `musiclm fit`; the held-out clips are encoded. Measures that need ground truth are left out where there is none.
    """
    use_compilation_cache()
    from musiclm_jax.evaluation.semantic import evaluate_semantic, format_semantic_report
    from musiclm_jax.musiclm import MusicLM

    tokenizer = MusicLM.from_pretrained(model).semantic
    report = evaluate_semantic(tokenizer, directory, num_clips=clips, seconds=seconds, fit_clips=fit_clips, progress=say)
    click.echo(format_semantic_report(report))


@evaluate.command()
@clips_argument
@click.option("--clips", type=int, show_default="all", help="Held-out clips, one caption each.")
@clip_seconds_option
@seed_option
@model_option
def mulan(directory, clips, seconds, seed, model) -> None:
    """Measures whether MuLan retrieves the clip of a caption and the caption of a clip, and classifies instruments, drums, mode and tempo.

    DIR is a folder of captioned clips, as for `musiclm fit`; the held-out clips are embedded. Measures that need ground truth are left out where there is
    none.
    """
    use_compilation_cache()
    from musiclm_jax.evaluation.mulan import evaluate_mulan, format_mulan_report
    from musiclm_jax.musiclm import MusicLM

    embedder = MusicLM.from_pretrained(model).mulan
    click.echo(format_mulan_report(evaluate_mulan(embedder, directory, num_clips=clips, seconds=seconds, seed=seed, progress=say)))


@evaluate.command()
@click.argument("workdir", metavar="WORKDIR", type=Place())
def melody(workdir) -> None:
    """Measures whether the melody embedder retrieves a melody that another instrument plays.

    WORKDIR is that of `musiclm train melody`; the melodies are those held out in training.
    """
    use_compilation_cache()
    from musiclm_jax.evaluation.melody import evaluate_melody, format_melody_report

    click.echo(format_melody_report(evaluate_melody(workdir, progress=say)))


@evaluate.command()
@clips_argument
@click.option("--clips", type=click.IntRange(min=2), default=100, show_default=True, help="The most training clips, and the most held-out ones.")
@click.option("--prompt", "prompts", type=click.IntRange(0, 5000), multiple=True, metavar="T", help="Semantic tokens given; 0, 50, ..., 250 unless given.")
@click.option("--batch-size", type=click.IntRange(min=1), default=20, show_default=True, help="Clips continued in one batch.")
@seed_option
@click.option("--picture", type=OutFile(), metavar="FILE.png", help="Figure of the matches by length of the prompt; needs matplotlib.")
@json_option
@model_option
def memorization(directory, clips, prompts, batch_size, seed, picture, out, model) -> None:
    """Measures how often the model continues its training clips with their own tokens.

    DIR is the folder of clips of the training, as for `musiclm fit`. Held-out clips are the control. The clips that are long enough for the longest prompt, and
    the threshold of approximate matches, depend on all prompts together, so a row of one prompt alone differs from that of several. With --out REPORT.json,
    what the model continues is kept in REPORT.continued.npz beside it, and a call that was stopped is continued.
    """
    use_compilation_cache()
    from musiclm_jax.evaluation.memorization import PROMPT_TOKENS, evaluate_memorization, format_memorization_report
    from musiclm_jax.evaluation.pictures import draw_memorization, require_matplotlib
    from musiclm_jax.generation.devices import use_all_cores
    from musiclm_jax.musiclm import MusicLM

    if picture is not None:
        require_matplotlib()
    use_all_cores()
    options = {"num_clips": clips, "prompt_tokens": prompts or PROMPT_TOKENS, "batch_size": batch_size, "seed": seed, "progress": say}
    options["kept"] = None if out is None else out.with_name(f"{out.stem}.continued.npz")
    report = evaluate_memorization(MusicLM.from_pretrained(model), directory, **options)
    if picture is not None:
        draw_memorization(report, picture)
    tell(report, format_memorization_report, out)


@evaluate.command()
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@click.option(
    "--draws", type=click.IntRange(min=2), default=4, show_default=True, help="Clips of each prompt with the same semantic tokens, and with new ones."
)
@click.option("--seconds", type=Seconds(3, 300), default=10.0, show_default=True, help="Length of the clips.")
@seed_option
@json_option
@model_option
def diversity(prompts, draws, seconds, seed, out, model) -> None:
    """Measures how much clips of a PROMPT differ when only their acoustic tokens are drawn anew, and when the semantic tokens are, too.

    \b
    musiclm evaluate diversity "a calm piano melody" "a fast synth tune with drums"
    """
    use_compilation_cache()
    from musiclm_jax.evaluation.diversity import evaluate_diversity, format_diversity_report
    from musiclm_jax.generation.devices import use_all_cores
    from musiclm_jax.musiclm import MusicLM

    use_all_cores()
    options = {"num_draws": draws, "seconds": seconds, "seed": seed, "progress": say}
    tell(evaluate_diversity(MusicLM.from_pretrained(model), prompts, **options), format_diversity_report, out)


@evaluate.command()
@clips_argument
@click.option("--out", type=OutFile(), required=True, metavar="FILE.npz", help="File of the index. One of this model is continued: only new clips are read.")
@model_option
def index(directory, out, model) -> None:
    """Writes an index of the semantic tokens of all clips, for `musiclm generate --check-copies`.

    DIR is the folder of clips of the training, as for `musiclm fit`.
    """
    use_compilation_cache()
    from musiclm_jax.evaluation.token_index import build_index, format_index_report
    from musiclm_jax.musiclm import MusicLM

    click.echo(format_index_report(*build_index(MusicLM.from_pretrained(model), directory, out, progress=say)))


@evaluate.command()
@clips_argument
@click.argument("index_file", metavar="INDEX", type=Place())
@json_option
@model_option
def copies(directory, index_file, out, model) -> None:
    """Finds the closest training passage of each clip in DIR, of any model, by an index of `musiclm evaluate index`.

    Clips are compared by the semantic tokens of their waves, 5 s at a time, in all alignments.
    """
    use_compilation_cache()
    from musiclm_jax.evaluation.token_index import evaluate_copies, format_copies_report
    from musiclm_jax.musiclm import MusicLM

    tell(evaluate_copies(MusicLM.from_pretrained(model), directory, index_file, progress=say), format_copies_report, out)


for name in ("fad", "kld", "mcc", "musiccaps", "listening", "everything"):
    evaluate.add_command(getattr(evaluate_folders, name))
