"""Polygons cut into triangles."""

import numpy as np
import pytest

from threedim.rendering.polygons import triangulate

# Counter-clockwise in the plane.
L_SHAPE = [(2, 0), (2, 1), (1, 1), (1, 2), (0, 2), (0, 0)]
DART = [(0, 0), (2, 1), (0, 2), (1, 1)]
STAR = [(np.cos(a) * r, np.sin(a) * r) for a, r in zip(np.arange(10) * np.pi / 5, [2, 0.5] * 5, strict=True)]
CONVEX = [(np.cos(a), np.sin(a)) for a in np.arange(7) * 2 * np.pi / 7]


def area(flat):
    x, y = np.array(flat, float).T
    return (x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


@pytest.mark.parametrize("shift", range(4))
@pytest.mark.parametrize("plane", [np.eye(3)[:2], [[0, 1, 0], [0, 0, 1]], [[0.6, 0, 0.8], [0, -1, 0]]])
def test_areas_and_orientations_are_kept(shift, plane):
    polygons = [L_SHAPE, DART, [(0, 0), (1, 0), (0, 1)], [(0, 0), (1, 1)], STAR, CONVEX, L_SHAPE, [(0, 0)], DART[::-1]]
    polygons = [np.roll(np.array(polygon, float), shift, axis=0) for polygon in polygons]
    points = np.concatenate(polygons) @ np.array(plane, float)
    sizes = np.array([len(polygon) for polygon in polygons])
    triangles, owners = triangulate(points, sizes)
    assert np.all(np.diff(owners) >= 0)
    normal = np.cross(*np.array(plane, float))
    starts = np.cumsum(sizes) - sizes
    for index, polygon in enumerate(polygons):
        own = triangles[owners == index]
        assert np.all((own >= starts[index]) & (own < starts[index] + sizes[index]))
        a, b, c = np.moveaxis(points[own], 1, 0)
        areas = np.cross(b - a, c - a) @ normal / 2
        assert np.all(areas * np.sign(area(polygon)) >= -1e-12)  # so that they cannot overlap
        np.testing.assert_allclose(areas.sum(), area(polygon), atol=1e-12)


def test_nothing_gives_nothing():
    triangles, owners = triangulate(np.zeros((0, 3)), np.zeros(0, int))
    assert triangles.shape == (0, 3)
    assert owners.shape == (0,)
