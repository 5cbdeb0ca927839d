"""Random parameters of the right shapes."""

import jax
import numpy as np

from musiclm_jax.training.sharding import unbox


def random_params(init, *args, scale=0.5, generator=None, **kwargs):
    """Normal numbers in the shapes of what `init` returns: compiling it would take longer than most tests.

    They are NumPy arrays, so that a test may cache them wherever it first needs them, inside a trace too.
    """
    generator, shapes = generator or np.random.default_rng(0), unbox(jax.eval_shape(lambda: init(*args, **kwargs)))
    return jax.tree.map(lambda leaf: (scale * generator.normal(size=leaf.shape)).astype(np.float32), shapes.get("params", shapes))
