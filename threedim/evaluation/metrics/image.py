"""How close a picture is to the true one [3]."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np

from threedim.errors import UserError

# SSIM's Gaussian window and the constants that keep its quotient finite (Wang et al. 2004, section III).
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03

# Pictures of one call on the device: 64 of up to 128 px, fewer of larger ones.
_CHUNK_PICTURES, _CHUNK_PIXELS = 64, 2**20


def psnr(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each picture, in dB.

    Args:
      images, truth: (..., height, width, 3) uint8.

    Returns:
      (...,) float32; infinite where the pictures are equal.

    Raises:
      ValueError: if shapes or dtypes are not those.
    """
    _check_alike("psnr", images, truth)
    return _of_each_picture(dm_pix.psnr, images, truth)


def ssim(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Structural similarity of each picture (Wang et al. 2004): the mean over its colors and window positions.

    The window is the original's Gaussian (11 px, sigma 1.5) and lies wholly inside the picture, so the outermost 5 px
    count less than the rest. A uniform window would shift the result by up to 0.02.

    Args:
      images, truth: (..., height, width, 3) uint8, at least 11 px high and wide.

    Returns:
      (...,) float32 in [-1, 1]; 1 where the pictures are equal. Where a picture is flat and bright, rounding of its
      variance moves the result by up to 2e-4, by a CPU's order of summing; elsewhere by some 1e-6.

    Raises:
      ValueError: if shapes or dtypes are not those.
    """
    _check_alike("ssim", images, truth)
    height, width = images.shape[-3:-1]
    if min(height, width) < _WINDOW:
        raise UserError(
            f"ssim: pictures of {width} x {height} px are smaller than its window of {_WINDOW} px; use psnr for them"
        )
    return _of_each_picture(_ssim, images, truth)


def _check_alike(name: str, images: np.ndarray, truth: np.ndarray) -> None:
    alike = images.shape == truth.shape and images.dtype == truth.dtype == np.uint8
    if not alike or images.ndim < 3 or images.shape[-1] != 3:
        raise UserError(
            f"{name}: {images.dtype} {images.shape} and {truth.dtype} {truth.shape} must be alike, and uint8 "
            "(..., height, width, 3)"
        )


def _ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    return dm_pix.ssim(a, b, filter_size=_WINDOW, filter_sigma=_SIGMA, k1=_K1, k2=_K2, filter_fn=_blur)


def _blur(images: jax.Array) -> jax.Array:
    """The window's weighted means, (picture, height - 10, width - 10, channel).

    dm_pix's own filter gives the same numbers; two products with band matrices are 5 to 10 times faster on a CPU.
    """
    rows, columns = (_band(images.shape[axis]) for axis in (1, 2))
    return jnp.einsum("yh,xw,nhwc->nyxc", rows, columns, images, precision=jax.lax.Precision.HIGHEST)


def _band(size: int) -> np.ndarray:
    """(size - 10, size) float32: row i holds the window's weights from column i on."""
    offset = np.arange(size)[None] - np.arange(size - _WINDOW + 1)[:, None]
    weights = np.exp(-0.5 * ((offset - _WINDOW // 2) / _SIGMA) ** 2) * ((offset >= 0) & (offset < _WINDOW))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _chunk(metric: Callable, images: jax.Array, truth: jax.Array) -> jax.Array:
    return metric(images.astype(jnp.float32) / 255.0, truth.astype(jnp.float32) / 255.0)


def _of_each_picture(metric: Callable, images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """``metric`` of [0, 1] pictures, some at a time, so that only those are ever held as float."""
    *leading, height, width, channels = images.shape
    count = math.prod(leading)
    images, truth = (each.reshape(count, height, width, channels) for each in (images, truth))
    size = max(1, min(_CHUNK_PICTURES, _CHUNK_PIXELS // max(1, height * width)))
    values = np.empty(count, np.float32)
    for start in range(0, count, size):
        stop = min(start + size, count)
        # Filled up, so that there is one compiled program for a picture size, whatever the number of pictures.
        fill = ((0, start + size - stop), (0, 0), (0, 0), (0, 0))
        pair = (np.pad(each[start:stop], fill) for each in (images, truth))
        values[start:stop] = _chunk(metric, *pair)[: stop - start]
    return values.reshape(leading)
