"""Triangle meshes for the renderer: read GLB, glTF, OBJ and PLY files, or take a trimesh object.

Everything ends as one `Geometry`: a soup of triangles with normals, linear colors and textures, z up, normalized so
that **the center of its bounding box is the origin and its farthest vertex is at distance 1**.

Colors follow the formats: a glTF base color factor and glTF vertex colors are linear and multiply the sRGB texture; OBJ
diffuse colors, PLY colors and colors of trimesh objects are sRGB, and an OBJ texture replaces the diffuse color.
Textures repeat. Where a file has no normals, faces are flat, as the glTF standard asks.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

import numpy as np
import trimesh

from threedim.errors import MissingError, UserError

SUFFIXES = (".glb", ".gltf", ".obj", ".ply")
UP_AXES = ("auto", "y", "z")

# glTF says +y is up, most OBJ exporters do too, scanners write PLY with z up.
_UP_BY_SUFFIX = {".glb": "y", ".gltf": "y", ".obj": "y", ".ply": "z"}
_Y_UP_TO_Z_UP = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
_DEFAULT_GRAY = 178  # sRGB, for surfaces without any color


class BadMeshError(UserError):
    """A mesh cannot be rendered; the message names the file, what was wrong, and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """A soup of colored triangles inside the unit sphere, z up. All arrays are float32 unless said otherwise.

    Attributes:
      triangles: (face, corner, 3) positions.
      normals: (face, corner, 3) unit shading normals, on the side from which the corners run counter-clockwise.
      colors: (face, corner, 4) linear RGBA in [0, 1]; multiplies the texture.
      uv: (face, corner, 2) texture coordinates, v up from the image's lower edge.
      texture: (face,) int32 index into ``textures``, -1 for none.
      alpha_cutoff: (face,) 0 for opaque; in (0, 1] the alpha from which on a point counts as there; inf to blend.
      textures: (height, width, 4) uint8 sRGB images with straight alpha.
    """

    triangles: np.ndarray
    normals: np.ndarray
    colors: np.ndarray
    uv: np.ndarray
    texture: np.ndarray
    alpha_cutoff: np.ndarray
    textures: tuple[np.ndarray, ...] = ()


def srgb_to_linear(value):
    """sRGB transfer function, from [0, 1] to [0, 1]."""
    value = np.asarray(value, np.float32)
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


def linear_to_srgb(value):
    """Inverse of `srgb_to_linear`."""
    value = np.asarray(value, np.float32)
    return np.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055).astype(np.float32)


def load_mesh(path: str | os.PathLike, up: str = "auto") -> Geometry:
    """Reads a local GLB, glTF, OBJ or PLY file, with the textures that it refers to.

    Args:
      path: the file.
      up: which of the file's axes points up: "y", "z", or "auto": y for GLB, glTF and OBJ, z for PLY. y-up files are
        turned by (x, y, z) -> (x, -z, y), so that glTF's front (+z) becomes -y.

    Raises:
      FileNotFoundError: if there is no such file.
      BadMeshError: (a ValueError) naming the file, if it cannot be read, holds no triangle, or has coordinates that are
        not finite.
      ValueError: if ``up`` is none of the above.
    """
    if up not in UP_AXES:
        raise UserError(f"up must be one of {', '.join(UP_AXES)}; got {up!r}")
    path = pathlib.Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise BadMeshError(f"{path}: unknown kind of mesh file {suffix!r}; known are {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise MissingError(f"{path}: no such file")
    try:
        with np.errstate(all="ignore"):
            scene = trimesh.load_scene(path, process=False)
    # Parsers of damaged files fail in every way: struct.error, KeyError, IndexError, UnicodeDecodeError, ...
    except Exception as error:
        raise BadMeshError(
            f"{path}: cannot be read as {suffix[1:].upper()} ({type(error).__name__}: {error})"
        ) from error
    gltf = suffix in (".glb", ".gltf")
    axis = _UP_BY_SUFFIX[suffix] if up == "auto" else up
    return from_trimesh(scene, up=axis, linear_colors=gltf, name=str(path))


def from_trimesh(
    mesh: trimesh.Trimesh | trimesh.Scene, up: str = "z", linear_colors: bool = False, name: str = "mesh"
) -> Geometry:
    """Flattens a trimesh object into a normalized `Geometry`.

    Args:
      mesh: a mesh, or a scene whose instances are all taken; paths and point clouds in it are left out.
      up: "y" or "z".
      linear_colors: whether vertex and face colors are linear (glTF) or sRGB.
      name: what messages call it.

    Raises:
      BadMeshError: as `load_mesh`.
    """
    if isinstance(mesh, trimesh.Scene):
        instances = [mesh.graph[node] for node in mesh.graph.nodes_geometry]
        instances = [(np.asarray(matrix), mesh.geometry[geometry]) for matrix, geometry in instances]
    else:
        instances = [(np.eye(4), mesh)]
    textures: list[np.ndarray] = []
    parts = [
        _flatten(part, matrix, linear_colors, textures, name)
        for matrix, part in instances
        if isinstance(part, trimesh.Trimesh) and len(part.faces)
    ]
    if not parts:
        raise BadMeshError(f"{name}: holds no triangles; only surfaces can be rendered")
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    if up == "y":
        for key in ("triangles", "normals"):
            arrays[key] = arrays[key] @ _Y_UP_TO_Z_UP.T
    arrays["triangles"] = _normalize(arrays["triangles"], name)
    arrays = _drop_degenerate(arrays, name)
    kinds = {"texture": np.int32}
    return Geometry(
        **{key: np.ascontiguousarray(value, kinds.get(key, np.float32)) for key, value in arrays.items()},
        textures=tuple(textures),
    )


def _normalize(triangles: np.ndarray, name: str) -> np.ndarray:
    if not np.all(np.isfinite(triangles)):
        raise BadMeshError(f"{name}: has vertices that are not finite; repair or export the mesh again")
    points = triangles.reshape(-1, 3)
    centered = triangles - (points.min(axis=0) + points.max(axis=0)) / 2
    radius = np.sqrt((centered**2).sum(axis=-1).max())
    if not radius > 0 or not np.isfinite(radius):
        raise BadMeshError(f"{name}: all vertices coincide; if it is compressed (Draco, meshopt), export without that")
    return centered / radius


def _drop_degenerate(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Leaves out faces without area, which have no normal, and gives the others valid normals."""
    triangles, normals = arrays["triangles"], arrays["normals"]
    cross = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    area = np.linalg.norm(cross, axis=-1)
    # Relative to the longest edge: a far smaller face is thinner than rounding.
    edges = np.linalg.norm(triangles - np.roll(triangles, 1, axis=1), axis=-1).max(axis=-1)
    keep = area > 1e-7 * edges**2
    if not keep.any():
        raise BadMeshError(f"{name}: no triangle has an area; only surfaces can be rendered")
    face_normal = (cross / np.where(keep, area, 1)[:, None])[:, None]
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    usable = np.isfinite(length) & (length > 1e-6)
    normals = np.where(usable, normals / np.where(usable, length, 1), face_normal)
    # A mirroring transform, or careless modelling, leaves normals behind the face.
    normals = np.where((normals * face_normal).sum(axis=-1, keepdims=True) < 0, -normals, normals)
    return {key: value[keep] for key, value in (arrays | {"normals": normals}).items()}


def _flatten(part, matrix, linear_colors: bool, textures: list[np.ndarray], name: str) -> dict[str, np.ndarray]:
    faces = np.asarray(part.faces)
    count = len(faces)
    if faces.min() < 0 or faces.max() >= len(part.vertices):
        raise BadMeshError(f"{name}: a face refers to a vertex that does not exist; export the mesh again")
    triangles = np.asarray(part.vertices, np.float64)[faces] @ matrix[:3, :3].T + matrix[:3, 3]
    # trimesh keeps the normals of the file in its cache, and says nowhere else whether they came from there.
    if "vertex_normals" in part._cache.cache and len(part.vertex_normals) == len(part.vertices):
        # Normals go by the inverse transpose; the cofactor matrix is that up to a factor, and exists for flat scalings.
        a, b, c = matrix[:3, :3]
        cofactor = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)])
        normals = np.asarray(part.vertex_normals, np.float64)[faces] @ cofactor.T
    else:
        normals = np.zeros((count, 3, 3))
    flat = {
        "triangles": triangles,
        "normals": normals,
        "colors": np.ones((count, 3, 4), np.float32),
        "uv": np.zeros((count, 3, 2), np.float32),
        "texture": np.full(count, -1, np.int32),
        "alpha_cutoff": np.zeros(count, np.float32),
    }
    if isinstance(part.visual, trimesh.visual.TextureVisuals):
        _apply_material(flat, part, faces, textures, name)
    else:
        _apply_colors(flat, part, faces, linear_colors)
    return flat


def _apply_colors(flat, part, faces, linear_colors: bool) -> None:
    visual = part.visual
    if visual.kind == "vertex":
        colors = np.asarray(visual.vertex_colors)[faces]
    elif visual.kind == "face":
        colors = np.repeat(np.asarray(visual.face_colors)[:, None], 3, axis=1)
    else:
        colors = np.broadcast_to(np.array([_DEFAULT_GRAY] * 3 + [255]), (len(faces), 3, 4))
        linear_colors = False
    flat["colors"] = _linear(colors, already=linear_colors)
    flat["alpha_cutoff"][np.any(colors[..., 3] < 255, axis=-1)] = np.inf


def _apply_material(flat, part, faces, textures: list[np.ndarray], name: str) -> None:
    visual, material = part.visual, part.visual.material
    count = len(faces)
    if isinstance(material, trimesh.visual.material.MultiMaterial):
        raise BadMeshError(f"{name}: a surface with several materials is not supported; split it by material")
    uv = None if visual.uv is None or len(visual.uv) != len(part.vertices) else np.asarray(visual.uv, np.float32)
    if isinstance(material, trimesh.visual.material.PBRMaterial):
        image = material.baseColorTexture
        factor = material.baseColorFactor
        if factor is not None:
            flat["colors"] *= np.asarray(factor, np.float32) / 255
        elif image is None:
            flat["colors"] *= _linear(np.array([_DEFAULT_GRAY] * 3 + [255]), already=False)
        mode = material.alphaMode or "OPAQUE"
        cutoff = 0.5 if material.alphaCutoff is None else material.alphaCutoff
        flat["alpha_cutoff"][:] = {"OPAQUE": 0.0, "MASK": cutoff, "BLEND": np.inf}[mode]
        vertex_colors = visual.vertex_attributes.get("color")
        if vertex_colors is not None and len(vertex_colors) == len(part.vertices):
            flat["colors"] = flat["colors"] * (trimesh.visual.color.to_rgba(vertex_colors)[faces] / np.float32(255))
    else:
        image = getattr(material, "image", None)
        if image is None or uv is None:
            flat["colors"] *= _linear(np.asarray(material.main_color), already=False)
            flat["alpha_cutoff"][flat["colors"][:, 0, 3] < 1] = np.inf
        elif "A" in image.getbands():
            flat["alpha_cutoff"][:] = 0.5
    if image is not None and uv is not None:
        uv = uv[faces]
        flat["uv"] = np.where(np.isfinite(uv), uv, 0)
        flat["texture"] = np.full(count, _add_texture(textures, image), np.int32)


def _add_texture(textures: list[np.ndarray], image) -> int:
    pixels = np.asarray(image.convert("RGBA"))
    for index, known in enumerate(textures):  # the parts of one file mostly share one image
        if known.shape == pixels.shape and np.array_equal(known, pixels):
            return index
    textures.append(pixels)
    return len(textures) - 1


def _linear(rgba, already: bool) -> np.ndarray:
    rgba = np.asarray(rgba, np.float32) / 255
    if already:
        return rgba
    return np.concatenate([srgb_to_linear(rgba[..., :3]), rgba[..., 3:]], axis=-1)
