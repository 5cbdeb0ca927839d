"""What the benchmarks of free prompts share: 100 prompts in people's own words (free_prompts.json), with what one would expect of their music."""

from __future__ import annotations

import json
from pathlib import Path

from musiclm_jax.corpus.synthesized.attributes import NEAREST_INSTRUMENTS


def read_prompts() -> list[dict]:
    """The prompts. Each has a text, and of each attribute what is expected: a value, a list of values of which any is right, or None."""
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def values(wanted) -> list:
    """What is expected of an attribute, as a list of values of which any is right; empty if the prompt leaves it open."""
    return wanted if isinstance(wanted, list) else [] if wanted is None else [wanted]


def nearest(families: str | list[str] | None) -> list[str] | None:
    """The instruments of the synthesized corpus that are nearest to these families."""
    return [NEAREST_INSTRUMENTS.get(family, family) for family in values(families)] or None
