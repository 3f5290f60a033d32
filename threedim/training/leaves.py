"""Trees of arrays as flat dicts by path ("params/conv/kernel") and back, and checksums of arrays."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from threedim.errors import UserError


def by_path(tree: Any) -> dict[str, Any]:
    """Leaves by path, in the tree's order.

    Raises:
      ValueError: if a leaf is not an array of numbers, or has no name of its own without slash and dot.
    """
    leaves = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if not keys or path.count("/") != len(keys) - 1 or "." in path or path in leaves:
            raise UserError(f"a checkpoint's arrays need distinct names without '/' and '.', got {path!r}")
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise UserError(f"{path} is a {type(leaf).__name__}; a checkpoint holds arrays only")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise UserError(f"{path} is a {leaf.dtype}; a checkpoint holds numbers only: save jax.random.key_data")
        leaves[path] = leaf
    return leaves


def as_jax(path: str, leaf: Any) -> jax.Array:
    """The leaf as a JAX array of the same dtype; ValueError with its path if JAX has none."""
    array = jnp.asarray(leaf)
    if array.dtype != leaf.dtype:
        raise UserError(f"{path} is {leaf.dtype}, which JAX holds as {array.dtype}: convert it before saving")
    return array


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from leaves by path."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[name] = leaf
    return tree


def checksums(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Checksums by path, eight hexadecimal digits each, that do not depend on how an array is sharded.

    Arrays on an accelerator, or spread over hosts, are summed where they are (then all processes must call this
    alike); arrays in this host's memory are summed by NumPy, which spares the compilations.
    """
    sums = {
        path: _checksum(np.asarray(leaf), np) if _on_host(leaf) else _device_checksum(leaf)
        for path, leaf in leaves.items()
    }
    return {path: f"{int(value):08x}" for path, value in jax.device_get(sums).items()}


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
