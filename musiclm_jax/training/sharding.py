"""Placement of arrays on devices: the mesh, the rules from logical to mesh axes, and the shardings of states and batches.

Parameters carry logical axis names (`nn.with_logical_partitioning`); this is the only file that knows the axes of the mesh. A model runs unchanged on
one device or many: XLA inserts the collectives (GSPMD, arXiv 2105.04663).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.core import meta
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from musiclm_jax.checks import COUNT, SIZE, check_numbers
from musiclm_jax.data.prefetch import Rows, Source
from musiclm_jax.errors import UserError
from musiclm_jax.partitioning import fit_spec

# A mesh axis splits one dimension of a parameter: `tensor` the wide ones (Megatron's layout), `fsdp` the model width (ZeRO-3). Activations are split by
# batch, and where a product is split over `tensor` also there (`partitioning.constrain`).
LOGICAL_RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("vocab", "tensor"),
    ("kv", None),
    ("conv", None),
    ("layers", None),
)
MESH_AXES = ("data", "fsdp", "tensor")
# A batch is split over these axes; devices along `tensor` share the computation of the same examples.
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The device mesh. The product of its three sizes is the number of devices."""

    # Devices over which the batch is split. -1: the number of devices divided by the other two sizes.
    data: int = -1
    # Devices over which the batch, the parameters and the optimizer's state are split.
    fsdp: int = 1
    # Devices over which attention heads, feed-forward layers and vocabulary are split.
    tensor: int = 1
    # Slices of a multislice TPU that share the axis `data`, so that only gradients cross the slow network between slices. -1: all that there are. 1: the
    # devices are arranged without regard to slices.
    dcn_data: int = -1

    def __post_init__(self):
        check_numbers(self, data=(-1, SIZE[1]), fsdp=COUNT, tensor=COUNT, dcn_data=(-1, SIZE[1]))
        if self.dcn_data < 1 and self.dcn_data != -1:
            raise UserError(f"mesh dcn_data={self.dcn_data}: choose the number of slices, or -1")
        if self.fsdp < 1 or self.tensor < 1 or (self.data < 1 and self.data != -1):
            raise UserError(f"mesh data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}: choose sizes of 1 or more; data may also be -1")


def make_mesh(config: MeshConfig = MeshConfig()) -> Mesh:  # noqa: B008  (frozen)
    """The mesh over all devices of all processes. Raises UserError where its sizes do not multiply to the number of devices."""
    sizes = _mesh_sizes(config)
    if math.prod(sizes) != len(jax.devices()):
        raise _does_not_tile(config)
    # Auto: XLA propagates shardings. (make_mesh's default, Explicit, refuses sharding constraints inside the models.)
    auto = (AxisType.Auto,) * 3
    slices = num_slices(jax.devices()) if config.dcn_data == -1 else config.dcn_data
    if slices == 1:
        return jax.make_mesh(sizes, MESH_AXES, axis_types=auto)
    return Mesh(hybrid_devices(sizes, jax.devices(), slices=slices), MESH_AXES, axis_types=auto)


def num_slices(devices: Sequence[Any]) -> int:
    """The number of TPU slices to which devices belong; 1 on other platforms."""
    return len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"} or {0})


def hybrid_devices(sizes: tuple[int, int, int], devices: Sequence[Any], *, slices: int) -> np.ndarray:
    """The devices of several TPU slices in a grid of `sizes`: the axis `data` is split over slices first, all else stays within a slice.

    Raises:
        UserError: there are not so many slices, or `data` does not split over them.
    """
    data, fsdp, tensor = sizes
    if slices != num_slices(devices):
        raise UserError(f"mesh dcn_data={slices}: the devices are of {num_slices(devices)} slices; choose that number, or leave dcn_data out")
    if data % slices:
        raise UserError(f"mesh data={data} does not split over {slices} slices: choose a multiple of {slices}, or dcn_data=1")
    return mesh_utils.create_hybrid_device_mesh((data // slices, fsdp, tensor), (slices, 1, 1), devices, allow_split_physical_axes=True)


def abstract_mesh(config: MeshConfig) -> AbstractMesh:
    """The mesh without devices, for a dry run. Only data=-1 depends on the number of devices here."""
    return AbstractMesh(_mesh_sizes(config), MESH_AXES)


def _mesh_sizes(config: MeshConfig) -> tuple[int, int, int]:
    """The sizes of MESH_AXES."""
    if config.data != -1:
        return config.data, config.fsdp, config.tensor
    data, left = divmod(len(jax.devices()), config.fsdp * config.tensor)
    if left or not data:
        raise _does_not_tile(config)
    return data, config.fsdp, config.tensor


def _does_not_tile(config: MeshConfig) -> UserError:
    sizes = f"mesh data={config.data}, fsdp={config.fsdp}, tensor={config.tensor}"
    return UserError(
        f"{sizes} does not tile the {len(jax.devices())} devices here: choose sizes with that product (a dry run accepts any sizes, if data is not -1)"
    )


def unbox(tree: Any) -> Any:
    """The tree without flax's boxes, which carry logical axis names."""
    return meta.unbox(tree)


def state_shardings(abstract_state: Any, mesh: Mesh | AbstractMesh) -> Any:
    """The shardings of a train state, as a tree with the structure of `unbox(abstract_state)`.

    Boxed leaves follow LOGICAL_RULES. A leaf without a box is sharded like a parameter of the same shape whose path ends its own path, as do the
    optimizer's moments; all other leaves are replicated. A dimension that its mesh axis does not divide is not split.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract_state, is_leaf=lambda x: isinstance(x, meta.AxisMetadata))
    named: dict[tuple[Any, ...], tuple[tuple[int, ...], PartitionSpec]] = {}
    for path, leaf in leaves:
        if isinstance(leaf, meta.AxisMetadata) and _names(path)[:1] == ("params",):
            named[_names(path)[1:]] = (leaf.unbox().shape, leaf.get_partition_spec())

    def sharding(path, leaf) -> NamedSharding:
        shape = meta.unbox(leaf).shape
        if isinstance(leaf, meta.AxisMetadata):
            spec = leaf.get_partition_spec()
        else:
            names = _names(path)
            matches = (named.get(names[i:]) for i in range(len(names)))
            spec = next((match[1] for match in matches if match and match[0] == shape), PartitionSpec())
        return NamedSharding(mesh, _fit(nn.logical_to_mesh(spec, LOGICAL_RULES), shape, mesh))

    return jax.tree.unflatten(structure, [sharding(path, leaf) for path, leaf in leaves])


def _names(path: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(getattr(key, "key", getattr(key, "name", getattr(key, "idx", None))) for key in path)


@contextlib.contextmanager
def activate(mesh: Mesh) -> Iterator[None]:
    """Programs that are traced in this context constrain their activations to the mesh (`partitioning.constrain`)."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_RULES):
        yield


def _fit(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    if len(spec) > len(shape):  # A factored moment has fewer dimensions than the parameter whose box it inherited.
        return PartitionSpec()
    return fit_spec(spec, shape, mesh)


def local_rows(mesh: Mesh) -> Rows:
    """The rows of a batch that the devices of this process have.

    Devices along `tensor` have the same rows, and so do processes, where that axis extends over several. The result raises UserError where a batch does not
    split evenly.
    """

    def rows(batch_size: int) -> np.ndarray:
        _check_rows(batch_size, "rows", mesh)
        found = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
        return np.unique(np.concatenate([np.arange(batch_size)[index] for index in found]))

    return rows


def local_source(source: Source, mesh: Mesh) -> Source:
    """The source of the rows that this process puts on its devices."""
    return source if jax.process_count() == 1 else functools.partial(source, rows=local_rows(mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over BATCH_AXES."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts a batch on the devices, each process its `local_rows`. Raises UserError where it does not split evenly."""
    ways = _batch_ways(mesh)
    position = {int(shard): at for at, shard in enumerate(local_rows(mesh)(ways))}  # Of the shards of the batch that are here.

    def put(name: str, local: np.ndarray) -> jax.Array:
        size, left = divmod(len(local), len(position))  # Rows of a shard.
        _check_rows(ways * size + left, name, mesh)
        shard = lambda index: local[size * position[(index[0].start or 0) // size] :][:size]  # noqa: E731
        return jax.make_array_from_callback((ways * size, *local.shape[1:]), batch_sharding(mesh), shard)

    return {name: put(name, np.asarray(local)) for name, local in batch.items()}


def check_batch(batch: dict[str, Any], mesh: Mesh | AbstractMesh, accumulate: int = 1) -> None:
    """Raises UserError where the leading axis of an array (or ShapeDtypeStruct) does not split evenly into micro-batches over the mesh."""
    for name, array in batch.items():
        _check_rows(array.shape[0], name, mesh, accumulate)


def _check_rows(rows: int, name: str, mesh: Mesh | AbstractMesh, accumulate: int = 1) -> None:
    ways = _batch_ways(mesh)
    into, least = f"into {accumulate} micro-batches " if accumulate > 1 else "", ways * accumulate
    if rows % least:
        raise UserError(f"a batch of {rows} ({name}) does not split {into}over {ways} devices: choose a multiple of {least} as batch_size")


def _batch_ways(mesh: Mesh | AbstractMesh) -> int:
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def split_points(points: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Rows that all processes have, split over all devices. Returns (the rows, with zeros at the end until they split evenly; which rows are given)."""
    count = len(jax.devices())
    given, zeros = len(points), -len(points) % count
    padded = np.concatenate([points, np.zeros((zeros, *points.shape[1:]), points.dtype)])
    where = NamedSharding(jax.make_mesh((count,), ("points",), axis_types=(AxisType.Auto,)), PartitionSpec("points"))
    put = lambda array: jax.make_array_from_callback(array.shape, where, lambda index: array[index])  # noqa: E731
    return put(padded), put(np.arange(given + zeros) < given)
