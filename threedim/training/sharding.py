"""Meshes and shardings: the batch is split over all devices, parameters and optimizer state over "fsdp"."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any

# Devices along (data, fsdp), by the name that configurations give them. A v4-32 has 32 cores on 16 chips.
PRESETS = {
    "cpu": (-1, 1),
    "gpu_8": (8, 1),
    "tpu_v4_32": (4, 4),
    "tpu_v5e_16": (4, 4),
    "tpu_v6e_8": (2, 4),
}

# Below this many numbers a parameter is not worth splitting: gathering it costs more than holding it.
MIN_SPLIT_SIZE = 2**16


def make_mesh(data: int, fsdp: int) -> Mesh:
    """A mesh over the devices of all processes, with axes "data" and "fsdp".

    Args:
      data: devices along "data"; -1 takes all that "fsdp" leaves.
      fsdp: devices along "fsdp", at least 1.

    Raises:
      ValueError: if the shape does not cover the devices exactly.
    """
    devices = jax.device_count()
    if fsdp < 1 or devices % fsdp or (data != -1 and data * fsdp != devices):
        raise ValueError(
            f"data={data}, fsdp={fsdp} does not cover {devices} {jax.default_backend()} device(s): "
            f"data x fsdp must be {devices} (data=-1 takes what fsdp leaves)"
        )
    return jax.make_mesh((devices // fsdp, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, shapes: PyTree) -> PyTree:
    """Each large array split over "fsdp" along its longest axis that divides; small ones whole on every device."""
    fsdp = mesh.shape["fsdp"]

    def sharding(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % fsdp == 0]
        if fsdp == 1 or leaf.size < MIN_SPLIT_SIZE or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))

    return jax.tree.map(sharding, shapes)


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """Rows of a batch that lie on this process's devices, ascending: what it has to read."""
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for (rows,) in places for row in range(*rows.indices(batch_size))})


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh, batch_size: int) -> dict[str, jax.Array]:
    """The rows that this process has read (``local_rows``) to its devices, as part of one global array."""
    sharding, rows = batch_sharding(mesh), local_rows(mesh, batch_size)

    def put(local: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            first = rows.index(start)
            return local[first : first + stop - start]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, shard)

    return {name: put(value) for name, value in batch.items()}
