"""What the text tower of a bundle reads in prompts in people's own words: `python benchmarks/free_reading.py [BUNDLE ...]`, of the synthesized corpus.

Of each of the 100 prompts of free_prompts.json that says something of the lead, drums, mode or tempo: whether its embedding is nearest to the mean embedding of
plain captions of clips with that value, among those of all values. The means are centred for each attribute. No music is made.
"""

from __future__ import annotations

import sys

import numpy as np
from free_adherence import nearest, read_prompts

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
        values = sorted({getattr(clip, name) for clip in clips}, key=str)
        rows = np.stack([embeddings[[getattr(clip, name) == value for clip in clips]].mean(axis=0) for value in values])
        means[name] = values, rows - rows.mean(axis=0)
    return means


def shares(tower: MuLanTokenizer, texts: list[str], prompts: list[dict]) -> list[float]:
    """The share of each attribute that is read right, and that of all."""
    found, rights = tower.embed_text(texts), []
    for name, (values, rows) in class_means(tower).items():
        asked = [(prompt[name], row) for prompt, row in zip(prompts, found, strict=True) if prompt[name] is not None]
        said = [(wanted, values[int(np.argmax(rows @ row))]) for wanted, row in asked]
        rights.append([value in wanted if isinstance(wanted, list) else value == wanted for wanted, value in said])
    return [float(np.mean(each)) for each in (*rights, sum(rights, []))]


def main(bundles: list[str]) -> None:
    prompts = [prompt | {"instrument": nearest(prompt["family"])} for prompt in read_prompts()]
    towers = {bundle: MusicLM.from_pretrained(bundle).mulan for bundle in bundles}
    rows = {f"{bundle}: 'music' each time": shares(tower, ["music"] * len(prompts), prompts) for bundle, tower in towers.items()}
    rows |= {bundle: shares(tower, [prompt["text"] for prompt in prompts], prompts) for bundle, tower in towers.items()}
    width = max(map(len, rows))
    print(f"{'':{width}}{''.join(f'{name:>12}' for name in (*ATTRIBUTES, 'all'))}")
    for name, row in rows.items():
        print(f"{name:{width}}{''.join(f'{share:12.2f}' for share in row)}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["demo"])
