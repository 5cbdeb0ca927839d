"""Odd options, folders and files of the commands of `musiclm evaluate`."""

import json
import os
from collections.abc import Iterator

import numpy as np

from checks.odd_calls.calls import EVALUATIONS, JUDGED, ODD_NUMBERS, Call, Make, Turns, make_odd_paths, odd_paths, put, several, write_tones

_HEADER = "ytid,start_s,end_s,caption,is_balanced_subset,is_audioset_eval\n"
_ROWS = "".join(f"{i:02d},0,3,a calm piano,True,True\n" for i in range(3))


def evaluation_calls() -> Iterator[Call]:
    yield from _evaluate_calls()
    yield from _judged_calls()
    yield from _kld_calls()
    yield from _memorization_calls()
    yield from _copies_calls()
    yield from _musiccaps_calls()
    yield from _listening_calls()
    yield from _diversity_calls()
    yield from _all_calls()


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
    for name in (
        "",
        "trill",
        "trill:x",
        "saved-model:a@1",
        "passt",
        "leaf",
        "w2v-bert:",
        "w2v-bert:0",
        "w2v-bert:99999",
        "w2v-bert:²",
        "mulan:1",
        "vggish",
        "clap",
        "mert:-1",
    ):
        yield Call(("evaluate", "fad", "clips", "clips", "--embedding", name, "--model", "bundle"), names="")
        yield Call(("evaluate", "fad", "clips", "clips", "--embedding", name, "--weights", "no/such"), names="")
        yield Call(("evaluate", "mcc", "clips", "--judge", name, "--model", "bundle"), names="")
        yield Call(("evaluate", "kld", "clips", "clips", "--classifier", name), names="")


def _kld_calls() -> Iterator[Call]:
    deal = Turns()
    for value in ODD_NUMBERS:
        yield Call(("evaluate", "kld", "clips", "clips", "--seconds", "3", deal(("--seconds", "--seed")), value), names="")
    for path in odd_paths("k"):
        yield Call(("evaluate", "kld", *deal(((path, "clips"), ("clips", path)))), make_odd_paths, names="")
        yield Call(("evaluate", "kld", "clips", "clips", "--seconds", "3", "--out", path), make_odd_paths, names="")


def _memorization_calls() -> Iterator[Call]:
    """The clips have 5 s and more, which a prompt of no tokens needs."""
    deal, clips = Turns(), lambda: write_tones("d", [f"{i}.wav" for i in range(4)], seconds=5.2)
    short = ("evaluate", "memorization", "d", "--model", "bundle", "--prompt", "0", "--clips", "2")
    for value in ODD_NUMBERS:
        yield Call((*short, deal(("--prompt", "--clips", "--batch-size", "--seed")), value), clips, names="")
    for path in odd_paths("m"):
        yield Call((*short[:2], path, *short[3:]), several(clips, make_odd_paths), names="")
        yield Call((*short, deal(("--out", "--picture")), path), several(clips, make_odd_paths), names="")
    for note, make in _odd_files("r.continued.npz").items():
        yield Call((*short, "--out", "r.json"), several(clips, make), f"r.continued.npz: {note}", "")
    yield Call(("evaluate", "memorization", "clips", "--model", "bundle"), note="short clips", names="")


def _copies_calls() -> Iterator[Call]:
    bundle, index = ("--model", "bundle"), "passages/index.npz"
    for path in odd_paths("i"):
        yield Call(("evaluate", "index", "clips", *bundle, "--out", path), make_odd_paths, names="")
        yield Call(("evaluate", "index", path, *bundle, "--out", "i.npz"), make_odd_paths, names="")
        yield Call(("evaluate", "copies", "clips", path, *bundle), make_odd_paths, names="")
        yield Call(("evaluate", "copies", path, index, *bundle), make_odd_paths, names="")
        yield Call(("generate", "a piano", "--seconds", "0.2", *bundle, "--check-copies", path), make_odd_paths, names="")
    for note, make in _odd_files("i.npz").items():
        yield Call(("evaluate", "index", "clips", *bundle, "--out", "i.npz"), make, f"i.npz: {note}", "")
        yield Call(("evaluate", "copies", "clips", "i.npz", *bundle), make, f"i.npz: {note}", "")
    yield Call(("evaluate", "copies", "clips", index), note="of another model", names="index")
    yield Call(("evaluate", "copies", "clips", index, *bundle), right=(0,))


def _musiccaps_calls() -> Iterator[Call]:
    deal, table = Turns(), put("t.csv", _HEADER + _ROWS)
    judges = ("--embedding", "codec", "--model", "bundle")
    short = ("evaluate", "musiccaps", "t.csv", "clips", *judges, "--clips", "2", "--seconds", "3", "--out", "o")
    for value in ODD_NUMBERS:
        yield Call((*short, deal(("--clips", "--seconds", "--batch-size", "--seed")), value), table, names="", may=("o", "o/*"))
    for path in odd_paths("c"):
        yield Call(("evaluate", "musiccaps", path, "clips", *short[4:]), several(table, make_odd_paths), names="")
        yield Call(("evaluate", "musiccaps", "t.csv", path, *short[4:]), several(table, make_odd_paths), names="")
        yield Call((*short[:-1], path), several(table, make_odd_paths), names="", may=("*/reference/*", "*/reference", "reference/*", "reference"))
    for option in ("--embedding", "--classifier", "--judge"):
        for value in ("", "=", "=f", "x=f", "clap=", "vggish=no/such", "mulan=f", "musicnn", "mulan"):
            yield Call((*short, option, value), table, names="", may=("o", "o/*"))
    for note, text in _odd_tables().items():
        yield Call(short, put("t.csv", text), note, "", may=("o", "o/*"))
    yield Call((*short, "--subset", "x"), table)
    yield Call(("evaluate", "musiccaps", "t.csv", "clips", "--subset", "eval", *short[4:]), table, right=(0,))


def _odd_tables() -> dict[str, str | bytes]:
    return {
        "an empty table": "",
        "only a header": _HEADER,
        "no header": _ROWS,
        "not text": b"\xff\xfe\x00",
        "no flags": (_HEADER + _ROWS).replace("True", "False"),
        "a row twice": _HEADER + _ROWS + _ROWS,
        "a short row": _HEADER + _ROWS + "03,0\n",
        "a time that is no number": _HEADER + _ROWS.replace(",0,3,", ",x,3,"),
        "times that are nan": _HEADER + _ROWS.replace(",0,3,", ",nan,3,"),
        "times that are inf": _HEADER + _ROWS.replace(",0,3,", ",0,inf,"),
        "negative times": _HEADER + _ROWS.replace(",0,3,", ",-3,0,"),
        "times beyond the end": _HEADER + _ROWS.replace(",0,3,", ",900,903,"),
        "ids that climb": _HEADER + _ROWS.replace("00,", "../00,"),
        "empty captions": _HEADER + _ROWS.replace("a calm piano", ""),
        "no audio": _HEADER + _ROWS.replace("0", "9"),
    }


def _listening_calls() -> Iterator[Call]:
    pair, other = ("evaluate", "listening", "clips", "d"), lambda: write_tones("d", [f"{i:02d}.wav" for i in range(12)])
    for path in odd_paths("l"):
        yield Call((*pair, "--out", path), several(other, make_odd_paths), names="")
        yield Call(("evaluate", "listening", "clips", path, "--out", "p.html"), make_odd_paths, names="")
        yield Call(("evaluate", "listening", "--score", path), make_odd_paths, names="")
    for value in ODD_NUMBERS:
        yield Call((*pair, "--out", "p.html", "--clips" if value else "--seed", value), other, names="")
    for argv in ((), ("clips",), ("clips", "clips"), ("clips", "d", "d"), ("clips", "d", "--score"), ("--score",)):
        yield Call(("evaluate", "listening", *argv, "--out", "p.html"), other, names="")
    answers = [{"format": 1, "answers": [each]} for each in ({}, {"first": "a", "second": "b", "rating": 3}, {"first": "a", "second": "a", "rating": 1}, 3)]
    for result in (*answers, {"format": 1, "answers": 3}, {"format": 9}, [], 3, None, {"format": 1, "answers": []}):
        yield Call(("evaluate", "listening", "--score", "r.json"), put("r.json", json.dumps(result)), json.dumps(result), "")


def _diversity_calls() -> Iterator[Call]:
    deal, short = Turns(), ("evaluate", "diversity", "a calm piano", "fast drums", "--model", "bundle", "--seconds", "3", "--draws", "2")
    for value in ODD_NUMBERS:
        yield Call((*short, deal(("--draws", "--seconds", "--seed")), value), names="")
    for prompt in ("", " ", "\udcff", "a | ", "0: a | 0: b", "fast drums", "a " * 50_000):
        yield Call((*short[:2], "fast drums", *short[4:], "--", prompt), names="")
    for path in odd_paths("v"):
        yield Call((*short, "--out", path), make_odd_paths, names="")


def _all_calls() -> Iterator[Call]:
    deal, more = Turns(), ("--captions", "2", "--seconds", "3", "--clips", "2", "--out", "o")
    kept = {"may": ("o", "o/*")}
    for value in ODD_NUMBERS:
        yield Call(("evaluate", "all", "bundle", "clips", *more, deal(("--captions", "--seconds", "--clips", "--seed")), value), names="", **kept)
    for path in odd_paths("a"):
        yield Call(("evaluate", "all", path, "clips", *more), make_odd_paths, names="", **kept)
        yield Call(("evaluate", "all", "bundle", path, *more), make_odd_paths, names="", **kept)
    for path in ("", "f", "f/x", "/dev/null", "loop", "n" * 300, "/proc/x", "s3://a/b"):
        yield Call(("evaluate", "all", "bundle", "clips", *more[:-1], path), make_odd_paths, names="")
    for note, text in {"no JSON": "{", "a list": "[]", "another report": '{"settings": 3}', "a number": "3"}.items():
        yield Call(("evaluate", "all", "bundle", "clips", *more), put("o/kld.json", text), f"kld.json: {note}", "", **kept)
        yield Call(("evaluate", "all", "bundle", "clips", *more), put("o/generated/generated.json", text), f"generated.json: {note}", "", **kept)


def _odd_files(path: str) -> dict[str, Make]:
    """Things that are in the place of a .npz file."""

    def arrays(**found) -> Make:
        def make() -> None:
            with open(path, "wb") as file:
                np.savez(file, **found)

        return make

    return {
        "empty": put(path),
        "text": put(path, "no arrays"),
        "no arrays": arrays(),
        "other arrays": arrays(a=np.zeros(3)),
        "objects": arrays(a=np.array([{}])),
        "a header that is a list": arrays(header="[]", lengths=np.zeros(0), tokens=np.zeros(0)),
        "a folder": lambda: os.mkdir(path),
        "a broken link": lambda: os.symlink("nowhere", path),
        "a FIFO": lambda: os.mkfifo(path),
    }
