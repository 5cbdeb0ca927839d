"""Folders of small clips for the tests of evaluations."""

import json

import numpy as np

from musiclm_jax import audio

RATE_HZ = 8_000


def write_clips(folder, waves, captions=None):
    """Writes {name: wave at 8 kHz} as WAV files, with {name: caption} as metadata.jsonl."""
    for name, wave in waves.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        audio.write_wav(folder / name, wave, RATE_HZ)
    if captions is not None:
        lines = [{"file_name": name, "captions": [captions[name]] if name in captions else []} for name in waves]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def tone(hz, *, seconds=1.0, seed=0):
    """A sine with a little noise."""
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return 0.4 * np.sin(2 * np.pi * hz * time) + 1e-3 * np.random.default_rng(seed).standard_normal(len(time))
