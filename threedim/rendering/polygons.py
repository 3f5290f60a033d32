"""Polygons cut into triangles: triangles and quadrilaterals by NumPy, others by Mapbox's earcut if they are concave."""

from __future__ import annotations

import mapbox_earcut
import numpy as np


def triangulate(points: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cuts polygons without holes into triangles of the same orientation.

    Args:
      points: (corner, 3) float positions of the corners, polygon after polygon.
      sizes: (polygon,) number of corners of each. Those with fewer than 3 give no triangles.

    Returns:
      (triangle, 3) indices of corners, and the (triangle,) indices of their polygons, ascending.
    """
    starts = np.cumsum(sizes) - sizes
    corners, owners = [np.zeros((0, 3), np.int64)], [np.zeros(0, np.int64)]
    for size in np.unique(sizes[sizes >= 3]):
        polygons = np.flatnonzero(sizes == size)
        cut = _cut(points[starts[polygons][:, None] + np.arange(size)])  # (polygon, triangle, 3)
        corners.append((starts[polygons][:, None, None] + cut).reshape(-1, 3))
        owners.append(np.repeat(polygons, size - 2))
    corners, owners = np.concatenate(corners), np.concatenate(owners)
    order = np.argsort(owners, kind="stable")
    return corners[order], owners[order]


def _cut(points: np.ndarray) -> np.ndarray:
    """(polygon, size, 3) positions to (polygon, size - 2, 3) numbers of corners."""
    count, size, _ = points.shape
    index = np.arange(1, size - 1)
    fan = np.stack([np.zeros_like(index), index, index + 1], axis=-1)
    cut = np.tile(fan, (count, 1, 1))
    if size == 4:
        first, second, third, fourth = np.moveaxis(points, 1, 0)
        across = _agree(np.cross(second - first, third - first), np.cross(third - first, fourth - first)) <= 0
        along = _agree(np.cross(second - first, fourth - first), np.cross(third - second, fourth - second)) > 0
        cut[across & along] = [[0, 1, 3], [1, 2, 3]]
    elif size > 4:
        edges = np.roll(points, -1, axis=1) - points
        normal = np.cross(points[:, 1:-1] - points[:, :1], points[:, 2:] - points[:, :1]).sum(axis=1)
        turns = np.cross(edges, np.roll(edges, -1, axis=1)) @ normal[:, :, None]
        for polygon in np.flatnonzero(turns[..., 0].min(axis=1) < -1e-7 * (normal**2).sum(axis=-1)):
            cut[polygon] = _cut_concave(points[polygon], normal[polygon], fan)
    return cut


def _agree(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(axis=-1)


def _cut_concave(points: np.ndarray, normal: np.ndarray, fan: np.ndarray) -> np.ndarray:
    flat = np.ascontiguousarray(np.delete(points, np.argmax(np.abs(normal)), axis=1), np.float64)
    cut = mapbox_earcut.triangulate_float64(flat, np.array([len(flat)], np.uint32)).reshape(-1, 3).astype(np.int64)
    if not 0 < len(cut) <= len(fan):  # crosses itself
        return fan
    a, b, c = np.moveaxis(points[cut], 1, 0)
    flipped = _agree(np.cross(b - a, c - a), normal) < 0
    cut[flipped] = cut[flipped, ::-1]
    # Corners on a line may leave fewer triangles: the rest is without area.
    return np.concatenate([cut, np.zeros((len(fan) - len(cut), 3), np.int64)])
