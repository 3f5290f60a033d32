"""Batches of pairs for programs that are compiled or timed: their shapes, or random ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from threedim.cameras import intrinsics, orbit


def batch_shapes(
    size: int, batch_size: int, sharding: jax.sharding.Sharding | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of pairs as the pipeline gives it."""
    kinds = {"image": ((size, size, 3), np.uint8), "R": ((3, 3), np.float32), "t": ((3,), np.float32)}
    kinds["K"] = kinds["R"]
    return {
        name: jax.ShapeDtypeStruct((batch_size, 2, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in kinds.items()
    }


def example_batch(size: int, batch_size: int) -> dict[str, jax.Array]:
    """A batch of random pictures with cameras on an orbit."""
    rng = np.random.default_rng(0)
    camera = orbit(rng.uniform(0, 360, 2 * batch_size), 20.0, 2.0, intrinsics(size, size))
    poses = {"R": camera.R, "t": camera.t, "K": camera.K}
    batch = {name: value.reshape(batch_size, 2, *value.shape[1:]) for name, value in poses.items()}
    batch["image"] = rng.integers(0, 256, (batch_size, 2, size, size, 3), np.uint8)
    return jax.tree.map(jnp.asarray, batch)
