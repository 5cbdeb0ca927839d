"""Damaged and rebuilt work folders, for each command that reads one."""

import os
import shutil
from collections.abc import Iterator

from checks.odd_calls.calls import Call, Make, Turns, damage, make_odd_paths, odd_paths, put, remove, several

_FIT = ("fit", "clips", "--size", "test", "--workdir", "work")
_STEPS = (
    *("prepare", "codec", "acoustic_tokens", "w2v_bert", "kmeans", "semantic_tokens", "mulan", "rvq"),
    *("reranker", "semantic_reranker", "semantic", "coarse", "fine", "export"),
)
_FILES = (
    *("codec/step.json", "codec/done.json", "prepare/done.json", "prepare/clips.json", "prepare/index.json", "prepare/samples.npy", "fine/metrics.jsonl"),
    *("fine/config.gin", "hashes.json", "mulan/vocabulary.json", "acoustic_tokens/acoustic.npy", "rvq/windows.npy", "rvq/texts.npy", "rvq/step.json"),
    *("semantic_reranker/spectra.npy", "mulan/variables.safetensors", "export/bundle/config.json", "export/step.json"),
)
_MELODY_FILES = (
    *("melody/config.json", "melody/variables.safetensors", "melody/done.json"),
    *("prepare/index.json", "prepare/samples.npy", "prepare/clips.json"),
)
_DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "a list": lambda data: b"[]",
    "a number": lambda data: b"3",
    "without names": lambda data: b"{}",
    "a null": lambda data: b"null",
    "not text": lambda data: b"\xff\xfex",
}


def work_folder_calls() -> Iterator[Call]:
    yield from _damaged_calls()
    yield from _begun_calls()
    for note, make in _rebuilt().items():
        yield Call(_FIT, make, note, "", may=("work/*",))
        yield Call((*_FIT, "--plan"), make, note, "")
        yield Call((*_FIT, "--gin.FINE_STEPS=2"), make, note, "", may=("work/*",))
    yield Call((*_FIT, "--size", "demo", "--plan"), note="of another size")
    yield Call((*_FIT, "--gin.small/LogMelConfig.num_mels=12", "--plan"), note="other settings")
    for path in odd_paths("w"):
        yield Call(("evaluate", "melody", path), make_odd_paths, names="")
        yield Call(("export", path, "x"), make_odd_paths, names="")


def _damaged_calls() -> Iterator[Call]:
    """Each file with half of the damages, in turn."""
    deal = Turns()
    names = tuple(_DAMAGES)
    half = len(names) // 2

    def calls(argv: tuple[str, ...], file: str, count: int, **more) -> Iterator[Call]:
        for name in (deal(names) for _ in range(count)):
            yield Call(argv, damage(f"work/{file}", _DAMAGES[name]), f"{file}: {name}", "", **more)

    for step in _STEPS:
        for file in ("step.json", "done.json"):
            yield from calls((*_FIT, "--plan"), f"{step}/{file}", 3)
    for file in _FILES:
        yield from calls(_FIT, file, half, may=("work/*",))
    for file in _MELODY_FILES:
        yield from calls(("evaluate", "melody", "work"), file, half)


def _begun_calls() -> Iterator[Call]:
    """A step that was interrupted, and whose files are damaged."""
    prepare_begun = several(
        lambda: shutil.copy("work/prepare/clips.json", "work/prepare/samples.journal"),
        lambda: os.rename("work/prepare/samples.npy", "work/prepare/samples.npy.partial"),
    )
    for i, (name, how) in enumerate(_DAMAGES.items()):
        file = ("checkpoints/4/checkpoint.json", "metrics.jsonl", "step.json")[i % 3]
        make = several(damage(f"work/fine/{file}", how), remove("work/fine/done.json"))
        yield Call(_FIT, make, f"fine begun, {file}: {name}", "", may=("work/*",))
        file = ("samples.journal", "clips.json", "samples.npy.partial")[i % 3]
        make = several(prepare_begun, damage(f"work/prepare/{file}", how), remove("work/prepare/done.json"))
        yield Call(_FIT, make, f"prepare begun, {file}: {name}", "", may=("work/*",))


def _rebuilt() -> dict[str, Make]:
    """Work folders where a name is of another kind, or gone."""

    def folder(path: str) -> Make:
        return several(remove(path), lambda: os.mkdir(path))

    def link(path: str, target: str) -> Make:
        return several(remove(path), lambda: os.symlink(target, path))

    begun = remove("work/fine/done.json")
    checkpoints = remove("work/fine/checkpoints")
    superseded = several(
        lambda: os.mkdir("work/superseded"),
        lambda: os.symlink("fine-1", "work/superseded/fine-1"),
        put("work/superseded/fine-2"),
        put("work/superseded/fine-3/step.json", "[]"),
    )
    return {
        "a file for superseded": put("work/superseded"),
        "links in superseded": superseded,
        "a file for .locks": several(remove("work/.locks"), put("work/.locks")),
        "a lock that is a folder": folder("work/.locks/fine"),
        "a file for a step": several(remove("work/fine"), put("work/fine", "x")),
        "a folder for done.json": folder("work/fine/done.json"),
        "a folder for step.json": folder("work/fine/step.json"),
        "a folder for hashes.json": folder("work/hashes.json"),
        "a folder for config.gin": folder("work/fine/config.gin"),
        "a step that is a link": several(lambda: os.rename("work/fine", "fine"), lambda: os.symlink("../fine", "work/fine")),
        "a step that is a broken link": link("work/fine", "nowhere"),
        "a step that is a loop": link("work/fine", "fine"),
        "no checkpoints": several(checkpoints, begun),
        "checkpoints of another step": several(checkpoints, lambda: shutil.copytree("work/coarse/checkpoints", "work/fine/checkpoints"), begun),
        "a file for checkpoints": several(checkpoints, put("work/fine/checkpoints"), begun),
        "a file for a checkpoint": several(remove("work/fine/checkpoints/4"), put("work/fine/checkpoints/4"), begun),
        "no weights": remove("work/codec/variables.safetensors"),
        "a user's file": several(remove("work/fine"), put("work/fine/my.txt")),
    }
