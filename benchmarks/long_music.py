"""Whether long music stays what it is: python benchmarks/long_music.py [--seconds 600]: memory, and a table of each 10 s.

Prints the peak of memory after 1, 5 and 10 minutes, and of each 10 s the loudness, the tempo (librosa), the key (Krumhansl's profiles over librosa's chroma)
and MuLan's cosine of prompt and music.
"""

from __future__ import annotations

import argparse
import resource
import time

import librosa
import numpy as np

from musiclm_jax.audio.loudness import loudness_lufs
from musiclm_jax.generation.devices import use_all_cores
from musiclm_jax.musiclm import MusicLM

PIECE_SEC = 10
_NOTES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
# Krumhansl and Kessler (1982), from the tonic on.
_PROFILES = {
    "major": np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88]),
    "minor": np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt", default="a calm piano melody in a minor key")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--drafts", type=int, default=1)
    arguments = parser.parse_args()
    use_all_cores()
    musiclm = MusicLM.from_pretrained(arguments.model)
    rate = musiclm.config.audio.sample_rate_hz
    few = {"num_candidates": arguments.candidates, "num_drafts": arguments.drafts}
    stream = musiclm.stream(arguments.prompt, seconds=arguments.seconds, seed=arguments.seed, **few)
    waiting, rows, clock, marks = np.zeros(0, np.float32), [], time.perf_counter(), [60, 300, 600]
    text = musiclm.mulan.embed_text([arguments.prompt])[0]
    print("| from, s | LUFS | tempo, bpm | key | cosine |\n|---|---|---|---|---|", flush=True)
    for piece in stream:
        waiting = np.concatenate([waiting, piece[0]])
        while len(waiting) >= PIECE_SEC * rate:
            part, waiting = waiting[: PIECE_SEC * rate], waiting[PIECE_SEC * rate :]
            row = describe(part, rate, float(musiclm.mulan.embed_audio(part[None])[0] @ text))
            print(f"| {PIECE_SEC * len(rows)} | {row[0]:.1f} | {row[1]:.0f} | {row[2]} | {row[3]:.2f} |", flush=True)
            rows.append(row)
        if marks and stream.seconds >= marks[0]:
            seconds = time.perf_counter() - clock
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"after {marks.pop(0)} s of music, made in {seconds:.0f} s: peak of memory {peak:.3f} GB", flush=True)
    loudness, tempo, keys, cosines = zip(*rows)
    print(f"loudness {min(loudness):.1f} to {max(loudness):.1f} LUFS; tempo {min(tempo):.0f} to {max(tempo):.0f}")
    print(f"in the opening key {keys.count(keys[0]) / len(keys):.0%}")
    slope = np.polyfit(np.arange(len(rows)) * PIECE_SEC / 60, cosines, 1)[0]
    print(f"cosine {np.mean(cosines):.2f} on average, {slope:+.3f} a minute")


def describe(wave: np.ndarray, rate: int, cosine: float) -> tuple[float, float, str, float]:
    tempo = float(librosa.feature.tempo(y=wave, sr=rate)[0])
    chroma = librosa.feature.chroma_cqt(y=wave, sr=rate).mean(axis=1)
    fits = {(root, mode): np.corrcoef(np.roll(profile, root), chroma)[0, 1] for mode, profile in _PROFILES.items() for root in range(12)}
    root, mode = max(fits, key=fits.__getitem__)
    return loudness_lufs(wave, sample_rate_hz=rate), tempo, f"{_NOTES[root]} {mode}", cosine


if __name__ == "__main__":
    main()
