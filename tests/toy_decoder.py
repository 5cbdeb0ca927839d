import dataclasses

import jax
import jax.numpy as jnp

from musiclm_jax.tokens import StageLayout


@dataclasses.dataclass(frozen=True)
class ToyDecoder:
    """A decoder whose cache records the ids that it was given. Subclasses say what the logits are."""

    layout: StageLayout

    def prepare(self, params):
        return params

    def init_cache(self, batch, length):
        return jnp.zeros((batch, length), jnp.int32)

    def grow_cache(self, cache, length):
        return jnp.pad(cache, ((0, 0), (0, length - cache.shape[1])), constant_values=-1)

    def branch_cache(self, cache, batch):
        return jnp.repeat(cache, batch // len(cache), axis=0)

    def logits(self, params, ids, cache, level):
        raise NotImplementedError

    def __call__(self, params, ids, cache, *, num_steps, position, level):
        cache = jax.lax.dynamic_update_slice(cache, ids, (0, position))
        return self.logits(params, ids, cache, level), cache
