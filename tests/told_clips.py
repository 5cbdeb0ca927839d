"""Clips whose samples say the clip and the place, for tests of what reads them."""

import json
from pathlib import Path

import numpy as np
import soundfile

RATE, KINDS = 24_000, ("short", "long", "playlist", "label")
TRAIN, TEST = 12, 2


def samples_of(number: int) -> np.ndarray:
    """The samples of a clip, int16: of magnitude 2000 (number + 1) + the number of the semantic token, and of alternating signs. Clip 0 is the shortest."""
    place = np.arange(RATE + 4801 * number)
    return ((2000 * (number + 1) + place // 960) * (1 - 2 * (place % 2))).astype(np.int16)


def write_told_clips(folder: Path) -> Path:
    """TRAIN + TEST clips, each with captions of all kinds, that name the clip."""
    folder.mkdir()
    lines = []
    for i in range(TRAIN + TEST):
        soundfile.write(folder / f"{i:02}.wav", samples_of(i), RATE, subtype="PCM_16")
        captions = {kind: [f"{kind} {i}"] for kind in KINDS} | {"long": [f"long {i}", f"longer {i}"]}
        lines.append({"file_name": f"{i:02}.wav", "captions": captions, "split": "train" if i < TRAIN else "test", "group": f"album {i}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
