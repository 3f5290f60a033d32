"""Cameras and rays.

Conventions, stated once for the whole project:

* A pose is **camera-to-world**: a point ``p`` in camera coordinates lies at ``R @ p + t`` in the world.
* Camera axes are **OpenCV**: x right, y down, z forward. The world's z axis points up.
* ``K`` is in pixels of the image that it comes with; pixel ``(row i, column j)`` has its center at
  ``(x, y) = (j + 0.5, i + 0.5)``.

A function that takes another convention says so in its name. Everything works on NumPy arrays (the data loader) and on
JAX arrays (compiled code): the array module is that of the arguments.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# SRN poses are printed with about six digits.
ROTATION_TOLERANCE = 1e-3

# OpenGL and Blender cameras look along -z with y up; OpenCV cameras look along +z with y down.
_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0])


def _xnp(array: Any):
    return jnp if isinstance(array, jax.Array) else np


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class Camera:
    """Pinhole cameras; all leading axes are batch axes and may differ in rank as long as they broadcast.

    Attributes:
      R: camera-to-world rotation, (..., 3, 3), OpenCV axes.
      t: camera center in the world, (..., 3).
      K: intrinsics in pixels, (..., 3, 3): ``[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]``.

    Raises:
      ValueError: on construction from concrete numbers, if a shape is wrong, a number is not finite, ``R`` is not a
        rotation (orthonormal to 1e-3, determinant +1), or a focal length is not positive. Traced values are not
        checked.
    """

    R: Any
    t: Any
    K: Any

    @np.errstate(over="ignore")  # numbers that float32 does not hold are reported as not finite
    def __post_init__(self):
        for name, shape in (("R", (3, 3)), ("t", (3,)), ("K", (3, 3))):
            value = getattr(self, name)
            if not isinstance(value, jax.Array):
                value = np.asarray(value, np.float32)
                object.__setattr__(self, name, value)
            if value.shape[value.ndim - len(shape) :] != shape:
                raise ValueError(f"camera {name} must end in axes {shape}, got shape {value.shape}")
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in (self.R, self.t, self.K)):
            check_pose(self.R, self.t)
            check_intrinsics(self.K)

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in ("R", "t", "K")], None

    @classmethod
    def tree_unflatten(cls, aux, children):
        # JAX passes tracers and sentinels through here, so there are no checks.
        del aux
        camera = object.__new__(cls)
        for name, value in zip(("R", "t", "K"), children, strict=True):
            object.__setattr__(camera, name, value)
        return camera

    def __getitem__(self, index) -> Camera:
        """Selects along the leading axes, which must be the same for R, t and K."""
        return jax.tree.map(lambda leaf: leaf[index], self)

    def __len__(self) -> int:
        if self.t.ndim < 2:
            raise TypeError("a single camera has no length")
        return self.t.shape[0]

    @classmethod
    def stack(cls, cameras: list[Camera]) -> Camera:
        """Joins cameras along a new first axis."""
        if not cameras:
            raise ValueError("no cameras to stack")
        return jax.tree.map(lambda *leaves: _xnp(leaves[0]).stack(leaves), *cameras)

    @classmethod
    @np.errstate(over="ignore")
    def from_matrix(cls, camera_to_world, K) -> Camera:
        """From (..., 4, 4) or (..., 3, 4) camera-to-world matrices with OpenCV axes."""
        camera_to_world = np.asarray(camera_to_world, np.float32)
        if camera_to_world.shape[-2:] not in ((4, 4), (3, 4)):
            raise ValueError(f"camera-to-world matrix must be 4x4 or 3x4, got shape {camera_to_world.shape}")
        bottom = camera_to_world[..., 3:, :]
        if not np.allclose(bottom, [0, 0, 0, 1], atol=1e-5):
            raise ValueError(f"last row of a camera-to-world matrix must be 0 0 0 1, got {bottom.reshape(-1, 4)[0]}")
        K = np.broadcast_to(np.asarray(K, np.float32), (*camera_to_world.shape[:-2], 3, 3))
        return cls(camera_to_world[..., :3, :3], camera_to_world[..., :3, 3], K)

    @classmethod
    def from_opengl_matrix(cls, camera_to_world, K) -> Camera:
        """From camera-to-world matrices with OpenGL axes (x right, y up, looking along -z): NeRF, nerfstudio."""
        camera_to_world = np.array(camera_to_world, np.float32)
        camera_to_world[..., :3, :3] = camera_to_world[..., :3, :3] @ _OPENGL_TO_OPENCV.astype(np.float32)
        return cls.from_matrix(camera_to_world, K)

    @classmethod
    def from_blender_matrix(cls, matrix_world, K) -> Camera:
        """From Blender's ``camera.matrix_world``: OpenGL axes; the scale of the object is removed."""
        matrix_world = np.array(matrix_world, np.float32)
        scale = np.linalg.norm(matrix_world[..., :3, :3], axis=-2, keepdims=True)
        if not np.all(np.isfinite(scale)) or np.any(scale <= 0):
            raise ValueError("Blender matrix has a zero or non-finite axis")
        matrix_world[..., :3, :3] /= scale
        return cls.from_opengl_matrix(matrix_world, K)

    def to_matrix(self):
        """Camera-to-world matrices with OpenCV axes, (..., 4, 4)."""
        xnp = _xnp(self.t)
        top = xnp.concatenate([self.R, self.t[..., None]], axis=-1)
        bottom = xnp.broadcast_to(xnp.asarray([[0.0, 0.0, 0.0, 1.0]], top.dtype), (*top.shape[:-2], 1, 4))
        return xnp.concatenate([top, bottom], axis=-2)

    def to_opengl_matrix(self):
        """Camera-to-world matrices with OpenGL axes, (..., 4, 4)."""
        return self.to_matrix() * np.append(_OPENGL_TO_OPENCV.diagonal(), 1).astype(np.float32)

    def resized(self, old_size: tuple[int, int], new_size: tuple[int, int]) -> Camera:
        """The camera of the same image after a resize from ``old_size`` to ``new_size``, both (height, width).

        With pixel centers at +0.5, focal lengths and the principal point scale alike.
        """
        if min(*old_size, *new_size) <= 0:
            raise ValueError(f"image sizes must be positive, got {old_size} and {new_size}")
        scale = np.asarray([new_size[1] / old_size[1], new_size[0] / old_size[0], 1.0], np.float32)
        return Camera(self.R, self.t, self.K * scale[:, None])

    def relative_to(self, reference: Camera) -> Camera:
        """The same cameras in the coordinates of ``reference``, whose own pose becomes the identity."""
        xnp = _xnp(self.t)
        # Sums, not matmuls, for the same reason as in ``rays``.
        R = xnp.sum(reference.R[..., :, :, None] * self.R[..., :, None, :], axis=-3)
        t = xnp.sum(reference.R * (self.t - reference.t)[..., :, None], axis=-2)
        return Camera(R, t, self.K)

    def rays(self, height: int, width: int):
        """World-space rays through the pixel centers of an image of ``height`` by ``width`` pixels [7.1].

        Returns:
          Origins and unit directions, each (..., height, width, 3), float32.
        """
        xnp = _xnp(self.t)
        x = xnp.arange(width, dtype=np.float32) + 0.5
        y = xnp.arange(height, dtype=np.float32) + 0.5
        x, y = xnp.meshgrid(x, y, indexing="xy")
        fx, fy = self.K[..., 0, 0, None, None], self.K[..., 1, 1, None, None]
        cx, cy = self.K[..., 0, 2, None, None], self.K[..., 1, 2, None, None]
        local_x, local_y = ((x - cx) / fx)[..., None], ((y - cy) / fy)[..., None]  # and z = 1
        # Multiply-adds, not a matmul, which an accelerator may compute in lower precision: the encoding multiplies
        # errors by up to 2^14.
        rotation = self.R[..., None, None, :, :]
        direction = rotation[..., 0] * local_x + rotation[..., 1] * local_y + rotation[..., 2]
        direction = direction / xnp.sqrt(xnp.sum(direction**2, axis=-1, keepdims=True))
        origin = xnp.broadcast_to(self.t[..., None, None, :], direction.shape)
        return origin, direction


def check_pose(R, t) -> None:
    """Raises ValueError unless ``R`` (..., 3, 3) are rotations to 1e-3 and ``t`` (..., 3) are finite."""
    R, t = np.asarray(R, np.float64), np.asarray(t, np.float64)
    if not np.all(np.isfinite(R)) or not np.all(np.isfinite(t)):
        raise ValueError("camera pose has a number that is not finite")
    error = np.abs(np.swapaxes(R, -1, -2) @ R - np.eye(3)).max(initial=0.0)
    if error > ROTATION_TOLERANCE:
        raise ValueError(f"camera R is not a rotation: R^T R differs from the identity by {error:.2g}")
    if np.any(np.linalg.det(R) < 0):
        raise ValueError("camera R is a reflection (determinant -1): were an axis or the handedness flipped?")


def check_intrinsics(K) -> None:
    """Raises ValueError unless ``K`` (..., 3, 3) is finite, has positive focal lengths, no skew, and last row 0 0 1."""
    K = np.asarray(K, np.float64)
    if not np.all(np.isfinite(K)):
        raise ValueError("camera K has a number that is not finite")
    if np.any(K[..., 0, 0] <= 0) or np.any(K[..., 1, 1] <= 0):
        raise ValueError("camera K has a focal length that is not positive")
    if np.any(K[..., 0, 1] != 0) or np.any(K[..., 1, 0] != 0) or np.any(K[..., 2, :] != [0, 0, 1]):
        raise ValueError("camera K must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]")


def intrinsics(focal: float, size: int | tuple[int, int], center: tuple[float, float] | None = None) -> np.ndarray:
    """``K`` (3, 3) for a focal length in pixels and an image of ``size`` (one number, or height and width).

    ``center`` is (cx, cy) in pixels; the middle of the image if not given.
    """
    height, width = (size, size) if np.ndim(size) == 0 else size
    cx, cy = center if center is not None else (width / 2, height / 2)
    K = np.asarray([[focal, 0, cx], [0, focal, cy], [0, 0, 1]], np.float32)
    check_intrinsics(K)
    return K


def look_at(position, target, K, up=(0.0, 0.0, 1.0)) -> Camera:
    """Cameras at ``position`` (..., 3) looking at ``target`` (3,) or (..., 3), with ``up`` upwards in the image.

    Looking straight along ``up`` leaves the roll undefined; then y is up in the image (z if ``up`` is nearer to y).

    Raises:
      ValueError: where position and target coincide.
    """
    position = np.asarray(position, np.float64)
    forward = np.asarray(target, np.float64) - position
    distance = np.linalg.norm(forward, axis=-1, keepdims=True)
    if not np.all(distance > 0):
        raise ValueError("look_at: position and target coincide, or are not finite")
    forward = forward / distance
    up = np.asarray(up, np.float64) / np.linalg.norm(up)
    aligned = np.abs(np.sum(forward * up, axis=-1, keepdims=True)) > 1 - 1e-9
    up = np.where(aligned, [0.0, 1.0, 0.0] if abs(up[1]) < 0.9 else [0.0, 0.0, 1.0], up)
    right = np.cross(forward, up)
    right = right / np.linalg.norm(right, axis=-1, keepdims=True)
    down = np.cross(forward, right)
    R = np.stack([right, down, forward], axis=-1).astype(np.float32)
    K = np.broadcast_to(np.asarray(K, np.float32), (*position.shape[:-1], 3, 3))
    return Camera(R, position.astype(np.float32), K)


def orbit(azimuths, elevation=None, radius=None, K=None, target=(0.0, 0.0, 0.0)) -> Camera | Callable[[Camera], Camera]:
    """Cameras on a circle (or any path on a sphere) around ``target``, looking at it.

    Args:
      azimuths: (views,) degrees, counter-clockwise seen from above, from the world's x axis; or a number of views that
        go evenly around: together with the input view if they have its elevation.
      elevation: degrees above the horizon, one number or (views,).
      radius: distance to the target, one number or (views,); positive.
      K: intrinsics, (3, 3) or (views, 3, 3).
      target: (3,) point looked at.

    Returns:
      The cameras. Without ``K``, a function that returns them for the camera of an input view, from which it takes
      what is not given.
    """
    if K is None:
        return functools.partial(_orbit_from, azimuths, elevation, radius, target)
    if np.ndim(azimuths) == 0:
        azimuths = np.arange(azimuths) * (360.0 / azimuths)
    azimuths, elevation, radius = np.broadcast_arrays(np.atleast_1d(azimuths), elevation, radius)
    if not np.all(radius > 0):
        raise ValueError(f"orbit: radius must be positive, got {np.min(radius)}")
    azimuth, height = np.deg2rad(azimuths), np.deg2rad(elevation)
    direction = np.stack([np.cos(height) * np.cos(azimuth), np.cos(height) * np.sin(azimuth), np.sin(height)], axis=-1)
    return look_at(np.asarray(target) + radius[:, None] * direction, target, K)


def _orbit_from(azimuths, elevation, radius, target, camera: Camera) -> Camera:
    x, y, z = np.asarray(camera.t, np.float64) - target
    if np.ndim(azimuths) == 0:
        with_input = int(elevation is None)
        steps = np.arange(with_input, azimuths + with_input)
        azimuths = np.rad2deg(np.arctan2(y, x)) + steps * (360.0 / (azimuths + with_input))
    elevation = np.rad2deg(np.arctan2(z, np.hypot(x, y))) if elevation is None else elevation
    return orbit(azimuths, elevation, np.linalg.norm([x, y, z]) if radius is None else radius, camera.K, target)
