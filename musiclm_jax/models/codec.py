"""The interface of all codecs: waves to codes and back.

`variables` is {"params": ..., "quantizer": {"codebooks": [Q, C, D]}}, the content of codec.safetensors.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta

from musiclm_jax.arrays import Array, Float, Int
from musiclm_jax.models.soundstream import SoundStream, SoundStreamConfig
from musiclm_jax.models.spectral_codec import SpectralCodec, SpectralCodecConfig
from musiclm_jax.nn.conv import Past
from musiclm_jax.nn.quantize import rvq_decode, rvq_encode

CodecConfig = SoundStreamConfig | SpectralCodecConfig


def module(config: CodecConfig) -> SoundStream | SpectralCodec:
    """The Flax module of a codec, with the methods encode, decode and decode_chunk between waves and latents."""
    return SpectralCodec(config) if isinstance(config, SpectralCodecConfig) else SoundStream(config)


def encode(config: CodecConfig, variables: dict[str, Any], wave: Float[Array, "B N"]) -> Int[Array, "B T Q"]:
    """Codes of a wave, int32 in [0, C), T = ceil(N / frame_samples)."""
    latents = module(config).apply({"params": variables["params"]}, wave, method="encode")
    return rvq_encode(variables["quantizer"]["codebooks"], latents)


def decode(config: CodecConfig, variables: dict[str, Any], codes: Int[Array, "B T q"]) -> Float[Array, "B N"]:
    """Decodes codes to a wave, N = T * frame_samples. The first q < Q levels give a coarser wave."""
    latents = rvq_decode(variables["quantizer"]["codebooks"], codes)
    return module(config).apply({"params": variables["params"]}, latents, method="decode")


def init_stream(config: CodecConfig, variables: dict[str, Any], batch: int) -> Past:
    """The initial carry of `decode_stream`, for `batch` waves."""
    latents = jax.ShapeDtypeStruct((batch, 1, config.dim), jnp.float32)
    apply = lambda x: module(config).apply({"params": variables["params"]}, x, None, method="decode_chunk")[1]  # noqa: E731
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(apply, latents))


def decode_stream(config: CodecConfig, variables: dict[str, Any], codes: Int[Array, "B T q"], carry: Past) -> tuple[Float[Array, "B N"], Past]:
    """Decodes the next chunk of codes, of any length T >= 1. Returns (wave, new carry). All chunks together equal `decode` of all codes."""
    latents = rvq_decode(variables["quantizer"]["codebooks"], codes)
    return module(config).apply({"params": variables["params"]}, latents, carry, method="decode_chunk")


def variable_shapes(config: CodecConfig) -> dict[str, Any]:
    """The shapes of `variables`, as a nested dict of ShapeDtypeStructs."""
    wave = jax.ShapeDtypeStruct((1, 4 * config.frame_samples), jnp.float32)
    params = jax.eval_shape(module(config).init, jax.eval_shape(lambda: jax.random.key(0)), wave)["params"]
    return {"params": meta.unbox(params), "quantizer": {"codebooks": jax.ShapeDtypeStruct((config.num_levels, config.num_codes, config.dim), jnp.float32)}}
