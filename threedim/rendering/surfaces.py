"""What readers of mesh files return: surfaces of one material each, in the file's own axes and units."""

from __future__ import annotations

import dataclasses

import numpy as np

from threedim.errors import UserError

DEFAULT_GRAY = (178 / 255,) * 3  # sRGB, for surfaces without any color


class BadMeshError(UserError):
    """A mesh cannot be rendered. The message starts with the file's path."""


@dataclasses.dataclass(eq=False)
class Surface:
    """Triangles of one material, in the file's own axes and units."""

    triangles: np.ndarray  # (face, corner, 3) float64 positions, transforms of instances applied
    normals: np.ndarray  # (face, corner, 3); zeros where the file has none
    colors: np.ndarray  # (face, corner, 4) linear RGBA; multiplies the texture
    uv: np.ndarray  # (face, corner, 2), v up from the lower edge; texture transforms applied
    image: np.ndarray | None = None  # (height, width, 4) uint8 sRGB with straight alpha
    # Of u and v: "repeat", "mirror" or "clamp"; and "nearest" if texels are not interpolated.
    wrap: tuple[str, ...] = ("repeat", "repeat")
    emission: np.ndarray | None = None  # (face, corner, 3) linear, added to the lit color; multiplies its texture
    emission_image: np.ndarray | None = None
    emission_uv: np.ndarray | None = None
    emission_wrap: tuple[str, ...] = ("repeat", "repeat")
    alpha_cutoff: float = 0.0  # 0 opaque; in (0, 1] the lowest alpha that is visible; inf to blend
    double_sided: bool = True  # False hides the side where the corners run clockwise


def srgb_to_linear(value):
    """sRGB transfer function, from [0, 1] to [0, 1]."""
    value = np.asarray(value, np.float32)
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


def linear_to_srgb(value):
    """Inverse of `srgb_to_linear`."""
    value = np.asarray(value, np.float32)
    return np.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055).astype(np.float32)


def cofactor(matrix: np.ndarray) -> np.ndarray:
    """(..., 3, 3) matrices that turn normals as ``matrix`` (..., 4, 4) does points.

    They are the inverse transpose up to a factor, and also exist for singular matrices.
    """
    a, b, c = (matrix[..., row, :3] for row in range(3))
    return np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=-2)
