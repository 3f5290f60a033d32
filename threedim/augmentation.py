"""Augmentation of training pairs: orientation and scale of the world, and hue.

Both views of a pair get the same change, so that they still show one object. Off by default: the paper's models of one
class had none; its authors' later model of all ShapeNet had random orientation, scale and hue.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from threedim.cameras import Camera


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes of a pair; hashable, off by default.

    Attributes:
      orientation: rotates the world of every pair uniformly at random about its origin. Has no effect with relative
        poses.
      scale: (low, high), positive factors of the size of the world, log-uniform.
      hue: largest rotation of the hue in turns, uniform in both directions; in [0, 0.5]. 0.5 makes all hues equally
        likely.

    Raises:
      ValueError: if a value is out of range.
    """

    orientation: bool = False
    scale: tuple[float, float] = (1.0, 1.0)
    hue: float = 0.0

    def __post_init__(self):
        if not isinstance(self.orientation, bool | np.bool_):
            raise ValueError(f"orientation must be True or False, got {self.orientation!r}")
        if isinstance(self.scale, list):
            object.__setattr__(self, "scale", tuple(self.scale))
        match self.scale:
            case (int() | float() as low, int() | float() as high) if 0 < low <= high < float("inf"):
                pass
            case _:
                raise ValueError(f"scale must be two factors (low, high) with 0 < low <= high, got {self.scale!r}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue must be in [0, 0.5] turns, got {self.hue}")

    @property
    def enabled(self) -> bool:
        """Whether anything is changed."""
        return self != NO_AUGMENTATION


NO_AUGMENTATION = Augmentation()


def augment(images: jax.Array, camera: Camera, key: jax.Array, augmentation: Augmentation) -> tuple[jax.Array, Camera]:
    """Changes each pair, both of its views alike.

    A world that is rotated or scaled together with its cameras looks the same: images and K do not change.

    Args:
      images: (batch, 2, height, width, 3) in [-1, 1].
      camera: axes (batch, 2).
      key: one key; each part of the augmentation has its own stream.
      augmentation: what is changed.

    Returns:
      Images and cameras with the same axes.
    """
    batch = images.shape[0]
    key_orientation, key_scale, key_hue = (jax.random.fold_in(key, stream) for stream in range(3))
    R, t = camera.R, camera.t
    if augmentation.orientation:
        turn = random_rotations(key_orientation, batch)[:, None]  # (batch, 1, 3, 3): one for both cameras
        # Sums, not matmuls, which an accelerator may compute in lower precision: the pose encoding multiplies errors by
        # up to 2^14.
        R = jnp.sum(turn[..., :, :, None] * R[..., None, :, :], axis=-2)
        t = jnp.sum(turn * t[..., None, :], axis=-1)
    if augmentation.scale != (1.0, 1.0):
        low, high = (float(np.log(factor)) for factor in augmentation.scale)
        t = t * jnp.exp(jax.random.uniform(key_scale, (batch, 1, 1), minval=low, maxval=high))
    if augmentation.hue:
        turns = jax.random.uniform(key_hue, (batch,), minval=-augmentation.hue, maxval=augmentation.hue)
        images = turn_hue(images, turns[:, None, None, None])
    return images, Camera(R, t, camera.K)


def random_rotations(key: jax.Array, count: int) -> jax.Array:
    """Uniformly distributed rotations (count, 3, 3), from unit quaternions."""
    q = jax.random.normal(key, (count, 4))
    w, x, y, z = jnp.moveaxis(q / jnp.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return jnp.moveaxis(jnp.asarray(rows), -1, 0)


def turn_hue(images: jax.Array, turns: jax.Array) -> jax.Array:
    """Rotates the hue, at the same saturation and value (HSV). Grays and white do not change at all.

    Args:
      images: (..., 3) in [-1, 1].
      turns: broadcasts to the shape of ``images`` without its last axis; 1/3 turns red into green.

    Returns:
      (..., 3) in [-1, 1].
    """
    red, green, blue = jnp.moveaxis(images, -1, 0)
    high, low = jnp.max(images, axis=-1), jnp.min(images, axis=-1)
    chroma = high - low
    safe = jnp.where(chroma > 0, chroma, 1.0)
    sixths = jnp.where(high == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe)
    sixths = jnp.where(high == red, (green - blue) / safe, sixths) + 6.0 * turns
    # How far each channel is below the highest one, as a fraction of the chroma.
    k = jnp.mod(sixths[..., None] + jnp.asarray([5.0, 3.0, 1.0]), 6.0)
    below = jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)
    return jnp.clip(high[..., None] - chroma[..., None] * below, -1.0, 1.0)
