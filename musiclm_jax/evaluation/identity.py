"""Names that change with the weights and the settings of a model, by which results of another model are recognized."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import numpy as np

from musiclm_jax.musiclm import MusicLM
from musiclm_jax.records import to_dict


def _digest(settings: Any, variables: Any) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()[:8]


def tokenizer_name(musiclm: MusicLM) -> str:
    """Of what decides the semantic tokens."""
    return f"w2v-bert@{_digest(to_dict(musiclm.config.w2v_bert), musiclm.variables('w2v_bert'))}"


def model_name(musiclm: MusicLM) -> str:
    """Of what decides the music."""
    return f"musiclm@{_digest(musiclm.config.to_dict(), {name: musiclm.variables(name) for name in musiclm.models})}"
