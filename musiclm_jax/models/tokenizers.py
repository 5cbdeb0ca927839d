"""The frozen models as functions between waves, texts and tokens. Nothing here learns, and nothing changes: a config and its variables.

MusicLM (arXiv 2301.11325, section 3.1): SoundStream's codes are the acoustic tokens, w2v-BERT's clusters the semantic tokens, and MuLan's
quantized embeddings stand for the text at inference and for the music itself in training.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.arrays import Array, Float, Int
from musiclm_jax.models import codec, embedders, mulan, w2v_bert
from musiclm_jax.models.codec import CodecConfig
from musiclm_jax.models.mulan import MuLanConfig
from musiclm_jax.models.text import TextTokenizer
from musiclm_jax.models.w2v_bert import W2vBertConfig

# Waves and codes come from JAX or NumPy, and go out as JAX arrays.
Wave = Float[Array, "B N"] | Float[np.ndarray, "B N"]
Codes = Int[Array, "B T q"] | Int[np.ndarray, "B T q"]

# Acoustic frames decoded at once: 10 s. The decoder is causal and keeps its past, so the length bounds memory and not the result.
_DECODE_FRAMES = 500


@dataclasses.dataclass(frozen=True, eq=False)
class AcousticTokenizer:
    """The codec. variables: {"params", "quantizer": {"codebooks"}}."""

    config: CodecConfig
    variables: dict[str, Any]

    def encode(self, wave: Wave) -> Int[Array, "B T Q"]:
        """Acoustic tokens of a 24 kHz wave, T = ceil(N / 480)."""
        return _acoustic_encode(self.config, self.variables, jnp.asarray(wave))

    def decode(self, codes: Codes) -> Float[Array, "B N"]:
        """The wave of acoustic tokens, N = 480 T. The first q < Q levels alone give a coarser wave."""
        batch, frames, _ = codes.shape
        chunk = min(frames, _DECODE_FRAMES)
        # Padded to whole chunks, so that there is one program for all of them; what follows a frame does not change it.
        codes = jnp.pad(jnp.asarray(codes), ((0, 0), (0, -frames % chunk), (0, 0)))
        carry = codec.init_stream(self.config, self.variables, batch)
        pieces = []
        for start in range(0, frames, chunk):
            piece, carry = _acoustic_decode(self.config, self.variables, codes[:, start : start + chunk], carry)
            pieces.append(piece)
        return jnp.concatenate(pieces, axis=1)[:, : frames * self.config.frame_samples]


@dataclasses.dataclass(frozen=True, eq=False)
class SemanticTokenizer:
    """w2v-BERT and k-means. variables: {"params", "standardize", "kmeans"}."""

    config: W2vBertConfig
    variables: dict[str, Any]

    def encode(self, wave: Wave) -> Int[Array, "B T"]:
        """Semantic tokens of a 24 kHz wave, T = ceil(N / 960)."""
        return w2v_bert.semantic_ids(self.config, self.variables, jnp.asarray(wave))


@dataclasses.dataclass(frozen=True, eq=False)
class MuLanTokenizer:
    """MuLan, its vocabulary and its quantizer. variables: {"params", "quantizer": {"audio_mean", "text_mean", "codebooks"}}."""

    config: MuLanConfig
    variables: dict[str, Any]
    text: TextTokenizer

    def embed_audio(self, wave: Wave) -> Float[Array, "B D"]:
        """Unit embeddings of 24 kHz waves: all 10 s windows, one each second, averaged and brought back to length 1."""
        return _mulan_embed_audio(self.config, self.variables["params"], jnp.asarray(wave))

    def embed_semantic(self, tokens: Int[Array, "B T"], *, token_samples: int) -> Float[Array, "B D"]:
        """As `embed_audio`, of semantic tokens of so many samples: variables must have "spectra" [V, M], the log-mel spectra that they stand for."""
        return _mulan_embed_semantic(self.config, self.variables["params"], self.variables["spectra"], tokens, token_samples)

    def embed_text(self, texts: Sequence[str]) -> Float[Array, "B D"]:
        """Unit embeddings of texts. A text of more than `max_tokens` pieces is cut: see `truncated`. UserError if one is empty."""
        ids, mask = self.text.encode(texts, max_tokens=self.config.text.max_tokens)
        return _mulan_embed_text(self.config, self.variables["params"], ids, mask)

    def audio_tokens(self, wave: Wave) -> Int[Array, "B Q"]:
        """MuLan tokens of waves, the conditions in training."""
        return mulan.audio_tokens(self.config, self.variables, self.embed_audio(wave))

    def text_tokens(self, texts: Sequence[str]) -> Int[Array, "B Q"]:
        """MuLan tokens of texts, the conditions at inference."""
        return mulan.text_tokens(self.config, self.variables, self.embed_text(texts))

    def truncated(self, texts: Sequence[str]) -> list[tuple[str, str]]:
        """(text, the part of it that is read) for every text that is longer than the text tower reads."""
        limit = self.config.text.max_tokens
        long = [text for text, count in zip(texts, self.text.num_tokens(texts), strict=True) if count > limit]
        if not long:
            return []
        ids, _ = self.text.encode(long, max_tokens=limit)
        return [(text, self.text.decode(row)) for text, row in zip(long, ids, strict=True)]


_acoustic_encode = jax.jit(codec.encode, static_argnums=0)
_acoustic_decode = jax.jit(codec.decode_stream, static_argnums=0)
_mulan_embed_text = jax.jit(mulan.embed_text, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _mulan_embed_audio(config: MuLanConfig, params: Any, wave: Float[Array, "B N"]) -> Float[Array, "B D"]:
    return mulan.average_windows(mulan.embed_windows(config, params, wave))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _mulan_embed_semantic(config: MuLanConfig, params: Any, spectra: Float[Array, "V M"], tokens: Int[Array, "B T"], token_samples: int) -> Float[Array, "B D"]:
    def embed(tokens):
        return mulan.embed_audio(config, params, mulan.token_mels(config, spectra, tokens, token_samples=token_samples))

    # No longer than the tokens: there is none that stands for silence.
    window, hop = min(config.window_samples // token_samples, tokens.shape[1]), config.hop_samples // token_samples
    return mulan.average_windows(embedders.embed_windows(embed, tokens, window=window, hop=hop))
