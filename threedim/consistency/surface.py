"""From a fitted neural field and its views to a closed surface with colors.

A grid holds one number at each of ``resolution`` points along each edge of the scene's box, axes (x, y, z). Views show
an object before white, and white fog costs a field nothing: what is white counts as empty, and so does what lies
outside of the object's outline in the views.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import trimesh
from scipy import ndimage, spatial

from threedim.cameras import Camera
from threedim.consistency import field as field_lib
from threedim.consistency.field import Bounds, Field, FieldSettings
from threedim.errors import UserError

# Colors whose darkest channel is above the second are white, below the first not at all.
_WHITE = 0.9, 0.97
# Edges of the box within which of a surface its distance counts: farther in front is empty, farther behind unseen.
_NEAR = 1 / 48
# Voxels: of the Gaussian that takes out noise finer than the views.
_SMOOTHING = 1.0
# Floaters are the parts with less than this share of the largest part's volume.
_FLOATER = 0.01
# Points that are evaluated at once.
_CHUNK = 1 << 17


def log_density(field: Field, settings: FieldSettings, resolution: int) -> np.ndarray:
    """The logarithm of a field's density, less where its color is white: (resolution, resolution, resolution)."""
    line = np.linspace(0, 1, resolution, dtype=np.float32)
    points = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1)

    @jax.jit
    def evaluate(positions: jax.Array) -> jax.Array:
        density, color, _ = field_lib.density_and_color(field.params, positions, settings)
        white = (jnp.min(color, axis=-1) - _WHITE[0]) / (_WHITE[1] - _WHITE[0])
        return jnp.log(density * jnp.clip(1 - white, 1e-6, 1) + 1e-9)

    return _in_chunks(evaluate, points.reshape(-1, 3)).reshape((resolution,) * 3)


def outlines(pictures: np.ndarray) -> np.ndarray:
    """(view, size, size) bool: the object and what it encloses, in pictures (..., 3) uint8 before white.

    Pixels at its edge count if at least half covered: half as dark as their darkest neighbor.
    """
    dark = 255 - pictures.min(axis=-1).astype(np.int16)
    mask = (dark > 255 * (1 - _WHITE[1])) & (2 * dark > ndimage.maximum_filter(dark, (1, 3, 3)))
    return np.stack([ndimage.binary_fill_holes(one) for one in mask])


def fuse(log: np.ndarray, masks: np.ndarray, cameras: Camera, bounds: Bounds) -> np.ndarray:
    """A grid that is positive inside of the object, smooth, and zero at its surface, which all cameras vote on.

    The surface is where the opacity of rays through the outlines reaches 1/2. As in KinectFusion (Newcombe et al.
    2011), each point takes the mean of its distances from the surfaces that cameras see, clipped to [-1, 1] times
    `_NEAR`, or 1 outside of an outline. Points that no camera sees are inside, but only within the bounding box of
    what is seen: an underside may be hidden, but is not far below.

    Args:
      log: grid of `log_density`.
      masks: (view, size, size), `outlines`.
      cameras: batched (view,), K in pixels of these.
      bounds: of the scene.

    Raises:
      UserError: if no ray becomes opaque.
    """
    size, line = masks.shape[1], np.linspace(-bounds.half_width, bounds.half_width, len(log), dtype=np.float32)
    points = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)
    total, count, seen = np.zeros(len(points), np.float32), np.zeros(len(points), np.int16), []
    for index, mask in enumerate(masks):
        camera = cameras[index]
        depth = np.where(mask.reshape(-1), half_opaque(log, camera, bounds, size), np.inf)
        pixel, is_inside, distance = _project(points, camera, size)
        ahead = np.where(is_inside, depth[pixel], np.inf) - distance  # NaN where a ray of the object stays clear
        votes = ahead > -2 * bounds.half_width * _NEAR
        total += np.where(votes, np.minimum(ahead / (2 * bounds.half_width * _NEAR), 1), 0)
        count += votes
        origin, direction = (each.reshape(-1, 3) for each in camera.rays(size, size))
        found = np.isfinite(depth)
        seen.append(origin[found] + direction[found] * depth[found, None])
    seen = np.concatenate(seen)
    if not len(seen):
        raise UserError("the field is nowhere opaque: do the views show an object before white?")
    # Not of all points: some are floaters.
    low, high = np.quantile(seen, [0.02, 0.98], axis=0)
    is_near = np.all((points >= low) & (points <= high), axis=-1)
    grid = np.where(count > 0, -total / np.maximum(count, 1), np.where(is_near, 1, -1))
    return ndimage.gaussian_filter(grid.reshape(log.shape).astype(np.float32), _SMOOTHING, mode="nearest")


def half_opaque(log: np.ndarray, camera: Camera, bounds: Bounds, size: int) -> np.ndarray:
    """(pixel,) distances at which the opacity of a camera's rays reaches 1/2; NaN where it does not."""
    origins, directions = (each.reshape(-1, 3) for each in camera.rays(size, size))
    enter, leave = map(np.asarray, field_lib.clip_to_box(origins, directions, bounds))
    samples = 2 * len(log)  # about two a voxel
    distances = enter[:, None] + (leave - enter)[:, None] * (np.arange(samples, dtype=np.float32) + 0.5) / samples
    index = []
    for axis in range(3):
        position = origins[:, axis, None] + directions[:, axis, None] * distances
        position = (position / (2 * bounds.half_width) + 0.5) * (len(log) - 1) + 0.5
        index.append(np.clip(position, 0, len(log) - 1).astype(np.int32))
    step = (leave - enter)[:, None] / (2 * bounds.half_width * samples)
    is_half = np.cumsum(np.exp(log[tuple(index)]) * step, axis=-1) > np.log(2)
    first = distances[np.arange(len(distances)), is_half.argmax(axis=-1)]
    return np.where(is_half[:, -1], first, np.nan)


def extract(grid: np.ndarray, half_width: float, faces: int) -> trimesh.Trimesh:
    """The surface at zero of a grid, closed, without floaters, in world coordinates.

    Args:
      grid: positive inside.
      half_width: half the edge of the box around the origin that the grid covers, world units.
      faces: about the largest number of triangles; a surface with more is simplified.

    Returns:
      At most ``faces`` triangles, more if they cannot be reduced; they run counter-clockwise seen from outside.

    Raises:
      UserError: if nothing is positive.
    """
    import manifold3d
    from skimage import measure

    # Beyond the box there is nothing: a surface that reaches it is closed there.
    padded = np.pad(grid, 1, constant_values=-1)
    if not (padded > 0).any():
        raise UserError("the field has no surface: are the views white, or too few?")
    vertices, triangles, _, _ = measure.marching_cubes(padded, 0.0, gradient_direction="ascent")
    vertices = 2 * half_width * ((vertices - 1) / (len(grid) - 1) - 0.5)
    # Unlike quadric decimation, manifold3d never opens or pinches a surface.
    whole = manifold3d.Manifold(manifold3d.Mesh(vertices.astype(np.float32), triangles.astype(np.uint32)))
    parts = whole.decompose()
    largest = max(part.volume() for part in parts)
    kept = manifold3d.Manifold.compose([part for part in parts if part.volume() >= _FLOATER * largest])
    voxel = 2 * half_width / (len(grid) - 1)
    simple, tolerance = kept, voxel / 16
    while simple.num_tri() > faces and tolerance < 8 * voxel:
        simple, tolerance = kept.simplify(tolerance), 1.25 * tolerance
    mesh = simple.to_mesh()
    return trimesh.Trimesh(mesh.vert_properties, mesh.tri_verts)


def vertex_colors(mesh: trimesh.Trimesh, pictures: np.ndarray, cameras: Camera) -> np.ndarray:
    """(vertex, 3) sRGB in [0, 1]: the mean over the cameras that see a vertex, of those that face it most.

    Vertices that no camera sees take the color of the nearest that one does.

    Args:
      mesh: in world coordinates.
      pictures: (view, size, size, 3) uint8, of the field.
      cameras: batched (view,), K in pixels of these.
    """
    vertices, normals = (np.asarray(each, np.float32) for each in (mesh.vertices, mesh.vertex_normals))
    total, weights = np.zeros((len(vertices), 3)), np.zeros(len(vertices))
    for index, picture in enumerate(pictures):
        camera = cameras[index]
        pixel, is_inside, distance = _project(vertices, camera, len(picture))
        toward = (camera.t - vertices) / distance[:, None]
        # A little off the surface, so that the ray does not hit its own triangles.
        hidden = mesh.ray.intersects_any(vertices + 1e-3 * mesh.scale * normals, toward)
        weight = np.where(is_inside & ~hidden, np.maximum(np.sum(toward * normals, axis=-1), 0) ** 4, 0)
        total += weight[:, None] * picture.reshape(-1, 3)[pixel] / 255
        weights += weight
    is_seen = weights > 1e-3
    if not is_seen.any():
        raise UserError("no view sees the surface")
    _, nearest = spatial.KDTree(vertices[is_seen]).query(vertices)
    return (total[is_seen] / weights[is_seen, None])[nearest]


def _project(points: np.ndarray, camera: Camera, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixel (row * size + column) of each point, whether it is in the image, and the distance from the camera."""
    local = (points - camera.t) @ camera.R
    pixel = local @ camera.K.T
    column, row = np.floor(pixel[:, :2] / np.maximum(pixel[:, 2:], 1e-6)).clip(-1, size).astype(np.int32).T
    is_inside = (local[:, 2] > 0) & (column >= 0) & (column < size) & (row >= 0) & (row < size)
    return np.where(is_inside, row * size + column, 0), is_inside, np.linalg.norm(local, axis=-1)


def _in_chunks(function, rows: np.ndarray, size: int = _CHUNK) -> np.ndarray:
    """A compiled function of rows, applied to chunks of one size; the last is padded."""
    padded = np.pad(rows, ((0, -len(rows) % size), (0, 0)), mode="edge")
    parts = [np.asarray(function(part)) for part in padded.reshape(-1, size, rows.shape[1])]
    return np.concatenate(parts)[: len(rows)]
