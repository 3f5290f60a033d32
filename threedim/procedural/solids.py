"""Colored solids to build shapes from: boxes, lofts, tubes, slabs. Closed, with few faces."""

from __future__ import annotations

import colorsys
import dataclasses

import numpy as np
import trimesh

Color = tuple[float, float, float]  # sRGB, each in [0, 1]
_CORNERS = np.array([[1.0, 1], [-1, 1], [-1, -1], [1, -1]])


def hsv(hue: float, saturation: float, value: float) -> Color:
    """sRGB color. Hue wraps around; saturation and value are clipped to [0, 1]."""
    return colorsys.hsv_to_rgb(hue % 1.0, float(np.clip(saturation, 0, 1)), float(np.clip(value, 0, 1)))


def jitter(rng: np.random.Generator, color: Color, amount: float = 0.05) -> Color:
    """A color near ``color``: hue changes by at most a quarter of ``amount``, saturation and value by ``amount``."""
    h, s, v = colorsys.rgb_to_hsv(*color)
    dh, ds, dv = rng.uniform(-amount, amount, 3)
    return hsv(h + dh / 4, s + ds, v + dv)


def rounded_rectangle(width: float, depth: float, radius: float) -> np.ndarray:
    """(point, 2) outline, counter-clockwise, centered on the origin; ``radius`` is at most half the shorter side."""
    radius = max(min(radius, width / 2 - 1e-4, depth / 2 - 1e-4), 1e-4)
    angles = np.linspace(0, np.pi / 2, 4) + np.arange(4)[:, None] * np.pi / 2  # (corner, point)
    centers = _CORNERS * [width / 2 - radius, depth / 2 - radius]
    return (centers[:, None] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)).reshape(-1, 2)


def circle(radius: float, points: int) -> np.ndarray:
    """(point, 2) outline, counter-clockwise."""
    angles = np.arange(points) * 2 * np.pi / points
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def turn(axis: str, degrees: float) -> np.ndarray:
    """(3, 3) rotation about the x, y or z axis, right-handed."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    index = "xyz".index(axis)
    return np.roll([[1.0, 0, 0], [0, c, -s], [0, s, c]], (index, index), (0, 1))


class Builder:
    """Collects solids into one mesh, each in one color or colored by face. Points are (x, y, z), z up."""

    def __init__(self):
        self._vertices, self._faces, self._colors, self._count = [], [], [], 0

    def add(self, vertices, faces, color) -> None:
        """Adds (vertex, 3) and (face, 3) in a ``color`` (3,), or (face, 3)."""
        vertices, faces = np.asarray(vertices, np.float64), np.asarray(faces, np.int64)
        self._vertices.append(vertices)
        self._faces.append(faces + self._count)
        self._colors.append(np.broadcast_to(np.asarray(color, np.float64), (len(faces), 3)))
        self._count += len(vertices)

    def mesh(self) -> trimesh.Trimesh:
        """Everything so far, colored by face, normalized to the unit sphere as the renderer does."""
        vertices = np.concatenate(self._vertices)
        vertices = vertices - (vertices.min(axis=0) + vertices.max(axis=0)) / 2
        vertices = vertices / np.linalg.norm(vertices, axis=-1).max()
        colors = np.clip(np.round(np.concatenate(self._colors) * 255), 0, 255).astype(np.uint8)
        return trimesh.Trimesh(vertices, np.concatenate(self._faces), face_colors=colors, process=False)

    def loft(self, rings, color, caps: bool = True, closed: bool = False, cap_color: Color | None = None) -> None:
        """A skin through (ring, point, 3) outlines, counter-clockwise when seen from the last ring.

        Caps are fans around the mean of the first and last outline, which must be star-shaped. ``closed`` joins the
        last ring with the first instead. ``color`` is (3,), or (ring - 1, point, 3) for the quads after each ring and
        point, with caps in ``cap_color``.
        """
        rings = np.asarray(rings, np.float64)
        count, points = rings.shape[:2]
        steps = count if closed else count - 1
        ring, point = np.indices((steps, points))
        after, beside = (ring + 1) % count, (point + 1) % points
        a, b = ring * points + point, ring * points + beside
        c, d = after * points + beside, after * points + point
        faces = np.stack([a, b, c, a, c, d], axis=-1).reshape(-1, 3)
        color = np.asarray(color, np.float64)
        per_quad = color if color.ndim == 3 else np.broadcast_to(color, (steps, points, 3))
        colors = np.repeat(per_quad.reshape(-1, 3), 2, axis=0)
        vertices = rings.reshape(-1, 3)
        if caps and not closed:
            first, last = len(vertices), len(vertices) + 1
            vertices = np.concatenate([vertices, rings[[0, -1]].mean(axis=1)])
            index, following, top = np.arange(points), (np.arange(points) + 1) % points, (count - 1) * points
            bottom_cap = np.stack([following, index, np.full(points, first)], axis=-1)
            top_cap = np.stack([top + index, top + following, np.full(points, last)], axis=-1)
            faces = np.concatenate([faces, bottom_cap, top_cap])
            cap = np.broadcast_to(color if cap_color is None else cap_color, (2 * points, 3))
            colors = np.concatenate([colors, cap])
        self.add(vertices, faces, colors)

    def lathe(self, outline, profile, color) -> None:
        """Copies of a (point, 2) outline stacked along z; ``profile`` is a list of (scale, z)."""
        self.loft([_lift(scale * outline, z, "z") for scale, z in profile], color)

    def prism(self, outline, low: float, high: float, color, axis: str = "z") -> None:
        """A star-shaped (point, 2) outline, counter-clockwise, extruded from ``low`` to ``high`` along an axis.

        The outline lies in (x, y) for "z", (y, z) for "x", (z, x) for "y".
        """
        self.loft([_lift(outline, height, axis) for height in (low, high)], color)

    def box(self, center, size, color, rotation=None) -> None:
        """A box of ``size`` (3,), rotated by ``rotation`` (3, 3) about its center."""
        sx, sy, sz = np.asarray(size, np.float64) / 2
        rings = np.stack([_lift(_CORNERS * [sx, sy], z, "z") for z in (-sz, sz)])
        self.loft(_place(rings, center, rotation), color)

    def rounded_box(self, center, size, radius: float, color, rotation=None) -> None:
        """A box with rounded edges: cushions, seats, backs."""
        sx, sy, sz = size
        radius = min(radius, sx / 2, sy / 2, sz / 2)
        rings, angles = [], np.linspace(0, np.pi / 2, 3)
        for sign, angle in [(-1, angle) for angle in angles] + [(1, angle) for angle in angles[::-1]]:
            inset = radius * (1 - np.sin(angle))
            outline = rounded_rectangle(sx - 2 * inset, sy - 2 * inset, radius - inset + 0.3 * radius)
            rings.append(_lift(outline, sign * (sz / 2 - radius + radius * np.cos(angle)), "z"))
        self.loft(_place(np.stack(rings), center, rotation), color)

    def bar(self, start, end, radius: float, color, end_radius: float | None = None, points: int = 10) -> None:
        """A straight `tube` between two points, which may taper."""
        self.tube([start, end], [radius, radius if end_radius is None else end_radius], color, points)

    def tube(self, path, radius, color, points: int = 8, closed: bool = False) -> None:
        """A tube along (step, 3); ``radius`` may be (step,). Four ``points`` give a square bar of side 2 radius."""
        path = np.asarray(path, np.float64)
        outline = _CORNERS if points == 4 else circle(1.0, points)
        rings = path[:, None] + np.broadcast_to(radius, len(path))[:, None, None] * (outline @ _frames(path, closed))
        self.loft(rings, color, closed=closed)

    def disk(self, center, radius: float, thickness: float, color, axis: str = "z", points: int = 20) -> None:
        """A cylinder around an axis, with ``center`` in its middle."""
        middle, *offset = np.roll(center, -"xyz".index(axis))
        self.prism(circle(radius, points) + offset, middle - thickness / 2, middle + thickness / 2, color, axis)

    def slab(self, surface, thickness: float, color) -> None:
        """A curved board: a (row, column, 3) surface, thickened along its normals."""
        surface = np.asarray(surface, np.float64)
        normal = np.cross(*np.gradient(surface, axis=(0, 1)))
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        front, back = surface + normal * thickness / 2, surface - normal * thickness / 2
        # One ring per row: along the front and back along the rear.
        self.loft(np.concatenate([back, front[:, ::-1]], axis=1), color, caps=False)
        columns = surface.shape[1]
        a, d = np.arange(columns - 1), np.arange(columns, 2 * columns - 1)
        faces = np.concatenate([np.stack([a, a + 1, d + 1], -1), np.stack([a, d + 1, d], -1)])
        for row, order in ((0, faces), (-1, faces[:, ::-1])):
            self.add(np.concatenate([front[row], back[row]]), order, color)


@dataclasses.dataclass
class Design:
    """What all parts of an object share: the random stream and the mesh under construction."""

    rng: np.random.Generator
    build: Builder

    def draw(self, low: float, high: float) -> float:
        """A number sampled uniformly from [low, high)."""
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)


def rounded_path(corners, radius: float) -> np.ndarray:
    """(point, 3) along straight lines through ``corners`` (corner, 3), rounded off like bent tube."""
    corners = np.asarray(corners, np.float64)
    path, s = [corners[:1]], np.linspace(0, 1, 4)[:, None]
    for before, corner, after in zip(corners[:-2], corners[1:-1], corners[2:], strict=True):
        into, out = before - corner, after - corner
        reach = min(radius, np.linalg.norm(into) * 0.45, np.linalg.norm(out) * 0.45)
        p = corner + into / np.linalg.norm(into) * reach
        q = corner + out / np.linalg.norm(out) * reach
        path.append((1 - s) ** 2 * p + 2 * s * (1 - s) * corner + s**2 * q)
    return np.concatenate([*path, corners[-1:]])


def _lift(outline, height: float, axis: str) -> np.ndarray:
    points = np.column_stack([np.full(len(outline), height), outline])  # as for the x axis
    return np.roll(points, "xyz".index(axis), axis=1)


def _place(points, center, rotation) -> np.ndarray:
    return (points if rotation is None else points @ np.asarray(rotation).T) + np.asarray(center, np.float64)


def _frames(path: np.ndarray, closed: bool) -> np.ndarray:
    """(step, 2, 3) two unit vectors across the path at each step, twisting no more than the path does."""
    wrapped = np.roll(path, -1, axis=0) - np.roll(path, 1, axis=0)
    tangents = wrapped if closed else np.gradient(path, axis=0)
    tangents = tangents / np.linalg.norm(tangents, axis=-1, keepdims=True)
    # Square bars: upright ones have sides along x and y, level ones have a side that faces up.
    first, frames = np.array([1.0, 0, 0] if abs(tangents[0, 2]) > 0.8 else [0, 0, 1.0]), []
    for tangent in tangents:
        first = first - tangent * (first @ tangent)
        first /= np.linalg.norm(first)
        frames.append([first, np.cross(tangent, first)])
    return np.asarray(frames)
