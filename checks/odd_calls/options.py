"""Odd options and arguments of every command."""

import os
from collections.abc import Iterator

from checks.odd_calls.calls import EVALUATIONS, JUDGED, LONG, ODD_NUMBERS, Call, Turns, make_odd_paths, odd_paths, put, several


def option_calls() -> Iterator[Call]:
    yield from _help_calls()
    yield from _generate_calls()
    yield from _evaluate_calls()
    yield from _judged_calls()
    yield from _corpus_calls()
    yield from _training_calls()


def _help_calls() -> Iterator[Call]:
    for command in ("", "generate", "fit", "train", "export", "info", "corpus", "evaluate", *(f"evaluate {each}" for each in (*EVALUATIONS, *JUDGED, "kld"))):
        yield Call((*command.split(), "--help"), right=(0,))
        yield Call((*command.split(), "--no-such-option"), names="option")
        if command not in ("", "info", "evaluate"):
            yield Call(tuple(command.split()), names="")
    yield Call(("generat",))
    yield Call(("--version", "x"), right=(0,))


def _generate_calls() -> Iterator[Call]:
    short = ("generate", "a calm piano melody", "--model", "bundle", "--seconds", "0.2")
    deal = Turns()
    for option in ("--seconds", "--seed", "--samples", "--candidates", "--drafts", "--temperature", "--top-k"):
        for value in (deal(ODD_NUMBERS) for _ in range(8)):
            yield Call((*short, option, value), names=option[2:6] if value else None)
    for value in ("=", "=1", "coarse=", "coarse=nan", "violin=1", "coarse=1=2", "semantic=1e-320", "fine=1e38"):
        yield Call((*short, "--temperature", value), names="")
        yield Call((*short, "--top-k", value), names="")
    for prompt in ("", " \n", "-", "--", "-x", "a\nb", "a " * 50_000, "\udcff", "\u202e\U0001f3b5", "a\x1b[31m"):
        yield Call(("generate", "--model", "bundle", "--seconds", "0.2", "--", prompt), names="prompt")
    yield Call(("generate", *["a"] * 5000, "--model", "bundle"), names="5000", note="5000 prompts")
    yield Call((*short, "--samples", "4096", "--seconds", "300"), names="at once")
    arrange = several(
        lambda: os.mkdir("d.wav"),
        put("f"),
        lambda: os.symlink("loop", "loop"),
        lambda: os.symlink("loop.wav", "loop.wav"),
        lambda: os.symlink("nowhere/x.wav", "broken.wav"),
    )
    out_files = ("", " ", "a", "a.mp3", ".wav", "a.wav/", "no/a.wav", "/dev/null", "/dev/full", "/dev/full/a.wav", f"{LONG}.wav", "a\n.wav", "\udcff.wav")
    for out in (*out_files, "é.wav", "d.wav", "f/a.wav", "loop.wav", "loop/a.wav", "broken.wav", "/proc/a.wav", "-.wav"):
        yield Call((*short, f"--out={out}"), arrange, names=out.split("\n")[0] if out.isascii() else ".wav")
    for model in odd_paths("m"):
        yield Call(("generate", "x", "--seconds", "0.2", "--model", model), make_odd_paths, names="")
        yield Call(("info", model), make_odd_paths, names="")


def _evaluate_calls() -> Iterator[Call]:
    bundle = ("clips", "--model", "bundle")
    for i, value in enumerate(ODD_NUMBERS):
        fit = ("--fit-clips", "2") if EVALUATIONS[i % 3] == "semantic" else ()
        yield Call(("evaluate", EVALUATIONS[i % 3], *bundle, "--seconds", "1", *fit, "--clips", value), names="clips" if value else "")
        if i % 2:
            yield Call(("evaluate", "semantic", *bundle, "--seconds", "1", "--fit-clips", value), names="fitclips")
        option = ("--captions", "--seconds", "--batch-size", "--seed")[i % 4]
        yield Call(("evaluate", "adherence", *bundle, "--captions", "2", "--seconds", "2", option, value), names="")
        yield Call(("evaluate", EVALUATIONS[i % 3], *bundle, "--clips", "2", *fit, "--seconds", value), names="")
    for i, model in enumerate(odd_paths("m")):
        yield Call(("evaluate", EVALUATIONS[i % 4], "clips", "--model", model), make_odd_paths, names="")
    yield Call(("evaluate", "adherence", *bundle, "--captions", "2", "--seconds", "2", "--out", "f"), put("f"))


def _judged_calls() -> Iterator[Call]:
    deal = Turns()
    for command, judge in JUDGED.items():
        for value in ODD_NUMBERS:
            option = deal(("--seconds", "--seed", *(("--clips",) if command == "fad" else ())))
            yield Call(("evaluate", command, "clips", "clips", *judge, option, value), names="")
        for path in odd_paths("m"):
            folders = deal(((path, "clips"), ("clips", path)))
            yield Call(("evaluate", command, *folders, *judge), make_odd_paths, names="")
            yield Call(("evaluate", command, "clips", "clips", *judge, "--out", path), make_odd_paths, names="")
    for path in odd_paths("m"):
        yield Call(("evaluate", "fad", "clips", "clips", *JUDGED["fad"], "--save-reference", path), make_odd_paths, names="")
    for name in ("", "trill", "w2v-bert:", "w2v-bert:0", "w2v-bert:99999", "w2v-bert:²", "mulan:1", "vggish", "clap", "mert:-1"):
        yield Call(("evaluate", "fad", "clips", "clips", "--embedding", name, "--model", "bundle"), names="")
        yield Call(("evaluate", "fad", "clips", "clips", "--embedding", name, "--weights", "no/such"), names="")
        yield Call(("evaluate", "mcc", "clips", "--judge", name, "--model", "bundle"), names="")
        yield Call(("evaluate", "kld", "clips", "clips", "--classifier", name), names="")


def _corpus_calls() -> Iterator[Call]:
    made = several(put("f"), lambda: os.symlink("loop", "loop"))
    deal = Turns()
    for value in ODD_NUMBERS:
        if value.strip() not in ("1000000000", "1", "0", "٣"):
            option = deal(("clips", "workers", "seed"))
            yield Call(("corpus", "c", "--clips", "1", "--workers", "1", f"--{option}", value), names=option if value.strip() else "")
        yield Call(("corpus", "c", "--clips", "1000000", "--variants", "100", "--seed", value), names="")
    for out in ("", "f", "f/x", "/dev/null", "loop", LONG, "clips", "/proc/x"):
        yield Call(("corpus", out, "--clips", "1", "--workers", "1"), made, names=out[:20])
        yield Call(("export", "work", out), made, names=out[:20])
    yield Call(("export", "work", "x", "--dtype", "float8"))
    yield Call(("export", "clips", "x"), names="clips")
    yield Call(("export", "work", "work"))
    yield Call(("export", "bundle", "."), names="")


def _training_calls() -> Iterator[Call]:
    made = several(put("f"), lambda: os.symlink("loop", "loop"))
    for size in ("", " ", "huge", "../models/demo", "demo.gin", "é", "-1"):
        yield Call(("fit", "clips", "--workdir", "w", "--size", size), names="size")
    for folder in ("", "f", "f/x", "/dev/null", "loop", LONG, "/proc/x", "clips"):
        yield Call(("train", "prepare", "clips", "--size", "test", "--workdir", folder), made, names=folder[:20])
        yield Call(("fit", "clips", "--size", "test", "--plan", "--workdir", folder), made, names=folder[:20], may=(f"{folder}/hashes.json",))
    for step in ("", "soundstream", "prepar", "é", "export\n", "--dry_run", "melody", "kmeans", "export", "rvq", "fine"):
        # With --dry_run for the step, click reads the option, and takes "clips" for the step.
        names = "clips" if step == "--dry_run" else step.strip()[:5] if step.isascii() else ""
        yield Call(("train", step, "clips", "--size", "test", "--workdir", "w"), names=names, may=("w/*", "w"))
        yield Call(("train", step, "--size", "test", "--dry_run", "--shapes"), names="")
        yield Call(("train", step, "clips", "--size", "test", "--workdir", "w", "--plan"), names="", may=("w/hashes.json", "w"))
    yield Call(("train", "codec", "--size", "test"), names="DATA")
    yield Call(("train", "codec", "--size", "base", "--dry_run", "--shapes", "--gin.MeshConfig.data=7"), names="7")
