"""Lens distortion, undone when a picture is read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

# Between the corners of squares of so many pixels, the distortion is interpolated linearly.
_CELL = 16


def distort(pixels: np.ndarray, K: np.ndarray, coefficients: Sequence[float]) -> np.ndarray:
    """Where a lens shows what a pinhole camera shows at ``pixels``.

    Args:
      pixels: (..., 2), x and y; pixel centers are at +0.5.
      K: (3, 3), without skew.
      coefficients: up to eight of OpenCV's k1, k2, p1, p2, k3, k4, k5, k6.

    Raises:
      ValueError: if the lens would show some of the pixels in the wrong order, so that it cannot be undone.
    """
    k1, k2, p1, p2, k3, k4, k5, k6 = (*coefficients, *np.zeros(8 - len(coefficients)))

    def radial(r2: np.ndarray) -> np.ndarray:
        return (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))

    focal, center = K[[0, 1], [0, 1]], K[:2, 2]
    points = (pixels - center) / focal
    r2 = np.sum(points**2, axis=-1, keepdims=True)
    radius = np.linspace(0, np.sqrt(r2.max()), 100)
    with np.errstate(all="ignore"):
        grows = np.diff(radius * radial(radius**2)) > 0
    if not np.all(grows):
        said = ", ".join(f"{value:g}" for value in coefficients)
        raise ValueError(f"lens distortion {said} cannot be undone; undistort the pictures (colmap image_undistorter)")
    x, y = points[..., 0], points[..., 1]
    tangential = np.stack([p2 * (3 * x**2 + y**2) + 2 * p1 * x * y, p1 * (x**2 + 3 * y**2) + 2 * p2 * x * y], axis=-1)
    return (points * radial(r2) + tangential) * focal + center


def undistort(image: Image.Image, K: np.ndarray, coefficients: Sequence[float]) -> Image.Image:
    """The picture of a pinhole camera with the same K; white, or transparent, where the lens showed nothing.

    Raises `ValueError` as `distort` does.
    """
    edges = [np.asarray([*range(0, side, _CELL), side], np.float64) for side in image.size]
    corners = np.stack(np.meshgrid(*edges), axis=-1)
    from_ = distort(corners, np.asarray(K, np.float64), coefficients)
    around = np.concatenate([from_[:-1, :-1], from_[1:, :-1], from_[1:, 1:], from_[:-1, 1:]], axis=-1)
    boxes = np.concatenate([corners[:-1, :-1], corners[1:, 1:]], axis=-1).astype(int)
    cells = zip(boxes.reshape(-1, 4).tolist(), around.reshape(-1, 8).tolist(), strict=True)
    blank = (255, 255, 255, 0)[: len(image.mode)]
    return image.transform(image.size, Image.Transform.MESH, list(cells), Image.Resampling.BILINEAR, fillcolor=blank)
