"""Odd options and arguments of every command."""

import os
from collections.abc import Iterator

from checks.odd_calls.calls import (
    EVALUATIONS,
    JUDGED,
    LONG,
    ODD_NUMBERS,
    OTHER_EVALUATIONS,
    Call,
    Turns,
    make_odd_paths,
    odd_paths,
    put,
    several,
    write_tones,
)


def option_calls() -> Iterator[Call]:
    yield from _help_calls()
    yield from _generate_calls()
    yield from _steering_calls()
    yield from _corpus_calls()
    yield from _training_calls()


def _help_calls() -> Iterator[Call]:
    for command in (
        "",
        "generate",
        "fit",
        "train",
        "export",
        "info",
        "corpus",
        "evaluate",
        *(f"evaluate {each}" for each in (*EVALUATIONS, *JUDGED, *OTHER_EVALUATIONS)),
    ):
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


def _steering_calls() -> Iterator[Call]:
    """Mixtures, exclusions, stories that fade, exact wishes, and recordings."""
    rest = ("--model", "bundle", "--seconds", "0.2")
    short = ("generate", "a calm piano melody", *rest)
    story = put("story.txt", "0:00 a calm piano\n0:01 fast drums\n")
    mixtures = ("|", "a |", "0.7: calm piano | fast drums", "0: a | 0: b", "-1: a | 2: b", "0.5: a | 0.5:", "٣: a | 1: b", f"{'9' * 5000}: a | 1: b")
    for mixture in (*mixtures, "1e400: a | 1: b", "a | b" * 900, "0.7: calm piano | 0.3: fast drums", "calm piano | a\nb", "0.0001: a | 99999: b"):
        yield Call(("generate", mixture, *rest), names="")
    for text in ("", " ", "drums", "drums " * 5000, "\udcff", "no such word", "|", "a\nb"):
        yield Call((*short, "--without", text), names="")
        yield Call(("generate", "--no-prompt", *rest, "--without", text), names="")
    deal = Turns()
    for value in ODD_NUMBERS:
        yield Call(("generate", "--story", "story.txt", "--model", "bundle", "--seconds", "2", "--fade", value), story, names="")
        yield Call((*short, deal(("--fade", "--sample")), value), names="")
        yield Call(("generate", "a calm piano", "--model", "bundle", "--seconds", "6", "--tries", "1", deal(("--bpm", "--tries")), value), names="")
    for key in ("", "H minor", "a", "C# major", "c♯ minor", "A minor A", "Cb major"):
        yield Call((*short[:-1], "6", "--tries", "1", "--key", key), names="")
    for meter in ("", "5/4", "4/4 ", "3/4\n", "4"):
        yield Call((*short[:-1], "6", "--tries", "1", "--meter", meter), names="")
    for option in (("--bpm", "100"), ("--key", "A minor"), ("--meter", "3/4")):
        yield Call((*short, *option), note="a short clip", names="")
        yield Call(("generate", "--no-prompt", *rest, *option), names=option[0][2:])
    yield Call((*short, "--no-prompt"), names="")
    yield Call(("generate", "--no-prompt", *rest, "--samples", "2", "--json"))
    yield Call((*short, "--samples", "3", "--sample", "2"), names="sample")
    yield Call((*short, "--sample", "2", "--json"))
    recordings = several(make_odd_paths, lambda: write_tones(".", ["a.wav"], seconds=1), lambda: write_tones(".", ["silent.wav"], gain=0.0))
    for path in (*odd_paths("r"), "silent.wav", "a.wav", "bundle"):
        yield Call(("generate", *rest, "--resynthesize", path), recordings, names="")
        yield Call((*short, "--resynthesize", path, "--continue", path), recordings, names="")


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
