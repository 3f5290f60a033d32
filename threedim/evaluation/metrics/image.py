"""PSNR and SSIM [3]."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np

from threedim import pixels
from threedim.errors import UserError
from threedim.evaluation.metrics.batches import Batched, check_pictures

# SSIM's constants, and its Gaussian window (Wang et al. 2004, section III).
_K1, _K2, _SIGMA = 0.01, 0.03, 1.5
WINDOW, UNIFORM_WINDOW = 11, 7  # pixels
_GAUSSIAN = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / _SIGMA) ** 2)
_UNIFORM = np.ones(UNIFORM_WINDOW)

# Pictures per call: 64 of up to 128 px, fewer of larger ones.
_CHUNK_PICTURES, _CHUNK_PIXELS = 64, 2**20


def psnr(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of pictures (..., height, width, 3) uint8 in dB, (...,) float32.

    `pixels.psnr_limit` for equal pictures. Raises `UserError` if shapes differ, or pictures are not uint8.
    """
    found = _of_each_picture("psnr", dm_pix.psnr, images, truth)
    return np.minimum(found, np.float32(pixels.psnr_limit(*images.shape[-3:-1])))


def ssim(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Structural similarity of each picture (Wang et al. 2004): the mean over its colors and window positions.

    The window is the original's Gaussian (11 px, sigma 1.5), entirely inside the picture: without padding. As
    scikit-image's structural_similarity with gaussian_weights, sigma 1.5 and use_sample_covariance=False.

    Args:
      images, truth: (..., height, width, 3) uint8, at least 11 px high and wide.

    Returns:
      (...,) float32 in [-1, 1]; 1 for equal pictures. In flat and bright pictures rounding changes the result by up to
      2e-4, elsewhere by about 1e-6.

    Raises:
      UserError: if shapes differ, or pictures are not uint8 or too small.
    """
    return _of_each_picture("ssim", _ssim, images, truth)


def ssim_uniform(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Structural similarity as SRN, pixelNeRF and LFN report it; arguments, result and errors as of `ssim`.

    The window is uniform, of 7 px, which is the least size of pictures, and covariances are those of a sample: what
    scikit-image's structural_similarity does unless told otherwise. It differs from `ssim` by some hundredths. Rounding
    changes it by up to 2e-5.
    """
    return _of_each_picture("ssim_uniform", _ssim_uniform, images, truth)


def _ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    _check_size("ssim", a, WINDOW)
    blur = functools.partial(_weighted_means, weights=_GAUSSIAN)
    return dm_pix.ssim(a, b, filter_size=WINDOW, filter_sigma=_SIGMA, k1=_K1, k2=_K2, filter_fn=blur)


def _ssim_uniform(a: jax.Array, b: jax.Array) -> jax.Array:
    _check_size("ssim_uniform", a, UNIFORM_WINDOW)
    mean, count = functools.partial(_weighted_means, weights=_UNIFORM), UNIFORM_WINDOW**2
    # Around mid-gray, where differences of squares lose less to rounding.
    x, y = a - 0.5, b - 0.5
    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y, covar = (
        count / (count - 1) * (mean(one * other) - mean_one * mean_other)
        for one, other, mean_one, mean_other in ((x, x, mean_x, mean_x), (y, y, mean_y, mean_y), (x, y, mean_x, mean_y))
    )
    mean_x, mean_y, c1, c2 = mean_x + 0.5, mean_y + 0.5, _K1**2, _K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return jnp.mean(luminance * (2 * covar + c2) / (var_x + var_y + c2), axis=(1, 2, 3))


def _check_size(name: str, images: jax.Array, window: int) -> None:
    height, width = images.shape[1:3]
    if min(height, width) < window:
        raise UserError(f"{name}: pictures of {width} x {height} px are smaller than its window of {window} px")


def _weighted_means(images: jax.Array, weights: np.ndarray) -> jax.Array:
    """Weighted means over a window that is inside the picture, (picture, height - k + 1, width - k + 1, channel).

    Equal to dm_pix's own filter, but two products with band matrices are 5 to 10 times faster on a CPU.
    """
    rows, columns = (_band(images.shape[axis], weights) for axis in (1, 2))
    return jnp.einsum("yh,xw,nhwc->nyxc", rows, columns, images, precision=jax.lax.Precision.HIGHEST)


def _band(size: int, weights: np.ndarray) -> np.ndarray:
    """(size - k + 1, size) float32: row i has the k weights, divided by their sum, from column i on."""
    rows = [np.pad(weights, (row, size - len(weights) - row)) for row in range(size - len(weights) + 1)]
    return (np.stack(rows) / weights.sum()).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _chunk(metric: Callable, _: None, images: jax.Array, truth: jax.Array) -> jax.Array:
    return metric(images.astype(jnp.float32) / 255.0, truth.astype(jnp.float32) / 255.0)


def _of_each_picture(name: str, metric: Callable, images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """``metric`` of pictures in [0, 1], in chunks, so that only one chunk is held as float."""
    flat = check_pictures(f"{name}: pictures", images), check_pictures(f"{name}: true pictures", truth)
    if images.shape != truth.shape:
        raise UserError(f"{name}: pictures {images.shape} and true pictures {truth.shape} must have the same shape")
    size = max(1, min(_CHUNK_PICTURES, _CHUNK_PIXELS // math.prod(images.shape[-3:-1])))
    batched = Batched(functools.partial(_chunk, metric), None, size, jax.local_devices()[:1])
    return batched(*flat).reshape(images.shape[:-3])
