"""Odd calls of every command: does any end in a traceback? `python checks/odd_calls.py [FOLDER] [WORD]...`

Each call gets a folder of its own, with copies of clips, a finished `fit --size test` and its bundle, and must keep these rules: no traceback; status 0, or 2
with one line "musiclm: ..." on stderr, which names what is wrong (130, 143 and 1 where the call was interrupted, ended by SIGTERM, or lost its reader); and
where it failed, nothing is written, changed or gone. All messages go to FOLDER/messages.txt, for somebody to read: a line may be there and say nothing.

Calls run in forks of this process, which has imported everything and used no device yet; those of `process_calls`, of what is decided before that (environment,
permissions, signals, streams), run as programs of their own. FOLDER keeps clips, fit and compiled programs for the next time (default: a new one). With
WORDs only calls are made whose description has one of them.
"""

import contextlib
import dataclasses
import fnmatch
import hashlib
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

PACKAGE = Path(__file__).resolve().parents[1]
LIMIT_SEC = 100
# More than any of these calls may take: what asks for all there is must be refused before.
LIMIT_BYTES = 8 * 2**30
# Lines that are no errors: of progress, and warnings.
PROGRESS = re.compile(r"\r|\S+ +\d+/\d+ |\S+ +\d+ \S+ in [\d.]+ s|k-means of|making|(coding|embedding|reading|estimating|generating|clustering|fitting|tokeniz)|.* not listed in|"
                      r"\d+ clips of|musiclm: the (model|prompt|step) ")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Call:
    argv: tuple[str, ...]
    # Arranges the folder, which is the current one by then.
    make: Callable[[], object] = lambda: None
    # Said of an argv that does not tell what is odd.
    note: str = ""
    # What must stand in the message of an error; by default the last argument.
    names: str | None = None
    # Patterns of what a call that fails may write.
    may: tuple[str, ...] = ()
    right: tuple[int, ...] = (0, 2)
    # A bash line in place of argv, where "$M" is the command.
    line: str = ""

    def __str__(self) -> str:
        return (self.line or "musiclm " + " ".join(f"{a if a and a.isascii() and ' ' not in a else ascii(a)}"[:90] for a in self.argv)) + (f"   # {self.note}" if self.note else "")


# ---------------------------------------------------------------------------------------------------------------------- What the calls need


def write_tones(folder: Path, names: list[str], *, seconds: float = 4.0, gain: float = 0.3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i, name in enumerate(names):
        t = np.arange(round(24_000 * (seconds + 0.1 * i))) / 24_000
        soundfile.write(folder / name, gain * (np.sin(2 * np.pi * 220 * 2 ** (i / 12) * t) + 0.05 * rng.standard_normal(len(t))), 24_000)


def write_metadata(folder: Path, lines: list) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def lines_of_clips() -> list[dict]:
    truth = {"instrument": "piano", "drums": False, "tonic": "C", "mode": "major", "tempo": "slow", "tempo_bpm": 70}
    caption = "a {} {} melody"
    return [
        {"file_name": f"{i:02d}.wav", "captions": [caption.format(("calm", "fast")[i % 2], ("piano", "guitar", "flute")[i % 3])], "melody": f"tune {i // 2}"}
        | {"split": "test" if i >= 8 else "train", "attributes": truth}
        for i in range(12)
    ]


def prepare_fixtures(folder: Path) -> None:
    """clips, work (a finished fit, and a melody embedder) and bundle."""
    if not (folder / "bundle").is_dir():
        write_tones(folder / "clips", [f"{i:02d}.wav" for i in range(12)])
        write_metadata(folder / "clips", lines_of_clips())
        for command in ("fit clips", "train melody clips"):
            subprocess.run([sys.executable, "-m", "musiclm_jax.cli.main", *command.split(), "--size", "test", "--workdir", "work"], cwd=folder, check=True)
        shutil.copytree(folder / "work" / "export" / "bundle", folder / "bundle")


def sign(document: dict) -> None:
    rest = {key: value for key, value in document.items() if key != "sha256"}
    document["sha256"] = hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def edit_bundle(change: Callable[[dict], object], folder: str = "bundle") -> None:
    """Crafts a bundle: its config changed, and signed again."""
    path = Path(folder) / "config.json"
    document = json.loads(path.read_text())
    change(document)
    sign(document)
    path.write_text(json.dumps(document))


def edit(path: str, change: Callable[[object], object]) -> Callable[[], object]:
    """Changes a JSON file."""
    return lambda: Path(path).write_text(json.dumps(change(json.loads(Path(path).read_text()))))


def put(path: str, data: bytes | str = b"") -> Callable[[], object]:
    def make():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data.encode() if isinstance(data, str) else data)

    return make


def several(*makes: Callable[[], object]) -> Callable[[], object]:
    return lambda: [make() for make in makes]


# ---------------------------------------------------------------------------------------------------------------------- Calls


ODD_NUMBERS = ["", " ", "-1", "0", "nan", "inf", "1e400", "٣", "0x10", "1,5", "--", "9" * 5000, "1\n", "10**9", "1000000000"]
LONG = "n" * 300


def option_calls() -> Iterator[Call]:
    short = ("generate", "a calm piano melody", "--model", "bundle", "--seconds", "0.2")
    for option in ("--seconds", "--seed", "--samples", "--candidates", "--drafts", "--temperature", "--top-k"):
        for value in ODD_NUMBERS:
            yield Call((*short, option, value), names=option.strip("-").replace("-", "")[:4] if value not in ("",) else None)
    for value in ("=", "=1", "coarse=", "coarse=nan", "violin=1", "coarse=1=2", "semantic=1e-320", "fine=1e38"):
        yield Call((*short, "--temperature", value), names="")
        yield Call((*short, "--top-k", value), names="")
    for prompt in ("", " \n", "-", "--", "-x", "a\nb", "a " * 50_000, "\udcff", "\u202e\U0001f3b5", "a\x1b[31m"):
        yield Call(("generate", "--model", "bundle", "--seconds", "0.2", "--", prompt), names="prompt")
    yield Call(("generate", *["a"] * 5000, "--model", "bundle"), names="5000", note="5000 prompts")
    yield Call((*short, "--samples", "4096", "--seconds", "300"), names="4096")
    for out in ("", " ", "a", "a.mp3", ".wav", "a.wav/", "no/a.wav", "/dev/null", "/dev/full", "/dev/full/a.wav", f"{LONG}.wav", "a\n.wav", "\udcff.wav", "é.wav",
                "d.wav", "f/a.wav", "loop.wav", "loop/a.wav", "broken.wav", "/proc/a.wav", "-.wav"):  # fmt: skip
        arrange = several(lambda: os.mkdir("d.wav"), put("f"), lambda: os.symlink("loop", "loop"), lambda: os.symlink("loop.wav", "loop.wav"),
                          lambda: os.symlink("nowhere/x.wav", "broken.wav"))  # fmt: skip
        yield Call((*short, f"--out={out}"), arrange, names=out.split("\n")[0] if out.isascii() else ".wav")
    for model in odd_paths("m"):
        yield Call(("generate", "x", "--seconds", "0.2", "--model", model), make_odd_paths, names="")
        yield Call(("info", model), make_odd_paths, names="")
        yield Call(("evaluate", "codec", "clips", "--model", model), make_odd_paths, names="")
    for command in ("", "generate", "fit", "train", "export", "info", "corpus", "evaluate", *(f"evaluate {each}" for each in EVALUATIONS)):
        yield Call((*command.split(), "--help"), right=(0,))
        yield Call((*command.split(), "--no-such-option"), names="option")
        if command not in ("", "info", "evaluate"):
            yield Call(tuple(command.split()), names="")
    yield Call(("generat",), names="generat")
    yield Call(("--version", "x"), right=(0,))
    for name, value in (("--clips", v) for v in ODD_NUMBERS):
        for command in ("codec", "semantic", "mulan"):
            yield Call(("evaluate", command, "clips", "--model", "bundle", "--seconds", "1", name, value), names="clips" if value else "")
    for option in ("--captions", "--seconds", "--batch-size", "--seed"):
        for value in ODD_NUMBERS:
            yield Call(("evaluate", "adherence", "clips", "--model", "bundle", "--captions", "2", "--seconds", "2", option, value), names="")
    for value in ODD_NUMBERS:
        yield Call(("evaluate", "semantic", "clips", "--model", "bundle", "--seconds", "1", "--fit-clips", value), names="")
        if value.strip() not in ("1000000000", "1", "0", "٣"):
            yield Call(("corpus", "c", "--clips", value, "--workers", "1"), names="clips" if value.strip() else "")
            yield Call(("corpus", "c", "--clips", "1", "--workers", value), names="workers" if value.strip() else "")
            yield Call(("corpus", "c", "--clips", "1", "--seed", value, "--workers", "1"), names="seed" if value.strip() else "")
        yield Call(("corpus", "c", "--clips", "1000000", "--variants", "100", "--seed", value), names="")
    for out in ("", "f", "f/x", "/dev/null", "loop", LONG, "clips", "/proc/x"):
        yield Call(("corpus", out, "--clips", "1", "--workers", "1"), several(put("f"), lambda: os.symlink("loop", "loop")), names=out[:20])
        yield Call(("export", "work", out), several(put("f"), lambda: os.symlink("loop", "loop")), names=out[:20])
    yield Call(("export", "work", "x", "--dtype", "float8"), names="float8")
    yield Call(("export", "clips", "x"), names="clips")
    yield Call(("export", "work", "work"), names="work")
    yield Call(("export", "bundle", "."), names="")
    yield Call(("evaluate", "adherence", "clips", "--model", "bundle", "--captions", "2", "--seconds", "2", "--out", "f"), put("f"), names="f")
    for value in ("", " ", "huge", "../models/demo", "demo.gin", "é", "-1"):
        yield Call(("fit", "clips", "--workdir", "w", "--size", value), names="size")
    for value in ("", "f", "f/x", "/dev/null", "loop", LONG, "/proc/x", "clips"):
        yield Call(("train", "prepare", "clips", "--size", "test", "--workdir", value), several(put("f"), lambda: os.symlink("loop", "loop")), names=value[:20])
        yield Call(("fit", "clips", "--size", "test", "--plan", "--workdir", value), several(put("f"), lambda: os.symlink("loop", "loop")), names=value[:20],
                   may=(f"{value}/hashes.json",))  # fmt: skip
    for step in ("", "soundstream", "prepar", "é", "export\n", "--dry_run", "melody", "kmeans", "export", "rvq", "fine"):
        yield Call(("train", step, "clips", "--size", "test", "--workdir", "w"), names=step.strip()[:5] if step.isascii() else "", may=("w/*",))
        yield Call(("train", step, "--size", "test", "--dry_run"), names="")
        yield Call(("train", step, "clips", "--size", "test", "--workdir", "w", "--plan"), names="", may=("w/hashes.json", "w"))
    yield Call(("train", "codec", "--size", "test"), names="DATA")
    yield Call(("train", "codec", "--size", "base", "--dry_run", "--gin.MeshConfig.data=7"), names="7")


EVALUATIONS = ("codec", "semantic", "mulan", "adherence", "melody")


def odd_paths(name: str) -> list[str]:
    return ["", " ", ".", "/", "no", "f", "empty", "/dev/null", "broken", "loop", "loop/x", LONG, f"{name}\n", "\udcff", "~", "-", "http://a/b", "DEMO", "demo/", "fifo"]


def make_odd_paths() -> None:
    put("f", "x")()
    os.mkdir("empty")
    os.symlink("nowhere", "broken")
    os.symlink("loop", "loop")
    os.mkfifo("fifo")
    os.mkdir(b"\xff")


def data_calls() -> Iterator[Call]:
    """Folders of clips, given to everything that reads them."""

    turns = itertools.cycle(("codec", "semantic", "mulan", "adherence"))

    def readers(make, note, names="", data="d"):
        prepared = several(make) if callable(make) else make
        yield Call(("train", "prepare", data, "--size", "test", "--workdir", "w"), prepared, note, names, may=("w/*", "w"))
        yield Call(("fit", data, "--size", "test", "--workdir", "w", "--plan"), prepared, note, names, may=("w/hashes.json", "w"))
        command = next(turns)
        more = ("--captions", "2", "--seconds", "2") if command == "adherence" else ("--clips", "2", "--seconds", "1")
        yield Call(("evaluate", command, data, "--model", "bundle", *more), prepared, note, names)

    for path in odd_paths("d"):
        yield from readers(make_odd_paths, "", "", path)
    clips = lambda **tones: lambda: write_tones(Path("d"), [f"{i}.wav" for i in range(4)], **tones)  # noqa: E731
    yield from readers(lambda: os.mkdir("d"), "an empty folder")
    yield from readers(put("d/a.txt", "a piano"), "only a text")
    yield from readers(clips(gain=0.0), "silent clips")
    yield from readers(clips(seconds=0.1), "short clips")
    yield from readers(lambda: write_tones(Path("d"), ["a.wav"]), "one clip")
    yield from readers(clips(), "no captions")
    yield from readers(several(clips(), put("d/1.txt", "a piano")), "captions for one clip")
    yield from readers(several(clips(), put("d/1.txt", b"\xff\x00\x9d\x81")), "a text that is none")
    yield from readers(several(clips(), put("d/metadata.jsonl", b"\x81\x9d\x00\xff")), "metadata that are no text")
    yield from readers(several(clips(), put("d/README.md", b"\x81\x9d\x00\xff"), put("d/1.txt", "a piano")), "a README that is not UTF-8")
    for text in ("{", "[]", "3", "null", '"0.wav"', "[" * 100_000, '{"file_name": 3}', '{"file_name": ""}', '{"file_name": "0.wav", "captions": 3}', "{}" * 2,
                 '{"file_name": "0.wav", "captions": [3]}', '{"file_name": "0.wav", "captions": {"a": 1}}', '{"file_name": "0.wav", "split": "dev"}',
                 '{"file_name": "0.wav", "attributes": []}', '{"file_name": "0.wav", "melody": 5}', '{"file_name": "0.wav", "captions": ["\\ud800"]}',
                 '{"file_name": "../x.wav"}', '{"file_name": "/dev/zero"}', '{"file_name": "0.wav"}\n{"file_name": "./0.wav"}', '{"file_name": "no.wav"}',
                 '{"file_name": "' + LONG + '.wav"}', '{"file_name": "0.wav", "attributes": {"tempo_bpm": NaN}}', "1" * 5000, '{"file_name": "a\\u0000.wav"}',
                 '{"file_name": "0.wav", "captions": ["a"], "attributes": {"instrument": 3, "drums": "x", "tonic": [], "mode": null, "tempo": 1, "tempo_bpm": "x"}}'):  # fmt: skip
        yield from readers(several(clips(), put("d/metadata.jsonl", text + "\n")), f"metadata {text[:60]!r}")
    crowd = lambda value: [{**line, **value} for line in lines_of_clips()]  # noqa: E731
    for value in ({"split": "test"}, {"split": "train"}, {"captions": []}, {"captions": [""]}, {"captions": ["é" * 5000]}, {"captions": ["!" * 9]}, {"melody": "x"},
                  {"attributes": {"instrument": []}}, {"attributes": {"tempo_bpm": "x", "instrument": {}, "drums": 7, "tonic": 3, "mode": [], "tempo": {}}}):  # fmt: skip
        yield Call(("train", "prepare", "clips", "--size", "test", "--workdir", "w"), lambda value=value: write_metadata(Path("clips"), crowd(value)),
                   f"all lines {str(value)[:50]}", "", may=("w/*", "w"))  # fmt: skip
        for command in ("semantic", "mulan", "adherence"):
            more = ("--captions", "2", "--seconds", "2") if command == "adherence" else ("--clips", "2", "--seconds", "1")
            yield Call(("evaluate", command, "clips", "--model", "bundle", *more), lambda value=value: write_metadata(Path("clips"), crowd(value)),
                       f"all lines {str(value)[:50]}", "")  # fmt: skip
    yield from readers(lambda: [put(f"d/{i}.wav")() for i in range(10_000)], "10,000 empty files")
    yield from readers(several(clips(), lambda: os.remove("d/0.wav"), lambda: os.mkfifo("d/0.wav")), "a FIFO for a clip")
    yield from readers(several(clips(), lambda: [os.remove("d/0.wav"), os.symlink("/dev/full", "d/0.wav")]), "a device for a clip")
    yield from readers(several(clips(), lambda: os.symlink("..", "d/up"), lambda: os.symlink("loop", "d/loop.wav")), "links that go round")
    yield from readers(several(clips(), lambda: os.rename("d/0.wav", b"d/\xff.wav")), "a name that is not UTF-8")
    yield from readers(several(clips(), lambda: os.rename("d/0.wav", "d/a\nb.wav")), "a name of two lines")
    yield from readers(several(clips(), put("d/x.wav", b"RIFF\xff\xff\xff\x7fWAVEfmt \x10\x00\x00\x00\x01\x00\xff\xff\x01\x00\x00\x00\xff\xff\xff\xff")), "a crafted header")
    yield from readers(lambda: write_tones(Path("/".join(["d", *["deep" * 20] * 10])), ["0.wav", "1.wav"]), "deep folders")
    yield from readers(several(clips(), lambda: os.mkdir("d/metadata.jsonl")), "metadata.jsonl is a folder")


def work_calls() -> Iterator[Call]:
    fit = ("fit", "clips", "--size", "test", "--workdir", "work")
    steps = ("prepare", "codec", "acoustic_tokens", "w2v_bert", "kmeans", "semantic_tokens", "mulan", "rvq", "reranker", "semantic_reranker", "semantic", "coarse",
             "fine", "export")  # fmt: skip
    damages = {"cut": lambda data: data[: len(data) // 2], "empty": lambda data: b"", "zeros": lambda data: bytes(len(data)), "a list": lambda data: b"[]",
               "a number": lambda data: b"3", "without names": lambda data: b"{}", "a null": lambda data: b"null", "text": lambda data: b"\xff\xfex"}  # fmt: skip

    def damage(path: str, how: Callable[[bytes], bytes]) -> Callable[[], object]:
        return lambda: Path(path).write_bytes(how(Path(path).read_bytes()))

    for name, how in damages.items():
        for step in steps:
            for file in ("step.json", "done.json"):
                yield Call((*fit, "--plan"), damage(f"work/{step}/{file}", how), f"{step}/{file}: {name}", "")
        for file in ("codec/step.json", "codec/done.json", "prepare/done.json", "prepare/clips.json", "prepare/index.json", "prepare/samples.npy", "fine/metrics.jsonl",
                     "config.gin", "hashes.json", "mulan/vocabulary.json", "acoustic_tokens/acoustic.npy", "rvq/windows.npy", "rvq/texts.npy", "rvq/step.json",
                     "semantic_reranker/spectra.npy", "mulan/variables.safetensors", "export/bundle/config.json", "export/step.json"):  # fmt: skip
            yield Call(fit, damage(f"work/{file}", how), f"{file}: {name}", "", may=("work/*",))
        for file in ("melody/config.json", "melody/variables.safetensors", "melody/done.json", "prepare/index.json", "prepare/samples.npy", "prepare/clips.json"):
            yield Call(("evaluate", "melody", "work"), damage(f"work/{file}", how), f"{file}: {name}", "")
        for file in ("checkpoints/4/checkpoint.json", "metrics.jsonl", "step.json"):
            begun = several(damage(f"work/fine/{file}", how), lambda: os.remove("work/fine/done.json"))
            yield Call(fit, begun, f"fine begun, {file}: {name}", "", may=("work/*",))
        for file in ("samples.journal", "clips.json", "samples.npy.partial"):
            begun = several(lambda: shutil.copy("work/prepare/clips.json", "work/prepare/samples.journal"), lambda: os.rename("work/prepare/samples.npy", "work/prepare/samples.npy.partial"),
                            damage(f"work/prepare/{file}", how), lambda: os.remove("work/prepare/done.json"))  # fmt: skip
            yield Call(fit, begun, f"prepare begun, {file}: {name}", "", may=("work/*",))
    rebuilt = {
        "a file for superseded": put("work/superseded"), "a file for .locks": several(lambda: shutil.rmtree("work/.locks"), put("work/.locks")),
        "a file for a step": several(lambda: shutil.rmtree("work/fine"), put("work/fine", "x")), "a folder for done.json": several(lambda: os.remove("work/fine/done.json"), lambda: os.mkdir("work/fine/done.json")),
        "a folder for step.json": several(lambda: os.remove("work/fine/step.json"), lambda: os.mkdir("work/fine/step.json")),
        "a folder for hashes.json": several(lambda: os.remove("work/hashes.json"), lambda: os.mkdir("work/hashes.json")),
        "a folder for config.gin": several(lambda: os.remove("work/config.gin"), lambda: os.mkdir("work/config.gin")),
        "a step that is a link": several(lambda: os.rename("work/fine", "fine"), lambda: os.symlink("../fine", "work/fine")),
        "a step that is a broken link": several(lambda: shutil.rmtree("work/fine"), lambda: os.symlink("nowhere", "work/fine")),
        "a step that is a loop": several(lambda: shutil.rmtree("work/fine"), lambda: os.symlink("fine", "work/fine")),
        "no checkpoints": several(lambda: shutil.rmtree("work/fine/checkpoints"), lambda: os.remove("work/fine/done.json")),
        "foreign checkpoints": several(lambda: shutil.rmtree("work/fine/checkpoints"), lambda: shutil.copytree("work/coarse/checkpoints", "work/fine/checkpoints"), lambda: os.remove("work/fine/done.json")),
        "a file for checkpoints": several(lambda: shutil.rmtree("work/fine/checkpoints"), put("work/fine/checkpoints"), lambda: os.remove("work/fine/done.json")),
        "a file for a checkpoint": several(lambda: shutil.rmtree("work/fine/checkpoints/4"), put("work/fine/checkpoints/4"), lambda: os.remove("work/fine/done.json")),
        "no weights": lambda: os.remove("work/codec/variables.safetensors"), "a person's file": several(lambda: shutil.rmtree("work/fine"), put("work/fine/my.txt")),
        "a lock that is a folder": several(lambda: os.remove("work/.locks/fine"), lambda: os.mkdir("work/.locks/fine")),
        "links in superseded": several(lambda: os.mkdir("work/superseded"), lambda: os.symlink("fine-1", "work/superseded/fine-1"), put("work/superseded/fine-2"), put("work/superseded/fine-3/step.json", "[]")),
    }  # fmt: skip
    for note, make in rebuilt.items():
        yield Call(fit, make, note, "", may=("work/*",))
        yield Call((*fit, "--plan"), make, note, "")
        yield Call((*fit, "--gin.FINE_STEPS=2"), make, f"{note}; shorter", "", may=("work/*",))
    yield Call((*fit[:3], "demo", *fit[4:], "--plan"), note="of another size")
    yield Call((*fit, "--gin.small/LogMelConfig.num_mels=12", "--plan"), note="other settings")
    for path in odd_paths("w"):
        yield Call(("evaluate", "melody", path), make_odd_paths, names="")
        yield Call(("export", path, "x"), make_odd_paths, names="")


def gin_calls() -> Iterator[Call]:
    weigh = ("train", "codec", "--size", "test", "--dry_run")
    for text in ("a", "a =", "= 3", "SEED = ", "SEED = %NOWHERE", "SEED = @Unknown()", "SEED = lambda: 3", "SEED = __import__('os').system('x')", "import no.such.module",
                 "from __gin__ import dynamic_registration\nimport no_such", "include 'no.gin'", "include 'g.gin'", "include 3", "SEED = '\u202e", "é = 3", "\x00", "SEED = 1e999", "SEED = %SEED", "A = %B\nB = %A\nSEED = %A",
                 "SEED = (((", "SEED = " + "(" * 3000, "SEED = " + "9" * 5000, "StageConfig.dim = @StageConfig()", "fit.FitConfig.parts = ()", "fit.FitConfig.parts = 3",
                 "fit.FitConfig.parts = (@fit.FitConfig(),)", "fit.FitConfig.model = None", "fit.FitConfig.model = @fit.FitConfig()", "SEED: 3", "SEED = {'a': }", "x/y/z = 3", "SEED = nan",
                 "SEED = -nan", "SEED = 3; import os", "a.b.c.d = 3", "StageConfig = 3", "@SEED = 3", "%SEED = 3", "SEED = gin.REQUIRED", "SEED = %gin.REQUIRED",
                 "fit.FitConfig.parts = (@prepare.PreparePart(), @prepare.PreparePart())", "configs.MusicLMConfig.stages = ()", "configs.MusicLMConfig.stages = (3,)"):  # fmt: skip
        yield Call((*weigh, "--gin_file", "g.gin"), put("g.gin", text + "\n"), f"{text[:60]!r}", "")
    for data in (b"\xff\xfe\x00", bytes(range(256)), b"SEED = 3\xff", b"\xef\xbb\xbfSEED = 3", b"SEED = 3\r\n", b"SEED = 3\x0c\n"):
        yield Call((*weigh, "--gin_file", "g.gin"), put("g.gin", data), f"{data[:20]!r}", "")
    for path in odd_paths("g"):
        yield Call((*weigh, "--gin_file", path), make_odd_paths, names="")
    for binding in ("", "=", "=3", "SEED", "SEED=", "SEED==3", "SEED=%X", "SEED=@x()", "SEED=(", "SEED=\n3", "SEED=3\nX=4", "é=3", "SEED=\udcff", "a/b.c=3", "SEED=1" + "0" * 30, "x" * 5000, "SEED=# x",
                    "StageConfig.dim=" + "9" * 5000, "StageConfig.dim=True", "StageConfig.dtype=3", "StageConfig.=3", ".dim=3", "/=3", "semantic/=3", "TEXT_MIX=a", "TEXT_MIX=[['a', 1]]", "TEXT_MIX=((1,2),)",
                    "TEXT_MIX=(3,)", "TEXT_MIX=(('a',),)", "TEXT_MIX=(('a', -1),)", "MeshConfig.fsdp=0", "MeshConfig.tensor=1000000", "SEED=b'x'", "SEED=1j", "SEED={}", "SEED={1:{}}", "SEED=None", "SEED=[[[]]]"):  # fmt: skip
        yield Call((*weigh, f"--gin.{binding}"), names="")
    for part, value in (("codec", "SoundStreamConfig.dim"), ("semantic", "StageConfig.dim"), ("semantic", "StageConfig.num_layers"), ("mulan", "TextTowerConfig.vocab_size"), ("w2v_bert", "W2vBertConfig.num_clusters"),
                        ("codec", "CodecPart.batch_size"), ("codec", "CodecPart.crop_sec"), ("semantic", "semantic/StagePart.batch_size")):  # fmt: skip
        for number in (10**6, 10**12):
            yield Call(("train", part, "clips", "--size", "test", "--workdir", "w", f"--gin.{value}={number}"), names="", may=("w/*", "w"))
            yield Call(("train", part, "--size", "test", "--dry_run", f"--gin.{value}={number}"), names="")


_PARTS = {"codec": ("codec", "SoundStream", "Discriminator", "discriminator", "RVQConfig"), "w2v_bert": ("w2v_bert", "small"), "melody": ("melody",), "reranker": ("reranker",),
          "mulan": ("mulan", "resnet", "text_tower"), "coarse": ("coarse",), "fine": ("fine",)}  # fmt: skip


def binding_calls(config: str) -> Iterator[Call]:
    """Nonsense for each value that a training reads, weighed."""
    for name, value in re.findall(r"^([\w/.]+) = (.+)$", config, re.MULTILINE):
        if value.startswith(("@", "%", "\\")):
            continue
        part = next((part for part, words in _PARTS.items() if any(name.startswith(word) or f".{word}" in name for word in words)), "semantic")
        part = "codec" if "quantize" in name or "soundstream" in name else part
        numbers = ["0", "-1", "1000000000000", "0.5"] if re.fullmatch(r"-?\d+", value) else ["0.0", "-1.0", "1e300", "nan"]
        for odd in [*(numbers if value[0] not in "'([TF" else ["''", "()", "(0,)", "(-1, -1)", "0"]), "[]", "'x'", "None", "{'a': 1}"]:
            yield Call(("train", part, "--size", "test", "--dry_run", f"--gin.{name}={odd}"), names="")


ODD_VALUES = {
    bool: lambda value: [not value], int: lambda value: [0, -1, 1, value + 1, 3 * value, 10**12, 2**63 - 1], float: lambda value: [0.0, -1.0, 1e300, 1e-300, 2.5 * value],
    str: lambda value: ["", "x", "float8", "a\nb"], list: lambda value: [[], [0], [-1], [1] * 50], type(None): lambda value: [0, 99],
}  # fmt: skip


def bundle_calls(config: dict) -> Iterator[Call]:
    """Crafted bundles: nonsense for each value of the config, signed."""

    def scalars(tree: object, path: tuple) -> Iterator[tuple[tuple, object]]:
        children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
        for key, value in children:
            if not isinstance(value, dict):
                yield (*path, key), value
            yield from scalars(value, (*path, key))

    def change(path: tuple, value: object) -> Callable[[dict], object]:
        def apply(document: dict) -> None:
            for key in path[:-1]:
                document = document[key]
            document[path[-1]] = value

        return apply

    for path, value in scalars(config["model"], ("model",)):
        for odd in ODD_VALUES[type(value)](value):
            if odd != value or type(odd) is not type(value):
                arrange = lambda path=path, odd=odd: edit_bundle(change(path, odd))  # noqa: E731
                yield Call(("generate", "a calm piano", "--model", "bundle", "--seconds", "0.2", "--candidates", "2", "--drafts", "2"), arrange, f"{'.'.join(map(str, path[1:]))}={str(odd)[:40]}", "")
    broken = {
        "files is a list": lambda c: c.update(files=[*c["files"]]), "a file without bytes": lambda c: [v.pop("bytes") for v in c["files"].values()], "a name that climbs": lambda c: c["files"].update({"../../x": next(iter(c["files"].values()))}),
        "no files": lambda c: c.update(files={}), "no model": lambda c: c.update(model={}), "model is a list": lambda c: c.update(model=[]), "format 99": lambda c: c.update(format=99), "format 1": lambda c: c.update(format=1), "format 'x'": lambda c: c.update(format="x"),
        "an unknown field": lambda c: c["model"].update(x=1), "no stages": lambda c: c["model"].update(stages=[]), "a stage twice": lambda c: c["model"]["stages"].append(c["model"]["stages"][0]), "another order": lambda c: c["model"]["stages"].reverse(),
        "two stages": lambda c: c["model"]["stages"].pop(0), "one stage": lambda c: c["model"].update(stages=c["model"]["stages"][:1]), "all skipped": lambda c: c["model"].update(skipped_stages=["semantic", "coarse", "fine"]),
        "the semantic stage skipped": lambda c: c["model"].update(skipped_stages=["semantic"]), "the coarse stage skipped": lambda c: c["model"].update(skipped_stages=["coarse"]), "a stage that reads itself": lambda c: c["model"]["stages"][0].update(prefix=[c["model"]["stages"][0]["target"]]),
        "a gap of levels": lambda c: c["model"]["stages"][2]["target"].update(first=2), "stages of the same levels": lambda c: c["model"]["stages"][2].update(target=c["model"]["stages"][1]["target"]), "a deep config": lambda c: c["model"].update(x=json.loads("[" * 500 + "]" * 500)),
    }  # fmt: skip
    for note, apply in broken.items():
        for argv in (("info", "bundle"), ("generate", "a calm piano", "--model", "bundle", "--seconds", "0.2")):
            yield Call(argv, lambda apply=apply: edit_bundle(apply), note, "")
    for name in sorted(os.listdir(FIXTURES / "bundle")):
        for note, how in {"gone": os.remove, "empty": lambda path: put(path)(), "a folder": lambda path: [os.remove(path), os.mkdir(path)], "cut": lambda path: Path(path).write_bytes(Path(path).read_bytes()[:-7]),
                          "zeros": lambda path: Path(path).write_bytes(bytes(os.path.getsize(path))), "a broken link": lambda path: [os.remove(path), os.symlink("nowhere", path)], "a FIFO": lambda path: [os.remove(path), os.mkfifo(path)]}.items():  # fmt: skip
            yield Call(("info", "bundle"), lambda name=name, how=how: how(f"bundle/{name}"), f"{name}: {note}", "")
            if name == "README.md":
                yield Call(("export", "bundle", "x"), lambda name=name, how=how: how(f"bundle/{name}"), f"{name}: {note}", "")


# ---------------------------------------------------------------------------------------------------------------------- Running


def snapshot(folder: Path) -> dict[str, tuple]:
    """What is there: kind, and contents or target, by name."""
    found = {}
    for at, folders, files in os.walk(os.fsencode(folder)):
        for name in (*folders, *files):
            path = os.path.join(at, name)
            relative = os.fsdecode(os.path.relpath(path, os.fsencode(folder)))
            status = os.lstat(path)
            if os.path.islink(path):
                found[relative] = ("link", os.readlink(path))
            elif os.path.isfile(path):
                data = Path(os.fsdecode(path)).read_bytes() if status.st_size < 2**22 else b""
                found[relative] = ("file", status.st_size, hashlib.md5(data).hexdigest())
            else:
                found[relative] = ("other", status.st_mode)
    return found


FIXTURES = Path()


class Running:
    """A call at work."""

    def __init__(self, call: Call, folder: Path):
        self.call, self.folder, self.began = call, folder, time.monotonic()
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        words = " ".join((*call.argv, call.line)).split()
        for name in ("clips", "work", "bundle"):
            if any(word == name or word.startswith(f"{name}/") for word in words):
                shutil.copytree(FIXTURES / name, self.home / name, symlinks=True)
        here = os.getcwd()
        os.chdir(self.home)
        try:
            call.make()
        finally:
            os.chdir(here)
        self.before = snapshot(self.home)
        self.pid = os.fork()
        if not self.pid:
            self._child()

    def _child(self) -> None:
        status = 1
        try:
            os.setpgid(0, 0)
            os.chdir(self.home)
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(self.folder / name, os.O_WRONLY | os.O_CREAT, 0o644), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            if self.call.line:
                os.execvpe("bash", ["bash", "-c", self.call.line], {**os.environ, "M": f"{sys.executable} -m musiclm_jax.cli.main"})
            resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
            from musiclm_jax.cli.main import main

            main(list(self.call.argv))
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(status)

    def poll(self) -> bool:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid and time.monotonic() - self.began > LIMIT_SEC:
            os.killpg(self.pid, signal.SIGKILL)
            pid, status = os.waitpid(self.pid, 0)
        if not pid:
            return False
        self.status = os.waitstatus_to_exitcode(status)
        self.seconds = time.monotonic() - self.began
        return True

    def broken_rules(self) -> list[str]:
        call, found = self.call, []
        self.err = (self.folder / "err").read_text(errors="replace")
        out = (self.folder / "out").read_text(errors="replace")
        if self.seconds > LIMIT_SEC:
            found.append(f"was still at work after {LIMIT_SEC} s")
        if "Traceback" in self.err + out:
            found.append("a traceback")
        if self.status not in call.right:
            found.append(f"status {self.status}")
        lines = [line for line in self.err.split("\n") if line.strip() and not PROGRESS.match(line)]
        if self.status == 2:
            if len(lines) != 1 or not lines[0].startswith("musiclm: "):
                found.append(f"{len(lines)} lines of error")
            elif (name := call.names if call.names is not None else call.argv[-1]).strip() not in lines[0]:
                found.append(f"does not name {name!r}")
        elif lines and self.status == 0:
            found.append("lines of error, and status 0")
        if self.status != 0:
            after = snapshot(self.home)
            changed = [name for name in {*self.before, *after} if self.before.get(name) != after.get(name) and not any(fnmatch.fnmatch(name, each) for each in call.may)]
            if changed:
                found.append(f"writes or changes {', '.join(sorted(map(ascii, changed))[:4])}")
        return found


def main() -> None:
    global FIXTURES
    arguments = sys.argv[1:]
    FIXTURES = Path(arguments[0] if arguments else tempfile.mkdtemp(prefix="odd_calls-")).resolve()
    FIXTURES.mkdir(exist_ok=True)
    os.environ |= {"PYTHONPATH": str(PACKAGE), "MUSICLM_CACHE_DIR": str(FIXTURES / "cache"), "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"}
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    prepare_fixtures(FIXTURES)
    sys.path.insert(0, str(PACKAGE))
    import musiclm_jax.cli.gin_config
    import musiclm_jax.corpus
    import musiclm_jax.evaluation.adherence
    import musiclm_jax.evaluation.codec
    import musiclm_jax.evaluation.melody
    import musiclm_jax.evaluation.mulan
    import musiclm_jax.evaluation.semantic  # noqa: F401
    from musiclm_jax.evaluation.extras import require

    require("librosa", "sklearn.metrics", "sklearn.pipeline", "sklearn.linear_model", "pyloudnorm")

    warnings.simplefilter("ignore")
    calls = [*option_calls(), *data_calls(), *work_calls(), *gin_calls(), *binding_calls((FIXTURES / "work" / "config.gin").read_text()), *bundle_calls(json.loads((FIXTURES / "bundle" / "config.json").read_text()))]
    calls = [call for call in calls if not arguments[1:] or any(word in str(call) for word in arguments[1:])]
    broken, running, began = 0, [], time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="odd_calls-", dir=FIXTURES))
    queue = list(enumerate(calls))[::-1]
    with (FIXTURES / "messages.txt").open("w") as messages:
        while queue or running:
            while queue and len(running) < 2:
                number, call = queue.pop()
                running.append(Running(call, folder / f"{number:04d}"))
            for each in [each for each in running if each.poll()]:
                running.remove(each)
                rules = each.broken_rules()
                print(f"{each.call}\n    {each.status}, {each.seconds:.1f} s: {each.err.strip()[-600:]}", file=messages, flush=True)
                if rules:
                    broken += 1
                    print(f"{each.call}\n    {'; '.join(rules)}\n        " + "\n        ".join(each.err.strip().split("\n")[-3:])[-700:], flush=True)
                shutil.rmtree(each.folder, ignore_errors=True)
            time.sleep(0.02)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(calls)} calls in {time.monotonic() - began:.0f} s; {broken} break a rule")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
