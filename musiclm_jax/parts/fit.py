"""From a folder of captioned clips to a bundle: all the training of MusicLM, step by step, each done once.

    prepare -> soundstream -> w2v_bert -> kmeans -> mulan -> rvq -> reranker, semantic_reranker -> semantic_tokens, acoustic_tokens
            -> semantic, coarse, fine -> export

and, by `run_step` alone, since bundles do not hold it yet: prepare -> melody.

Each step works in `workdir/<step>/` and ends by writing `done.json`: a fingerprint of its config and of what it read, a digest of what it made.
A step runs again only where its fingerprint changed, so the same command continues after a kill, and a longer training of one part
redoes what depends on it and nothing else. What the steps do is in `steps.py`; this file knows only their order.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from musiclm_jax.errors import UserError
from musiclm_jax.parts.steps import STEPS, FitConfig, Run, Step
from musiclm_jax.records import read_json, to_dict, write_json

__all__ = ["FitConfig", "fit", "run_step"]


def fit(data: Path | str, *, config: FitConfig, workdir: Path | str) -> Path:
    """Trains everything on the clips in `data` and returns the folder of the bundle, which `MusicLM.from_pretrained` opens.

    Call it again after an interruption, with the same arguments: it continues. `data/clips.py` says what the folder holds.

    Raises:
        UserError: the data are of no use, or `workdir` holds a training of another config.
    """
    run = Run(config=config, data=Path(data), workdir=Path(workdir))
    steps = [step for step in STEPS.values() if step.in_fit]
    for number, step in enumerate(steps, start=1):
        _do(step, run, title=f"[{number}/{len(steps)}] {step.name}")
    return run.folder("export") / "bundle"


def run_step(name: str, data: Path | str, *, config: FitConfig, workdir: Path | str) -> dict[str, Any]:
    """Runs one step, if it is not done already, and returns its results. Raises `UserError` where steps before it are missing; but where nothing
    has read the data yet, it does that first.
    """
    if name not in STEPS:
        raise UserError(f"step {name!r}: choose one of {', '.join(STEPS)}")
    run = Run(config=config, data=Path(data), workdir=Path(workdir))
    for need in STEPS[name].needs:
        done = _read_done(run, need)
        if done is None and STEPS[need].reads_data:
            _do(STEPS[need], run, title=need)
        elif done is None:
            raise UserError(f"{name} needs the result of {need}, which is not in {run.workdir}: run `musiclm train {need}` with the same options first")
        elif done["fingerprint"] != _fingerprint(STEPS[need], run):
            raise UserError(f"{name} needs {need}, whose config or data changed since it ran: run `musiclm train {need}` with the same options again")
    return _do(STEPS[name], run, title=name)


def _do(step: Step, run: Run, *, title: str) -> dict[str, Any]:
    fingerprint, inputs = _fingerprint(step, run), _inputs(step, run)
    done = _read_done(run, step.name)
    if done and done["fingerprint"] == fingerprint:
        print(f"{title}: done", flush=True)
        return done["results"]
    folder = run.folder(step.name)
    before = _begin(folder, inputs, title)
    print(f"{title}: {step.title}", flush=True)
    clock = time.perf_counter()
    try:
        results = step.run(run, folder)
    finally:
        seconds = before + time.perf_counter() - clock
        write_json(folder / "begun.json", {"inputs": inputs, "seconds": round(seconds, 1)})
    digest = _digest(folder / name for name in step.outputs)
    write_json(folder / "done.json", {"fingerprint": fingerprint, "digest": digest, "seconds": round(seconds, 1), "results": results})
    print(f"{title}: finished in {seconds:.1f} s  {_summary(results)}", flush=True)
    return results


def _read_done(run: Run, name: str) -> dict[str, Any] | None:
    """What a finished step wrote, or None; a step whose outputs are gone is not finished."""
    folder = run.folder(name)
    if not (folder / "done.json").exists() or not all((folder / output).exists() for output in STEPS[name].outputs):
        return None
    return read_json(folder / "done.json")


def _inputs(step: Step, run: Run) -> dict[str, Any]:
    """Digests of what the step reads."""
    inputs: dict[str, Any] = {need: (_read_done(run, need) or {}).get("digest") for need in step.needs}
    if step.reads_data:
        inputs["data"] = _data_digest(run.data)
    return inputs


def _fingerprint(step: Step, run: Run) -> str:
    return _hash_json({"config": to_dict(step.config(run.config)), "inputs": _inputs(step, run)})


def _begin(folder: Path, inputs: dict[str, Any], title: str) -> float:
    """Seconds that earlier, interrupted runs of the step have taken. Where they read other inputs the folder is emptied first: its checkpoints
    belong to other tokens or other clips.
    """
    begun = read_json(folder / "begun.json") if (folder / "begun.json").exists() else {"inputs": inputs, "seconds": 0.0}
    if begun["inputs"] != inputs:
        print(f"{title}: what it reads has changed; starting anew", flush=True)
        shutil.rmtree(folder)
        begun = {"inputs": inputs, "seconds": 0.0}
    (folder / "done.json").unlink(missing_ok=True)
    write_json(folder / "begun.json", begun)
    return begun["seconds"]


def _data_digest(data: Path) -> str:
    """Of names and sizes of the files and of the captions; the samples themselves would take too long to read each time."""
    if not data.is_dir():
        raise UserError(f"{data} is not a folder: name the folder that holds the clips and metadata.jsonl")
    files = sorted((str(path.relative_to(data)), path.stat().st_size) for path in data.rglob("*") if path.is_file())
    texts = [hashlib.sha256((data / name).read_bytes()).hexdigest() for name, _ in files if name.endswith((".jsonl", ".txt"))]
    return _hash_json([files, texts])


def _digest(paths) -> str:
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _summary(results: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in results.items() if isinstance(value, (int, float)) and not name.endswith("_per_sec"))
