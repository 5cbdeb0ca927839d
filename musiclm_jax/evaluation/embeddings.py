"""Embeddings of music behind one protocol, for the Fréchet audio distance: those of a bundle (MuLan, w2v-BERT, codec), and musicnn, which is packaged.

CLAP, EnCodec, MERT and VGGish, whose weights the user has, are in `evaluation/outside.py`; `evaluation/judges.py` finds each by its name.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from musiclm_jax import bundle, pretrained
from musiclm_jax.arrays import Float
from musiclm_jax.errors import UserError
from musiclm_jax.models import codec, embedders, musicnn, w2v_bert
from musiclm_jax.models.codec import CodecConfig
from musiclm_jax.models.tokenizers import MuLanTokenizer

_MUSICNN = Path(__file__).parent / "weights" / "musicnn.safetensors"
# Windows that are embedded at once, which bounds memory and the number of compiled programs.
_BATCH = 8
# Codecs and Transformers get pieces of this length.
PIECE_SEC = 10


@runtime_checkable
class Embedding(Protocol):
    """A model that describes music by vectors."""

    # Says which model and which weights: distances of different names are not comparable.
    name: str
    sample_rate_hz: int
    # The shortest wave that it reads.
    min_samples: int

    def embed(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T D"]:
        """Embeddings over time. Threads may call it at once."""
        ...


def batched(fn: Callable[[Any], Any], rows: Sequence[Any] | np.ndarray, *, size: int = _BATCH) -> Float[np.ndarray, "n D"]:
    """Applies `fn` to batches of at most `size` rows, and returns the rows of all results."""
    return np.concatenate([np.asarray(fn(rows[start : start + size]), np.float32) for start in range(0, len(rows), size)])


def windows(wave: Float[np.ndarray, "N"], *, window: int, hop: int) -> Float[np.ndarray, "P n"]:
    """All whole windows of a wave; a shorter wave is one shorter window. window, hop: in samples."""
    starts = [hop * i for i in range(embedders.num_windows(len(wave), window=window, hop=hop))]
    return np.stack([wave[start : start + window] for start in starts])


def pieces(wave: Float[np.ndarray, "N"], sample_rate_hz: int) -> list[Float[np.ndarray, "n"]]:
    """Cuts a wave into pieces of 10 s and a last one of whole seconds, so that clips of any length need few compiled programs.

    What is left after the last whole second is ignored. The wave has 1 s or more.
    """
    wave = wave[: len(wave) // sample_rate_hz * sample_rate_hz]
    length = PIECE_SEC * sample_rate_hz
    return [wave[start : start + length] for start in range(0, len(wave), length)]


# ---------------------------------------------------------------------------------------------------------------------- musicnn


@dataclasses.dataclass(frozen=True, eq=False)
class MusicnnJudge:
    """musicnn with its trained weights, which the package contains: an embedding of 200 dimensions, and logits of 50 tags, for each 3 s."""

    params: Any
    name: str = "musicnn"
    config: musicnn.MusicnnConfig = musicnn.MusicnnConfig()
    sample_rate_hz: int = musicnn.SAMPLE_RATE_HZ
    min_samples: int = musicnn.MIN_SAMPLES
    labels: tuple[str, ...] = musicnn.TAGS

    def embed(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T D"]:
        """The 200 units before the tags, after their batch norm: the original's "penultimate"."""
        return batched(lambda patches: musicnn.apply(self.config, self.params, patches)[0], musicnn.patches(wave))

    def logits(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T V"]:
        """Logits of the tags `labels`. The original's taggram is their sigmoid."""
        return batched(lambda patches: musicnn.apply(self.config, self.params, patches)[1], musicnn.patches(wave))


@functools.cache
def load_musicnn() -> MusicnnJudge:
    """musicnn with the weights of the package."""
    params, _ = bundle.read_arrays(_MUSICNN)
    bundle.check_shapes(params, musicnn.variable_shapes(musicnn.MusicnnConfig()), where=str(_MUSICNN))
    return MusicnnJudge(jax.device_put(params))


# ---------------------------------------------------------------------------------------------------------------------- Ours


@dataclasses.dataclass(frozen=True, eq=False)
class MuLanJudge:
    """The MuLan of a bundle: an embedding of each window of 10 s, one every second; and, for cycle consistency, one of a whole clip and of texts."""

    tokenizer: MuLanTokenizer
    name: str
    sample_rate_hz: int

    @property
    def min_samples(self) -> int:
        return self.sample_rate_hz

    @property
    def full_sec(self) -> float:
        return self.tokenizer.config.window_samples / self.sample_rate_hz

    def embed(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T D"]:
        config = self.tokenizer.config
        return batched(self.tokenizer.embed_audio, windows(wave, window=config.window_samples, hop=config.hop_samples))

    def embed_clip(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "D"]:
        """The unit embedding of a clip: the normalized mean over its windows."""
        return self.tokenizer.embed_audio(wave[None])[0]

    def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n D"]:
        """Unit embeddings of texts. Raises UserError for an empty text."""
        return batched(self.tokenizer.embed_text, list(texts))


@dataclasses.dataclass(frozen=True, eq=False)
class FrameJudge:
    """A model of a bundle that makes a vector of each frame: `frames` computes them of a wave, [1, N] -> [1, T, D]."""

    frames: Callable[[np.ndarray], Any]
    name: str
    sample_rate_hz: int

    @property
    def min_samples(self) -> int:
        return self.sample_rate_hz

    def embed(self, wave: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T D"]:
        return np.concatenate([np.asarray(self.frames(piece[None]))[0] for piece in pieces(wave, self.sample_rate_hz)])


@functools.partial(jax.jit, static_argnums=0)
def _latents(config: CodecConfig, params: Any, wave: Any) -> Any:
    return codec.module(config).apply({"params": params}, wave, method="encode")


def load_mulan(model: str) -> MuLanJudge:
    """The MuLan of a bundle."""
    opened, config, params, name = _open(model, "mulan")
    return MuLanJudge(MuLanTokenizer(config.mulan, params, pretrained.load_vocabulary(opened)), name, config.audio.sample_rate_hz)


def load_w2v_bert(model: str, *, layer: int | None = None) -> FrameJudge:
    """The outputs of a block of a bundle's w2v-BERT, 25 a second, without whitening.

    layer: of its second stack, from 1 on. None: that of the semantic tokens. Raises UserError if there is no such layer.
    """
    _, config, params, name = _open(model, "w2v_bert")
    w2v = config.w2v_bert
    if layer is not None:
        if not 1 <= layer <= w2v.num_masked_layers:
            raise UserError(f"w2v-bert:{layer}: choose a layer from 1 to {w2v.num_masked_layers}")
        w2v, name = dataclasses.replace(w2v, feature_layer=layer), f"{name}:{layer}"
    return FrameJudge(functools.partial(w2v_bert.features, w2v, params["params"]), name, config.audio.sample_rate_hz)


def load_codec(model: str) -> FrameJudge:
    """The latents of a bundle's codec before they are quantized, 50 a second."""
    _, config, params, name = _open(model, "codec")
    return FrameJudge(functools.partial(_latents, config.codec, params["params"]), name, config.audio.sample_rate_hz)


def _open(model: str, part: str) -> tuple[bundle.Bundle, Any, Any, str]:
    """Returns (the bundle, its config, the variables of one model, a name with the beginning of the hash of its file)."""
    opened = pretrained.open_pretrained(model)
    config = pretrained.read_config(opened)
    variables = jax.device_put(pretrained.load(opened, config, part))
    return opened, config, variables, f"{part.replace('_', '-')}@{opened.files[f'{part}.safetensors'].sha256[:8]}"
