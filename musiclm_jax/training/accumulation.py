"""Gradients of large batches from micro-batches, one after the other on the same devices: memory for the activations of one micro-batch.

`mean_over` is for losses that are means over examples: the gradients of the micro-batches are averaged. A contrastive loss compares each example with all
others of its batch, so its gradients do not add up. `embed_in_parts` is for those: it keeps the embeddings of all micro-batches and embeds each again in the
backward pass (GradCache, arXiv 2101.06983). Both give the gradient of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax.arrays import Key
from musiclm_jax.partitioning import constrain

Loss = Callable[[Any], tuple[jax.Array, dict[str, jax.Array]]]


def mean_over(loss: Callable[[Any, Any, Key | None], tuple[jax.Array, dict[str, jax.Array]]], batch: Any, rng: Key | None, count: int) -> Loss:
    """The mean of loss(params, micro-batch, key) over `count` micro-batches, as a function of the parameters.

    The result is (value, metrics), as that of `loss`; the metric "tokens" is a sum. Where it is differentiated, by `jax.value_and_grad` with `has_aux`, each
    micro-batch has a forward and a backward pass of its own, whose activations are gone before the next one.

    Args:
        loss: a mean over examples.
        batch: a tree of arrays with a leading axis B, a multiple of `count`.
        rng: split into a key for each micro-batch. With one micro-batch, `loss` gets it as it is. None: no randomness.
    """
    if count == 1:
        return lambda params: loss(params, batch, rng)
    parts = _split(batch, count), _keys(rng, count)

    def mean(function: Callable, params: Any) -> Any:
        first = jax.tree.map(lambda leaf: leaf[0], parts)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, params, *first))
        total, _ = jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, function(params, *part)), None), zeros, parts)
        return jax.tree.map(lambda leaf: leaf / count, total)

    def forward(params: Any) -> tuple[Any, Any]:
        (value, metrics), grads = mean(jax.value_and_grad(loss, has_aux=True), params)
        return (value, _with_sums(metrics, count)), grads

    @jax.custom_vjp
    def whole(params: Any) -> Any:
        value, metrics = mean(loss, params)
        return value, _with_sums(metrics, count)

    whole.defvjp(forward, lambda grads, cotangents: (jax.tree.map(lambda grad: grad * cotangents[0], grads),))
    return whole


def embed_in_parts(embed: Callable[[Any, Any, Key | None], Any], params: Any, batch: Any, rng: Key | None, count: int) -> Any:
    """embed(params, micro-batch, key) of `count` micro-batches, joined to the embeddings of the batch. To be differentiated with respect to `params`.

    The backward pass embeds each micro-batch again, with the same key. batch, rng: as in `mean_over`.

    Args:
        embed: returns a tree of arrays whose leading axis is that of the micro-batch.
    """
    if count == 1:
        return embed(params, batch, rng)
    again = jax.checkpoint(embed, prevent_cse=False)  # Not needed inside a scan.
    _, parts = jax.lax.scan(lambda _, part: (None, again(params, *part)), None, (_split(batch, count), _keys(rng, count)))
    return jax.tree.map(_join, parts)


def _split(batch: Any, count: int) -> Any:
    """[B, ...] -> [count, B / count, ...]. Micro-batch i has rows i, i + count, ...: each device keeps its rows, and has as many in each micro-batch."""

    def split(x: jax.Array) -> jax.Array:
        parts = jnp.swapaxes(jnp.reshape(x, (-1, count, *x.shape[1:])), 0, 1)
        return constrain(parts, None, "batch", *[None] * (x.ndim - 1))

    return jax.tree.map(split, batch)


def _join(parts: jax.Array) -> jax.Array:
    """The inverse of `_split`: [count, B / count, ...] -> [B, ...]."""
    return constrain(jnp.reshape(jnp.swapaxes(parts, 0, 1), (-1, *parts.shape[2:])), "batch", *[None] * (parts.ndim - 2))


def _keys(rng: Key | None, count: int) -> jax.Array | None:
    return None if rng is None else jax.random.split(rng, count)


def _with_sums(metrics: dict[str, jax.Array], count: int) -> dict[str, jax.Array]:
    return {name: value * count if name == "tokens" else value for name, value in metrics.items()}
