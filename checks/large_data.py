"""Whether `musiclm tokenize` and a training on its tokens are as small for 10,000 hours as for 100: memory, start-up, reading. Minutes; needs the extra tfdata.

    python checks/large_data.py FOLDER --hours 10000

A table lists parts of 30 s of files. Decoding and tokenizers are stand-ins that return zeros of the true shapes, so that all else is what it is: the table,
the plan, Beam, records, shards, and the batches of a training from them.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import soundfile

from musiclm_jax.data.folder import read_folder
from musiclm_jax.data.token_crops import SetCrops
from musiclm_jax.data.token_set import TokenSet
from musiclm_jax.specs import AudioSpec
from musiclm_jax.tokenizing import run, shards

# A token is so few samples that waves cost nothing.
_SPEC = AudioSpec(sample_rate_hz=100)
_PART_SEC, _PARTS = 30, 1200
# What the issue of this check allows.
_MOST_GB, _MOST_START_SEC = 2.0, 5.0


class _StandIns:
    """Tokenizers of the paper's shapes."""

    config = SimpleNamespace(
        audio=_SPEC,
        codec=SimpleNamespace(num_levels=12),
        mulan=SimpleNamespace(num_levels=12, embedding_dim=128, window_samples=1000, hop_samples=100, window_sec=10.0, hop_sec=1.0),
    )
    mulan = SimpleNamespace(text_tokens=lambda texts: np.zeros((len(texts), 12), np.int32))

    def semantic_tokens(self, wave):
        return np.zeros((len(wave), wave.shape[1] // _SPEC.semantic_samples), np.int32)

    def acoustic_tokens(self, wave):
        return np.zeros((len(wave), wave.shape[1] // _SPEC.frame_samples, 12), np.int32)

    def window_embeddings(self, wave):
        return np.zeros((len(wave), 21, 128), np.float32)


class _Track:
    num_samples = _PART_SEC * _SPEC.sample_rate_hz

    def wave(self, start, length):
        return np.zeros(length, np.float32)

    def close(self):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hours", type=int, default=10_000)
    arguments = parser.parse_args()
    clips, tokens = arguments.folder / "clips", arguments.folder / "tokens"
    _write_table(clips, arguments.hours)
    _step("table written")
    clock = time.perf_counter()
    count = len(read_folder(clips, hash_files=False).entries)
    _step(f"table of {count:,} rows read", time.perf_counter() - clock)

    run.Tokenizers = SimpleNamespace(open=lambda model: _StandIns())
    run.copy_tokenizers = lambda model, folder: (folder.mkdir(parents=True), (folder / "config.json").write_text('{"sha256": ""}'))
    run.hashes = lambda model: {}
    shards.open_once = lambda path: _StandIns()
    shards._decode = lambda folder, entry, sample_rate_hz: _Track()
    clock = time.perf_counter()
    run.tokenize(clips, tokens, model="stand-ins", batch_size=16)
    _step("tokens made", time.perf_counter() - clock)

    clock = time.perf_counter()
    crops = SetCrops(TokenSet.open(tokens), ("semantic", "acoustic", "mulan"), lambda embeddings: np.zeros((len(embeddings), 12), np.int32))
    source = crops.source(split="train", crop_sec=10.0, batch_size=16, seed=0)
    source(0)
    start_sec = time.perf_counter() - clock
    _step("token set opened, and its first batch", start_sec)
    clock = time.perf_counter()
    for step in range(1, 101):
        source(step)
    _step("100 batches of 16 crops of 10 s", time.perf_counter() - clock)
    if _peak_gb() > _MOST_GB or start_sec > _MOST_START_SEC:
        sys.exit(f"more than {_MOST_GB} GB, or than {_MOST_START_SEC} s to start")


def _write_table(clips: Path, hours: int) -> None:
    clips.mkdir(parents=True)
    total = hours * 3600 // _PART_SEC
    with (clips / "metadata.jsonl").open("w") as table:
        for number in range(total):
            file, part = divmod(number, _PARTS)
            if not part:
                soundfile.write(clips / f"{file:06d}.flac", np.zeros(_PART_SEC * _PARTS * 1000, np.int16) if not file else np.zeros(8, np.int16), 1000)
            line = {"file_name": f"{file:06d}.flac", "start_sec": _PART_SEC * part, "end_sec": _PART_SEC * (part + 1), "text": f"piece {number}"}
            table.write(json.dumps(line) + "\n")


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _step(what: str, seconds: float | None = None) -> None:
    print(f"{what}{'' if seconds is None else f': {seconds:.1f} s'}; peak of memory {_peak_gb():.2f} GB", flush=True)


if __name__ == "__main__":
    main()
