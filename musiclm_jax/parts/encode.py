"""Runs frozen models over all clips: token streams, and embeddings of windows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.data.clips import Clip, ClipStore, load_array
from musiclm_jax.data.token_store import Piece, pieces, wave_batches
from musiclm_jax.files import AnyPath
from musiclm_jax.models import embedders
from musiclm_jax.models.melody import MelodyConfig
from musiclm_jax.models.mulan import MuLanConfig
from musiclm_jax.nn.quantize import perplexity
from musiclm_jax.parts.part import Run, Work, deciding
from musiclm_jax.parts.shards import clear, in_shards, save_joined

# Windows in a shard: some minutes of work on a CPU.
_SHARD_WINDOWS = 256
# Codes counted at once.
_CHUNK = 1 << 20


def encode_settings(fit: Any) -> dict[str, Any]:
    """The settings of a FitConfig that decide the tokens of a given model, as JSON."""
    return {"audio": deciding(fit.model.audio), "encode_sec": fit.encode_sec, "encode_context_sec": fit.encode_context_sec}


def tokenize(run: Run, work: Work, encode: Callable[[np.ndarray], Any], *, rate_hz: int, file: str) -> np.ndarray:
    """Tokenizes all clips, and writes the concatenated tokens to `file` in the folder of the step.

    Each clip is padded to a whole number of semantic tokens. Returns the tokens, int16 [sum T] or [sum T, Q] at `rate_hz`, memory-mapped.
    """
    config, spec, clips = run.config, run.config.model.audio, run.clips
    per_step = rate_hz // spec.semantic_rate_hz
    window, context = spec.semantic_tokens(config.encode_sec), spec.semantic_tokens(config.encode_context_sec)
    # No longer than the longest clip, or all would be padding.
    window = min(window, max(-(-clip.length // spec.semantic_samples) for clip in clips.clips))
    context = min(context, window - 1)
    plan = pieces([clip.length for clip in clips.clips], token_samples=spec.semantic_samples, window=window, context=context)

    def make(some: Sequence[Piece]) -> np.ndarray:
        found, where = [], [(piece.clip, piece.start) for piece in some]
        for number, wave in enumerate(wave_batches(clips, where, samples=window * spec.semantic_samples, batch_size=config.encode_batch_size)):
            tokens = np.asarray(encode(wave)).astype(np.int16)
            batch = some[number * config.encode_batch_size :][: config.encode_batch_size]
            found += [row[piece.skip * per_step : (piece.skip + piece.keep) * per_step] for row, piece in zip(tokens, batch)]
        return np.concatenate(found)

    shards = in_shards(work.folder / "shards", plan, make, shard_items=_SHARD_WINDOWS, what="tokens", unit="windows")
    save_joined(work.folder / file, shards)
    clear(work.folder / "shards")
    return load_array(work.folder / file)


def embed_clips(
    run: Run, folder: AnyPath, clips: Sequence[Clip], embed: Callable[..., jax.Array], config: MuLanConfig | MelodyConfig, params: Any
) -> tuple[np.ndarray, list[int]]:
    """Embeddings of all windows of some clips, float32 [sum W, D], and the number W of each clip. embed(config, params, wave [B, N]) -> [B, D].

    Shards are written to `folder`/shards, which the caller clears.
    """
    store = ClipStore(run.clips.samples, tuple(clips), run.clips.sample_rate_hz)
    counts = [embedders.num_windows(clip.length, window=config.window_samples, hop=config.hop_samples) for clip in clips]
    where = [(clip, i * config.hop_samples) for clip, count in enumerate(counts) for i in range(count)]
    embed = jax.jit(functools.partial(embed, config))

    def make(some: Sequence[tuple[int, int]]) -> np.ndarray:
        batches = wave_batches(store, some, samples=config.window_samples, batch_size=run.config.encode_batch_size)
        return np.concatenate([np.asarray(embed(params, wave)) for wave in batches])[: len(some)]

    shards = in_shards(folder / "shards", where, make, shard_items=_SHARD_WINDOWS, what="embeddings", unit="windows")
    return np.concatenate(shards), counts


def in_batches(fn: Callable[..., jax.Array], *arrays: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Applies fn to batches of rows. The last batch is padded to `batch_size`, so that one program is compiled."""
    total, done = len(arrays[0]), []
    for first in range(0, total, batch_size):
        part = [array[first : first + batch_size] for array in arrays]
        done.append(np.asarray(fn(*(np.concatenate([p, np.repeat(p[-1:], batch_size - len(p), axis=0)]) for p in part))))
    return np.concatenate(done)[:total]


def perplexities(codes: np.ndarray, num_codes: int) -> list[float]:
    """`nn.quantize.perplexity` of each level of codes [n, Q], counted in chunks."""
    counts = np.zeros((codes.shape[1], num_codes))
    for first in range(0, len(codes), _CHUNK):
        for level, some in enumerate(codes[first : first + _CHUNK].T):
            counts[level] += np.bincount(some, minlength=num_codes)
    return [float(value) for value in perplexity(jnp.asarray(counts, jnp.float32))]
