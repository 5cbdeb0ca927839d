"""How well copies are found: `python benchmarks/copies.py CLIPS INDEX [NUMBER] [MODEL]`.

10 s of some clips of an index are encoded and decoded by the model's codec, with the levels that it generates, as if the model had copied them; then their
closest passage in the index is searched (`musiclm evaluate copies`). Prints how many are found where they are, and the quantiles of equal tokens.
"""

import sys
from pathlib import Path

import numpy as np

from musiclm_jax import audio
from musiclm_jax.audio.loudness import level
from musiclm_jax.evaluation.token_index import check_copies, check_index, read_index
from musiclm_jax.musiclm import MusicLM

SECONDS, FROM_SEC = 10, 2


def main(clips: str, index_file: str, number: int = 20, model: str = "demo") -> None:
    musiclm, index = MusicLM.from_pretrained(model), read_index(index_file)
    check_index(index, musiclm, index_file)
    levels = [stage.target.end for stage in musiclm.config.stages if stage.target.stream == "acoustic" and stage.name not in musiclm.config.skipped_stages]
    rate_hz, right, shares = musiclm.config.audio.sample_rate_hz, 0, []
    for row in np.random.default_rng(1).permutation(len(index.names))[:number].tolist():
        wave = audio.read(Path(clips) / index.names[row], sample_rate_hz=rate_hz)[FROM_SEC * rate_hz :][: SECONDS * rate_hz]
        copy = musiclm.acoustic.decode(musiclm.acoustic.encode(wave[None])[..., : levels[-1]])[0]
        (found,) = check_copies(musiclm, index, level(copy, sample_rate_hz=rate_hz)[None])
        right += found.file_name == index.names[row] and abs(found.second - found.at_sec - FROM_SEC) < 0.1
        shares.append(found.share)
    print(f"{right} of {number} are found where they are; equal tokens: {', '.join(f'{100 * share:.0f} %' for share in np.quantile(shares, (0, 0.5, 1)))}")
    print("(least, median, most)")


if __name__ == "__main__":
    main(*(kind(value) for kind, value in zip((str, str, int, str), sys.argv[1:])))
