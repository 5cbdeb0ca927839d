"""How far the edge of a crop reaches into its tokens: the share of tokens of a crop that equal those of `musiclm tokenize`, by distance from the edge.

    python benchmarks/token_edges.py CLIPS --model demo

Tokens of a token set are made with context on both sides. Tokens of a crop alone are made without: near its edges the tokenizers hear less. The table says
how many of the tokens at a distance are the same.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np

from musiclm_jax import audio
from musiclm_jax.data.folder import read_folder
from musiclm_jax.tokenizing.tokenizers import Tokenizers

# Upper ends of the distances, in seconds.
_BINS = (0.04, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--number", type=int, default=16, help="clips that are read")
    parser.add_argument("--crop_sec", type=float, default=14.0, help="more than twice as long as the context")
    arguments = parser.parse_args()
    tokenizers = Tokenizers.open(arguments.model)
    spec = tokenizers.config.audio
    crop, edge = spec.semantic_tokens(arguments.crop_sec), spec.semantic_tokens(_BINS[-1])
    whole, cut = [], []
    for entry in read_folder(arguments.clips, hash_files=False).entries[: arguments.number]:
        wave = audio.read(f"{arguments.clips}/{entry.file_name}")[: (crop + 2 * edge) * spec.semantic_samples]
        if len(wave) < (crop + 2 * edge) * spec.semantic_samples:
            continue
        alone = wave[edge * spec.semantic_samples : (edge + crop) * spec.semantic_samples]
        both = [_tokens(tokenizers, each[None]) for each in (wave, alone)]
        whole.append([tokens[edge * rate : (edge + crop) * rate] for tokens, rate in zip(both[0], (1, spec.frames_per_semantic))])
        cut.append(both[1])
    print(f"{len(whole)} crops of {arguments.crop_sec:g} s; share of tokens that are the same with {_BINS[-1]:g} s of context, by seconds from the edge")
    print("| tokens | edge | " + " | ".join(f"below {end:g}" for end in _BINS) + " | beyond |")
    print("|---|---|" + "---|" * (len(_BINS) + 1))
    for name, number, rate in (("semantic", 0, 1), ("acoustic", 1, spec.frames_per_semantic)):
        same = np.mean([(a[number] == b[number]).reshape(len(a[number]), -1).mean(axis=1) for a, b in zip(whole, cut)], axis=0)
        ends = [0, *(round(end * spec.semantic_rate_hz * rate) for end in _BINS)]
        for side, values in (("beginning", same), ("end", same[::-1])):
            shares = [values[a:b].mean() for a, b in itertools.pairwise(ends)] + [values[ends[-1] : -ends[-1]].mean()]
            print(f"| {name} | {side} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")


def _tokens(tokenizers: Tokenizers, wave: np.ndarray) -> list[np.ndarray]:
    return [tokenizers.semantic_tokens(wave)[0], tokenizers.acoustic_tokens(wave)[0]]


if __name__ == "__main__":
    main()
