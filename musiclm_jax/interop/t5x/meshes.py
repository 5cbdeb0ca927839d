"""The tile of devices over which T5X's PjitPartitioner splits parameters."""

from __future__ import annotations

import math

import jax

from musiclm_jax.errors import UserError


def submesh(model: int = 1) -> tuple[int, ...]:
    """T5X's `model_parallel_submesh` of `model` devices, which T5X finds by itself up to TPU v4 only: later ones need it, and so do CPUs.

    Raises:
        UserError: the devices have no such tile.
    """
    from t5x import partitioning

    corner = lambda devices: partitioning.bounds_from_last_device(max(devices, key=partitioning.get_coords))  # noqa: E731
    everywhere, here = corner(jax.devices()), corner(jax.local_devices(process_index=0))
    return tile(model, everywhere, here if len(here) == 4 else (1, here[1]))


def tile(model: int, everywhere: tuple[int, ...], here: tuple[int, ...]) -> tuple[int, ...]:
    """A box of `model` devices in a box of `everywhere`. It is within a host, a box of `here`, as far as that has enough of them.

    Both are (x, y, z, cores) on a TPU, elsewhere (hosts, devices of a host).
    """
    sizes, left = [1] * len(everywhere), model
    for room in (here, tuple(all_ // own for all_, own in zip(everywhere, here, strict=True))):
        for axis in reversed(range(len(sizes))):
            share = math.gcd(left, room[axis])
            sizes[axis], left = sizes[axis] * share, left // share
    if left != 1:
        raise UserError(f"MODEL_PARALLEL={model} does not tile devices in a box of {everywhere}: choose a power of 2 up to {math.prod(everywhere)}")
    return tuple(sizes)
