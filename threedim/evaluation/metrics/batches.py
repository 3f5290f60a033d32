"""Pictures in chunks of one size, sharded over this process's devices, so that one program is compiled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from threedim.errors import UserError


class Batches:
    """Places pictures on devices.

    Attributes:
      everywhere: sharding of parameters, whole on every device.

    Args:
      chunk_size: pictures per device and call.
      devices: all of this process if None.
    """

    def __init__(self, chunk_size: int, devices: Sequence[jax.Device] | None = None):
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
        devices = list(devices or jax.local_devices())
        mesh = Mesh(np.array(devices), ("picture",), axis_types=(AxisType.Auto,))
        self._size = chunk_size * len(devices)
        self._split, self.everywhere = NamedSharding(mesh, P("picture")), NamedSharding(mesh, P())

    def __call__(self, *sets: np.ndarray) -> Iterator[tuple[slice, list[jax.Array]]]:
        """Chunks of sets of equally many pictures; a set of a single picture comes as it is with every chunk.

        Yields:
          The rows of the chunk, and the chunk of each set, padded with zeros.
        """
        count = max(map(len, sets))
        for start in range(0, count, self._size):
            rows = slice(start, min(start + self._size, count))
            padding = ((0, self._size - (rows.stop - rows.start)), (0, 0), (0, 0), (0, 0))
            yield (
                rows,
                [
                    jax.device_put(each, self.everywhere)
                    if len(each) == 1 < count
                    else jax.device_put(np.pad(each[rows], padding), self._split)
                    for each in sets
                ],
            )


def check_pictures(name: str, images: np.ndarray) -> None:
    """Raises UserError unless ``images`` are (..., height, width, 3) uint8, and not empty."""
    if images.dtype != np.uint8 or images.ndim < 3 or images.shape[-1] != 3 or 0 in images.shape[-3:]:
        raise UserError(f"{name} must be uint8 (..., height, width, 3), got {images.dtype} {images.shape}")


def flat(images: np.ndarray) -> np.ndarray:
    """(..., height, width, 3) to (picture, height, width, 3)."""
    return images.reshape(int(np.prod(images.shape[:-3])), *images.shape[-3:])
