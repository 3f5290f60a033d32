"""Cameras around an object in the unit sphere, in the proportions of SRN ShapeNet (the paper, section 6).

SRN's cars lie in a sphere of radius 0.5 and are seen from 1.3 with a focal length of 131.25 pixels in 128. Here the
sphere has radius 1, so the cameras stand at 2.6; the sphere then takes 85 % of the picture's height.
"""

from __future__ import annotations

import numpy as np

from threedim import cameras as cameras_lib
from threedim.cameras import Camera
from threedim.errors import UserError

RADIUS = 2.6
FOCAL = 131.25 / 128  # in heights of the picture

# SRN's test spiral turns by 20 radians, clockwise seen from above, while it climbs from the horizon to the top.
_SPIRAL_TURN = 20.0


def default_intrinsics(size: int) -> np.ndarray:
    """K (3, 3) in pixels of a picture of ``size`` by ``size``."""
    return cameras_lib.intrinsics(FOCAL * size, size)


def sphere_cameras(
    views: int, radius: float, K: np.ndarray, seed: int | np.random.Generator, min_elevation: float = -90.0
) -> Camera:
    """Cameras drawn uniformly from a sphere about the origin, looking at it: SRN's training views.

    Args:
      views: how many.
      radius: distance to the origin, in radii of the object.
      K: (3, 3) in pixels, principal point in the middle of the picture.
      seed: a seed or a generator.
      min_elevation: degrees in [-90, 90); cameras lower than this are not drawn. -90 is SRN's full sphere.

    Returns:
      Camera batched (view,).

    Raises:
      ValueError: if an argument is out of range, or the unit sphere does not fit into the picture.
    """
    _check(views, radius, K)
    if not -90 <= min_elevation < 90:
        raise UserError(f"min_elevation must be in [-90, 90) degrees, got {min_elevation}")
    rng = np.random.default_rng(seed)
    # Equal heights of a sphere have equal areas.
    height = rng.uniform(np.sin(np.deg2rad(min_elevation)), 1.0, views)
    azimuth = rng.uniform(0.0, 360.0, views)
    return cameras_lib.orbit(azimuth, np.rad2deg(np.arcsin(height)), radius, K)


def spiral_cameras(views: int, radius: float, K: np.ndarray) -> Camera:
    """Cameras on SRN's test spiral: view 0 on the horizon at the world's x axis, then around and up, 3.2 turns.

    Elevation grows evenly, from 0 to 90 (1 - 1 / views) degrees. The same for every object. Arguments, result and
    errors as `sphere_cameras`.
    """
    _check(views, radius, K)
    progress = np.arange(views) / views
    azimuth = -np.rad2deg(_SPIRAL_TURN * progress)
    return cameras_lib.orbit(azimuth, 90.0 * progress, radius, K)


def _check(views: int, radius: float, K: np.ndarray) -> None:
    if views <= 0:
        raise UserError(f"views must be positive, got {views}")
    if not radius > 1:
        raise UserError(f"radius must be above 1 (cameras outside the object's unit sphere), got {radius}")
    # The sphere's outline is a circle seen under the angle asin(1 / radius) about the optical axis.
    reach = K[0, 0] / np.sqrt(radius**2 - 1)
    room = min(K[0, 2], K[1, 2])
    if reach > room:
        least = np.sqrt(1 + (K[0, 0] / room) ** 2)
        raise UserError(f"the unit sphere does not fit into the picture from radius {radius}; at least {least:.3f}")
