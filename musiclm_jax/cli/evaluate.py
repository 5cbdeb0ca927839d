"""`musiclm evaluate`.

Two kinds of evaluation: of a model or of one of its parts on held-out clips (adherence, codec, semantic, mulan, melody), and of folders of audio, by judges
from outside or from a bundle (fad, kld, mcc).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from musiclm_jax.cli.options import OutFile, Place, Seconds, model_option, seed_option, use_compilation_cache

clips_argument = click.argument("directory", metavar="DIR", type=Place())
clip_seconds_option = click.option("--seconds", type=Seconds(1, 300), default=10.0, show_default=True, help="Length measured, from each clip's start.")
reference_argument = click.argument("reference", metavar="REFERENCE", type=Place())
generated_argument = click.argument("generated", metavar="GENERATED", type=Place())
excerpt_option = click.option("--seconds", type=Seconds(0.5, 3600), show_default="whole clips", help="Length of the beginning of each clip that is used.")
weights_option = click.option("--weights", metavar="PATH", type=str, help="Weights of a judge that is not packaged: a folder, a file, or a name on the hub.")
json_option = click.option("--out", type=OutFile(), help="JSON file for the whole report, with the figures of each clip.")
_say = functools.partial(click.echo, err=True)


def _tell(report: dict[str, Any], show: Callable[[dict[str, Any]], str], out: Path | None) -> None:
    """Prints a report, and writes it to a file as JSON."""
    from musiclm_jax.files import write_json

    if out is not None:
        write_json(out, report)
    click.echo(show(report))


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
    options = {"num_captions": captions, "seconds": seconds, "seed": seed, "batch_size": batch_size, "out_dir": out, "progress": _say}
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
    click.echo(format_codec_report(evaluate_codec(musiclm.acoustic, directory, num_clips=clips, seconds=seconds, progress=_say)))


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
    report = evaluate_semantic(tokenizer, directory, num_clips=clips, seconds=seconds, fit_clips=fit_clips, progress=_say)
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
    click.echo(format_mulan_report(evaluate_mulan(embedder, directory, num_clips=clips, seconds=seconds, seed=seed, progress=_say)))


@evaluate.command()
@click.argument("workdir", metavar="WORKDIR", type=Place())
def melody(workdir) -> None:
    """Measures whether the melody embedder retrieves a melody that another instrument plays.

    WORKDIR is that of `musiclm train melody`; the melodies are those held out in training.
    """
    use_compilation_cache()
    from musiclm_jax.evaluation.melody import evaluate_melody, format_melody_report

    click.echo(format_melody_report(evaluate_melody(workdir, progress=_say)))


@evaluate.command()
@reference_argument
@generated_argument
@click.option("--embedding", default="musicnn", show_default=True, metavar="NAME", help="musicnn, mulan, w2v-bert, codec, vggish, clap, encodec or mert.")
@model_option
@weights_option
@click.option("--clips", type=click.IntRange(min=1), show_default="all", help="The most clips of each folder, drawn at random.")
@excerpt_option
@seed_option
@click.option("--save-reference", type=OutFile(), metavar="FILE.npz", help="File for the statistics of REFERENCE.")
@json_option
def fad(reference, generated, embedding, model, weights, clips, seconds, seed, save_reference, out) -> None:
    """Measures the Fréchet audio distance of the clips in GENERATED to those in REFERENCE.

    Both are folders of audio of any rate. REFERENCE may also be a file of statistics that --save-reference wrote.
    """
    use_compilation_cache()
    # Before NumPy is imported. Its decompositions are small: on a busy machine, threads that wait for each other make them 70 times slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from musiclm_jax.evaluation.fad import evaluate_fad, format_fad_report
    from musiclm_jax.evaluation.judges import load_embedding

    judge = load_embedding(embedding, model=model, weights=weights)
    options = {"num_clips": clips, "seconds": seconds, "seed": seed, "save_to": save_reference, "progress": _say}
    _tell(evaluate_fad(judge, reference, generated, **options), format_fad_report, out)


@evaluate.command()
@reference_argument
@generated_argument
@click.option("--classifier", default="musicnn", show_default=True, metavar="NAME", help="musicnn (50 tags) or ast (527 classes of AudioSet).")
@weights_option
@excerpt_option
@seed_option
@json_option
def kld(reference, generated, classifier, weights, seconds, seed, out) -> None:
    """Measures how far the classes of the clips in GENERATED are from those of the clips in REFERENCE with the same names.

    It is the Kullback-Leibler divergence, in both directions, beside that of shuffled pairs.
    """
    use_compilation_cache()
    from musiclm_jax.evaluation.judges import load_classifier
    from musiclm_jax.evaluation.kld import evaluate_kld, format_kld_report

    judge = load_classifier(classifier, weights=weights)
    _tell(evaluate_kld(judge, reference, generated, seconds=seconds, seed=seed, progress=_say), format_kld_report, out)


@evaluate.command()
@reference_argument
@click.argument("generated", metavar="[GENERATED]", type=Place(), required=False)
@click.option("--judge", default="mulan", show_default=True, metavar="NAME", help="mulan, that of the bundle, or clap.")
@model_option
@weights_option
@excerpt_option
@seed_option
@json_option
def mcc(reference, generated, judge, model, weights, seconds, seed, out) -> None:
    """Measures how similar captions and clips are: MuLan cycle consistency, the mean cosine of both.

    REFERENCE has captioned clips, GENERATED the clips that were generated from these captions, under the same names.
    """
    use_compilation_cache()
    from musiclm_jax.evaluation.judges import load_matcher
    from musiclm_jax.evaluation.mcc import evaluate_mcc, format_mcc_report

    matcher = load_matcher(judge, model=model, weights=weights)
    _tell(evaluate_mcc(matcher, reference, generated, seconds=seconds, seed=seed, progress=_say), format_mcc_report, out)
