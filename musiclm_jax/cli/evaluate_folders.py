"""The commands of `musiclm evaluate` that compare folders of audio, by judges from outside or from a bundle."""

from __future__ import annotations

import os

import click

from musiclm_jax.cli.evaluate_options import excerpt_option, json_option, say, tell, weights_option
from musiclm_jax.cli.options import LocalPlace, Model, OutFile, Place, Seconds, model_option, seed_option, use_compilation_cache

reference_argument = click.argument("reference", metavar="REFERENCE", type=Place())
generated_argument = click.argument("generated", metavar="GENERATED", type=Place())


@click.command()
@reference_argument
@generated_argument
@click.option(
    "--embedding",
    default="musicnn",
    show_default=True,
    metavar="NAME",
    help="musicnn, mulan, w2v-bert, codec, vggish, clap, encodec, mert, trill or saved-model.",
)
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
@click.option("--classifier", default="musicnn", show_default=True, metavar="NAME", help="musicnn (50 tags), ast, passt, leaf or saved-model.")
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


@click.command()
@click.argument("table", metavar="CSV", type=Place())
@click.argument("audio_dir", metavar="AUDIO_DIR", type=Place())
@click.option("--out", type=Place(), required=True, help="Folder for the clips, musiccaps.json and musiccaps.md. A call that was stopped is continued.")
@click.option("--subset", type=click.Choice(["balanced", "eval"]), default="balanced", show_default=True, help="Captions: 1,000, or all for evaluation.")
@click.option("--clips", type=click.IntRange(min=2), show_default="all", help="Only the first clips of the subset.")
@click.option("--seconds", type=Seconds(0.5, 30), default=10.0, show_default=True, help="Length of the clips.")
@click.option("--batch-size", type=click.IntRange(min=1), default=10, show_default=True, help="Clips generated in one batch.")
@click.option("--embedding", "embeddings", multiple=True, default=["musicnn"], show_default=True, metavar="NAME[=WEIGHTS]", help="For FAD; repeatable.")
@click.option("--classifier", "classifiers", multiple=True, default=["musicnn"], show_default=True, metavar="NAME[=WEIGHTS]", help="For KLD; repeatable.")
@click.option("--judge", "matchers", multiple=True, default=["mulan"], show_default=True, metavar="NAME[=WEIGHTS]", help="For MCC; repeatable.")
@seed_option
@model_option
def musiccaps(table, audio_dir, out, subset, clips, seconds, batch_size, embeddings, classifiers, matchers, seed, model) -> None:
    """Generates a clip for each caption of MusicCaps, and measures FAD, KLD and MCC as in table 1 of MusicLM.

    CSV is the table that was published, musiccaps-public.csv, AUDIO_DIR the audio that you have: videos or clips, named by the ids of the table.
    """
    use_compilation_cache()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # As in `fad`.
    from musiclm_jax.evaluation.judges import load_classifier, load_embedding, load_matcher
    from musiclm_jax.evaluation.musiccaps import Judges, evaluate_musiccaps, format_musiccaps_report
    from musiclm_jax.generation.devices import use_all_cores
    from musiclm_jax.musiclm import MusicLM

    use_all_cores()
    judges = Judges(
        tuple(load_embedding(name, model=model, weights=weights) for name, weights in map(_named, embeddings)),
        tuple(load_classifier(name, weights=weights) for name, weights in map(_named, classifiers)),
        tuple(load_matcher(name, model=model, weights=weights) for name, weights in map(_named, matchers)),
    )
    options = {"subset": subset, "num_clips": clips, "seconds": seconds, "seed": seed, "batch_size": batch_size, "progress": say}
    click.echo(format_musiccaps_report(evaluate_musiccaps(MusicLM.from_pretrained(model), table, audio_dir, out, judges, **options)))


@click.command()
@click.argument("paths", metavar="A_DIR B_DIR | RESULTS.json...", nargs=-1, type=LocalPlace())
@click.option("--out", type=OutFile(), metavar="FILE.html", help="File for the page.")
@click.option("--score", is_flag=True, help="Counts the wins in files that the page has saved.")
@click.option("--clips", type=click.IntRange(min=1), show_default="all", help="The most pairs of clips, drawn at random.")
@seed_option
def listening(paths, out, score, clips, seed) -> None:
    """Writes a page for blind comparisons of the clips of the same names in A_DIR and B_DIR, or with --score counts their results.

    The page needs no server. It shows the caption of each pair and asks which clip fits it better, on a scale of five, and saves the answers as JSON. With
    --score, the wins of each system, and Wilcoxon's signed-rank test of each pair of systems with Bonferroni's correction.

    \b
    musiclm evaluate listening mine theirs --out page.html
    musiclm evaluate listening --score answers-1.json answers-2.json
    """
    from musiclm_jax.evaluation import listening

    if score:
        return click.echo(listening.format_score(listening.score(paths)))
    if len(paths) != 2 or out is None:
        raise click.UsageError("name two folders and --out FILE.html, or --score and files of results.")
    count, notes = listening.write_page(*paths, out, num_pairs=clips, seed=seed, progress=say)
    click.echo("\n".join([f"{out}: {count} pairs; open it in a browser", *(f"note: {note}" for note in notes)]))


@click.command(name="all")
@click.argument("bundle", metavar="BUNDLE", type=Model())
@click.argument("directory", metavar="DATA", type=Place())
@click.option("--out", type=LocalPlace(), required=True, help="Folder for index.html, the clips and the reports. A call that was stopped is continued.")
@click.option("--captions", type=click.IntRange(min=2), default=30, show_default=True, help="The most held-out captions, one generated clip each.")
@click.option("--seconds", type=Seconds(3, 300), default=10.0, show_default=True, help="Length of the clips.")
@click.option("--clips", type=click.IntRange(min=2), default=100, show_default=True, help="The most clips of each split for memorization.")
@seed_option
def everything(bundle, directory, out, captions, seconds, clips, seed) -> None:
    """Measures all that DATA allows, and writes one page with tables, spectrograms and players.

    DATA is the folder of clips of the training, as for `musiclm fit`.
    """
    use_compilation_cache()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # As in `fad`.
    from musiclm_jax.evaluation.summary import PAGE, evaluate_all
    from musiclm_jax.generation.devices import use_all_cores

    use_all_cores()
    done, missing = evaluate_all(bundle, directory, out, num_captions=captions, seconds=seconds, num_clips=clips, seed=seed, progress=say)
    click.echo("\n".join([f"{out / PAGE}: {', '.join(done)}", *(f"left out: {name}: {reason}" for name, reason in missing.items())]))


def _named(judge: str) -> tuple[str, str | None]:
    """NAME or NAME=WEIGHTS, as (name, weights)."""
    name, _, weights = judge.partition("=")
    return name, weights or None
