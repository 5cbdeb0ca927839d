"""What a caller asks of generation: checked before anything is loaded or computed."""

from __future__ import annotations

import collections
import dataclasses
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from musiclm_jax.errors import UserError
from musiclm_jax.generation.sampler import Keys, SamplingConfig

MAX_SECONDS = 300
# Clips drawn at once for all prompts together, candidates and drafts included.
MAX_ROWS = 4096
# Of all clips and their candidates together: ten hours, whose waves take 3.5 GB.
MAX_TOTAL_SECONDS = 36_000


@dataclasses.dataclass(frozen=True)
class Music:
    """Clips. Unpacks as (wave, sample_rate_hz).

    Fields: wave: float32 [B, N] in [-1, 1], all samples of the first prompt, then of the second, ... prompts: the prompt of each row.
    """

    wave: np.ndarray
    sample_rate_hz: int
    prompts: tuple[str, ...]

    def __iter__(self) -> Iterator:
        return iter((self.wave, self.sample_rate_hz))


def check_request(
    prompts: Sequence[str | None],
    *,
    seconds: float | int,
    seed: int = 0,
    num_samples: int = 1,
    num_candidates: int | None = None,
    num_drafts: int | None = None,
) -> None:
    """Raises UserError for what no model can do. The arguments are those of `MusicLM.generate`."""
    if isinstance(prompts, str):
        raise ValueError(f"expected a list of prompts, got one string: pass [{prompts!r}]")
    if not prompts:
        raise UserError("there is no prompt; describe the music in a few words, such as 'a calm piano melody'")
    for number, prompt in enumerate(prompts, start=1):
        if prompt is None:
            continue
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {number} is {prompt!r}, expected a string")
        if not prompt.strip():
            raise UserError(f"prompt {number} is empty; describe the music in a few words, such as 'a calm piano melody'")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UserError(f"prompt {number} is no valid UTF-8: {prompt.encode(errors='backslashreplace').decode()!r}; type it again") from None
    if not 0 < seconds <= MAX_SECONDS:  # Neither is nan.
        raise UserError(f"seconds={seconds:g}: choose a number above 0 and up to {MAX_SECONDS}")
    for name, number in (("samples", num_samples), ("candidates", num_candidates), ("drafts", num_drafts)):
        if number is not None and number < 1:
            raise UserError(f"{name}={number}: choose 1 or more")
    rows = len(prompts) * num_samples * (num_candidates or 1) * (num_drafts or 1)
    if rows > MAX_ROWS:
        raise UserError(f"{rows} clips at once, candidates and drafts counted: at most {MAX_ROWS} are drawn together; ask for fewer, several times")
    if (total := seconds * len(prompts) * num_samples * (num_candidates or 1)) > MAX_TOTAL_SECONDS:
        raise UserError(f"{total:g} s of music at once, candidates counted: at most {MAX_TOTAL_SECONDS} s are made together; ask for fewer, several times")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: choose a whole number from 0 to {2**32 - 1}")


def resolve_sampling(defaults: Mapping[str, SamplingConfig], overrides: Mapping[str, Any] | None) -> dict[str, SamplingConfig]:
    """Each stage's SamplingConfig: the default, or what `overrides` has for the stage: a SamplingConfig, or a dict of the fields to change."""
    resolved = dict(defaults)
    for stage, override in (overrides or {}).items():
        if stage not in resolved:
            raise UserError(f"sampling of {stage!r}: choose one of {', '.join(resolved)}")
        if not isinstance(override, SamplingConfig):
            override = dataclasses.replace(resolved[stage], **{name: _sampling_number(stage, name, value) for name, value in override.items()})
        resolved[stage] = override
    return resolved


def _sampling_number(stage: str, name: str, value: float | int) -> float | int:
    fields = {field.name: type(field.default) for field in dataclasses.fields(SamplingConfig)}
    if name not in fields:
        raise UserError(f"sampling of {stage} has no {name!r}: choose from {', '.join(fields)}")
    if not math.isfinite(value) or fields[name](value) != value:
        raise UserError(f"{name}={value} of the {stage} stage: choose a {'whole' if fields[name] is int else 'finite'} number")
    return fields[name](value)


def clip_keys(prompts: Sequence[str], *, seed: int) -> Keys:
    """One key per clip, from the seed, the prompt and the clip's number among those of the same prompt. Prompts that the model reads alike should be
    equal here: `TextTokenizer.normalize`."""
    seen: collections.Counter[str] = collections.Counter()
    numbers = []
    for prompt in prompts:
        numbers.append((zlib.crc32(prompt.encode()), seen[prompt]))
        seen[prompt] += 1
    return np.asarray(_fold_clips(np.uint32(seed), np.array(numbers, np.uint32)))


@jax.jit
def _fold_clips(seed: jax.Array, numbers: jax.Array) -> jax.Array:
    fold = lambda pair: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), pair[0]), pair[1])  # noqa: E731
    return jax.random.key_data(jax.vmap(fold)(numbers))
