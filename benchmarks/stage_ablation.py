"""What each trick of a stage's training is worth: `python benchmarks/stage_ablation.py CLIPS WORK [--stage semantic] [--gin_file runs/packaged.gin]
[--steps 400] [--set NAME=VALUE]`.

CLIPS and WORK are the folders of a finished `musiclm fit` with the size demo. The stage is trained anew for a few steps, once as configured and once without
each of its tricks, into a folder that is deleted; WORK is only read. Printed are the held-out nats per token given the conditions of the clip, its caption's
MuLan tokens among them, and how much higher they are given the MuLan tokens of another clip: what the stage makes of its text.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import jax
import numpy as np

from musiclm_jax.cli.gin_config import load_config
from musiclm_jax.parts.part import Run
from musiclm_jax.training.loop import train

PLAIN = {
    "time_bias": "StageConfig.time_bias=False",
    "codebook_init": "StagePart.codebook_init=False",
    "past_dropout": "{stage}/StageRecipe.past_dropout=0.0",
    "rotary_values": "semantic/StageConfig.rotary_values=0.0",
    "rotary": "semantic/StageConfig.rotary=0.0",
}
EVAL_BATCHES = 16


def variants(stage: str) -> dict[str, list[str]]:
    """Name -> bindings. Values cannot be rotated without rotary positions."""
    tricks = {name: binding.format(stage=stage) for name, binding in PLAIN.items() if stage == "semantic" or "rotary" not in name}
    found = {"as configured": []} | {f"without {name}": [binding] for name, binding in tricks.items()}
    if stage == "semantic":
        found["without rotary"].append(tricks["rotary_values"])
    return found | {"without captions": ["TEXT_SHARE=0.0"], "plain, as in the paper": [*tricks.values(), "TEXT_SHARE=0.0"]}


def measure(clips: Path, work: Path, stage: str, gin_files: list[str], bindings: list[str]) -> tuple[float, float]:
    """(held-out nats per token, how much higher they are with the MuLan tokens of other clips)."""
    config = load_config("demo", gin_files, [*bindings, "TrainConfig.eval_every=0", "TrainConfig.save_every=0"])
    run, part = Run(config, clips, work), config.part(stage)
    task, options = part.task(config), {}
    if (warm_start := part.warm_start(run)) is not None:
        options["warm_start"] = warm_start
    with tempfile.TemporaryDirectory() as folder:
        trained = train(task, part.source(run, "train", 0), workdir=folder, config=part.loop, identity=stage, **options)
    evaluate = jax.jit(lambda batch: task.loss(trained.state.params, batch, None)[1]["loss"])
    source = dataclasses.replace(part, text_share=1.0, end_share=0.0).source(run, "test", 1)
    own, other = [], []
    for number in range(EVAL_BATCHES):
        batch = source(number)
        own.append(float(evaluate(batch)))
        other.append(float(evaluate({**batch, "mulan": np.roll(batch["mulan"], 1, axis=0)})))
    return float(np.mean(own)), float(np.mean(other) - np.mean(own))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--stage", choices=("semantic", "coarse"), default="semantic")
    parser.add_argument("--gin_file", action="append", default=[])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--set", action="append", default=[], help="a further value, such as StageConfig.num_layers=2")
    arguments = parser.parse_args()
    common = [f"{arguments.stage.upper()}_STEPS={arguments.steps}", *arguments.set]
    print(f"{arguments.stage}, {arguments.steps} steps{'':20}nats  of it by the text", flush=True)
    for name, bindings in variants(arguments.stage).items():
        nats, text = measure(arguments.clips, arguments.work, arguments.stage, arguments.gin_file, [*common, *bindings])
        print(f"{name:34}{nats:10.4f}  {text:14.4f}", flush=True)
