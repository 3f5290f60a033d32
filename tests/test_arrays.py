"""Arrays by path, and their checksums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from threedim import arrays as arrays_lib


def test_paths_and_nesting():
    tree = {"a": {"b": np.zeros(2, np.float32), "c": np.ones(3, np.float32)}, "d": np.arange(4, dtype=np.int32)}
    flat = arrays_lib.by_path(tree)
    assert list(flat) == ["a/b", "a/c", "d"]
    jax.tree.map(np.testing.assert_array_equal, arrays_lib.nest(flat), tree)
    jax.tree.map(np.testing.assert_array_equal, arrays_lib.like(tree, dict(reversed(flat.items()))), tree)
    other = flat | {"d": np.zeros(5, np.int32)}
    assert arrays_lib.mismatches(flat, other) == ["d: int32[4] found, int32[5] expected"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool", "float16"])
def test_checksum_is_the_same_by_numpy_and_by_jax_and_sees_every_change(dtype):
    rng = np.random.default_rng(0)
    x = np.asarray(jnp.asarray(rng.normal(size=(5, 4, 3)) * 3, dtype))
    value = int(arrays_lib._checksum(x, np))
    assert int(arrays_lib._device_checksum(jnp.asarray(x))) == value
    for index in np.ndindex(x.shape):
        changed = x.copy()
        flipped = changed.view(np.uint8).reshape(*x.shape, -1)[index]
        flipped[0] ^= 1
        assert int(arrays_lib._checksum(changed, np)) != value


def test_checksum_sees_numbers_that_change_places():
    x = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    for other in (np.moveaxis(x, 0, 1).copy(), x[::-1].copy(), x[..., [1, 0, 2]]):
        assert int(arrays_lib._checksum(other, np)) != int(arrays_lib._checksum(x, np))
