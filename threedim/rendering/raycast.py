"""Renders meshes by casting rays with Embree. Needs no display and no OpenGL; images are the same on every machine.

A pixel is the average of ``samples`` rays. Lights are fixed in the world: a key and a fill light at infinity, and an
ambient light that is brighter from above. There are no shadows. Surfaces are lit on both sides; those that are not
double-sided let rays from behind pass.
"""

from __future__ import annotations

import numpy as np
import trimesh

from threedim.cameras import Camera
from threedim.errors import UserError
from threedim.rendering import meshes, surfaces
from threedim.rendering.meshes import Geometry

try:
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene
except ImportError:  # there is no wheel for Linux and Windows on ARM, where the rest of the package works
    TriangleMesh = EmbreeScene = None

# (direction towards the light, linear intensity). Objects face +x or, from glTF, -y.
_KEY_LIGHT = (np.array([0.45, -0.55, 0.70]), 0.62)
_FILL_LIGHT = (np.array([-0.60, 0.65, 0.15]), 0.18)
_SKY, _GROUND = 0.46, 0.24

# Rays per chunk: few enough to stay in the cache, many enough to hide NumPy's overhead.
_MAX_RAYS = 1 << 16
# Layers of transparent surface that a ray passes at most.
_MAX_LAYERS = 16
# Hidden sides of faces that a ray passes at most in a row.
_MAX_HIDDEN = 256
# Meshes with more corners are bounded in the image by their bounding box.
_MAX_PROJECTED = 20000

_SRGB_TO_LINEAR = surfaces.srgb_to_linear(np.arange(256) / 255)
_LINEAR_TO_SRGB = surfaces.linear_to_srgb(np.arange(4097) / 4096)


def render_views(
    mesh: Geometry | trimesh.Trimesh | trimesh.Scene, cameras: Camera, size: int, samples: int = 16
) -> np.ndarray:
    """Renders a mesh on a transparent background.

    Args:
      mesh: from `meshes.load_mesh`. A trimesh object is normalized first, as in `meshes.from_trimesh`.
      cameras: batched (view,), K in pixels of an image of ``size``.
      size: height and width, pixels.
      samples: rays per pixel; a single one goes through the pixel's center.

    Returns:
      (view, size, size, 4) uint8 sRGB with straight alpha: compositing on white gives the antialiased image on white.
      Empty pixels are (255, 255, 255, 0).

    Raises:
      ValueError: if cameras are not batched (view,), or size or samples are not positive.
    """
    if size <= 0 or samples <= 0:
        raise ValueError(f"size and samples must be positive, got size {size} and {samples} samples")
    if np.ndim(cameras.t) != 2:
        raise ValueError(f"cameras must be batched (view,), got t of shape {np.shape(cameras.t)}")
    caster = _Caster(mesh if isinstance(mesh, Geometry) else meshes.from_trimesh(mesh))
    offsets = sample_pattern(samples)
    images = np.tile(np.uint8([255, 255, 255, 0]), (len(cameras), size, size, 1))
    Ks = np.broadcast_to(cameras.K, (len(cameras), 3, 3))
    for image, *camera in zip(images, cameras.R, cameras.t, Ks, strict=True):
        R, t, K = (np.asarray(leaf, np.float64) for leaf in camera)
        top, bottom, left, right = caster.bounds(R, t, K, size)
        pixel_to_ray = (R @ np.linalg.inv(K)).astype(np.float32)
        rows = max(1, _MAX_RAYS // (max(right - left, 1) * samples))
        for row in range(top, bottom, rows):
            end = min(row + rows, bottom)
            directions = _directions(pixel_to_ray, offsets, row, end, left, right)
            rgba = caster.colors(t.astype(np.float32), directions)
            image[row:end, left:right] = _average(rgba, samples).reshape(end - row, right - left, 4)
    return images


def check_supported() -> None:
    """Raises `UserError` where nothing can be rendered."""
    if EmbreeScene is None:
        where = "which has no wheel for Linux and Windows on ARM; render elsewhere, and copy the folder of views"
        raise UserError(f"rendering needs the package embreex, {where}")


def sample_pattern(samples: int) -> np.ndarray:
    """(sample, 2) positions (x, y) in a pixel, in [0, 1): Hammersley points around its center, the same in every pixel.

    An edge of any direction, even along an axis, crosses the samples one by one.
    """
    index = np.arange(samples)
    inverse = sum((index >> bit & 1) / 2 ** (bit + 1) for bit in range(int(samples).bit_length()))
    points = np.stack([(index + 0.5) / samples, inverse], axis=-1)
    return (points - points.mean(axis=0) + 0.5).astype(np.float32)


def _directions(pixel_to_ray, offsets, top, bottom, left, right) -> np.ndarray:
    """(ray, 3) float32 directions, not normalized, in the order row, column, sample."""
    x = np.arange(left, right, dtype=np.float32)[:, None] + offsets[:, 0]  # (column, sample)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + offsets[:, 1]  # (row, sample)
    along_x = x[..., None] * pixel_to_ray[:, 0] + pixel_to_ray[:, 2]
    along_y = y[..., None] * pixel_to_ray[:, 1]
    return (along_y[:, None] + along_x[None]).reshape(-1, 3)


def _average(rgba: np.ndarray, samples: int) -> np.ndarray:
    """(pixel * sample, 4) premultiplied colors to (pixel, 4) uint8 with straight alpha."""
    # A matrix product is several times faster than a sum over the middle axis.
    total = np.ones(samples, np.float32) @ rgba.reshape(-1, samples, 4)
    alpha = total[:, 3:]
    total[:, :3] = np.where(alpha > 0, total[:, :3] / np.maximum(alpha, 1e-6), 1)
    total[:, 3:] /= samples
    return np.clip(total * 255 + 0.5, 0, 255).astype(np.uint8)


def _light(normals: np.ndarray) -> np.ndarray:
    """(..., 3) unit normals to (...,) linear light."""
    light = _GROUND + (_SKY - _GROUND) * (0.5 + 0.5 * normals[..., 2])
    for direction, intensity in (_KEY_LIGHT, _FILL_LIGHT):
        direction = (direction / np.linalg.norm(direction)).astype(np.float32)
        light = light + intensity * np.maximum(normals @ direction, 0)
    return light.astype(np.float32)


class _Caster:
    """A geometry prepared for ray casting. It is lit once, since the light does not move with the camera."""

    def __init__(self, geometry: Geometry):
        check_supported()
        self.geometry = geometry
        self.scene = EmbreeScene()
        self.triangles = TriangleMesh(self.scene, np.ascontiguousarray(geometry.triangles, np.float32))
        self.hull = geometry.triangles.reshape(-1, 3)
        if len(self.hull) > _MAX_PROJECTED:
            self.hull = self.hull.min(axis=0) + np.indices((2, 2, 2)).reshape(3, 8).T * np.ptp(self.hull, axis=0)
        self.opposite = None if geometry.double_sided.all() else _opposites(geometry.triangles)
        # Row 2 * face is the side of the normal, row 2 * face + 1 the other side.
        light = np.stack([_light(geometry.normals), _light(-geometry.normals)], axis=1)  # (face, side, corner)
        lit = np.repeat(geometry.colors[:, None], 2, axis=1)  # (face, side, corner, rgba)
        lit[..., :3] *= light[..., None]
        if geometry.emission is not None:
            lit[..., :3] += geometry.emission[:, None] * (geometry.emission_texture < 0)[:, None, None, None]
        self.lit = lit.reshape(-1, 3, 4)
        self.opaque = not geometry.alpha_cutoff.any()
        # Colors by row if each side of a face has one color; the last row is the empty background.
        self.flat = None
        if self.opaque and not geometry.textures and np.ptp(self.lit, axis=1).max() < 1e-4:
            self.flat = np.zeros((len(self.lit) + 1, 4), np.float32)
            self.flat[:-1, :3], self.flat[:-1, 3] = _encode(self.lit[:, 0, :3]), 1
        if geometry.textures:
            # The texels of all textures in one array: a single gather serves every hit.
            self.texels = np.concatenate([texture.reshape(-1, 4) for texture in geometry.textures])
            shapes = np.array([texture.shape[:2] for texture in geometry.textures])
            self.texture_size = shapes[:, ::-1].astype(np.int32)  # (texture, 2): width, height
            self.texture_start = np.concatenate([[0], np.cumsum(shapes.prod(axis=1))[:-1]])
            wraps = np.array([wrap[:2] for wrap in geometry.wraps])
            self.repeats, self.mirrors = wraps == "repeat", wraps == "mirror"  # (texture, 2)
            self.nearest = np.array(["nearest" in wrap for wrap in geometry.wraps])

    def bounds(self, R, t, K, size: int) -> tuple[int, int, int, int]:
        """Pixels (top, bottom, left, right; ends excluded) that enclose every hit; all 0 if there is none."""
        local = (self.hull - t) @ R
        depth = local[:, 2]
        if depth.max() <= 0:
            return 0, 0, 0, 0
        if depth.min() < 1e-3:  # reaches behind the camera, so it may be anywhere in the image
            return 0, size, 0, size
        image = local @ K.T
        image = image[:, :2] / image[:, 2:]
        left, top = np.clip(np.floor(image.min(axis=0) - 1e-3), 0, size).astype(int)
        right, bottom = np.clip(np.ceil(image.max(axis=0) + 1e-3), 0, size).astype(int)
        return (top, bottom, left, right) if left < right and top < bottom else (0, 0, 0, 0)

    def colors(self, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """(ray, 4) premultiplied sRGB along (ray, 3) directions from one origin (3,)."""
        origins = np.broadcast_to(origin, directions.shape)
        hits = self._visible(origins, directions)
        if self.flat is not None:
            return self.flat[_row(hits)]
        rgba = np.zeros((len(directions), 4), np.float32)
        rays, through = np.arange(len(directions)), np.ones(len(directions), np.float32)
        for _ in range(_MAX_LAYERS):
            hit = hits["primID"] >= 0
            rays, through, origins, directions = rays[hit], through[hit], origins[hit], directions[hit]
            if not len(rays):
                break
            hits = {key: value[hit] for key, value in hits.items()}
            shaded = self._shade(hits)
            if self.opaque:
                rgba[rays] = shaded
                break
            alpha = shaded[:, 3] * through
            rgba[rays, :3] += shaded[:, :3] * alpha[:, None]
            rgba[rays, 3] += alpha
            through = through * (1 - shaded[:, 3])
            # Continue just behind the hit.
            origins = origins + directions * _behind(hits["tfar"])[:, None]
            more = through > 1e-3
            rays, through, origins, directions = rays[more], through[more], origins[more], directions[more]
            hits = self._visible(origins, directions)
        return rgba

    def _visible(self, origins, directions) -> dict[str, np.ndarray]:
        """The first hits that are not on the hidden side of a face."""
        hits = self._hits(origins, directions)
        if self.opposite is None:
            return hits
        rays = self._hidden(hits, np.arange(len(directions)))
        for _ in range(_MAX_HIDDEN):
            if not len(rays):
                break
            passed = _behind(hits["tfar"][rays])
            further = self._hits(origins[rays] + directions[rays] * passed[:, None], directions[rays])
            further["tfar"] = further["tfar"] + passed
            for key, values in further.items():
                hits[key][rays] = values
            rays = self._hidden(hits, rays)
        hits["primID"][rays] = -1
        return hits

    def _hidden(self, hits, rays) -> np.ndarray:
        """Those of ``rays`` that hit a hidden side. If a visible face is in the same place, it is hit instead."""
        face = hits["primID"][rays]
        where = np.flatnonzero(hits["back"][rays] & ~self.geometry.double_sided[face])
        rays, (other, corner) = rays[where], self.opposite[face[where]].T
        found = other >= 0
        swap, other, corner = rays[found], other[found], corner[found]
        weights = _corners({key: hits[key][swap] for key in "uv"})
        for key, step in (("u", 1), ("v", 2)):  # corners run the other way, and start at another one
            hits[key][swap] = weights[np.arange(len(swap)), (corner - step) % 3]
        hits["primID"][swap], hits["back"][swap] = other, False
        return rays[~found]

    def _hits(self, origins, directions) -> dict[str, np.ndarray]:
        hits = self.scene.run(np.ascontiguousarray(origins), np.ascontiguousarray(directions), output=True)
        hits["back"] = (np.einsum("ij,ij->i", hits.pop("Ng"), directions) > 0) & (hits["primID"] >= 0)
        return hits

    def _shade(self, hits) -> np.ndarray:
        """(hit, 4) sRGB with straight alpha."""
        face = hits["primID"]
        corners = _corners(hits)[:, None]  # (hit, 1, corner)
        rgba = (corners @ self.lit[_row(hits)])[:, 0]
        if self.geometry.textures:
            texture = self.geometry.texture[face]
            where = np.flatnonzero(texture >= 0)
            uv = (corners[where] @ self.geometry.uv[face[where]])[:, 0]
            rgba[where] *= self._sample(texture[where], uv)
        if self.geometry.emission is not None and self.geometry.textures:
            texture = self.geometry.emission_texture[face]
            where = np.flatnonzero(texture >= 0)
            weights, face_where = corners[where], face[where]
            uv = (weights @ self.geometry.emission_uv[face_where])[:, 0]
            emission = (weights @ self.geometry.emission[face_where])[:, 0]
            rgba[where, :3] += emission * self._sample(texture[where], uv)[:, :3]
        rgba[:, :3] = _encode(rgba[:, :3])
        if self.opaque:
            rgba[:, 3] = 1
        else:
            cutoff = self.geometry.alpha_cutoff[face]
            rgba[:, 3] = np.where(np.isinf(cutoff), np.clip(rgba[:, 3], 0, 1), rgba[:, 3] >= cutoff)
        return rgba

    def _sample(self, texture, uv) -> np.ndarray:
        """(hit, 4) linear RGBA at (hit, 2) texture coordinates: bilinear, or of the nearest texel."""
        size, start, repeats = self.texture_size[texture], self.texture_start[texture], self.repeats[texture]
        position = uv - np.floor(uv)
        if not (all_repeat := self.repeats.all()):
            others = np.where(self.mirrors[texture], 1 - np.abs(1 - np.mod(uv, 2)), np.clip(uv, 0, 1))
            position = np.where(repeats, position, others)
        position = position * size
        position[:, 1] = size[:, 1] - position[:, 1]  # v runs up, rows run down
        position -= 0.5  # texel centers
        corner = np.floor(position)
        weight = (position - corner).astype(np.float32)
        if self.nearest.any():
            weight = np.where(self.nearest[texture, None], np.float32(weight >= 0.5), weight)
        low, high = (corner.astype(np.int32) + step for step in (0, 1))
        if not all_repeat:
            low, high = (np.where(repeats, texel, np.clip(texel, 0, size - 1)) for texel in (low, high))
        low, high = np.mod(low, size), np.mod(high, size)
        total = np.zeros((len(uv), 4), np.float32)
        for y, weight_y in ((low[:, 1], 1 - weight[:, 1]), (high[:, 1], weight[:, 1])):
            for x, weight_x in ((low[:, 0], 1 - weight[:, 0]), (high[:, 0], weight[:, 0])):
                texel = self.texels[start + y * size[:, 0] + x]
                linear = _SRGB_TO_LINEAR[texel]
                linear[:, 3] = texel[:, 3] * np.float32(1 / 255)
                total += linear * (weight_x * weight_y)[:, None]
        return total


def _row(hits) -> np.ndarray:
    """Row of `_Caster.lit` for each hit; -1 for misses."""
    return np.where(hits["primID"] >= 0, 2 * hits["primID"] + hits["back"], -1)


def _corners(hits) -> np.ndarray:
    """(hit, corner) barycentric weights."""
    return np.stack([1 - hits["u"] - hits["v"], hits["u"], hits["v"]], axis=-1)


def _behind(distance: np.ndarray) -> np.ndarray:
    """Distance of a point just behind a hit."""
    return distance * np.float32(1 + 1e-5) + np.float32(1e-5)


def _opposites(triangles: np.ndarray) -> np.ndarray:
    """(face, 2): the face with the same corners in the opposite order, or -1; and its corner that is the first here.

    Modelers give a sheet two visible sides by doubling its faces. Rays cannot tell which of the two they hit.
    """
    bits = (triangles + np.float32(0)).view(np.uint32).astype(np.uint64)  # + 0 turns -0 into 0
    code = bits @ np.random.default_rng(0).integers(1 << 63, size=3, dtype=np.uint64)
    code = ((code ^ (code >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)).sum(axis=1)  # whatever the order
    order = np.argsort(code)
    found = np.full((len(triangles), 2), -1)
    same = np.flatnonzero(code[order[1:]] == code[order[:-1]])
    for one, other in ((order[same], order[same + 1]), (order[same + 1], order[same])):
        for corner in range(3):
            reverse = triangles[other][:, [corner, corner - 2, corner - 1]]  # corner, next, next but one
            match = (triangles[one][:, [0, 2, 1]] == reverse).all(axis=(1, 2))
            found[one[match]] = np.stack([other[match], np.full(match.sum(), corner)], axis=-1)
    return found


def _encode(linear: np.ndarray) -> np.ndarray:
    """Linear to sRGB with a lookup table; clips to [0, 1]."""
    return _LINEAR_TO_SRGB[(np.clip(linear, 0, 1) * 4096 + 0.5).astype(np.int32)]
