"""A call of the command line, and the functions that arrange its folder."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

# Arranges the folder of a call, which is the current one by then.
Make = Callable[[], object]

EVALUATIONS = ("codec", "semantic", "mulan", "adherence", "melody")
# Evaluations of folders, with judges of the bundle `bundle`, which read clips of 1 s.
JUDGED = {"fad": ("--embedding", "codec", "--model", "bundle"), "mcc": ("--model", "bundle")}
OTHER_EVALUATIONS = ("kld", "memorization", "index", "copies", "musiccaps", "listening", "diversity", "all")
ODD_NUMBERS = ("", " ", "-1", "0", "nan", "inf", "1e400", "٣", "0x10", "1,5", "--", "9" * 5000, "1\n", "10**9", "1000000000")
LONG = "n" * 300


@dataclasses.dataclass(frozen=True)
class Call:
    argv: tuple[str, ...]
    make: Make = lambda: None
    # What is odd, where argv does not tell.
    note: str = ""
    # What the message of an error must name; by default the last argument.
    names: str | None = None
    # Patterns of what a call that fails may write.
    may: tuple[str, ...] = ()
    # Statuses that are right.
    right: tuple[int, ...] = (0, 2)

    def __str__(self) -> str:
        words = (word if word and word.isascii() and " " not in word else ascii(word) for word in self.argv)
        return f"musiclm {' '.join(word[:90] for word in words)[:300]}" + (f"   # {self.note}" if self.note else "")

    @property
    def command(self) -> str:
        count = 2 if self.argv[:1] == ("evaluate",) else 1
        return " ".join(word for word in self.argv[:count] if word.isalpha()) or "musiclm"


class Turns:
    """Deals values in turn, so that a list of odd values is covered without giving every value to every option."""

    def __init__(self):
        self.number = 0

    def __call__(self, values):
        self.number += 1
        return values[self.number % len(values)]


def put(path: str, data: bytes | str = b"") -> Make:
    """Writes a file, in folders that it makes."""

    def make() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data.encode() if isinstance(data, str) else data)

    return make


def remove(path: str) -> Make:
    return lambda: shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)


def several(*makes: Make) -> Make:
    return lambda: [make() for make in makes]


def damage(path: str, how: Callable[[bytes], bytes]) -> Make:
    """Changes the bytes of a file."""
    return lambda: Path(path).write_bytes(how(Path(path).read_bytes()))


def write_tones(folder: str | Path, names: list[str], *, seconds: float = 4.0, gain: float = 0.3) -> None:
    """Writes clips of a tone with a little noise."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i, name in enumerate(names):
        t = np.arange(round(24_000 * (seconds + 0.1 * i))) / 24_000
        soundfile.write(Path(folder) / name, gain * (np.sin(2 * np.pi * 220 * 2 ** (i / 12) * t) + 0.05 * rng.standard_normal(len(t))), 24_000)


def write_metadata(folder: str | Path, lines: list) -> None:
    (Path(folder) / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def lines_of_clips() -> list[dict]:
    """The metadata of the clips that calls get: eight to train with, four to test with."""
    lines = []
    for i in range(12):
        instrument, fast = ("piano", "guitar", "flute")[i % 3], bool(i % 2)
        caption = f"a {'fast' if fast else 'calm'} {instrument} melody"
        truth = {"instrument": instrument, "drums": fast, "tonic": i, "mode": "minor" if fast else "major"}
        truth |= {"tempo": "fast" if fast else "slow", "tempo_bpm": 140 if fast else 70}
        line = {"file_name": f"{i:02d}.wav", "captions": [caption], "melody": f"tune {i // 2}"}
        lines.append(line | {"split": "test" if i >= 8 else "train", "attributes": truth})
    return lines


def edit_bundle(change: Callable[[dict], object]) -> Make:
    """Changes the config of the bundle, and signs it again."""

    def make() -> None:
        path = Path("bundle/config.json")
        document = json.loads(path.read_text())
        change(document)
        rest = {key: value for key, value in document.items() if key != "sha256"}
        document["sha256"] = hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        path.write_text(json.dumps(document))

    return make


def odd_paths(name: str) -> list[str]:
    """Paths, of which `make_odd_paths` makes some."""
    return [
        *("", " ", ".", "/", "no", "f", "empty", "/dev/null", "broken", "loop", "loop/x", LONG, f"{name}\n", "\udcff", "~", "-", "http://a/b"),
        *("DEMO", "demo/", "fifo"),
    ]


def make_odd_paths() -> None:
    put("f", "x")()
    os.mkdir("empty")
    os.symlink("nowhere", "broken")
    os.symlink("loop", "loop")
    os.mkfifo("fifo")
    os.mkdir(b"\xff")
