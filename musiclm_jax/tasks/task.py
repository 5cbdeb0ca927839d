"""What the training loop needs to know of the thing it trains."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import numpy as np

from musiclm_jax.arrays import Key

Batch = dict[str, np.ndarray | jax.Array]
Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """Everything that a step reads and writes, hence everything that a checkpoint holds.

    Fields: step: int32 scalar, steps already taken. params: trainable parameters. opt_state: the optimizer's.
    stats: what is updated without a gradient (codebooks, running means); an empty dict where there is none.
    """

    # Any, not jax.Array: JAX rebuilds the class around shapes, shardings and None (eval_shape, tree.map), which the type checker would refuse.
    step: Any
    params: Any
    opt_state: Any
    stats: Any


@runtime_checkable
class Task(Protocol):
    """One trained thing: codec, w2v-BERT, MuLan, a stage. All methods are pure and jit-able; metrics are float32 scalars."""

    # Also the name of its folder and of its command: soundstream, w2v_bert, mulan, semantic, coarse, fine.
    name: str

    def init_state(self, rng: Key) -> TrainState: ...

    def train_step(self, state: TrainState, batch: Batch, rng: Key) -> tuple[TrainState, Metrics]: ...

    def eval_step(self, state: TrainState, batch: Batch, rng: Key) -> Metrics: ...

    def variables(self, state: TrainState) -> dict[str, Any]:
        """The trained weights as the nested dict of arrays that goes into the bundle's safetensors file."""
        ...
