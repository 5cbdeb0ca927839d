"""Converts a bundle of format 1, from before the first release, to the current format: `python tools/upgrade_bundle.py OLD NEW`.

The weights are copied bit by bit; the names of files and the fields of config.json change. OLD is not changed.
"""

import hashlib
import json
import sys
from pathlib import Path

import safetensors.numpy

from musiclm_jax import bundle
from musiclm_jax.configs import RERANKERS, MusicLMConfig
from musiclm_jax.models.text import TextTokenizer
from musiclm_jax.musiclm import MusicLM


def upgrade(old: Path, new: Path) -> None:
    """Writes the bundle `old`, of format 1, in the current format to `new`. Exits with a message where `old` has another format or is damaged."""
    document = json.loads((old / "config.json").read_text(encoding="utf-8"))
    if document["format"] != 1:
        sys.exit(f"{old}: bundle format {document['format']}, expected 1: name a bundle from before the first release")
    config = MusicLMConfig.from_dict(upgraded_config(document["model"]))
    models = {}
    for name, file in document["files"].items():
        blob = (old / name).read_bytes()
        if hashlib.sha256(blob).hexdigest() != file["sha256"]:
            sys.exit(f"{old / name}: its contents do not match the sha256 in config.json: restore the file from a copy")
        models[name.removesuffix(".safetensors").replace("soundstream", "codec")] = bundle.unflatten(safetensors.numpy.load(blob))
    with safetensors.safe_open(old / "mulan.safetensors", framework="numpy") as file:
        text = TextTokenizer.from_json(file.metadata()["vocabulary"])
    # In format 1 the rerankers are in MuLan's file.
    models |= {name: models["mulan"].pop(name) for name in RERANKERS if name in models["mulan"]}
    dtype = models["codec"]["quantizer"]["codebooks"].dtype.name
    MusicLM(config, models, text).save_pretrained(new, dtype=dtype, card=(old / "README.md").read_text(encoding="utf-8"))


def upgraded_config(model: dict) -> dict:
    """Converts the config of format 1 to the fields of MusicLMConfig."""
    codec, mulan = dict(model["soundstream"]), dict(model["mulan"])
    codec["kind"] = "soundstream" if "strides" in codec else "spectral"
    tower = mulan["audio"]
    mulan["audio"] = {**tower, "kind": "pitch_rhythm" if "num_lags" in tower else "resnet" if "depths" in tower else "ast"}
    windows, coarse_levels = model["windows"], model["coarse_levels"]
    levels = {
        "mulan": {"stream": "mulan"},
        "semantic": {"stream": "semantic"},
        "coarse": {"stream": "acoustic", "first": 0, "end": coarse_levels},
        "fine": {"stream": "acoustic", "first": coarse_levels},
    }
    prefixes = {"semantic": ["mulan"], "coarse": ["mulan", "semantic"], "fine": ["mulan", "coarse"] if model["fine_sees_mulan"] else ["coarse"]}
    stages = [
        {
            "name": name,
            "target": levels[name],
            "prefix": [levels[each] for each in prefix],
            "model": model[name],
            "window_sec": windows[f"{name}_window_sec"],
            "hop_sec": windows.get(f"{name}_hop_sec", windows[f"{name}_window_sec"]),
            "max_windows": windows["max_fine_batch"],
            # Format 1 does not record prefix_dropout. A stage with guidance by default was trained for it.
            "prefix_dropout": 0.1 if model[f"{name}_sampling"]["guidance"] != 1 else 0.0,
            "sampling": model[f"{name}_sampling"],
        }
        for name, prefix in prefixes.items()
    ]
    return {
        "audio": model["audio"],
        "codec": codec,
        "w2v_bert": model["w2v_bert"],
        "mulan": mulan,
        "stages": stages,
        "skipped_stages": [] if model["use_fine"] else ["fine"],
        "selection": {name: model[name] for name in ("num_candidates", "num_drafts", "draft_sec")},
    }


if __name__ == "__main__":
    upgrade(*map(Path, sys.argv[1:3]))
