"""Runs a function over pictures in chunks of one size, sharded over the local devices, so that it compiles once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from threedim.errors import UserError


class Batched:
    """A function of parameters and chunks of pictures, for any number of pictures.

    Args:
      function: (params, *chunks) to an array (picture, ...) or a list of them. One chunk is passed for each set.
      params: replicated on every device.
      chunk_size: pictures per device and call.
      devices: defaults to all local devices.
    """

    def __init__(self, function: Callable[..., Any], params: Any, chunk_size: int, devices: Sequence | None = None):
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
        devices = devices or jax.local_devices()
        mesh = Mesh(np.array(devices), ("picture",), axis_types=(AxisType.Auto,))
        self._split, self._everywhere = NamedSharding(mesh, P("picture")), NamedSharding(mesh, P())
        self._function, self._params = function, jax.device_put(params, self._everywhere)
        self._size = chunk_size * len(devices)

    def __call__(self, *sets: np.ndarray) -> Any:
        """Results for all pictures, as NumPy arrays.

        Args:
          sets: (picture, height, width, 3), all of the same length; a set of one picture is passed with every chunk.
        """
        count, results = max(map(len, sets)), []
        # Without pictures, one chunk of padding gives the shape of the result.
        for start in range(0, max(count, 1), self._size):
            rows = min(self._size, count - start)
            padding = ((0, self._size - rows), (0, 0), (0, 0), (0, 0))
            chunks = [
                jax.device_put(each, self._everywhere)
                if len(each) == 1 < count
                else jax.device_put(np.pad(each[start : start + rows], padding), self._split)
                for each in sets
            ]
            found = self._function(self._params, *chunks)
            results.append(jax.tree.map(lambda part, rows=rows: np.asarray(part)[:rows], found))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def check_pictures(name: str, images: np.ndarray) -> np.ndarray:
    """Returns images (..., height, width, 3) as (picture, height, width, 3); `UserError` unless uint8 and not empty."""
    if images.dtype != np.uint8 or images.ndim < 3 or images.shape[-1] != 3 or 0 in images.shape[-3:]:
        raise UserError(f"{name} must be uint8 (..., height, width, 3), got {images.dtype} {images.shape}")
    return images.reshape(math.prod(images.shape[:-3]), *images.shape[-3:])
