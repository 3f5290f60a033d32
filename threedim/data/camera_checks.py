"""Do the cameras of an object make sense? Common mistakes are recognized by what would make sense instead.

Cameras are refused only where another reading of the same matrices clearly fits: other camera axes, or
world-to-camera instead of camera-to-world. What may be meant is a warning.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from threedim.data.views import UP_ROTATIONS

# Least mean square of the sine between camera axes and their main direction for which these meet somewhere: 13 degrees.
_MIN_SPREAD = 0.05
# Root mean square distance of camera axes from their common point, in distances of the cameras: what fits, what not.
_MEET, _MISS = 0.15, 0.5
# Axes that pass the origin within this, in distances of the cameras, look at it or away from it.
_AT_ORIGIN = 0.1
# Sine between the world's horizon and the camera's, root mean square, up to which a camera counts as upright.
_UPRIGHT = 0.35
# Distances to the object in its units, and fields of view in degrees, beyond which something is likely wrong.
_DISTANCES, _FIELDS = (0.1, 50.0), (3.0, 130.0)

_AXES = {"opengl": "OpenGL or Blender axes", "opencv": "OpenCV axes"}


class Focus(NamedTuple):
    """What cameras look at: the point nearest to all optical axes."""

    point: np.ndarray  # (3,)
    distance: float  # root mean square distance of the cameras from it
    miss: float  # root mean square distance of the axes from it, in these distances; infinite where cameras are there
    in_front: float  # share of cameras that have it in front
    spread: float  # how much the directions of the axes vary; the point is unknown for nearly parallel ones

    @property
    def is_known(self) -> bool:
        """Whether the axes are not nearly parallel."""
        return self.spread > _MIN_SPREAD

    @property
    def fits(self) -> bool:
        """Whether these are cameras around an object, for sure."""
        return self.is_known and self.miss < _MEET and self.in_front > 0.9


def pose_matrices(matrices: np.ndarray, axes: str, world_to_camera: bool) -> np.ndarray:
    """(views, 4, 4) camera-to-world matrices with OpenCV axes, from matrices of another convention."""
    if world_to_camera:
        R = np.swapaxes(matrices[:, :3, :3], 1, 2)
        matrices = matrices.copy()
        matrices[:, :3, 3] = -(R @ matrices[:, :3, 3:])[..., 0]
        matrices[:, :3, :3] = R
    return matrices * [1, -1, -1, 1] if axes == "opengl" else matrices


def focus(poses: np.ndarray) -> Focus:
    """What cameras with these (views, 4, 4) poses look at."""
    t, forward = poses[:, :3, 3], poses[:, :3, 2]
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]  # projects along each axis
    A = across.mean(axis=0)
    point = np.linalg.lstsq(A, np.einsum("nij,nj->i", across, t) / len(t), rcond=None)[0]
    to_point = point - t
    distance = _rms(to_point)
    # Cameras at the point, up to rounding, look at nothing.
    miss = _rms(np.einsum("nij,nj->ni", across, to_point)) / distance if distance > 1e-3 * _rms(t) else np.inf
    in_front = np.mean(np.sum(to_point * forward, axis=1) > 0)
    return Focus(point, distance, miss, float(in_front), float(np.linalg.eigvalsh(A)[0]))


def problem(matrices: np.ndarray, axes: str, world_to_camera: bool) -> str | None:
    """Why an object's cameras make no sense, and what to do, in one line; None if they may.

    Args:
      matrices: (views, 4, 4) as in the files.
      axes, world_to_camera: how they are read.
    """
    poses, views = pose_matrices(matrices, axes, world_to_camera), len(matrices)
    if views > 1 and np.ptp(poses, axis=0).max() < 1e-6 * (1 + np.abs(poses).max()):
        return f"all {views} views have the same camera; each needs its own, relative to the object"
    found = focus(poses)
    if found.is_known and found.in_front > 0.1 and found.miss < _MISS:
        return None
    flipped = "opencv" if axes == "opengl" else "opengl"
    for other, inverse in ((flipped, world_to_camera), (axes, not world_to_camera), (flipped, not world_to_camera)):
        if focus(pose_matrices(matrices, other, inverse)).fits:
            changes = [] if other == axes else [(_AXES[other], f"--config.data.axes={other}")]
            if inverse != world_to_camera:
                direction = "world-to-camera" if inverse else "camera-to-world"
                changes.append((f"{direction} matrices", f"--config.data.world_to_camera={inverse}"))
            names, flags = zip(*changes, strict=True)
            wrong = "look away from" if found.is_known and found.miss < _MISS else "do not look at"
            return f"cameras {wrong} a common point, but with {' and '.join(names)} they look at one: {' '.join(flags)}"
    t, forward = poses[:, :3, 3], poses[:, :3, 2]
    along = np.sum(t * forward, axis=1)
    if not found.is_known and np.all(along > 0) and _rms(t - along[:, None] * forward) < _AT_ORIGIN * _rms(t):
        return f"every camera looks away from the origin; are these {_AXES[flipped]}? --config.data.axes={flipped}"
    return None


def doubts(poses: np.ndarray, K: np.ndarray, size: int) -> list[str]:
    """Warnings about cameras that may be meant so, one line each.

    Args:
      poses: (views, 4, 4) camera-to-world, OpenCV axes, after all changes of the world.
      K: (views, 3, 3) in pixels of pictures of ``size`` pixels.
    """
    found, warnings = focus(poses), []
    if found.is_known and not found.miss < _MISS:
        warnings.append("cameras do not look at a common point")
    elif not found.fits and (outside := _without_origin(poses, K, size)) > len(poses) / 2:
        hint = "are --config.data.axes and --config.data.world_to_camera right?"
        warnings.append(f"the origin is outside of {outside} of {len(poses)} pictures; {hint}")
    away = distance(poses)
    if not _DISTANCES[0] <= away <= _DISTANCES[1]:
        hint = f"a --config.data.scale of {2 / away:.2g} would make it 2" if away > 0 else "are positions missing?"
        warnings.append(f"cameras are at a distance of {away:.3g}; {hint}")
    if found.fits and np.linalg.norm(found.point) > 0.5 * found.distance:
        x, y, z = found.point
        warnings.append(f"cameras look at ({x:.3g}, {y:.3g}, {z:.3g}), not at the origin; --config.data.center=True")
    field = np.rad2deg(2 * np.arctan(size / 2 / np.median(K[:, 0, 0])))
    if not _FIELDS[0] <= field <= _FIELDS[1]:
        warnings.append(f"field of view is {field:.3g} degrees; are intrinsics for another size?")
    up = [axis for axis in UP_ROTATIONS if _is_up(poses, axis)]
    if len(up) == 1 and up != ["z"]:
        warnings.append(f"{up[0]} points up in all pictures, not z; --config.data.up={up[0]}")
    return warnings


def looked_at(poses: np.ndarray) -> np.ndarray:
    """The point (3,) that cameras, (views, 4, 4) poses, look at, or the origin if that is unclear."""
    found = focus(poses)
    return found.point if found.is_known and found.miss < _MISS else np.zeros(3)


def distance(poses: np.ndarray) -> float:
    """Distance of cameras, (views, 4, 4) poses, from what they look at, or from the origin if that is unclear."""
    return _rms(poses[:, :3, 3] - looked_at(poses))


def _without_origin(poses: np.ndarray, K: np.ndarray, size: int) -> int:
    """How many pictures do not show the origin."""
    x, y, z = np.einsum("nij,nkj,nk->in", K, poses[:, :3, :3], -poses[:, :3, 3])
    return int(np.sum((z <= 0) | (np.minimum(x, y) < 0) | (np.maximum(x, y) > size * z)))


def _is_up(poses: np.ndarray, axis: str) -> bool:
    """Whether a world axis points up in all views, nearly without roll."""
    direction = np.asarray(UP_ROTATIONS[axis][2], np.float64)
    right, down = poses[:, :3, 0] @ direction, poses[:, :3, 1] @ direction
    return bool(_rms(right[:, None]) < _UPRIGHT and np.all(down < 0.1))


def _rms(vectors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.sum(vectors**2, axis=-1))))
