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
from musiclm_jax.generation.devices import put_rows, row_mesh
from musiclm_jax.models import embedders
from musiclm_jax.models.melody import MelodyConfig
from musiclm_jax.models.mulan import MuLanConfig
from musiclm_jax.nn.quantize import perplexity
from musiclm_jax.parts.part import Run, Work, deciding, on_each_device
from musiclm_jax.parts.shards import clear, in_shards, save_joined
from musiclm_jax.training import hosts

# Windows in a shard: some minutes of work on a CPU.
_SHARD_WINDOWS = 256
# Codes counted at once.
_CHUNK = 1 << 20


def encode_settings(fit: Any) -> dict[str, Any]:
    """The settings of a FitConfig that decide the tokens of a given model, as JSON."""
    return {"audio": deciding(fit.model.audio), "encode_sec": fit.encode_sec, "encode_context_sec": fit.encode_context_sec}


def split_rows(*arrays: np.ndarray) -> tuple[jax.Array, ...]:
    """The arrays on the devices of this process, their rows split over them. The last row is repeated until the rows split evenly."""
    count = jax.local_device_count()
    pad = [(0, -len(arrays[0]) % count)]
    return put_rows(tuple(np.pad(array, pad + [(0, 0)] * (array.ndim - 1), mode="edge") for array in arrays), row_mesh(count))


def _batch_size(run: Run) -> int:
    """`encode_batch_size`, raised to a multiple of the devices of this process."""
    count = jax.local_device_count()
    return -(-run.config.encode_batch_size // count) * count


def tokenize(run: Run, work: Work, encode: Callable[[np.ndarray], Any], *, rate_hz: int, file: str, store: ClipStore | None = None) -> np.ndarray:
    """Tokenizes all clips, or those of `store`, and writes the concatenated tokens to `file` in the folder of the step.

    Each clip is padded to a whole number of semantic tokens. Returns the tokens, int16 [sum T] or [sum T, Q] at `rate_hz`, memory-mapped.
    """
    config, spec, clips, batch_size = run.config, run.config.model.audio, store or run.clips, _batch_size(run)
    per_step = rate_hz // spec.semantic_rate_hz
    window, context = spec.semantic_tokens(config.encode_sec), spec.semantic_tokens(config.encode_context_sec)
    # No longer than the longest clip, or all would be padding.
    window = min(window, max(-(-clip.length // spec.semantic_samples) for clip in clips.clips))
    context = min(context, window - 1)
    plan = pieces([clip.length for clip in clips.clips], token_samples=spec.semantic_samples, window=window, context=context)

    def make(some: Sequence[Piece]) -> np.ndarray:
        found, where = [], [(piece.clip, piece.start) for piece in some]
        for number, wave in enumerate(wave_batches(clips, where, samples=window * spec.semantic_samples, batch_size=batch_size)):
            tokens = np.asarray(encode(*split_rows(wave))).astype(np.int16)
            batch = some[number * batch_size :][:batch_size]
            found += [row[piece.skip * per_step : (piece.skip + piece.keep) * per_step] for row, piece in zip(tokens, batch)]
        return np.concatenate(found)

    shards = in_shards(work.folder / "shards", plan, make, shard_items=_SHARD_WINDOWS, what="tokens", unit="windows")
    hosts.first(lambda: save_joined(work.folder / file, shards))
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
    embed, params = jax.jit(functools.partial(embed, config)), on_each_device(params)

    def make(some: Sequence[tuple[int, int]]) -> np.ndarray:
        batches = wave_batches(store, some, samples=config.window_samples, batch_size=_batch_size(run))
        return np.concatenate([np.asarray(embed(params, *split_rows(wave))) for wave in batches])[: len(some)]

    shards = in_shards(folder / "shards", where, make, shard_items=_SHARD_WINDOWS, what="embeddings", unit="windows")
    return np.concatenate(shards), counts


def in_batches(fn: Callable[..., jax.Array], *arrays: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Applies fn to batches of rows, split over the devices. The last batch is padded to `batch_size`, so that one program is compiled."""
    total, done = len(arrays[0]), []
    for first in range(0, total, batch_size):
        part = [array[first : first + batch_size] for array in arrays]
        padded = (np.concatenate([p, np.repeat(p[-1:], batch_size - len(p), axis=0)]) for p in part)
        done.append(np.asarray(fn(*split_rows(*padded)))[:batch_size])
    return np.concatenate(done)[:total]


def perplexities(codes: np.ndarray, num_codes: int) -> list[float]:
    """`nn.quantize.perplexity` of each level of codes [n, Q], counted in chunks."""
    counts = np.zeros((codes.shape[1], num_codes))
    for first in range(0, len(codes), _CHUNK):
        for level, some in enumerate(codes[first : first + _CHUNK].T):
            counts[level] += np.bincount(some, minlength=num_codes)
    return [float(value) for value in perplexity(jnp.asarray(counts, jnp.float32))]
