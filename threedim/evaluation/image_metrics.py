"""How close a picture is to the true one [3]."""

from __future__ import annotations

import dm_pix
import jax.numpy as jnp
import numpy as np


def psnr(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each picture, in dB.

    Args:
      images, truth: (..., height, width, 3) uint8.

    Returns:
      (...,) float32; infinite where the pictures are equal.

    Raises:
      ValueError: if shapes or dtypes are not those.
    """
    if images.shape != truth.shape or images.dtype != np.uint8 or truth.dtype != np.uint8 or images.shape[-1] != 3:
        raise ValueError(
            f"psnr: {images.dtype} {images.shape} and {truth.dtype} {truth.shape} must be alike, and uint8"
        )
    flat = (jnp.asarray(each.reshape(-1, *each.shape[-3:]), jnp.float32) / 255.0 for each in (images, truth))
    return np.asarray(dm_pix.psnr(*flat)).reshape(images.shape[:-3])
