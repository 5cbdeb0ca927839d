"""What the text tower of a bundle reads in prompts in people's own words: `python benchmarks/free_reading.py [BUNDLE ...]`, of the synthesized corpus.

Of each of the 100 prompts of free_prompts.json that says something of the lead, drums, mode or tempo: whether its embedding is nearest to the mean embedding of
plain captions of clips with that value, among those of all values. The means are centred for each attribute. No music is made.
"""

from __future__ import annotations

import sys

import numpy as np
from free_prompts import nearest, read_prompts, values

from musiclm_jax.corpus.synthesized.attributes import draw_attributes
from musiclm_jax.corpus.synthesized.captions import KINDS, write_captions
from musiclm_jax.models.tokenizers import MuLanTokenizer
from musiclm_jax.musiclm import MusicLM

SEED, CLIPS = 0, 1500
ATTRIBUTES = ("instrument", "drums", "mode", "tempo")


def class_means(tower: MuLanTokenizer) -> dict[str, tuple[list, np.ndarray]]:
    """Of each attribute: its values, and the mean embedding of captions of each, less that of all."""
    rng = np.random.default_rng(SEED)
    clips = [draw_attributes(split="train", rng=rng) for _ in range(CLIPS)]
    embeddings = tower.embed_text([write_captions(clip, split="train", rng=rng)[KINDS.index("one full")] for clip in clips])
    means = {}
    for name in ATTRIBUTES:
        known = sorted({getattr(clip, name) for clip in clips}, key=str)
        rows = np.stack([embeddings[[getattr(clip, name) == value for clip in clips]].mean(axis=0) for value in known])
        means[name] = known, rows - rows.mean(axis=0)
    return means


def shares(embeddings: np.ndarray, prompts: list[dict], means: dict[str, tuple[list, np.ndarray]]) -> list[float]:
    """The share of each attribute that is read right in the embeddings of prompts, and that of all."""
    rights = []
    for name, (known, rows) in means.items():
        said = [known[number] for number in np.argmax(embeddings @ rows.T, axis=1)]
        rights.append([value in values(prompt[name]) for value, prompt in zip(said, prompts, strict=True) if prompt[name] is not None])
    return [float(np.mean(each)) for each in (*rights, sum(rights, []))]


def main(bundles: list[str]) -> None:
    prompts, rows = [prompt | {"instrument": nearest(prompt["family"])} for prompt in read_prompts()], {}
    for bundle in bundles:
        tower = MusicLM.from_pretrained(bundle).mulan
        means = class_means(tower)
        rows[f"{bundle}: 'music' each time"] = shares(tower.embed_text(["music"] * len(prompts)), prompts, means)
        rows[bundle] = shares(tower.embed_text([prompt["text"] for prompt in prompts]), prompts, means)
    width = max(map(len, rows))
    print(f"{'':{width}}{''.join(f'{name:>12}' for name in (*ATTRIBUTES, 'all'))}")
    for name, row in rows.items():
        print(f"{name:{width}}{''.join(f'{share:12.2f}' for share in row)}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["demo"])
