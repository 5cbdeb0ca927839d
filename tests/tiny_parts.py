"""Parts whose outputs are short texts, for tests of everything around parts."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from musiclm_jax.parts.part import Part, Run, Step, Work
from musiclm_jax.parts.prepare import PreparePart


@dataclasses.dataclass(frozen=True)
class TextPart(Part):
    """Writes a text and what it read of its needs. `num_steps`: as a training, which keeps a checkpoint record for each step that it took."""

    label: str = "a"
    text: str = "x"
    wants: tuple[str, ...] = ("prepare",)
    aspects: tuple[str, ...] = ()
    num_steps: int | None = None
    # Raises KeyboardInterrupt before this step, or before it writes.
    interrupt_at: int | None = None
    # Names of the steps that ran, for the test.
    log: Any = dataclasses.field(default_factory=list, compare=False)

    @property
    def name(self) -> str:
        return self.label

    def steps(self, fit) -> tuple[Step, ...]:
        settings = {"text": self.text}
        return (Step(self.label, f"writing {self.label}", self._write, ("out",), settings, self.wants, self.aspects, self.num_steps),)

    def _write(self, run: Run, work: Work) -> dict[str, Any]:
        self.log.append(self.label)
        if self.num_steps is None and self.interrupt_at is not None:
            raise KeyboardInterrupt
        if self.num_steps is not None:
            self._train(work)
        read = "".join((run.folder(need) / "out").read_text() for need in self.wants if need != "prepare")
        (work.folder / "out").write_text(f"{read}{self.text}{self.num_steps or ''}")
        return {"length": len(read)}

    def _train(self, work: Work) -> None:
        folder = work.folder / "checkpoints"
        found = sorted(int(path.name) for path in folder.glob("*")) if folder.is_dir() else []
        start = found[-1] if found else 0
        lengths = json.loads((folder / str(start) / "checkpoint.json").read_text())["lengths"] if found else []
        if not lengths or lengths[-1][1] != self.num_steps:
            lengths = [*lengths, [start, self.num_steps]]
        for step in range(start + 1, self.num_steps + 1):
            if step == self.interrupt_at:
                raise KeyboardInterrupt
            (folder / str(step)).mkdir(parents=True)
            (folder / str(step) / "checkpoint.json").write_text(json.dumps({"lengths": lengths}))
        work.lengths = lengths


def tiny_parts(log: list[str], **changes: dict[str, Any]) -> tuple[Part, ...]:
    """prepare -> a (a training on waves and splits), b (on a and captions) -> export (on both); c beside them. changes: fields of parts, by label."""
    fields = {
        "a": {"num_steps": 4, "aspects": ("splits",)},
        "b": {"wants": ("prepare", "a"), "aspects": ("splits", "captions")},
        "export": {"wants": ("prepare", "a", "b")},
        "c": {"aspects": ("melodies",)},
    }
    texts = [TextPart(label, log=log, **{**fields[label], **changes.get(label, {})}) for label in fields]
    return (PreparePart(), *texts)


def write_clips(folder: Path, *, number: int = 4, seconds: float = 2.0, **fields: Any) -> Path:
    """Tones of distinct lengths with a caption each. fields: of every line of metadata.jsonl."""
    folder.mkdir(parents=True)
    rng, lines = np.random.default_rng(0), []
    for i, word in zip(range(number), ["low", "lower", "high", "higher", "middle", "deep", "thin"] * number):
        samples = round(24_000 * seconds) + 7001 * i
        wave = 0.3 * np.sin(np.arange(samples) * 0.02 * (i % 7 + 1)) + 0.05 * rng.standard_normal(samples)
        soundfile.write(folder / f"{i}.wav", wave, 24_000)
        lines.append({"file_name": f"{i}.wav", "captions": [f"a {word} tone", "noise"], **fields})
    write_metadata(folder, lines)
    return folder


def write_metadata(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_metadata(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
