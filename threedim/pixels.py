"""Pictures between floats in [-1, 1], uint8 and PNG files."""

from __future__ import annotations

import math

import numpy as np
from etils import epath

from threedim import files
from threedim.data import pictures, png
from threedim.errors import MissingError


def to_uint8(images) -> np.ndarray:
    """Floats in [-1, 1] to uint8, rounded and clipped; any shape. ValueError for integers, NaN and infinity."""
    images = np.asarray(images)
    if images.dtype.kind in "iub":
        raise ValueError(f"to_uint8 takes floats in [-1, 1], got {images.dtype}")
    images = images.astype(np.float32)
    if not np.all(np.isfinite(images)):
        raise ValueError(f"to_uint8: {np.sum(~np.isfinite(images))} of {images.size} numbers are not finite")
    return np.rint(np.clip((images + 1) * 127.5, 0, 255)).astype(np.uint8)


def to_float(images) -> np.ndarray:
    """uint8 to float32 in [-1, 1]; any shape. `to_uint8` inverts it exactly."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"to_float takes uint8, got {images.dtype}")
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def psnr(images, truth) -> np.ndarray:
    """Peak signal-to-noise ratio of pictures (..., height, width, 3) uint8 in dB, (...,); `psnr_limit` if equal."""
    error = (to_float(images) - to_float(truth)) / 2
    with np.errstate(divide="ignore"):
        found = -10 * np.log10(np.mean(error**2, axis=(-3, -2, -1)))
    return np.minimum(found, np.float32(psnr_limit(*error.shape[-3:-1])))


def psnr_limit(height: int, width: int) -> float:
    """The highest PSNR of two different pictures, which equal ones get instead of infinity: one value differs by 1."""
    return 10 * math.log10(255**2 * height * width * 3)


def save_png(path: epath.PathLike, image) -> None:
    """Writes a picture, (height, width, 3) uint8, as PNG. Creates parent folders; replaces a file."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(f"{path}: picture must be uint8 (height, width, 3), got {image.dtype} {image.shape}")
    files.write_atomically(path, png.encode_png(image))


def load_png(path: epath.PathLike) -> np.ndarray:
    """Reads a picture over white, (height, width, 3) uint8; MissingError if there is none.

    Any kind that `data.pictures.load` reads, whatever the suffix; UserError if it cannot be decoded.
    """
    path = epath.Path(path)
    if not path.exists():
        raise MissingError(f"{path}: no such picture")
    return pictures.load_rgb(path)
