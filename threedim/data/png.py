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


def over_white(image: Image.Image) -> Image.Image:
    """An RGBA image composited on white; an RGB image as it is."""
    if image.mode != "RGBA":
        return image
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image)
    return white


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
    image.load()  # what is transparent is known only now, if chunks are in an odd order
    old = image.width
    size = old if size is None else size
    if image.height != old or not 0 < size <= old:
        raise UserError(f"an image of {image.width}x{image.height} pixels cannot be downsampled to {size}x{size}")
    # Composite first: the resize is linear, so this equals resizing premultiplied colors and leaves no dark fringes.
    image = over_white(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    if old % size == 0:
        return np.array(image.reduce(old // size))
    # Not Pillow's BOX filter, which takes each source pixel fully or not at all.
    edges = np.arange(size + 1) * (old / size)
    entry = np.minimum(edges.astype(np.int64), old - 1)
    total = np.asarray(image, np.float64)
    for _ in range(2):  # integrals of pixels over the new ones' edges, along rows and then along columns
        before = np.cumsum(total, axis=0) - total
        integral = before[entry] + (edges - entry)[:, None, None] * total[entry]
        total = np.diff(integral, axis=0).swapaxes(0, 1)
    return np.rint(total * (size / old) ** 2).astype(np.uint8)
