"""Bundles with odd configs and damaged files."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from checks.odd_calls.calls import Call, Turns, damage, edit_bundle, put, remove, several

_GENERATE = ("generate", "a calm piano", "--model", "bundle", "--seconds", "0.2", "--candidates", "2", "--drafts", "2")
_ODD_VALUES = {
    bool: lambda value: [not value],
    int: lambda value: [0, -1, 1, value + 1, 3 * value, 10**12, 2**63 - 1],
    float: lambda value: [0.0, -1.0, 1e300, 1e-300, 2.5 * value],
    str: lambda value: ["", "x", "float8", "a\nb"],
    list: lambda value: [[], [0], [-1], [1] * 50],
    type(None): lambda value: [0, 99],
}
_CONFIGS = {
    "files is a list": lambda c: c.update(files=[*c["files"]]),
    "a file without bytes": lambda c: [each.pop("bytes") for each in c["files"].values()],
    "a name that climbs": lambda c: c["files"].update({"../../x": next(iter(c["files"].values()))}),
    "no files": lambda c: c.update(files={}),
    "no model": lambda c: c.update(model={}),
    "model is a list": lambda c: c.update(model=[]),
    "format 99": lambda c: c.update(format=99),
    "format 1": lambda c: c.update(format=1),
    "format 'x'": lambda c: c.update(format="x"),
    "an unknown field": lambda c: c["model"].update(x=1),
    "a deep config": lambda c: c["model"].update(x=json.loads("[" * 500 + "]" * 500)),
    "no stages": lambda c: c["model"].update(stages=[]),
    "one stage": lambda c: c["model"].update(stages=c["model"]["stages"][:1]),
    "two stages": lambda c: c["model"]["stages"].pop(0),
    "a stage twice": lambda c: c["model"]["stages"].append(c["model"]["stages"][0]),
    "another order": lambda c: c["model"]["stages"].reverse(),
    "all skipped": lambda c: c["model"].update(skipped_stages=["semantic", "coarse", "fine"]),
    "the semantic stage skipped": lambda c: c["model"].update(skipped_stages=["semantic"]),
    "the coarse stage skipped": lambda c: c["model"].update(skipped_stages=["coarse"]),
    "a stage that reads itself": lambda c: c["model"]["stages"][0].update(prefix=[c["model"]["stages"][0]["target"]]),
    "a gap of levels": lambda c: c["model"]["stages"][2]["target"].update(first=2),
    "stages of the same levels": lambda c: c["model"]["stages"][2].update(target=c["model"]["stages"][1]["target"]),
}
_FILES = {
    "gone": remove,
    "empty": put,
    "a folder": lambda path: several(remove(path), lambda: os.mkdir(path)),
    "cut": lambda path: damage(path, lambda data: data[:-7]),
    "zeros": lambda path: damage(path, lambda data: bytes(len(data))),
    "a broken link": lambda path: several(remove(path), lambda: os.symlink("nowhere", path)),
    "a FIFO": lambda path: several(remove(path), lambda: os.mkfifo(path)),
}


def bundle_calls(bundle: Path) -> Iterator[Call]:
    """Calls with changed copies of `bundle`: one odd value, in turn, for each value of its config; odd configs; damaged files."""
    deal = Turns()
    for path, value in _leaves(json.loads((bundle / "config.json").read_text())["model"], ("model",)):
        odd = deal([odd for odd in _ODD_VALUES[type(value)](value) if odd != value])
        yield Call(_GENERATE, edit_bundle(_assign(path, odd)), f"{'.'.join(map(str, path[1:]))}={str(odd)[:40]}", "")
    for note, change in _CONFIGS.items():
        yield Call(("info", "bundle"), edit_bundle(change), note, "")
        yield Call(_GENERATE, edit_bundle(change), note, "")
    for name in sorted(os.listdir(bundle)):
        for note, how in _FILES.items():
            make = how(f"bundle/{name}")
            yield Call(("info", "bundle"), make, f"{name}: {note}", "")
            if name in ("README.md", "config.json"):
                yield Call(("export", "bundle", "x"), make, f"{name}: {note}", "")


def _leaves(tree: object, path: tuple) -> Iterator[tuple[tuple, object]]:
    """Path and value of everything in `tree` that is not a dictionary."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in children:
        if not isinstance(value, dict):
            yield (*path, key), value
        yield from _leaves(value, (*path, key))


def _assign(path: tuple, value: object) -> Callable[[dict], None]:
    def change(document: dict) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change
