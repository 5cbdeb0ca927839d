"""Batches per second of the readers of clips, on the same 60 clips of 30 s: `python benchmarks/readers.py` (needs the extra `tfdata`).

The clips are noise, so no codec compresses them. Each round reads each reader's next batches of each length, one after the other. Files are in the page
cache of the operating system. Printed are medians over rounds, and the ratio to "store" on the store that `prepare` decodes.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import tensorflow_datasets as tfds

import musiclm_jax.data.tfds_builders  # noqa: F401
from musiclm_jax.data.clips import prepare
from musiclm_jax.data.folder import read_folder
from musiclm_jax.data.readers import open_source
from musiclm_jax.data.records import read_record_folder

CLIPS, SECONDS, RATE, BATCH, ROUNDS = 60, 30, 24_000, 8, 3
# (seconds of a crop, batches in a round)
CROPS = ((2.0, 64), (30.0, 64))
READERS = (("store", "folder"), ("store", "array_record"), ("grain", "folder"), ("grain", "array_record"), ("grain", "tfrecord"), ("tf_data", "tfrecord"))


def main(home: Path) -> None:
    (home / "folder").mkdir()
    for i in range(CLIPS):
        soundfile.write(home / "folder" / f"{i:02}.flac", 0.1 * np.random.default_rng(i).standard_normal(SECONDS * RATE), RATE)
    lines = ({"file_name": f"{i:02}.flac", "split": "train"} for i in range(CLIPS))
    (home / "folder" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stores = {"folder": prepare(read_folder(home / "folder"), home / "store", sample_rate_hz=RATE)}
    for form in ("array_record", "tfrecord"):
        tfds.disable_progress_bar()
        builder = tfds.builder("captioned_folder", folder=str(home / "folder"), data_dir=home / form, file_format=form)
        builder.download_and_prepare()
        began = time.perf_counter()
        folder = read_record_folder(Path(builder.data_dir), cache=home / f"{form}-records")
        print(f"{form}: index of {CLIPS} records in {time.perf_counter() - began:.2f} s", flush=True)
        stores[form] = prepare(folder, home / f"{form}-store", sample_rate_hz=RATE)
    for crop_sec, count in CROPS:
        options = {"split": "train", "crop_sec": crop_sec, "batch_size": BATCH, "seed": 0}
        sources = {(reader, form): open_source(stores[form], reader=reader, **options) for reader, form in READERS}
        rates = {kind: [] for kind in sources}
        for number in range(ROUNDS + 1):
            for kind, source in sources.items():
                began = time.perf_counter()
                for step in range(number * count, (number + 1) * count):
                    source(step)
                rates[kind].append(count / (time.perf_counter() - began))
        medians = {kind: statistics.median(found[1:]) for kind, found in rates.items()}  # The first round opens files and traces programs.
        for (reader, form), rate in medians.items():
            print(f"crops of {crop_sec:g} s: {reader:8}{form:13}{rate:8.1f} batches/s  {rate / medians['store', 'folder']:.2f}", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        main(Path(home))
