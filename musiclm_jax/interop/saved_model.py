"""SavedModels of TensorFlow that read a wave, such as modules of TensorFlow Hub and exported Keras models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from musiclm_jax.arrays import Float
from musiclm_jax.errors import UserError
from musiclm_jax.evaluation.extras import extra


@dataclasses.dataclass(frozen=True, eq=False)
class SavedModel:
    """A function of a SavedModel, from a wave [N] to its outputs by name. Those without names are "output_0", "output_1", ..."""

    call: Callable[[np.ndarray], dict[str, np.ndarray]]
    # The only length that it reads. None: it reads any.
    num_samples: int | None

    def __call__(self, wave: Float[np.ndarray, "N"]) -> dict[str, np.ndarray]:
        return self.call(wave)


def load(folder: str, *, sample_rate_hz: int, of: str) -> SavedModel:
    """The function of a SavedModel that reads a wave: its signature for serving, or else the one that it is when called.

    Args:
        folder: the folder of saved_model.pb.
        sample_rate_hz: given to functions that ask for a number beside the wave, as TRILL does.
        of: the extra of this package that brings TensorFlow.

    Raises:
        UserError: TensorFlow is not installed, the folder has no SavedModel, or none of its functions reads a wave.
    """
    tf = extra("tensorflow", of=of)
    try:
        loaded = tf.saved_model.load(folder)
    except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: cannot be loaded as a SavedModel ({reason}); name the folder of a saved_model.pb") from error
    for function in _functions(loaded):
        args, keywords = function.structured_input_signature
        specs = [*args, *keywords.values()]
        waves = [spec for spec in specs if _is_wave(tf, spec)]
        if len(waves) == 1 and all(_is_wave(tf, spec) or _is_rate(tf, spec) or not isinstance(spec, tf.TensorSpec) for spec in specs):
            return SavedModel(_caller(tf, function, sample_rate_hz, folder), _length(waves[0]))
    raise UserError(f"{folder}: has no function of one wave, of shape [N] or [B, N] in float32; export one")


def _functions(loaded: Any) -> Iterator[Any]:
    """The concrete functions that a user would call."""
    if "serving_default" in getattr(loaded, "signatures", {}):
        yield loaded.signatures["serving_default"]
    if callable(loaded):
        yield from getattr(loaded.__call__, "concrete_functions", ())


def _is_wave(tf: Any, spec: Any) -> bool:
    return isinstance(spec, tf.TensorSpec) and spec.dtype == tf.float32 and spec.shape.rank in (None, 1, 2)


def _is_rate(tf: Any, spec: Any) -> bool:
    return isinstance(spec, tf.TensorSpec) and spec.shape.rank == 0 and not spec.dtype.is_bool


def _length(spec: Any) -> int | None:
    return spec.shape[-1] if spec.shape.rank else None


def _caller(tf: Any, function: Any, sample_rate_hz: int, folder: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Calls `function` with a wave, in a batch of one where it reads batches, and with the rate for its other numbers. Raises UserError if it fails."""

    def fill(spec: Any, wave: np.ndarray) -> Any:
        if _is_wave(tf, spec):
            return tf.constant(wave[None] if spec.shape.rank == 2 else wave)
        return tf.constant(sample_rate_hz, spec.dtype) if _is_rate(tf, spec) else spec

    def call(wave: np.ndarray) -> dict[str, np.ndarray]:
        args, keywords = function.structured_input_signature
        try:
            found = function(*(fill(spec, wave) for spec in args), **{name: fill(spec, wave) for name, spec in keywords.items()})
        except tf.errors.OpError as error:
            raise UserError(f"{folder}: fails on {len(wave)} samples ({str(error).splitlines()[0][:200]}); name a model of waves") from error
        if not isinstance(found, dict):
            found = {f"output_{i}": each for i, each in enumerate(found if isinstance(found, (list, tuple)) else [found])}
        return {name: each.numpy() for name, each in found.items()}

    return call
