"""Checks that a fit redoes exactly the steps of its plan, and deletes no result: `python checks/redo.py [COMBINATIONS] [SEED]`.

Runs a fit of `--size test` on six clips. Then it copies data and work folder COMBINATIONS times (default 20), makes one to three random changes of settings
and of data in each copy, and runs plan and fit. The steps that run must be those of the plan; all former results must still exist, in place or in
`superseded`; and a plan after the fit must be empty.
"""

import contextlib
import io
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Much is compiled here, and little computed.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import soundfile  # noqa: E402

from musiclm_jax.cli.gin_config import load_config  # noqa: E402
from musiclm_jax.files import sha256_file  # noqa: E402
from musiclm_jax.parts.fit import fit, plan  # noqa: E402

SETTINGS = (
    "W2vBertPart.batch_size=4",
    "W2vBertPart.kmeans_sec=3",
    "W2V_BERT_STEPS=2",
    "W2V_BERT_STEPS=6",
    "CODEC_STEPS=10",
    "CodecPart.crop_sec=0.8",
    "FitConfig.encode_sec=1.0",
    "FitConfig.seed=1",
    "MuLanPart.condition_hop_sec=0.25",
    "TEXT_MIX=(('short', 1.0),)",
    "TEXT_SHARE=0.1",
    "RERANKER_STEPS=5",
    "coarse/StageSpec.hop_sec=0.2",
    "coarse/StageSpec.window_sec=0.8",
    "coarse/StageSpec.prefix_dropout=0.2",
    "fine/SamplingConfig.temperature=0.7",
    "ExportPart.dtype='float16'",
    "TrainConfig.log_every=1",
    "semantic/StageConfig.remat='full'",
    "FINE_STEPS=6",
    "SEMANTIC_STEPS=6",
)


def lines_of(data: Path) -> list[dict]:
    return [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]


def edit(change: Callable[[list[dict]], object]) -> Callable[[Path], None]:
    """Makes a change of the data folder from a change of the lines of metadata.jsonl."""

    def apply(data: Path) -> None:
        lines = lines_of(data)
        change(lines)
        (data / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    return apply


def louder(data: Path) -> None:
    wave, rate = soundfile.read(data / "1.wav")
    soundfile.write(data / "1.wav", 0.5 * wave, rate)


DATA = {
    "a caption mended": edit(lambda lines: lines[0].update(captions=["a slow flute melody"])),
    "a caption added": edit(lambda lines: lines[1]["captions"].append("a sad song")),
    "a clip taken out": edit(lambda lines: lines.pop()),
    "another split": edit(lambda lines: lines[2].update(split="test")),
    "another melody": edit(lambda lines: lines[3].update(melody="tune")),
    "other ground truth": edit(lambda lines: lines[3].update(attributes={"mode": "minor"})),
    "a .DS_Store": lambda data: (data / ".DS_Store").write_bytes(b"\0\0\0\1Bud1"),
    "another date": lambda data: os.utime(data / "0.wav"),
    "a clip's sound": louder,
}


def write_clips(data: Path) -> None:
    data.mkdir()
    rng, lines = np.random.default_rng(0), []
    for i in range(6):
        seconds = np.arange(24_000 * 3) / 24_000
        soundfile.write(data / f"{i}.wav", 0.3 * np.sin(2 * np.pi * 220 * 2 ** (i / 6) * seconds) + 0.02 * rng.standard_normal(len(seconds)), 24_000)
        captions = [f"a {('calm', 'fast')[i % 2]} {('piano', 'guitar', 'flute')[i % 3]} melody", "some music"]
        lines.append({"file_name": f"{i}.wav", "captions": captions, "split": "test" if i == 5 else "train"})
    (data / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def outputs(work: Path) -> dict[str, list[str]]:
    """The outputs of all finished steps, as {hash: files}."""
    found: dict[str, list[str]] = {}
    for done in work.rglob("done.json"):
        for name in json.loads(done.read_text())["outputs"]:
            path = done.parent / name
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    found.setdefault(sha256_file(file), []).append(str(file.relative_to(work)))
    return found


def main(combinations: int = 20, seed: int = 0) -> None:
    rng, folder = random.Random(seed), Path(tempfile.mkdtemp(prefix="redo-"))
    data, work, failures = folder / "data", folder / "work", 0
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    write_clips(data)
    with contextlib.redirect_stdout(io.StringIO()):
        fit(data, config=load_config("test"), workdir=work)
    for number in range(1, combinations + 1):
        changed_data, changed_work = folder / f"data{number}", folder / f"work{number}"
        shutil.copytree(data, changed_data)
        shutil.copytree(work, changed_work)
        names = rng.sample([*SETTINGS, *DATA], rng.randint(1, 3))
        bindings = {name.split("=")[0]: name for name in names if name in SETTINGS}
        for name in names:
            if name in DATA:
                DATA[name](changed_data)
        config = load_config("test", bindings=list(bindings.values()))
        planned = plan(changed_data, config=config, workdir=changed_work)
        todo = [each.step.name for each in planned if not each.is_done]
        longer = {each.step.name for each in planned if each.action == "extend"}
        before, began = outputs(changed_work), time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()) as out:
            fit(changed_data, config=config, workdir=changed_work)
        ran = re.findall(r"^\[\d+/\d+\] (\w+): finished", out.getvalue(), re.MULTILINE)
        after = outputs(changed_work)
        # A training that is extended replaces its own outputs.
        lost = sorted(file for sha in before.keys() - after.keys() for file in before[sha] if file.split("/")[0] not in longer)
        left = [each.step.name for each in plan(changed_data, config=config, workdir=changed_work) if not each.is_done]
        right = ran == todo and not lost and not left
        failures += not right
        print(f"{number}: {'; '.join(names)}: {', '.join(ran) or 'nothing'} ({time.monotonic() - began:.0f} s)", flush=True)
        if not right:
            print(f"   WRONG: planned {todo}, lost {lost}, left {left}", flush=True)
        else:
            shutil.rmtree(changed_work)
    print(f"{combinations - failures} of {combinations} as planned")
    if failures:
        sys.exit(f"look in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
