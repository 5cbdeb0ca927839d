"""The frozen models of a bundle that make tokens, without its stages."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np

from musiclm_jax import bundle, pretrained
from musiclm_jax.arrays import Float, Int
from musiclm_jax.configs import RERANKERS, TOKENIZER_MODELS, MusicLMConfig
from musiclm_jax.files import AnyPath
from musiclm_jax.models import embedders, mulan
from musiclm_jax.models.tokenizers import AcousticTokenizer, MuLanTokenizer, SemanticTokenizer
from musiclm_jax.parts.encode import split_rows
from musiclm_jax.parts.part import on_each_device


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizers:
    """The models, with their weights on each device of this process. Rows of waves are split over the devices."""

    config: MusicLMConfig
    acoustic: AcousticTokenizer
    semantic: SemanticTokenizer
    mulan: MuLanTokenizer

    @classmethod
    def open(cls, path: str | os.PathLike) -> Tokenizers:
        """Opens a bundle, with or without stages. Raises UserError where a model is missing or damaged."""
        opened = pretrained.open_pretrained(path)
        config = pretrained.read_config(opened, models=TOKENIZER_MODELS)
        codec, w2v_bert, joint = (on_each_device(pretrained.load(opened, config, name)) for name in TOKENIZER_MODELS)
        text = pretrained.load_vocabulary(opened)
        return cls(config, AcousticTokenizer(config.codec, codec), SemanticTokenizer(config.w2v_bert, w2v_bert), MuLanTokenizer(config.mulan, joint, text))

    def acoustic_tokens(self, wave: Float[np.ndarray, "B N"]) -> Int[np.ndarray, "B T Q"]:
        return self.acoustic.encode(*split_rows(wave))[: len(wave)]

    def semantic_tokens(self, wave: Float[np.ndarray, "B N"]) -> Int[np.ndarray, "B T"]:
        return self.semantic.encode(*split_rows(wave))[: len(wave)]

    def window_embeddings(self, wave: Float[np.ndarray, "B N"]) -> Float[np.ndarray, "B W D"]:
        """MuLan's embeddings of all windows of waves, float32. A wave shorter than a window is zero-padded."""
        config = self.config.mulan
        window, hop = config.window_samples, config.hop_samples
        wave = np.pad(wave, ((0, 0), (0, max(0, window - wave.shape[1]))))
        starts = [hop * i for i in range(embedders.num_windows(wave.shape[1], window=window, hop=hop))]
        found = [np.asarray(_embed(config, self.mulan.variables["params"], *split_rows(wave[:, start : start + window])))[: len(wave)] for start in starts]
        return np.stack(found, axis=1)


_embed = jax.jit(mulan.embed_audio, static_argnums=0)


@functools.lru_cache(maxsize=1)
def open_once(path: str) -> Tokenizers:
    """`Tokenizers.open`, once in a process."""
    return Tokenizers.open(path)


def hashes(path: str | os.PathLike) -> dict[str, str]:
    """The hashes of the files of the tokenizers in a bundle, by model."""
    files = pretrained.open_pretrained(path).files
    return {name: files[f"{name}.safetensors"].sha256 for name in TOKENIZER_MODELS}


def copy_tokenizers(path: str | os.PathLike, folder: AnyPath) -> None:
    """Writes the tokenizers of a bundle, with its rerankers, as a bundle without stages."""
    opened = pretrained.open_pretrained(path)
    config = pretrained.read_config(opened, models=TOKENIZER_MODELS)
    names = (*TOKENIZER_MODELS, *(name for name in RERANKERS if f"{name}.safetensors" in opened.files))
    models: dict[str, Any] = {name: pretrained.load(opened, config, name) for name in names}
    metadata = {"mulan": {pretrained.VOCABULARY: pretrained.load_vocabulary(opened).to_json()}}
    bundle.save(folder, config=opened.config, models=models, metadata=metadata, card=bundle.read_card(opened.path))
