"""Retrieval of melodies in other renderings: whether the melody embedder represents the melody or the instruments that play it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax import bundle
from musiclm_jax.arrays import Float, Int
from musiclm_jax.audio.features import log_mel
from musiclm_jax.data.clips import Clip, ClipStore
from musiclm_jax.data.pairs import renderings
from musiclm_jax.data.token_store import wave_batches
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.tables import Table, number, page
from musiclm_jax.files import AnyPath, as_path, read_json
from musiclm_jax.models import melody
from musiclm_jax.models.melody import MelodyConfig
from musiclm_jax.nn.quantize import rvq_decode
from musiclm_jax.records import from_dict

_BATCH_SIZE = 16


def ranks(vectors: Float[np.ndarray, "R M W D"]) -> Int[np.ndarray, "R M W"]:
    """The rank of the right melody for each query, by cosine similarity. 1 is the best rank.

    The query is window w of rendering r of melody m; the candidates are the windows w of the next rendering (the first one after the last) of all M
    melodies. Candidates with the same similarity as the right one count as better.
    """
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    cosines = np.einsum("rmwd,rnwd->rwmn", vectors, np.roll(vectors, -1, axis=0))
    right = np.diagonal(cosines, axis1=2, axis2=3)
    return np.sum(cosines >= right[..., None], axis=-1).swapaxes(1, 2)


def scores(places: Int[np.ndarray, "*R"]) -> dict[str, float]:
    """Recall at 1, recall at 10 and mean reciprocal rank of ranks that count from 1."""
    return {"recall_at_1": float(np.mean(places <= 1)), "recall_at_10": float(np.mean(places <= 10)), "mean_reciprocal_rank": float(np.mean(1 / places))}


def load_embedder(workdir: str | AnyPath) -> tuple[MelodyConfig, dict[str, Any]]:
    """Loads the embedder that `musiclm train melody` wrote to `workdir`. Returns (its config, its variables {"params", "quantizer"}).

    Raises:
        UserError: there is no such embedder, or its files are damaged.
    """
    folder = as_path(workdir) / "melody"
    if not (folder / "done.json").exists():
        raise UserError(f"{workdir} has no trained melody embedder: run `musiclm train melody DATA --workdir {workdir}` first")
    try:
        config = from_dict(MelodyConfig, read_json(folder / "config.json"), where="melody")
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise UserError(f"{folder / 'config.json'} is damaged: delete it, and `musiclm train melody` makes it again") from error
    variables, _ = bundle.read_arrays(folder / "variables.safetensors")
    bundle.check_shapes(variables, melody.variable_shapes(config), where=f"{folder / 'variables.safetensors'}")
    return config, jax.tree.map(jnp.asarray, variables)


def evaluate_melody(workdir: str | AnyPath, *, progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Evaluates the embedder that `musiclm train melody` wrote to `workdir` by retrieval among the held-out melodies (see `ranks`).

    The numbers of renderings and windows are those that all melodies have.

    Args:
        workdir: the work folder.
        progress: called with one line per batch.

    Returns:
        A report of plain JSON types: "num_melodies" M, "num_renderings" R, "num_windows" W, "window_sec", and "rows", each the `scores` of one
        vector per window: "embedding"; "codes", the quantized embedding; "log_mel", the mean log-mel of the window, standardized per band over all
        windows; and "chance".

    Raises:
        UserError: there is no trained embedder, or there are fewer than two held-out melodies with two renderings.
    """
    config, variables = load_embedder(workdir)
    store = ClipStore.open(as_path(workdir) / "prepare")
    melodies = renderings(store, "test")
    if len(melodies) < 2:
        raise UserError(f"{workdir} has {len(melodies)} held-out melodies with two renderings, expected at least 2: give more clips the split 'test'")
    vectors = _vectors(config, variables, store, melodies, progress)
    rows = {name: scores(ranks(each)) for name, each in vectors.items()}
    num_renderings, num_melodies, num_windows, _ = vectors["embedding"].shape
    return {
        "num_melodies": num_melodies,
        "num_renderings": num_renderings,
        "num_windows": num_windows,
        "window_sec": config.window_sec,
        # In a random order all ranks have the same probability.
        "rows": rows | {"chance": scores(np.arange(1, num_melodies + 1))},
    }


def _vectors(
    config: MelodyConfig, variables: Any, store: ClipStore, melodies: list[list[Clip]], progress: Callable[[str], None]
) -> dict[str, Float[np.ndarray, "R M W D"]]:
    """The vectors of all windows: "embedding", "codes" and "log_mel" of `evaluate_melody`."""
    shape = (
        min(len(clips) for clips in melodies),
        len(melodies),
        min(melody.num_windows(config, clip.length) for clips in melodies for clip in clips),
    )

    @jax.jit
    def embed(variables, wave):
        embedding = melody.embed(config, variables["params"], wave)
        decoded = rvq_decode(variables["quantizer"]["codebooks"], melody.tokens(config, variables, embedding))
        return {"embedding": embedding, "codes": decoded, "log_mel": jnp.mean(log_mel(wave, config.mel), axis=1)}

    numbers = {clip.file_name: i for i, clip in enumerate(store.clips)}
    where = [(numbers[melodies[m][r].file_name], w * config.hop_samples) for r, m, w in np.ndindex(shape)]
    found = []
    for wave in wave_batches(store, where, samples=config.window_samples, batch_size=_BATCH_SIZE):
        found.append(jax.device_get(embed(variables, wave)))
        progress(f"embedding window {min(len(found) * _BATCH_SIZE, len(where))} of {len(where)}")
    vectors = {name: np.concatenate([each[name] for each in found])[: len(where)] for name in found[0]}
    log_mels = vectors["log_mel"]
    vectors["log_mel"] = (log_mels - log_mels.mean(axis=0)) / np.maximum(log_mels.std(axis=0), 1e-6)
    return {name: each.reshape(*shape, -1) for name, each in vectors.items()}


def format_melody_report(report: dict[str, Any]) -> str:
    """The report as a table in plain text."""
    titles = {"embedding": "embedding", "codes": "its codes", "log_mel": "mean log-mel", "chance": "chance"}
    keys = ("recall_at_1", "recall_at_10", "mean_reciprocal_rank")
    rows = tuple((titles[name], *(number(row[key]) for key in keys)) for name, row in report["rows"].items())
    title = f"{report['num_melodies']} held-out melodies, {report['num_renderings']} renderings, {report['num_windows']} windows of {report['window_sec']:g} s"
    return page(title, Table(("", "recall@1", "recall@10", "mean reciprocal rank"), rows).text())
