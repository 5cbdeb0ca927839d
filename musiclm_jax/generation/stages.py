"""Whole streams from stages that only ever saw crops.

MusicLM (arXiv 2301.11325, section 4.2): the semantic stage works in windows of 30 s, each continuing the last 15 s of the one before. For
the acoustic stages the paper says nothing; SoundStorm's account of the same generator (arXiv 2305.09636, section 4.2) gives 10 s windows with
a 3 s prompt, and AudioLM's fine stage takes 3 s chunks, all in one batch. A last window that would overrun is moved back to end with the
stream, under a longer prompt, so that each stage always sees the lengths that it was trained on; a stream shorter than one window is one
short window.

Every function takes one key per clip. Draws depend on (key, stage, window, index) only: the same keys serve all stages, and a clip is the
same whatever else is in its batch, up to the rounding of products of another size.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Array, Int
from musiclm_jax.errors import UserError
from musiclm_jax.generation.sampler import Decoder, Progress, SamplingConfig, sample_codes
from musiclm_jax.specs import AudioSpec


@dataclasses.dataclass(frozen=True)
class WindowConfig:
    """Lengths of windows, in seconds; each a whole number of semantic tokens. Train each stage on crops of its window."""

    semantic_window_sec: float | int = 30.0
    # New material per window; the rest of the window is what came before.
    semantic_hop_sec: float | int = 15.0
    coarse_window_sec: float | int = 10.0
    coarse_hop_sec: float | int = 7.0
    fine_window_sec: float | int = 3.0
    # Fine windows sampled at once, over all clips: more is faster and takes more memory.
    max_fine_batch: int = 32

    def __post_init__(self):
        for stage in ("semantic", "coarse"):
            window, hop = getattr(self, f"{stage}_window_sec"), getattr(self, f"{stage}_hop_sec")
            if not 0 < hop <= window:
                raise UserError(f"{stage}_hop_sec={hop}, {stage}_window_sec={window}: choose a hop above 0 and at most one window")
        if self.fine_window_sec <= 0 or self.max_fine_batch < 1:
            raise UserError(f"fine_window_sec={self.fine_window_sec}, max_fine_batch={self.max_fine_batch}: both must be positive")


def window_starts(total: int, *, window: int, hop: int) -> list[int]:
    """First steps of the windows that cover `total` steps; the last one ends at `total`."""
    if total <= window:
        return [0]
    return [*range(0, total - window, hop), total - window]


def generate_semantic(
    stage: Decoder,
    params: Any,
    mulan: Int[Array, "B Q"],
    *,
    num_tokens: int,
    keys: jax.Array,
    windows: WindowConfig = WindowConfig(),
    sampling: SamplingConfig = SamplingConfig(),
    audio: AudioSpec = AudioSpec(),
    prompt: Int[Array, "b n"] | None = None,
    on_progress: Progress | None = None,
) -> Int[Array, "B T"]:
    """Semantic tokens [B, num_tokens] for MuLan tokens, of which the first n are `prompt`, in B / b ways each (`sample_codes`). params: the stage's
    trained parameters ("params" of its variables)."""
    codes = _slide(
        stage,
        params,
        lambda start, steps: {"mulan": mulan},
        total=num_tokens,
        window=audio.semantic_tokens(windows.semantic_window_sec),
        hop=audio.semantic_tokens(windows.semantic_hop_sec),
        keys=keys,
        sampling=sampling,
        codes=None if prompt is None else prompt[..., None],
        on_progress=on_progress,
    )
    return codes[:, :, 0]


def generate_coarse(
    stage: Decoder,
    params: Any,
    mulan: Int[Array, "B Qm"],
    semantic: Int[Array, "B T"],
    *,
    keys: jax.Array,
    windows: WindowConfig = WindowConfig(),
    sampling: SamplingConfig = SamplingConfig(temperature=0.95),
    audio: AudioSpec = AudioSpec(),
    on_progress: Progress | None = None,
) -> Int[Array, "B T50 Q"]:
    """The first codec levels, for the whole duration of the semantic tokens: [B, T * frames_per_semantic, coarse levels]."""
    ratio = audio.frames_per_semantic
    return _slide(
        stage,
        params,
        lambda start, steps: {"mulan": mulan, "semantic": semantic[:, start // ratio : (start + steps) // ratio]},
        total=semantic.shape[1] * ratio,
        window=audio.frames(windows.coarse_window_sec),
        hop=audio.frames(windows.coarse_hop_sec),
        keys=keys,
        sampling=sampling,
        on_progress=on_progress,
    )


def generate_fine(
    stage: Decoder,
    params: Any,
    coarse: Int[Array, "B T Q"],
    *,
    mulan: Int[Array, "B Qm"] | None = None,
    keys: jax.Array,
    windows: WindowConfig = WindowConfig(),
    sampling: SamplingConfig = SamplingConfig(temperature=0.4),
    audio: AudioSpec = AudioSpec(),
    on_progress: Progress | None = None,
) -> Int[Array, "B T Qall"]:
    """All codec levels: the coarse codes and the fine ones that belong to them. Windows do not overlap and run as one batch.

    mulan: only for a layout whose fine stage sees MuLan tokens.
    """
    batch, total, _ = coarse.shape
    window = min(total, audio.frames(windows.fine_window_sec))
    starts = window_starts(total, window=window, hop=window)
    # [B, T, Q] -> [B * W, window, Q], clip by clip
    streams = {"acoustic": jnp.stack([coarse[:, s : s + window] for s in starts], axis=1).reshape(-1, window, coarse.shape[2])}
    if mulan is not None:
        streams["mulan"] = jnp.repeat(mulan, len(starts), axis=0)
    prefix_ids = stage.layout.prefix_ids(streams)
    window_keys = _fold(keys, stage.layout.name)
    window_keys = jnp.stack([jax.vmap(jax.random.fold_in, (0, None))(window_keys, s) for s in starts], axis=1).reshape(batch * len(starts))

    params = stage.prepare(params)
    groups = -(-prefix_ids.shape[0] // windows.max_fine_batch)
    size = -(-prefix_ids.shape[0] // groups)  # groups of one size, or each size would be compiled
    steps = window * stage.layout.target.levels
    parts = []
    for group in range(groups):
        rows = jnp.minimum(jnp.arange(group * size, (group + 1) * size), prefix_ids.shape[0] - 1)
        progress = _offset(on_progress, group * steps, groups * steps)
        parts.append(
            sample_codes(stage, params, prefix_ids[rows], num_steps=window, keys=window_keys[rows], sampling=sampling, on_progress=progress)
        )
    fine = jnp.concatenate(parts)[: prefix_ids.shape[0]].reshape(batch, len(starts), window, -1)
    stream = jnp.concatenate([fine[:, i, : end - s] for i, (s, end) in enumerate(zip(starts, [*starts[1:], total]))], axis=1)
    return jnp.concatenate([coarse, stream], axis=2)


def _slide(
    stage: Decoder,
    params: Any,
    conditions: Callable[[int, int], Mapping[str, jax.Array]],
    *,
    total: int,
    window: int,
    hop: int,
    keys: jax.Array,
    sampling: SamplingConfig,
    codes: Int[Array, "b n Q"] | None = None,
    on_progress: Progress | None,
) -> Int[Array, "B T Q"]:
    """One window after the other, each prompted with what the windows before it say about its beginning.

    conditions: (first step, number of steps) of a window -> its streams. codes: those that are known, of the first n < T steps, each for B / b rows.
    """
    params = stage.prepare(params)
    window = min(window, total)
    levels = stage.layout.target.levels
    stage_keys = _fold(keys, stage.layout.name)
    for start in window_starts(total, window=window, hop=hop):
        done = 0 if codes is None else codes.shape[1]
        if start + window <= done:
            continue
        piece = sample_codes(
            stage,
            params,
            stage.layout.prefix_ids(conditions(start, window)),
            num_steps=window,
            keys=jax.vmap(jax.random.fold_in, (0, None))(stage_keys, start),
            sampling=sampling,
            prompt=None if codes is None or done == start else codes[:, start:],
            on_progress=_offset(on_progress, done * levels, total * levels),
        )
        new = piece[:, done - start :]
        codes = new if codes is None else jnp.concatenate([jnp.repeat(codes, len(new) // len(codes), axis=0), new], axis=1)
    return codes


def _fold(keys: jax.Array, name: str) -> jax.Array:
    """The keys of one stage, so that stages that share a clip's key draw independently."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, zlib.crc32(name.encode()))


def _offset(on_progress: Progress | None, before: int, total: int) -> Progress | None:
    return on_progress and (lambda done, _: on_progress(before + done, total))
