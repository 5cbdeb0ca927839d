"""MuLan: its training, the quantizer of its embeddings, and the MuLan tokens of crops and captions."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.checks import SECONDS, check_numbers
from musiclm_jax.data.clips import load_array
from musiclm_jax.data.folder import check_captions
from musiclm_jax.data.prefetch import Source
from musiclm_jax.data.readers import open_source
from musiclm_jax.data.token_store import covering_windows, offsets
from musiclm_jax.errors import UserError
from musiclm_jax.files import AnyPath, write_text
from musiclm_jax.models import mulan, word_vectors
from musiclm_jax.models.mulan import MuLanConfig
from musiclm_jax.models.text import TextTokenizer
from musiclm_jax.parts.encode import embed_clips, in_batches, perplexities
from musiclm_jax.parts.part import CAPTIONS, PREPARE, SPLITS, WEIGHTS, FitConfig, Run, Step, TokenStream, Work, deciding, save_array, save_weights
from musiclm_jax.parts.shards import clear, in_shards
from musiclm_jax.parts.trained import TrainedPart, wave_shapes
from musiclm_jax.tasks.mulan import MuLanRecipe, MuLanTask
from musiclm_jax.training import hosts

QUANTIZER = "rvq"
_VOCABULARY = "vocabulary.json"
# Captions in a shard.
_SHARD_TEXTS = 4096


@dataclasses.dataclass(frozen=True)
class ContrastivePart(TrainedPart):
    """Contrastive training of MuLan, or of a copy of it, on pairs of a crop and one of its captions."""

    crop_sec: float | int = 10.0
    recipe: MuLanRecipe = MuLanRecipe()
    # (kind of caption, weight) pairs: each example draws a kind by weight among those that the clip has, then a caption of that kind. Empty, or
    # without kinds in metadata.jsonl: captions are drawn uniformly.
    text_mix: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        super().__post_init__()
        weights = dict(self.text_mix)
        if len(weights) < len(self.text_mix) or not all(0 <= weight < math.inf for weight in weights.values()) or (weights and not any(weights.values())):
            raise UserError(f"{self.name}: text_mix={self.text_mix}: name each kind once, with a weight of 0 or more, and one at least above 0")

    def task(self, fit: FitConfig) -> MuLanTask:
        return MuLanTask(fit.model.mulan, self.recipe, name=self.name)

    def batch_shapes(self, fit: FitConfig) -> dict[str, jax.ShapeDtypeStruct]:
        shape = (self.batch_size, fit.model.mulan.text.max_tokens)
        return wave_shapes(self, fit) | {"text_ids": jax.ShapeDtypeStruct(shape, np.int32), "text_mask": jax.ShapeDtypeStruct(shape, bool)}

    def reads(self, fit: FitConfig) -> tuple[str, ...]:
        return (SPLITS, CAPTIONS)

    def settings(self, fit: FitConfig) -> dict[str, Any]:
        return {"text_mix": deciding(self.text_mix), **fit.order}

    def has_held_out(self, run: Run) -> bool:
        return bool(run.clips.captioned().split("test"))

    def captioned_source(self, run: Run, split: str, seed: int, text: TextTokenizer) -> Source:
        """Random crops of the captioned clips of a split, each with one caption."""
        encode_text = functools.partial(text.encode, max_tokens=run.config.model.mulan.text.max_tokens)
        options = {"reader": run.config.reader, "encode_text": encode_text, "text_mix": dict(self.text_mix)}
        return open_source(run.clips.captioned(), split=split, seed=seed, crop_sec=self.crop_sec, batch_size=self.batch_size, **options)


@dataclasses.dataclass(frozen=True)
class MuLanPart(ContrastivePart):
    """MuLan and the quantizer of its embeddings."""

    # Seconds between the windows whose embeddings condition the stages. The paper's: 1. The cost grows with their number.
    condition_hop_sec: float | int = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self, condition_hop_sec=SECONDS)

    @property
    def name(self) -> str:
        return "mulan"

    def outputs(self) -> tuple[str, ...]:
        return (_VOCABULARY,)

    def begin(self, run: Run, folder: AnyPath) -> None:
        hosts.first(lambda: write_text(folder / _VOCABULARY, _vocabulary(run).to_json()))

    def source(self, run: Run, split: str, seed: int) -> Source:
        return self.captioned_source(run, split, seed, vocabulary(run))

    def check(self, run: Run) -> None:
        check_captions(run.clip_folder)
        self.captioned_source(run, "train", self.loop.seed, _vocabulary(run))
        clips, config = run.clips.captioned(), run.config.model.mulan
        train = [clip for clip in clips.clips if clip.split == "train"]
        mulan.check_quantizer(config, num_clips=len(train), num_captions=sum(len(clip.captions) for clip in train))

    def windows(self, fit: FitConfig) -> MuLanConfig:
        """The config of MuLan with a window each `condition_hop_sec`."""
        return dataclasses.replace(fit.model.mulan, hop_sec=float(self.condition_hop_sec))

    def steps(self, fit: FitConfig) -> tuple[Step, ...]:
        settings = {"model": deciding(self.windows(fit)), "seed": fit.seed}
        outputs = (WEIGHTS, "windows.npy", "texts.npy")
        quantizer = Step(QUANTIZER, "quantizing MuLan's embeddings", self._quantize, outputs, settings, (PREPARE, self.name), reads=(SPLITS, CAPTIONS))
        return (self.training(fit), quantizer)

    def streams(self, fit: FitConfig) -> tuple[TokenStream, ...]:
        return (TokenStream(fit.model.streams["mulan"], (QUANTIZER,), lambda run: MuLanTokens(run, self.windows(fit))),)

    def _quantize(self, run: Run, work: Work) -> dict[str, Any]:
        """Embeds all windows and captions, fits the quantizer to them, and tokenizes the captions."""
        config, clips = run.config.model.mulan, run.clips.clips
        params = run.weights(self.name)["params"]
        windows, counts = embed_clips(run, work.folder, clips, mulan.embed_audio, self.windows(run.config), params)
        ids, mask = vocabulary(run).encode([caption for clip in clips for caption in clip.captions], max_tokens=config.text.max_tokens)
        embed_text = jax.jit(functools.partial(mulan.embed_text, config, params))
        make = lambda some: in_batches(embed_text, ids[some.start : some.stop], mask[some.start : some.stop])  # noqa: E731
        texts = np.concatenate(in_shards(work.folder / "text_shards", range(len(ids)), make, shard_items=_SHARD_TEXTS, what="captions", unit="captions"))
        window_at, text_at = offsets(counts), offsets(len(clip.captions) for clip in clips)
        means = np.stack([windows[a:b].mean(axis=0) for a, b in zip(window_at, window_at[1:])])
        training = np.array([clip.split == "train" for clip in clips])
        text_training = np.repeat(training, np.diff(text_at))
        rng = jax.random.key(run.config.seed)
        quantizer = mulan.fit_quantizer(jnp.asarray(means[training]), jnp.asarray(texts[text_training]), rng=rng, config=config)
        tokens = in_batches(jax.jit(functools.partial(mulan.text_tokens, config, {"quantizer": quantizer})), texts).astype(np.int16)
        if hosts.is_first():
            save_array(work.folder / "windows.npy", windows.astype(np.float16))
            save_array(work.folder / "texts.npy", tokens)
        save_weights(work.folder, {"quantizer": quantizer})
        clear(work.folder / "shards")
        clear(work.folder / "text_shards")

        captioned = np.diff(text_at) > 0
        shown = np.flatnonzero(captioned & ~training) if (captioned & ~training).any() else np.flatnonzero(captioned)
        report = mulan.quantizer_report(config, {"quantizer": quantizer}, jnp.asarray(means[shown]), jnp.asarray(texts[text_at[:-1][shown]]))
        results = {"windows": len(windows), "captions": len(texts)} | {name: float(value) for name, value in report.items()}
        return results | {f"text_perplexity_{level + 1}": value for level, value in enumerate(perplexities(tokens, config.num_codes))}


class MuLanTokens:
    """The MuLan tokens of crops: of the audio, or for a share of the examples of a random caption of the clip.

    The audio's tokens quantize the mean embedding of the windows of the crop (MusicLM, arXiv 2301.11325, section 3.2).
    """

    def __init__(self, run: Run, windows: MuLanConfig):
        folder, clips = run.folder(QUANTIZER), run.clips.clips
        self._config = windows
        self._windows, self._texts = (load_array(folder / name) for name in ("windows.npy", "texts.npy"))
        self._windows_at = offsets(mulan.num_windows(windows, clip.length) for clip in clips)
        self._texts_at = offsets(len(clip.captions) for clip in clips)
        self._tokens = quantize_audio(run)

    def crops(
        self, clips: Sequence[int], starts_sec: Sequence[float], crop_sec: float | int, *, rows: np.ndarray, rng: np.random.Generator, text_share: float
    ) -> np.ndarray:
        """int32 [b, Q]."""
        tokens = np.array(self._tokens(np.stack([self._embedding(clips[row], starts_sec[row], crop_sec) for row in rows])), np.int32)
        captions = [self._draw_caption(clip, bool(from_text), rng) for clip, from_text in zip(clips, rng.random(len(clips)) < text_share, strict=True)]
        for at, row in enumerate(rows):
            if captions[row] is not None:
                tokens[at] = self._texts[captions[row]]
        return tokens

    def _draw_caption(self, clip: int, from_text: bool, rng: np.random.Generator) -> int | None:
        """The number of a caption of a clip. None: the audio's tokens are to be taken, or the clip has no caption."""
        first, last = self._texts_at[clip : clip + 2]
        return int(rng.integers(first, last)) if from_text and first < last else None

    def _embedding(self, clip: int, start_sec: float, crop_sec: float | int) -> np.ndarray:
        first, last = self._windows_at[clip : clip + 2]
        where = covering_windows(
            start_sec, start_sec + crop_sec, num_windows=int(last - first), window_sec=self._config.window_sec, hop_sec=self._config.hop_sec
        )
        return self._windows[first:last][where].astype(np.float32).mean(axis=0)


def quantize_audio(run: Run) -> Callable[[np.ndarray], jax.Array]:
    """The function from embeddings of audio [b, D] to MuLan tokens [b, Q]."""
    quantizer = run.saved("mulan" if "mulan" in run.config.given else QUANTIZER)["quantizer"]
    return jax.jit(functools.partial(mulan.audio_tokens, run.config.model.mulan, {"quantizer": jax.tree.map(jnp.asarray, quantizer)}))


def vocabulary(run: Run) -> TextTokenizer:
    """The word pieces with which MuLan was trained."""
    return TextTokenizer.from_json((run.folder("mulan") / _VOCABULARY).read_text(encoding="utf-8"))


def _vocabulary(run: Run) -> TextTokenizer:
    """Word pieces fitted to the training captions, or those of packaged vectors."""
    if name := run.config.model.mulan.text.word_vectors:
        return TextTokenizer(word_vectors.load(name).pieces)
    limit = run.config.model.mulan.text.vocab_size
    text = TextTokenizer.train((caption for clip in run.clips.split("train") for caption in clip.captions), vocab_size=limit)
    if text.vocab_size > limit:
        raise UserError(f"the captions have more distinct letters than TextTowerConfig.vocab_size={limit}: raise it to {text.vocab_size}")
    return text
