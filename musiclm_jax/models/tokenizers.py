"""The trained models as functions between waves, texts and tokens. Each class has a config and its variables, and does not change them.

MusicLM (arXiv 2301.11325, section 3.1): SoundStream's codes are the acoustic tokens, w2v-BERT's clusters the semantic tokens, and MuLan's
quantized embeddings represent the audio in training and the text at inference.

Inputs are NumPy or JAX arrays, outputs NumPy arrays. Codes are decoded, and MuLan windows embedded, in pieces of one length, so that clips of another
length need no new compilation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.arrays import Array, Float, Int
from musiclm_jax.models import codec, embedders, melody, mulan, w2v_bert
from musiclm_jax.models.codec import CodecConfig
from musiclm_jax.models.melody import MelodyConfig
from musiclm_jax.models.mulan import MuLanConfig
from musiclm_jax.models.text import TextTokenizer
from musiclm_jax.models.w2v_bert import W2vBertConfig
from musiclm_jax.tokens import ABSENT

Wave = Float[Array, "B N"] | Float[np.ndarray, "B N"]
Codes = Int[Array, "B T q"] | Int[np.ndarray, "B T q"]

# Acoustic frames decoded at once: 2 s. It bounds memory and does not change the result, because the decoder is causal and has a state.
_DECODE_FRAMES = 100
# Windows of a melody embedded at once.
_MELODY_WINDOWS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class AcousticTokenizer:
    """The codec as a tokenizer. variables: {"params", "quantizer": {"codebooks"}}, as in `models/codec.py`."""

    config: CodecConfig
    variables: dict[str, Any]

    def encode(self, wave: Wave) -> Int[np.ndarray, "B T Q"]:
        """Acoustic tokens, int32 in [0, C), of 24 kHz waves, T = ceil(N / 480)."""
        return np.asarray(_acoustic_encode(self.config, self.variables, jnp.asarray(wave)))

    def decode(self, codes: Codes) -> Float[np.ndarray, "B N"]:
        """Decodes acoustic tokens to 24 kHz waves, float32, N = 480 T. The first q < Q levels give a coarser wave."""
        decoder = AcousticDecoder(self, rows=len(codes))
        return np.concatenate([decoder.push(codes), decoder.finish()], axis=1)


class AcousticDecoder:
    """Decodes acoustic tokens that come in pieces. All results together are those of all tokens at once, in any pieces."""

    def __init__(self, tokenizer: AcousticTokenizer, *, rows: int):
        self._config, self._variables = tokenizer.config, tokenizer.variables
        self._carry = _acoustic_init(self._config, self._variables, rows)
        self._waiting: Codes | None = None

    def push(self, codes: Codes) -> Float[np.ndarray, "B N"]:
        """Takes the next tokens. Returns the next samples that are complete: those of whole chunks."""
        codes = np.asarray(codes, np.int32)
        self._waiting = codes if self._waiting is None else np.concatenate([self._waiting, codes], axis=1)
        pieces = [np.zeros((len(codes), 0), np.float32)]
        while self._waiting.shape[1] >= _DECODE_FRAMES:
            chunk, self._waiting = self._waiting[:, :_DECODE_FRAMES], self._waiting[:, _DECODE_FRAMES:]
            piece, self._carry = _acoustic_decode(self._config, self._variables, chunk, self._carry)
            pieces.append(np.asarray(piece))
        return np.concatenate(pieces, axis=1)

    def finish(self) -> Float[np.ndarray, "B N"]:
        """The samples of the tokens that are left."""
        frames = self._waiting.shape[1]
        # Later frames do not change earlier ones, so the last chunk may be padded with any codes.
        self._waiting = np.pad(self._waiting, ((0, 0), (0, -frames % _DECODE_FRAMES), (0, 0)))
        return self.push(self._waiting[:, :0])[:, : frames * self._config.frame_samples]


@dataclasses.dataclass(frozen=True, eq=False)
class SemanticTokenizer:
    """w2v-BERT and k-means as a tokenizer. variables: {"params", "standardize", "kmeans"}, as in `models/w2v_bert.py`."""

    config: W2vBertConfig
    variables: dict[str, Any]

    def encode(self, wave: Wave) -> Int[np.ndarray, "B T"]:
        """Semantic tokens, int32, of 24 kHz waves, T = ceil(N / 960)."""
        return np.asarray(w2v_bert.semantic_ids(self.config, self.variables, jnp.asarray(wave)))


@dataclasses.dataclass(frozen=True, eq=False)
class MuLanTokenizer:
    """MuLan with its vocabulary and its quantizer. variables: {"params", "quantizer": {"audio_mean", "text_mean", "codebooks"}}.

    The variables of a reranker have no "quantizer", those of a semantic reranker "spectra" [V, M] instead. Without a quantizer there are no tokens.
    """

    config: MuLanConfig
    variables: dict[str, Any]
    text: TextTokenizer

    def embed_audio(self, wave: Wave) -> Float[np.ndarray, "B D"]:
        """Unit embeddings of 24 kHz waves, float32: normalized means over all 10 s windows, one every second (arXiv 2301.11325, section 3.1)."""
        embed = functools.partial(_embed_audio, self.config, self.variables["params"])
        short = max(0, self.config.window_samples - wave.shape[1])
        wave = np.pad(np.asarray(wave, np.float32), ((0, 0), (0, short)))
        return _average_windows(embed, wave, window=self.config.window_samples, hop=self.config.hop_samples)

    def embed_semantic(self, tokens: Int[np.ndarray, "B T"], *, token_samples: int) -> Float[np.ndarray, "B D"]:
        """`embed_audio` of semantic tokens of `token_samples` samples each, through the log-mel spectra that they stand for, `variables["spectra"]` [V, M]."""

        def embed(tokens: np.ndarray) -> jax.Array:
            return _embed_semantic(self.config, self.variables["params"], self.variables["spectra"], tokens, token_samples)

        # Windows are not longer than the sequence, because no token for padding stands for silence.
        window, hop = min(self.config.window_samples // token_samples, tokens.shape[1]), self.config.hop_samples // token_samples
        return _average_windows(embed, tokens, window=window, hop=hop)

    def embed_text(self, texts: Sequence[str]) -> Float[np.ndarray, "B D"]:
        """Unit embeddings of texts, float32. Texts of more than `max_tokens` tokens are truncated: see `truncated`. Raises UserError for an empty text."""
        ids, mask = self.text.encode(texts, max_tokens=self.config.text.max_tokens)
        return np.asarray(_embed_text(self.config, self.variables["params"], ids, mask))

    def audio_tokens(self, wave: Wave) -> Int[np.ndarray, "B Q"]:
        """MuLan tokens, int32, of 24 kHz waves: the conditions of the stages in training."""
        return np.asarray(_audio_tokens(self.config, {"quantizer": self.variables["quantizer"]}, self.embed_audio(wave)))

    def text_tokens(self, texts: Sequence[str]) -> Int[np.ndarray, "B Q"]:
        """MuLan tokens, int32, of texts: the conditions of the stages at inference. Raises UserError for an empty text."""
        return self.quantize_text(self.embed_text(texts))

    def quantize_text(self, embeddings: Float[np.ndarray, "B D"]) -> Int[np.ndarray, "B Q"]:
        """MuLan tokens, int32, of embeddings of texts, or of mixtures of them, of unit length."""
        return np.asarray(_text_tokens(self.config, {"quantizer": self.variables["quantizer"]}, embeddings))

    def unknown_words(self, text: str) -> tuple[list[str], list[str]]:
        """Splits the words of a text into (words that occur in no training caption and have no packaged vector, all others).

        A vocabulary below its size limit has each word of the captions as one piece, and so have packaged vectors. With another full vocabulary, only words
        with unknown letters can be recognized as unknown.
        """
        whole = self.text.vocab_size < self.config.text.vocab_size or self.config.text.word_vectors
        is_known = self.text.is_piece if whole else self.text.is_spelled
        words = self.text.words(text)
        return [word for word in words if not is_known(word)], [word for word in words if is_known(word)]

    def truncated(self, texts: Sequence[str]) -> list[tuple[str, str]]:
        """The texts that are longer than the text tower's input, each as (text, the part of it that the tower reads)."""
        limit = self.config.text.max_tokens
        long = [text for text, count in zip(texts, self.text.num_tokens(texts), strict=True) if count > limit]
        if not long:
            return []
        ids, _ = self.text.encode(long, max_tokens=limit)
        return [(text, self.text.decode(row)) for text, row in zip(long, ids, strict=True)]


@dataclasses.dataclass(frozen=True, eq=False)
class MelodyTokenizer:
    """The melody embedder as a tokenizer. variables: {"params", "quantizer": {"codebooks"}}, as in `models/melody.py`."""

    config: MelodyConfig
    variables: dict[str, Any]

    def encode(self, wave: Float[np.ndarray, "N"], starts_sec: Sequence[float], *, window_sec: float | int) -> Int[np.ndarray, "S W Q"]:
        """Melody tokens, int32, for windows of a stage of `window_sec` seconds, which begin at `starts_sec` of a melody.

        Windows of the embedder that do not fit into the stage's window or into the melody are ABSENT. A melody shorter than one of them is zero-padded.
        """
        config, rate = self.config, self.config.mel.sample_rate_hz
        wave = np.pad(wave, (0, max(0, config.window_samples - len(wave))))
        found = np.full((len(starts_sec), config.condition_windows, config.num_levels), ABSENT, np.int32)
        first = {(i, k): round(start * rate) + k * config.hop_samples for i, start in enumerate(starts_sec) for k in range(config.fitting(window_sec))}
        there = {at: start for at, start in first.items() if start + config.window_samples <= len(wave)}
        for at, tokens in zip(there, self._tokens(wave, list(there.values())), strict=True):
            found[at] = tokens
        return found

    def _tokens(self, wave: Float[np.ndarray, "N"], starts: Sequence[int]) -> Iterator[Int[np.ndarray, "Q"]]:
        """The tokens of windows that begin at samples `starts`."""
        for first in range(0, len(starts), _MELODY_WINDOWS):
            some = starts[first : first + _MELODY_WINDOWS]
            windows = np.stack([wave[start : start + self.config.window_samples] for start in some])
            padded = np.pad(windows, ((0, _MELODY_WINDOWS - len(some)), (0, 0)))
            yield from np.asarray(_melody_tokens(self.config, self.variables, padded))[: len(some)]


def _average_windows(embed: Callable[[np.ndarray], jax.Array], signal: np.ndarray, *, window: int, hop: int) -> Float[np.ndarray, "B D"]:
    """The normalized mean of the embeddings of all windows of waves or tokens [B, N]."""
    starts = [hop * i for i in range(embedders.num_windows(signal.shape[1], window=window, hop=hop))]
    mean = np.mean([np.asarray(embed(signal[:, start : start + window]), np.float32) for start in starts], axis=0)
    return mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-6)


_acoustic_encode = jax.jit(codec.encode, static_argnums=0)
_acoustic_decode = jax.jit(codec.decode_stream, static_argnums=0)
_acoustic_init = jax.jit(codec.init_stream, static_argnums=(0, 2))
_embed_audio = jax.jit(mulan.embed_audio, static_argnums=0)
_embed_text = jax.jit(mulan.embed_text, static_argnums=0)
_audio_tokens = jax.jit(mulan.audio_tokens, static_argnums=0)
_text_tokens = jax.jit(mulan.text_tokens, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _melody_tokens(config: MelodyConfig, variables: Any, wave: Float[Array, "B N"]) -> Int[Array, "B Q"]:
    return melody.tokens(config, variables, melody.embed(config, variables["params"], wave))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _embed_semantic(config: MuLanConfig, params: Any, spectra: Float[Array, "V M"], tokens: Int[Array, "B T"], token_samples: int) -> Float[Array, "B D"]:
    return mulan.embed_audio(config, params, mulan.token_mels(config, spectra, tokens, token_samples=token_samples))
