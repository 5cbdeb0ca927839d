"""The commands of `musiclm evaluate` that compare folders of audio, by judges from outside or from a bundle."""

from __future__ import annotations

import os

import click

from musiclm_jax.cli.evaluate_options import excerpt_option, json_option, say, tell, weights_option
from musiclm_jax.cli.options import OutFile, Place, model_option, seed_option, use_compilation_cache

reference_argument = click.argument("reference", metavar="REFERENCE", type=Place())
generated_argument = click.argument("generated", metavar="GENERATED", type=Place())


@click.command()
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
    options = {"num_clips": clips, "seconds": seconds, "seed": seed, "save_to": save_reference, "progress": say}
    tell(evaluate_fad(judge, reference, generated, **options), format_fad_report, out)


@click.command()
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
    tell(evaluate_kld(judge, reference, generated, seconds=seconds, seed=seed, progress=say), format_kld_report, out)


@click.command()
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
    tell(evaluate_mcc(matcher, reference, generated, seconds=seconds, seed=seed, progress=say), format_mcc_report, out)
