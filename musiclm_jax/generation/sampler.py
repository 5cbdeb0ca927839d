"""Sampling from a decoder with a cache. Knows next-code logits and a token layout, and nothing of music.

One pass over the prefix fills the cache, then a loop inside jit draws one code per step. Attention looks at the whole cache, so the cache
grows with the sequence, in at most `MAX_BUCKETS` sizes: each size is one compilation of the step. The draw at target index i of row b uses
fold_in(keys[b], i) and nothing else, so that a row does not depend on the rows beside it, nor on how the loop is cut, nor on where it ends.

What goes in and comes out is NumPy: on the host nothing is compiled.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.arrays import Array, Float, Int, Shaped
from musiclm_jax.checks import FINITE, STEPS, check_numbers
from musiclm_jax.errors import UserError
from musiclm_jax.generation import devices
from musiclm_jax.tokens import StageLayout

# Cache sizes per sequence, and the least length that is worth one more: compile time against attention over empty slots.
MAX_BUCKETS = 3
MIN_BUCKET = 256
# With a progress callback the loop pauses this often.
PROGRESS_STEPS = 50

Progress = Callable[[int, int], None]
# Random keys on the host, one per row: what `jax.random.key_data` gives.
Keys = Shaped[np.ndarray, "B _"]


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How to draw a code from logits. MusicLM: temperature 1.0 semantic, 0.95 coarse, 0.4 fine (arXiv 2301.11325, section 4.2)."""

    # Divides the logits. 0: always the most likely code.
    temperature: float = 1.0
    # Keep the k most likely codes. 0: all.
    top_k: int = 0
    # Keep the most likely codes that together reach this probability. 1: all.
    top_p: float = 1.0
    # Classifier-free guidance (arXiv 2207.12598): logits = without + guidance * (with - without the conditions). 1: off; more doubles the work. What a
    # prompt excludes takes the place of "without" (`wishes`).
    # Only for a stage whose training withheld its conditions now and then (`StageSpec.prefix_dropout`).
    guidance: float = 1.0

    def __post_init__(self):
        check_numbers(self, temperature=FINITE, top_p=FINITE, guidance=FINITE, top_k=STEPS)
        if self.temperature < 0:
            raise UserError(f"temperature={self.temperature}: choose 0 (most likely code) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: choose a probability in (0, 1]")
        if self.guidance < 0:
            raise UserError(f"guidance={self.guidance}: choose 1 (off) or more; 0 ignores the prompt")


@runtime_checkable
class Decoder(Protocol):
    """What the sampler needs of a model; hashable, hence a static argument of jit (`models.stage.StageDecoder` is one)."""

    layout: StageLayout

    def prepare(self, params: Any) -> Any:
        """Trained parameters -> what `__call__` takes."""
        ...

    def init_cache(self, batch: int, length: int) -> Any: ...

    def grow_cache(self, cache: Any, length: int) -> Any: ...

    def branch_cache(self, cache: Any, batch: int) -> Any:
        """A cache of b rows -> one of `batch` rows, of which batch / b continue each of b; no room for more yet."""
        ...

    def __call__(self, params: Any, ids: Array, cache: Any, *, num_steps: int, position: Any, level: Any) -> tuple[Array, Any]:
        """Ids [B, T] at [position, position + T) of a sequence with `num_steps` target steps -> float32 logits [B, C] of the next code, of level
        `level`; new cache."""
        ...


@flax.struct.dataclass
class DecodeState:
    """Fields: codes: [B, n] int32, the target so far, flat; cache: the decoder's."""

    codes: jax.Array
    cache: Any


def filter_logits(logits: Float[Array, "B C"], *, top_k: int = 0, top_p: float = 1.0) -> Float[Array, "B C"]:
    """Logits with everything outside the top k, then outside the top-p nucleus of what remains, at -inf. Ties at the edge stay."""
    if 0 < top_k < logits.shape[-1]:
        smallest = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    if top_p < 1:
        ordered = -jnp.sort(-logits, axis=-1)
        probability = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability  # of all codes that are more likely
        smallest = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    return logits


def draw(logits: Float[Array, "B C"], keys: jax.Array, config: SamplingConfig) -> Int[Array, "B"]:
    """One code per row, with one key per row."""
    if config.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = filter_logits(logits / config.temperature, top_k=config.top_k, top_p=config.top_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def cache_lengths(total: int) -> list[int]:
    """Sizes the cache goes through while a sequence grows to `total` positions."""
    buckets = min(MAX_BUCKETS, math.ceil(total / MIN_BUCKET))
    return [math.ceil(total * (i + 1) / buckets) for i in range(buckets)]


def sample_codes(
    decoder: Decoder,
    params: devices.Weights,
    prefix_ids: Int[np.ndarray, "G P"],
    *,
    num_steps: int,
    keys: Keys,
    until: int | None = None,
    sampling: SamplingConfig = SamplingConfig(),
    prompt: Int[np.ndarray, "G n Q"] | None = None,
    free_ids: Int[np.ndarray, "G P"] | None = None,
    on_progress: Progress | None = None,
) -> Int[np.ndarray, "B T Q"]:
    """Target codes of the first T = `until` time steps of a sequence with `num_steps`, the first n of which are `prompt`.

    Each of G beginnings (prefix and prompt) is read once, and continued by the B / G rows that follow each other in `keys`.

    Args:
        params: what the decoder's `__call__` takes (`Decoder.prepare`).
        prefix_ids: the conditions, as ids (`StageLayout.prefix_ids`).
        keys: random keys, one per row.
        until: None: num_steps. The programs are those of num_steps, so that fewer steps are the beginning of more.
        prompt: codes that are already known.
        free_ids: the prefix that guidance pushes away from. None: that without conditions.
        on_progress: called with (codes drawn, codes to draw), from the host, about every `PROGRESS_STEPS` codes.
    """
    levels = decoder.layout.target.levels
    groups, prefix_length = prefix_ids.shape
    until = num_steps if until is None else until
    known = 0 if prompt is None else prompt.shape[1] * levels
    total = until * levels
    if not known < total <= num_steps * levels:
        raise ValueError(f"the prompt has {known // levels} steps, until={until}, num_steps={num_steps}: nothing to draw, or too much")
    if prompt is not None and prompt.shape[0] != groups or len(keys) % groups:
        raise ValueError(f"{len(keys)} keys and {None if prompt is None else len(prompt)} prompts for {groups} prefixes: expected a multiple, and as many")
    ways = len(keys) // groups
    codes = np.zeros((len(keys), num_steps * levels), np.int32)
    if prompt is not None:
        codes[:, :known] = np.repeat(prompt.reshape(groups, known), ways, axis=0)
    free_ids = np.full_like(prefix_ids, decoder.layout.mask_id) if free_ids is None else free_ids
    mesh = devices.row_mesh(groups)
    params = params.on(mesh)
    prefix_ids, free_ids, prompt, codes, keys = devices.put_rows((prefix_ids, free_ids, prompt, codes, keys), mesh)

    state = _prefill(decoder, params, prefix_ids, free_ids, prompt, codes, keys, sampling, num_steps)
    if on_progress:
        state.codes.block_until_ready()
        on_progress(1, total - known)
    done = known + 1  # the cache holds positions [0, prefix_length + done - 1)
    shared = prefix_length + known if ways > 1 else 0  # of these positions, kept once
    for length in cache_lengths(prefix_length + num_steps * levels - shared):
        length += shared
        stop = min(total, length - prefix_length + 1)  # drawing code i writes position prefix_length + i - 1
        if stop <= done:
            continue
        state = devices.put_rows(_grow(decoder, state, length), mesh)
        while done < stop:
            pause = min(stop, done + PROGRESS_STEPS) if on_progress else stop
            state = _decode(decoder, params, state, keys, sampling, num_steps, ways, prefix_length, done, pause)
            done = pause
            if on_progress:
                state.codes.block_until_ready()
                on_progress(done - known, total - known)
    return np.asarray(jax.device_get(state.codes))[:, :total].reshape(-1, until, levels)


def _draw_next(logits: jax.Array, keys: jax.Array, index: jax.Array | int, sampling: SamplingConfig, ways: int) -> jax.Array:
    if sampling.guidance != 1:
        conditional, free = (logits.reshape(-1, 2, ways, logits.shape[-1])[:, i].reshape(len(keys), -1) for i in range(2))
        logits = free + sampling.guidance * (conditional - free)
    return draw(logits, jax.vmap(jax.random.fold_in, (0, None))(jax.random.wrap_key_data(keys), index), sampling)


def _guided(ids: Int[Array, "B T"], free: Int[Array, "B T"], sampling: SamplingConfig, ways: int = 1) -> Int[Array, "R T"]:
    """The decoder's rows: with guidance, the `ways` of one beginning with its conditions, then without, then those of the next one. So rows of one
    clip are on one device."""
    if sampling.guidance == 1:
        return ids
    return jnp.stack([x.reshape(-1, ways, x.shape[-1]) for x in (ids, free)], axis=1).reshape(-1, ids.shape[-1])


@functools.partial(jax.jit, static_argnames=("decoder", "sampling", "num_steps"))
def _prefill(decoder, params, prefix_ids, free_ids, prompt, codes, keys, sampling, num_steps) -> DecodeState:
    """The prefix and prompt into a cache of exactly their length, which branches if there are more rows of codes, and the first code."""
    layout, known = decoder.layout, 0
    ids = _guided(prefix_ids, free_ids, sampling)
    if prompt is not None:
        known = prompt.shape[1] * prompt.shape[2]
        prompt_ids = layout.to_ids(len(layout.prefix), prompt)
        ids = jnp.concatenate([ids, _guided(prompt_ids, prompt_ids, sampling)], axis=1)
    logits, cache = decoder(params, ids, decoder.init_cache(*ids.shape), num_steps=num_steps, position=0, level=0)
    ways = len(codes) // len(prefix_ids)
    if ways > 1:
        logits, cache = jnp.repeat(logits, ways, axis=0), decoder.branch_cache(cache, len(ids) * ways)
    return DecodeState(codes.at[:, known].set(_draw_next(logits, keys, known, sampling, ways)), cache)


@functools.partial(jax.jit, static_argnames=("decoder", "length"))
def _grow(decoder, state, length) -> DecodeState:
    return state.replace(cache=decoder.grow_cache(state.cache, length))


@functools.partial(jax.jit, static_argnames=("decoder", "sampling", "num_steps", "ways"), donate_argnames="state")
def _decode(decoder, params, state, keys, sampling, num_steps, ways, prefix_length, start, stop) -> DecodeState:
    """Codes [start, stop), one after the other. The bounds are traced: one compilation per cache length."""
    target = decoder.layout.target

    def step(index, state):
        last_level = (index - 1) % target.levels
        last = jax.lax.dynamic_slice_in_dim(state.codes, index - 1, 1, axis=1)
        ids = last + decoder.layout.target_offset + target.codes * last_level
        ids = _guided(ids, ids, sampling, ways)
        position = prefix_length + index - 1
        level = index % target.levels
        logits, cache = decoder(params, ids, state.cache, num_steps=num_steps, position=position, level=level)
        code = _draw_next(logits, keys, index, sampling, ways)
        return DecodeState(jax.lax.dynamic_update_slice_in_dim(state.codes, code[:, None], index, axis=1), cache)

    return jax.lax.fori_loop(start, stop, step, state)
