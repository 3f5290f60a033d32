"""Meshes and shardings: the batch is split over all devices, parameters and optimizer state over "fsdp"."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any

# Below this many numbers a parameter is not worth splitting: gathering it costs more than holding it.
MIN_SPLIT_SIZE = 2**16


def make_mesh(data: int, fsdp: int) -> Mesh:
    """A mesh over all devices with axes "data" and "fsdp".

    Args:
      data: devices along "data"; -1 takes all that "fsdp" leaves.
      fsdp: devices along "fsdp", at least 1.

    Raises:
      ValueError: if the shape does not cover the devices exactly.
    """
    devices = jax.device_count()
    if fsdp < 1 or devices % fsdp or (data != -1 and data * fsdp != devices):
        raise ValueError(
            f"config.mesh data={data}, fsdp={fsdp} does not cover {devices} {jax.default_backend()} device(s): "
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


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's share of a batch to its devices, as part of one global array."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
