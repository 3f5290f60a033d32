"""Trees of arrays as flat dicts by path ("params/conv/kernel"): comparison, nesting and checksums."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

_MAX_LISTED = 20


def by_path(tree: Any) -> dict[str, Any]:
    """Leaves by path, in the tree's order.

    Raises:
      ValueError: if a leaf is not an array of numbers, or its path is ambiguous.
    """
    leaves = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if not keys or path.count("/") != len(keys) - 1 or "." in path or path in leaves:
            raise ValueError(f"arrays to be saved need distinct names without '/' and '.', got {path!r}")
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise ValueError(f"{path} is a {type(leaf).__name__}; only arrays can be saved")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise ValueError(f"{path} is a {leaf.dtype}; only numbers can be saved: use jax.random.key_data")
        if (held := jax.dtypes.canonicalize_dtype(leaf.dtype)) != leaf.dtype:
            raise ValueError(f"{path} is {leaf.dtype}, which JAX holds as {held}: convert it before saving")
        leaves[path] = leaf
    return leaves


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from leaves by path."""
    return traverse_util.unflatten_dict(leaves, sep="/")


def like(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """The structure of ``tree`` with the leaves that have its paths."""
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[path] for path in by_path(tree)])


def mismatches(found: Mapping[str, Any], wanted: Mapping[str, Any], dtypes: bool = True) -> list[str]:
    """Lines such as "conv/kernel: float32[3, 3] found, none expected" for the arrays that differ in shape or dtype."""

    def kind(leaves: Mapping[str, Any], path: str) -> str:
        if path not in leaves:
            return "none"
        return (jnp.dtype(leaves[path].dtype).name if dtypes else "") + str(list(leaves[path].shape))

    return [
        f"{path}: {kind(found, path)} found, {kind(wanted, path)} expected"
        for path in sorted(found.keys() | wanted.keys())
        if kind(found, path) != kind(wanted, path)
    ]


def listed(lines: Sequence[str], separator: str = "\n  ") -> str:
    """The first lines, and how many more there are."""
    more = [f"and {len(lines) - _MAX_LISTED} more"] if len(lines) > _MAX_LISTED else []
    return separator.join([*lines[:_MAX_LISTED], *more])


def checksums(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Checksums by path, eight hexadecimal digits each, that do not depend on how an array is sharded.

    Arrays on an accelerator, or sharded over hosts, are summed where they are (then all processes must call this);
    arrays in this host's memory are summed by NumPy, which needs no compilation.
    """
    sums = {}
    for path, leaf in leaves.items():
        on_host = isinstance(leaf, np.ndarray) or (
            leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.devices())
        )
        sums[path] = _checksum(np.asarray(leaf), np) if on_host else _device_checksum(leaf)
    return {path: f"{int(value):08x}" for path, value in jax.device_get(sums).items()}


def _checksum(x: Any, xnp: Any) -> Any:
    """A uint32 that changes with any single number of up to 32 bits, and with nearly any other change.

    Each number's bits are multiplied by an odd weight that depends on its position, and summed modulo 2^32. The order
    of summation does not matter, so the value is the same however the array is sharded.
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
