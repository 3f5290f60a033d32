"""Cameras around an object in the unit sphere, in the proportions of SRN ShapeNet [6].

SRN's cars lie in a sphere of radius 0.5, seen from a distance of 1.3 with a focal length of 131.25 pixels in 128. Here
the sphere has radius 1, so the distance is 2.6. The sphere fills 85 % of the image's height.
"""

from __future__ import annotations

import numpy as np

from threedim import cameras as cameras_lib
from threedim.cameras import Camera
from threedim.errors import UserError

RADIUS = 2.6
FOCAL = 131.25 / 128  # in image heights

# Radians that SRN's test spiral turns, clockwise seen from above, while it climbs from the horizon to the top.
_SPIRAL_TURN = 20.0


def default_intrinsics(size: int) -> np.ndarray:
    """K (3, 3) in pixels of an image of ``size`` by ``size``."""
    return cameras_lib.intrinsics(FOCAL * size, size)


def sphere_cameras(
    views: int, radius: float, K: np.ndarray, seed: int | np.random.Generator, min_elevation: float = -90.0
) -> Camera:
    """Cameras sampled uniformly on a sphere about the origin and looking at it: SRN's training views.

    Args:
      views: number of cameras, which are returned batched (view,).
      radius: distance to the origin, in radii of the object.
      K: (3, 3) in pixels, with the principal point at the center of the image.
      seed: a seed or a generator.
      min_elevation: lowest elevation, degrees in [-90, 90). -90 is SRN's full sphere.

    Raises:
      UserError: if an argument is out of range, or the unit sphere does not fit into the image.
    """
    _check(views, radius, K)
    if not -90 <= min_elevation < 90:
        raise UserError(f"min_elevation must be in [-90, 90) degrees, got {min_elevation}")
    rng = np.random.default_rng(seed)
    # On a sphere, slices of equal height have equal area.
    height = rng.uniform(np.sin(np.deg2rad(min_elevation)), 1.0, views)
    azimuth = rng.uniform(0.0, 360.0, views)
    return cameras_lib.orbit(azimuth, np.rad2deg(np.arcsin(height)), radius, K)


def spiral_cameras(views: int, radius: float, K: np.ndarray) -> Camera:
    """Cameras on SRN's test spiral, from the horizon at the world's x axis around and up in 3.2 turns.

    Elevation grows evenly from 0 to 90 (1 - 1 / views) degrees. Every object has the same cameras. Arguments, result
    and errors as for `sphere_cameras`.
    """
    _check(views, radius, K)
    return cameras_lib.orbit(*spiral(views), radius, K)


def spiral(views: int) -> tuple[np.ndarray, np.ndarray]:
    """Azimuths and elevations of `spiral_cameras`, degrees, (views,)."""
    progress = np.arange(views) / views
    return -np.rad2deg(_SPIRAL_TURN * progress), 90.0 * progress


def _check(views: int, radius: float, K: np.ndarray) -> None:
    if views <= 0:
        raise UserError(f"views must be positive, got {views}")
    if not radius > 1:
        raise UserError(f"radius must be above 1 (cameras outside the object's unit sphere), got {radius}")
    # The sphere's outline is a circle at the angle asin(1 / radius) from the optical axis.
    reach, room = K[0, 0] / np.sqrt(radius**2 - 1), min(K[0, 2], K[1, 2])
    if reach > room:
        least = np.sqrt(1 + (K[0, 0] / room) ** 2)
        raise UserError(f"the unit sphere does not fit into the image from radius {radius}; use at least {least:.3f}")
