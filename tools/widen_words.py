"""Teaches the text towers of a bundle words that its captions lack: `python tools/widen_words.py BUNDLE OUT [--steps 1500]`. BUNDLE is not changed.

BUNDLE was trained on the synthesized corpus, whose captions have 113 words. Each of its text towers, MuLan's and the rerankers', is the teacher of a
student with packaged word vectors (`TextTowerConfig.word_vectors`). The student reads captions of the sampled corpus, in 1,700 words, and learns the mean
embedding that the teacher has of plain captions of the same music: its lead family, drums, mode, tempo, style and dynamics. It also learns the teacher's
embeddings of plain captions themselves. Audio towers, quantizers and stages stay as they are. Ours, from no paper.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from musiclm_jax import bundle, pretrained
from musiclm_jax.configs import RERANKERS
from musiclm_jax.corpus.sampled.captions import write_captions as write_free_captions
from musiclm_jax.corpus.sampled.draw import draw_attributes, draw_band
from musiclm_jax.corpus.synthesized.attributes import NEAREST_INSTRUMENTS, Attributes
from musiclm_jax.corpus.synthesized.captions import KINDS
from musiclm_jax.corpus.synthesized.captions import write_captions as write_plain_captions
from musiclm_jax.errors import UserError
from musiclm_jax.models import mulan, word_vectors
from musiclm_jax.models.text import TextTokenizer
from musiclm_jax.models.tokenizers import MuLanTokenizer
from musiclm_jax.musiclm import MusicLM

# Styles of the sampled corpus -> the nearest that the synthesized one has.
STYLES = {
    **dict.fromkeys(("house", "techno", "pop", "funk", "reggae"), "dance"),
    **dict.fromkeys(("country", "celtic"), "folk"),
    **dict.fromkeys(("jazz", "bossa nova", "hip hop"), "lo-fi"),
    **dict.fromkeys(("classical", "blues"), "ballad"),
    "cinematic": "ambient",
}
PIECES, EVAL_SHARE, BATCH, LEARNING_RATE = 12_500, 0.04, 128, 1e-3
CARD = """
`tools/widen_words.py` of the repository then taught its text towers the words of the sampled corpus, and packaged word vectors of others (all-MiniLM-L6-v2,
Apache-2.0). Nothing else was changed.
"""
# Kinds of plain captions that name lead, drums, mode and tempo.
FULL = [i for i, kind in enumerate(KINDS) if kind == "tags" or kind.endswith("full")]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Captions of the same music."""

    free: list[str]
    plain: list[str]


def draw_pair(rng: np.random.Generator) -> Pair:
    free = draw_band(draw_attributes(rng), rng)
    plain = Attributes(
        instrument=NEAREST_INSTRUMENTS.get(free.family, free.family),
        tempo_bpm=free.tempo_bpm,
        tempo=free.tempo,
        meter="3/4" if free.meter == "3/4" else "4/4",
        key=free.key,
        tonic=free.tonic,
        mode=free.mode,
        drums=free.drums,
        style=STYLES.get(free.style, free.style),
        dynamics=free.dynamics,
        bass=bool(free.bass),
        accompaniment="pad",
    )
    texts = [caption.text for caption in write_free_captions(free, split="train", rng=rng)]
    return Pair(texts, write_plain_captions(plain, split="train", rng=rng))


class Examples:
    """Texts and the unit embeddings that the student should have of them."""

    def __init__(self, pairs: list[Pair], teacher: MuLanTokenizer):
        each = np.stack([teacher.embed_text([pair.plain[i] for pair in pairs]) for i in range(len(KINDS))], axis=1)
        mean = each[:, FULL].mean(axis=1)
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        self.texts = [text for pair in pairs for text in (*pair.free, *pair.plain)]
        self.wanted = np.concatenate([np.concatenate([np.repeat(m[None], len(pair.free), 0), e]) for pair, m, e in zip(pairs, mean, each, strict=True)])


def widen(teacher: MuLanTokenizer, pairs: list[Pair], *, steps: int) -> MuLanTokenizer:
    """The teacher with a student's text tower."""
    vectors = word_vectors.load("minilm")
    tower = dataclasses.replace(teacher.config.text, vocab_size=len(vectors.pieces), word_vectors="minilm", piece_dropout=0.3, dropout=0.0)
    config, text = dataclasses.replace(teacher.config, text=tower), TextTokenizer(vectors.pieces)
    params = start(teacher, config, text)
    num_held_out = round(EVAL_SHARE * len(pairs))
    train, held_out = Examples(pairs[num_held_out:], teacher), Examples(pairs[:num_held_out], teacher)
    ids, mask = text.encode(train.texts, max_tokens=tower.max_tokens)
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, steps // 10, steps), weight_decay=0.01)
    model = mulan.MuLan(config)

    def loss(trained, ids, mask, wanted, rng):
        found = model.apply({"params": params | trained}, ids, mask, train=True, method=mulan.MuLan.embed_text, rngs={"dropout": rng})
        return 1 - jnp.einsum("bd,bd->b", found, wanted).mean()

    @jax.jit
    def step(trained, state, *batch):
        value, gradients = jax.value_and_grad(loss)(trained, *batch)
        updates, state = optimizer.update(gradients, state, trained)
        return optax.apply_updates(trained, updates), state, value

    trained = {name: params[name] for name in ("text_tower", "text_head")}
    state, losses, rng = optimizer.init(trained), [], np.random.default_rng(0)
    for number in range(1, steps + 1):
        rows = rng.integers(len(ids), size=BATCH)
        trained, state, value = step(trained, state, ids[rows], mask[rows], train.wanted[rows], jax.random.key(number))
        losses.append(value)
        if number % 500 == 0 or number == steps:
            print(f"  step {number}: cosine {1 - float(np.mean(losses)):.4f}", flush=True)
            losses = []
    student = MuLanTokenizer(config, teacher.variables | {"params": params | jax.device_get(trained)}, text)
    cosines = np.einsum("nd,nd->n", student.embed_text(held_out.texts), held_out.wanted).reshape(num_held_out, -1)
    print(f"  held out: cosine {cosines[:, : -len(KINDS)].mean():.4f} of free captions, {cosines[:, -len(KINDS) :].mean():.4f} of plain ones", flush=True)
    return student


def start(teacher: MuLanTokenizer, config: mulan.MuLanConfig, text: TextTokenizer) -> dict:
    """The teacher's parameters, with the rows of pieces that both have, and zeros for those of the others."""
    old = teacher.variables["params"]
    fresh = nn.unbox(mulan.init(config, jax.random.key(0)))["text_tower"]
    tower = dict(old["text_tower"]) | {"words": fresh["words"]}
    rows = np.zeros((config.text.vocab_size, config.text.dim), np.float32)
    known, pieces = (json.loads(each.to_json())["model"]["vocab"] for each in (teacher.text, text))
    both = sorted(known.keys() & pieces.keys())
    rows[[pieces[piece] for piece in both]] = old["text_tower"]["tokens"]["embedding"][np.array([known[piece] for piece in both])]
    return dict(old) | {"text_tower": tower | {"tokens": {"embedding": rows}}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", help="a bundle that was trained on a synthesized corpus")
    parser.add_argument("out", type=Path, help="the folder of the new bundle, which must not exist")
    parser.add_argument("--steps", type=int, default=1500, help="steps of training for each text tower")
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} exists: name another folder")
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: choose 1 or more")
    try:
        musiclm = MusicLM.from_pretrained(options.bundle)
    except UserError as error:
        parser.error(str(error))
    rng = np.random.default_rng(0)
    pairs = [draw_pair(rng) for _ in range(PIECES)]
    models = {name: musiclm.variables(name) for name in musiclm.models}
    for name in ("mulan", *RERANKERS):
        if name in models:
            print(name, flush=True)
            student = widen(MuLanTokenizer(musiclm.config.mulan, models[name], musiclm.text), pairs, steps=options.steps)
            models[name] = student.variables
    config = dataclasses.replace(musiclm.config, mulan=student.config)
    card = (pretrained.open_pretrained(options.bundle).path / bundle.CARD_FILE).read_text(encoding="utf-8")
    MusicLM(config, models, student.text).save_pretrained(options.out, dtype="float16", card=card + CARD)


if __name__ == "__main__":
    main()
