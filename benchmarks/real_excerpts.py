"""Cuts excerpts of 10 s from real music, for judging alone: `python benchmarks/real_excerpts.py FOLDER OUT`.

FOLDER has audio at any depth, such as the unpacked Debian packages wesnoth-1.16-music, ufoai-music, nexuiz-music, singularity-music, hyperrogue-music and
fretsonfire-songs-sectoid (`apt-get download PACKAGE; dpkg-deb -x PACKAGE.deb FOLDER`). Two excerpts are cut from each track of 30 s or more, at a quarter
and at three fifths of it; silent ones are left out. No model is trained on them, and none is in the repository.
"""

import sys
from pathlib import Path

import numpy as np
import soundfile

from musiclm_jax import audio
from musiclm_jax.errors import UserError

SECONDS, PLACES, LEAST_SEC, LEAST_RMS = 10, (0.25, 0.6), 30, 0.01
SUFFIXES = (".ogg", ".mp3", ".flac", ".wav")


def main(folder: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tracks = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    count = 0
    for path in tracks:
        length_sec = soundfile.info(path).duration
        for place in PLACES if length_sec >= LEAST_SEC else ():
            start = place * length_sec
            try:
                wave = audio.read(path, start_sec=start, end_sec=start + SECONDS)
            except UserError as error:
                print(f"left out: {error}")
                continue
            if np.sqrt(np.mean(np.square(wave))) >= LEAST_RMS:
                audio.write_wav(out / f"{path.relative_to(folder).parts[0]}-{path.stem}-{100 * place:.0f}.wav", wave)
                count += 1
    print(f"{out}: {count} excerpts of {len(tracks)} tracks")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
