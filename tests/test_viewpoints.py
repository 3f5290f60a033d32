"""Cameras around an object: where they stand, where they look, and that the object fits into the image."""

import numpy as np
import pytest

from threedim.cameras import Camera
from threedim.rendering.viewpoints import RADIUS, default_intrinsics, sphere_cameras, spiral_cameras

K = default_intrinsics(64)


def looks_at_origin(camera: Camera, radius: float):
    np.testing.assert_allclose(np.linalg.norm(camera.t, axis=-1), radius, rtol=1e-5)
    np.testing.assert_allclose(camera.R[:, :, 2], -camera.t / radius, atol=1e-5)
    level = np.abs(camera.t[:, 2]) < 0.999 * radius
    np.testing.assert_allclose(camera.R[level, 2, 0], 0, atol=1e-5)  # no roll: the image's x axis is level
    assert np.all(camera.R[level, 2, 1] < 0)  # the image's y axis points down


def test_sphere_cameras_are_uniform_and_reproducible():
    camera = sphere_cameras(4000, 2.6, K, seed=3)
    looks_at_origin(camera, 2.6)
    # Archimedes: on a sphere, each coordinate is uniform.
    for axis in range(3):
        heights = np.sort(camera.t[:, axis] / 2.6)
        assert np.abs(heights - np.linspace(-1, 1, 4000)).max() < 2 * 1.63 / np.sqrt(4000)  # Kolmogorov, 1 %
    np.testing.assert_array_equal(camera.t, sphere_cameras(4000, 2.6, K, np.random.default_rng(3)).t)
    assert np.abs(camera.t - sphere_cameras(4000, 2.6, K, seed=4).t).max() > 1
    capped = sphere_cameras(4000, 2.6, K, seed=3, min_elevation=-15).t[:, 2] / 2.6
    lowest = np.sin(np.deg2rad(-15))
    assert capped.min() >= lowest - 1e-6
    assert np.abs(np.sort(capped) - np.linspace(lowest, 1, 4000)).max() < 0.05


def test_spiral_is_the_one_of_srn():
    views, radius, a = 250, 2.6, 40.0
    camera = spiral_cameras(views, radius, K)
    looks_at_origin(camera, radius)
    i = a / 2 + np.arange(views) * a / (2 * views)
    theta = i / a * np.pi
    x, y = radius * np.sin(theta) * np.cos(-i), radius * np.sin(-theta + np.pi) * np.sin(-i)
    expected = np.stack([x, y, -radius * np.cos(theta)], axis=-1)
    # SRN starts at 20 radians; here view 0 is on the x axis.
    c, s = np.cos(a / 2), np.sin(a / 2)
    np.testing.assert_allclose(camera.t, expected @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T, atol=1e-4)
    np.testing.assert_allclose(camera.t[0], [radius, 0, 0], atol=1e-6)


def test_unit_sphere_fits_or_is_refused():
    points = np.random.default_rng(0).normal(size=(5000, 3))
    points /= np.linalg.norm(points, axis=-1, keepdims=True)
    for camera in (sphere_cameras(20, RADIUS, K, 0), spiral_cameras(20, RADIUS, K)):
        local = np.einsum("vji,vpj->vpi", camera.R, points[None] - camera.t[:, None])
        image = local @ K.T
        image = image[..., :2] / image[..., 2:]
        assert local[..., 2].min() > 0
        assert image.min() > 0
        assert image.max() < 64
        assert np.ptp(image[..., 0], axis=1).min() > 0.8 * 64  # and fills the image
    for views, radius, lowest, message in (
        (5, 2.2, -90, r"does not fit .*radius 2\.2.*2\.28"),
        (5, 1.0, -90, "radius must be above 1"),
        (0, 2.6, -90, "views must be positive"),
        (5, 2.6, 90, "min_elevation must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            sphere_cameras(views, radius, K, 0, min_elevation=lowest)
