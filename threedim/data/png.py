"""PNG bytes to and from uint8 arrays, composited on white and downsampled by area."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from threedim.errors import UserError


def encode_png(image: np.ndarray) -> bytes:
    """(height, width, 3 or 4) uint8 to PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_png(png: bytes, size: int | None = None) -> np.ndarray:
    """Decodes a square PNG, composited on white and averaged over the area of each new pixel.

    Args:
      png: a square image in any 8-bit mode.
      size: height and width to return, at most those of the PNG, which are the default.

    Returns:
      (size, size, 3) uint8.

    Raises:
      UserError: if the image is smaller than ``size`` or not square.
    """
    image = Image.open(io.BytesIO(png), formats=["PNG"])
    old = image.width
    size = old if size is None else size
    if image.height != old or not 0 < size <= old:
        raise UserError(f"an image of {image.width}x{image.height} pixels cannot be downsampled to {size}x{size}")
    # Composite first: the resize is linear, so this equals resizing premultiplied colors and leaves no dark fringes.
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image)
        image = white
    elif image.mode != "RGB":
        image = image.convert("RGB")
    if old % size == 0:
        return np.array(image.reduce(old // size) if size != old else image)
    # Not Pillow's BOX filter, which takes each source pixel fully or not at all.
    total = np.asarray(image, np.float64)
    for axis in (0, 1):
        total = _sum_over_intervals(total, size, axis)
    return np.rint(total * (size / old) ** 2).astype(np.uint8)


def _sum_over_intervals(values: np.ndarray, new: int, axis: int) -> np.ndarray:
    """Integrals over ``new`` equal intervals of an axis, with each entry constant over a unit interval."""
    old = values.shape[axis]
    edges = np.arange(new + 1) * (old / new)
    entry = np.minimum(edges.astype(np.int64), old - 1)
    values = np.moveaxis(values, axis, 0)
    before = np.cumsum(values, axis=0) - values
    integral = before[entry] + (edges - entry)[:, None, None] * values[entry]
    return np.moveaxis(np.diff(integral, axis=0), 0, axis)
