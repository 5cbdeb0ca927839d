"""Draws metrics of a training against its steps: `python docs/plot_training.py METRICS.jsonl OUT.svg key [key ...]` (needs matplotlib).

METRICS.jsonl is that of a step's folder, such as run/melody/metrics.jsonl; the keys are names in its lines, such as loss and eval_loss.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(metrics: str, out: str, *keys: str) -> None:
    lines = [json.loads(line) for line in Path(metrics).read_text(encoding="utf-8").splitlines()]
    figure, axis = plt.subplots(figsize=(7, 4), constrained_layout=True)
    for key in keys:
        points = [(line["step"], line[key]) for line in lines if key in line]
        if not points:
            sys.exit(f"{metrics} has no {key!r}; its keys are {', '.join(sorted({name for line in lines for name in line}))}")
        axis.plot(*zip(*points, strict=True), label=key, marker="o" if len(points) < 20 else None)
    axis.set(xlabel="step")
    axis.grid(alpha=0.3)
    axis.legend()
    # Without the date and with names that do not change: the same numbers make the same file.
    plt.rcParams["svg.hashsalt"] = "musiclm_jax"
    figure.savefig(out, metadata={"Date": None} if out.endswith(".svg") else None)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
