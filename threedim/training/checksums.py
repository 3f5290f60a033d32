"""Checksums of arrays that do not depend on how they are sharded, to notice numbers that changed on disk."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def of_leaves(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Checksums by name, eight hexadecimal digits each.

    Arrays on an accelerator, or spread over hosts, are summed where they are (then all processes must call this
    alike); arrays in this host's memory are summed by NumPy, which spares the compilations.
    """
    sums = {
        name: _checksum(np.asarray(leaf), np) if _on_host(leaf) else _device_checksum(leaf)
        for name, leaf in leaves.items()
    }
    return {name: f"{int(value):08x}" for name, value in jax.device_get(sums).items()}


def _on_host(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray):
        return True
    return leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.devices())


def _checksum(x: Any, xnp: Any) -> Any:
    """A uint32 that the change of any one number of up to 32 bits changes, and nearly any other change as well.

    Each number's bits times an odd weight that depends on its place, summed modulo 2^32: the order of summation does
    not matter, so an array gives the same value however it is sharded.
    """
    bits = x.astype(xnp.uint8) if x.dtype == bool else x.view(f"uint{8 * x.dtype.itemsize}")
    if bits.dtype.itemsize == 8:
        bits = bits ^ (bits >> 32)
    # One iota per axis: flattening a sharded array would move it between devices.
    place = xnp.zeros((1,) * x.ndim, xnp.uint32)
    stride = 1
    for axis in reversed(range(x.ndim)):
        index = xnp.arange(x.shape[axis], dtype=xnp.uint32).reshape((-1,) + (1,) * (x.ndim - 1 - axis))
        place = place + index * np.uint32(stride % 2**32)
        stride *= x.shape[axis]
    weight = place * np.uint32(0x9E3779B1) | np.uint32(1)
    return xnp.sum(bits.astype(xnp.uint32) * weight, dtype=xnp.uint32)


_device_checksum = jax.jit(functools.partial(_checksum, xnp=jnp))
