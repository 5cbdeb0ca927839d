"""Odd folders of clips, for each command that reads clips."""

import os
from collections.abc import Iterator
from pathlib import Path

from checks.odd_calls.calls import JUDGED, LONG, Call, Make, Turns, lines_of_clips, make_odd_paths, odd_paths, put, remove, several, write_metadata, write_tones

_LINES = (
    *("{", "[]", "3", "null", '"0.wav"', "[" * 100_000, "{}" * 2, "1" * 5000),
    '{"file_name": 3}',
    '{"file_name": ""}',
    '{"file_name": "../x.wav"}',
    '{"file_name": "/dev/zero"}',
    '{"file_name": "no.wav"}',
    '{"file_name": "' + LONG + '.wav"}',
    '{"file_name": "a\\u0000.wav"}',
    '{"file_name": "0.wav"}\n{"file_name": "./0.wav"}',
    '{"file_name": "0.wav", "captions": 3}',
    '{"file_name": "0.wav", "captions": [3]}',
    '{"file_name": "0.wav", "captions": {"a": 1}}',
    '{"file_name": "0.wav", "captions": ["\\ud800"]}',
    '{"file_name": "0.wav", "split": "dev"}',
    '{"file_name": "0.wav", "melody": 5}',
    '{"file_name": "0.wav", "attributes": []}',
    '{"file_name": "0.wav", "attributes": {"tempo_bpm": NaN}}',
    '{"file_name": "0.wav", "captions": ["a"], "attributes": {"instrument": 3, "drums": "x", "tonic": [], "mode": null, "tempo": 1, "tempo_bpm": "x"}}',
)
_FIELDS = (
    {"split": "test"},
    {"split": "train"},
    {"captions": []},
    {"captions": [""]},
    {"captions": ["é" * 5000]},
    {"captions": ["!" * 9]},
    {"melody": "x"},
    {"attributes": {"instrument": []}},
    {"attributes": {"tempo_bpm": "x", "instrument": {}, "drums": 7, "tonic": 3, "mode": [], "tempo": {}}},
)
_CRAFTED_WAV = b"RIFF\xff\xff\xff\x7fWAVEfmt \x10\x00\x00\x00\x01\x00\xff\xff\x01\x00\x00\x00\xff\xff\xff\xff"


def data_calls() -> Iterator[Call]:
    deal = Turns()

    def readers(note: str, make: Make, data: str = "d") -> Iterator[Call]:
        yield Call(("train", "prepare", data, "--size", "test", "--workdir", "w"), make, note, "", may=("w/*", "w"))
        yield Call(("fit", data, "--size", "test", "--workdir", "w", "--plan"), make, note, "", may=("w/hashes.json", "w"))
        yield _evaluation(deal(("codec", "semantic", "mulan", "adherence", *JUDGED)), data, make, note)

    for path in odd_paths("d"):
        yield from readers("", make_odd_paths, path)
    for note, make in _folders().items():
        yield from readers(note, make)
    for line in _LINES:
        yield from readers(f"metadata {line[:60]!r}", several(_clips(), put("d/metadata.jsonl", line + "\n")))
    for field in _FIELDS:
        note = f"all lines {str(field)[:50]}"
        make = _lines_with(field)
        yield Call(("train", "prepare", "clips", "--size", "test", "--workdir", "w"), make, note, "", may=("w/*", "w"))
        for command in ("semantic", "mulan", "adherence"):
            yield _evaluation(command, "clips", make, note)
        yield Call(("train", "melody", "clips", "--size", "test", "--workdir", "w"), make, note, "", may=("w/*", "w"))


def _evaluation(command: str, data: str, make: Make, note: str) -> Call:
    if command in JUDGED:
        return Call(("evaluate", command, "clips", data, *JUDGED[command], "--seconds", "1"), make, note, "")
    more = ("--captions", "2", "--seconds", "2") if command == "adherence" else ("--clips", "2", "--seconds", "1")
    more += ("--fit-clips", "2") if command == "semantic" else ()
    return Call(("evaluate", command, data, "--model", "bundle", *more), make, note, "")


def _clips(**tones) -> Make:
    return lambda: write_tones("d", [f"{i}.wav" for i in range(4)], **tones)


def _lines_with(field: dict) -> Make:
    return lambda: write_metadata("clips", [{**line, **field} for line in lines_of_clips()])


def _folders() -> dict[str, Make]:
    return {
        "an empty folder": lambda: os.mkdir("d"),
        "only a text": put("d/a.txt", "a piano"),
        "silent clips": _clips(gain=0.0),
        "short clips": _clips(seconds=0.1),
        "one clip": lambda: write_tones("d", ["a.wav"]),
        "no captions": _clips(),
        "captions for one clip": several(_clips(), put("d/1.txt", "a piano")),
        "a caption that is not text": several(_clips(), put("d/1.txt", b"\xff\x00\x9d\x81")),
        "metadata that are not text": several(_clips(), put("d/metadata.jsonl", b"\x81\x9d\x00\xff")),
        "a README that is not UTF-8": several(_clips(), put("d/README.md", b"\x81\x9d\x00\xff"), put("d/1.txt", "a piano")),
        "metadata.jsonl is a folder": several(_clips(), lambda: os.mkdir("d/metadata.jsonl")),
        "10,000 empty files": lambda: [put(f"d/{i}.wav")() for i in range(10_000)],
        "a FIFO for a clip": several(_clips(), remove("d/0.wav"), lambda: os.mkfifo("d/0.wav")),
        "a device for a clip": several(_clips(), remove("d/0.wav"), lambda: os.symlink("/dev/full", "d/0.wav")),
        "links that go round": several(_clips(), lambda: os.symlink("..", "d/up"), lambda: os.symlink("loop", "d/loop.wav")),
        "a name that is not UTF-8": several(_clips(), lambda: os.rename("d/0.wav", b"d/\xff.wav")),
        "a name of two lines": several(_clips(), lambda: os.rename("d/0.wav", "d/a\nb.wav")),
        "a crafted header": several(_clips(), put("d/x.wav", _CRAFTED_WAV)),
        "deep folders": lambda: write_tones(Path("d", *["deep" * 20] * 10), ["0.wav", "1.wav"]),
    }
