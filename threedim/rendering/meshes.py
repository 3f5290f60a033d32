"""Triangle meshes for the renderer, from files of several formats or trimesh objects.

Each becomes a `Geometry`: a soup of triangles with normals, linear colors and textures, z up, normalized so that **the
center of its bounding box is the origin and its farthest vertex is at distance 1**.

Colors follow the formats. glTF base color factors and vertex colors are linear and multiply the sRGB texture. Colors of
the other formats and of trimesh objects are sRGB, and an OBJ or DAE texture replaces the diffuse color. Without
normals in the file, faces are flat, as the glTF standard asks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import trimesh

from threedim import files
from threedim.errors import MissingError, UserError
from threedim.rendering import dae, gltf, obj, off, other_meshes, ply
from threedim.rendering.surfaces import BadMeshError, Surface, cofactor, srgb_to_linear

# Where a mesh is there in several formats, the first counts.
SUFFIXES = (".glb", ".gltf", ".obj", ".dae", ".ply", ".3mf", ".off", ".stl")
UP_AXES = ("auto", "y", "z")

# +y is up in glTF and for most OBJ exporters. Scanners and CAD programs write the others, with z up.
_Y_UP = (".dae", ".glb", ".gltf", ".obj")  # a DAE says what is up, and has been turned to y
_Y_UP_TO_Z_UP = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
_READERS = {
    ".dae": dae.read,
    ".glb": gltf.read,
    ".gltf": gltf.read,
    ".obj": obj.read,
    ".off": off.read,
    ".ply": ply.read,
}
_DEFAULT_GRAY = np.array([178, 178, 178, 255])  # sRGB, for surfaces without any color


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """A soup of colored triangles inside the unit sphere, z up. All arrays are float32 unless said otherwise."""

    triangles: np.ndarray  # (face, corner, 3) positions
    normals: np.ndarray  # (face, corner, 3), unit, on the side where the corners run counter-clockwise
    colors: np.ndarray  # (face, corner, 4) linear RGBA in [0, 1]; multiplies the texture
    uv: np.ndarray  # (face, corner, 2) texture coordinates, v up from the lower edge of the image
    texture: np.ndarray  # (face,) int32 index into ``textures``, -1 for none
    alpha_cutoff: np.ndarray  # (face,) 0 for opaque; in (0, 1] the lowest alpha that is visible; inf to blend
    double_sided: np.ndarray  # (face,) bool; False hides the side where the corners run clockwise
    emission: np.ndarray | None = None  # (face, corner, 3) linear; added to the lit color, multiplies its texture
    emission_uv: np.ndarray | None = None  # as ``uv``, of the emission's texture
    emission_texture: np.ndarray | None = None  # as ``texture``. All three are None if nothing glows.
    textures: tuple[np.ndarray, ...] = ()  # (height, width, 4) uint8 sRGB images with straight alpha
    wraps: tuple[tuple[str, ...], ...] = ()  # by texture, as `Surface.wrap`
    warnings: tuple[str, ...] = ()  # a line for each thing in the file that is not rendered as it says


def load_mesh(path: str | os.PathLike, up: str = "auto", inside: str | os.PathLike | None = None) -> Geometry:
    """Reads a local file of one of the `SUFFIXES` with its materials and textures.

    Args:
      path: the file.
      up: the file's up axis: "y", "z", or "auto": y for GLB, glTF and OBJ, what the file says for DAE, and z for PLY,
        STL, OFF and 3MF. y-up files are rotated by (x, y, z) -> (x, -z, y), so that glTF's front (+z) becomes -y.
      inside: folder that all files which are read must lie in; that of the file if None.

    Raises:
      MissingError: if the file does not exist.
      BadMeshError: if the file cannot be read, contains no triangles, or has coordinates that are not finite.
      UserError: if ``up`` is none of the above.
    """
    if up not in UP_AXES:
        raise UserError(f"up must be one of {', '.join(UP_AXES)}; got {up!r}")
    path = pathlib.Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise BadMeshError(f"{path}: unsupported mesh format {suffix!r}; supported are {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise MissingError(f"{path}: no such file")
    axis = ("y" if suffix in _Y_UP else "z") if up == "auto" else up
    try:
        with np.errstate(all="ignore"), files.only_inside(inside or path.parent):
            if problem := files.leads_out(path):
                raise BadMeshError(f"{path} {problem}")
            if suffix in _READERS:
                surfaces, warnings = _READERS[suffix](path)
            else:
                scene, warnings = other_meshes.load(path)
                surfaces = _surfaces_of(scene, linear_colors=False, name=str(path))
    except UserError:
        raise
    except Exception as error:  # parsers of damaged files raise struct.error, KeyError, UnicodeDecodeError...
        said = " ".join(str(error).split())
        problem = f"cannot be read as {suffix[1:].upper()} ({type(error).__name__}: {said})"
        raise BadMeshError(f"{path}: {problem}") from error
    return from_surfaces(surfaces, axis, str(path), warnings)


def from_trimesh(
    mesh: trimesh.Trimesh | trimesh.Scene, up: str = "z", linear_colors: bool = False, name: str = "mesh"
) -> Geometry:
    """Flattens a trimesh object into a normalized `Geometry`.

    Args:
      mesh: a mesh, or a scene with all its instances; its paths and point clouds are ignored.
      up: "y" or "z".
      linear_colors: whether vertex and face colors are linear (glTF) or sRGB.
      name: used in error messages.

    Raises:
      BadMeshError: as for `load_mesh`.
    """
    return from_surfaces(_surfaces_of(mesh, linear_colors, name), up, name)


def _surfaces_of(mesh: trimesh.Trimesh | trimesh.Scene, linear_colors: bool, name: str) -> list[Surface]:
    instances = [(np.eye(4), mesh)]
    if isinstance(mesh, trimesh.Scene):
        instances = [mesh.graph[node] for node in mesh.graph.nodes_geometry]
        instances = [(np.asarray(matrix), mesh.geometry[geometry]) for matrix, geometry in instances]
    return [
        _surface(part, matrix, linear_colors, name)
        for matrix, part in instances
        if isinstance(part, trimesh.Trimesh) and len(part.faces)
    ]


@np.errstate(all="ignore")  # numbers that are not finite are refused, or replaced
def from_surfaces(surfaces: list[Surface], up: str = "z", name: str = "mesh", warnings: Sequence[str] = ()) -> Geometry:
    """Joins surfaces into a normalized `Geometry`. Arguments and errors as for `from_trimesh`."""
    if not any(len(surface.triangles) for surface in surfaces):
        raise BadMeshError(f"{name}: contains no triangles; only surfaces can be rendered")
    images, wraps, index = _textures(surfaces)
    glows = any(surface.emission is not None for surface in surfaces)
    parts = [_flatten(surface, index, glows) for surface in surfaces]
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    if up == "y":
        arrays |= {key: arrays[key] @ _Y_UP_TO_Z_UP.T for key in ("triangles", "normals")}
    if not all(np.isfinite(arrays[key]).all() for key in ("colors", "emission") if key in arrays):
        raise BadMeshError(f"{name}: colors are not finite; repair or export the mesh again")
    arrays["triangles"] = _normalize(arrays["triangles"], name)
    arrays = _drop_degenerate(arrays, name)
    dtypes = {"texture": np.int32, "emission_texture": np.int32, "double_sided": bool}
    arrays = {key: np.ascontiguousarray(value, dtypes.get(key, np.float32)) for key, value in arrays.items()}
    return Geometry(**arrays, textures=tuple(images), wraps=tuple(wraps), warnings=tuple(warnings))


def _flatten(surface: Surface, index: dict, glows: bool) -> dict[str, np.ndarray]:
    """The arrays of a `Geometry` for one surface. ``index`` is that of `_textures`."""
    faces = len(surface.triangles)
    flat = {
        "triangles": surface.triangles,
        "normals": surface.normals,
        "colors": np.asarray(surface.colors, np.float32),
        "uv": _finite(surface.uv),
        "texture": np.full(faces, index.get((id(surface.image), surface.wrap), -1)),
        "alpha_cutoff": np.full(faces, surface.alpha_cutoff, np.float32),
        "double_sided": np.full(faces, surface.double_sided),
    }
    if glows:
        emission = np.zeros((faces, 3, 3)) if surface.emission is None else surface.emission
        uv = np.zeros((faces, 3, 2)) if surface.emission_uv is None else surface.emission_uv
        flat["emission"], flat["emission_uv"] = np.asarray(emission, np.float32), _finite(uv)
        flat["emission_texture"] = np.full(faces, index.get((id(surface.emission_image), surface.emission_wrap), -1))
    return flat


def _finite(uv: np.ndarray) -> np.ndarray:
    return np.nan_to_num(np.asarray(uv, np.float32), nan=0, posinf=0, neginf=0)


def _textures(surfaces: list[Surface]) -> tuple[list[np.ndarray], list[tuple[str, ...]], dict]:
    """Images, their wrap modes, and the position of each (id(image), wrap). Surfaces often share one image."""
    images, wraps, index, by_content = [], [], {}, {}
    used = ([(part.image, part.wrap), (part.emission_image, part.emission_wrap)] for part in surfaces)
    for image, wrap in itertools.chain(*used):
        if image is None or (id(image), wrap) in index:
            continue
        content = (wrap, image.shape, hashlib.sha1(np.ascontiguousarray(image)).digest())
        if content not in by_content:
            by_content[content] = len(images)
            images.append(image)
            wraps.append(wrap)
        index[id(image), wrap] = by_content[content]
    return images, wraps, index


def _normalize(triangles: np.ndarray, name: str) -> np.ndarray:
    if not np.all(np.isfinite(triangles)):
        raise BadMeshError(f"{name}: vertices are not finite; repair or export the mesh again")
    points = triangles.reshape(-1, 3)
    centered = triangles - (points.min(axis=0) + points.max(axis=0)) / 2
    radius = np.sqrt((centered**2).sum(axis=-1).max())
    if not 0 < radius < np.inf:
        problem = "all vertices coincide; if the mesh is compressed (Draco, meshopt), export it uncompressed"
        raise BadMeshError(f"{name}: {problem}")
    return centered / radius


def _drop_degenerate(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Drops faces without area, which have no normal, and gives the others valid normals."""
    triangles, normals = arrays["triangles"], arrays["normals"]
    cross = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    area = np.linalg.norm(cross, axis=-1)
    # Relative to the longest edge: thinner faces are rounding errors.
    edges = np.linalg.norm(triangles - np.roll(triangles, 1, axis=1), axis=-1).max(axis=-1)
    keep = area > 1e-7 * edges**2
    if not keep.any():
        raise BadMeshError(f"{name}: no triangle has an area; only surfaces can be rendered")
    face_normal = (cross / np.where(keep, area, 1)[:, None])[:, None]
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    usable = np.isfinite(length) & (length > 1e-6)
    normals = np.where(usable, normals / np.where(usable, length, 1), face_normal)
    # Mirroring transforms and careless modeling leave normals behind the face.
    normals = np.where((normals * face_normal).sum(axis=-1, keepdims=True) < 0, -normals, normals)
    return {key: value[keep] for key, value in (arrays | {"normals": normals}).items()}


def _surface(part: trimesh.Trimesh, matrix: np.ndarray, linear_colors: bool, name: str) -> Surface:
    faces = np.asarray(part.faces)
    if faces.min() < 0 or faces.max() >= len(part.vertices):
        raise BadMeshError(f"{name}: a face refers to a vertex that does not exist; export the mesh again")
    triangles = np.asarray(part.vertices, np.float64)[faces] @ matrix[:3, :3].T + matrix[:3, 3]
    # Only trimesh's cache tells whether normals come from the file.
    if "vertex_normals" in part._cache.cache and len(part.vertex_normals) == len(part.vertices):
        normals = np.asarray(part.vertex_normals, np.float64)[faces] @ cofactor(matrix).T
    else:
        normals = np.zeros_like(triangles)
    surface = Surface(triangles, normals, np.ones((len(faces), 3, 4), np.float32), np.zeros((len(faces), 3, 2)))
    if isinstance(part.visual, trimesh.visual.TextureVisuals):
        _apply_material(surface, part, faces, name)
    else:
        _apply_colors(surface, part, faces, linear_colors)
    return surface


def _apply_colors(surface: Surface, part, faces, linear_colors: bool) -> None:
    visual = part.visual
    if visual.kind == "vertex":
        colors = np.asarray(visual.vertex_colors)[faces]
    elif visual.kind == "face":
        colors = np.repeat(np.asarray(visual.face_colors)[:, None], 3, axis=1)
    else:
        colors, linear_colors = np.broadcast_to(_DEFAULT_GRAY, (len(faces), 3, 4)), False
    surface.colors = colors.astype(np.float32) / 255 if linear_colors else _srgb_to_linear(colors)
    surface.alpha_cutoff = np.inf if np.any(colors[..., 3] < 255) else 0.0


def _apply_material(surface: Surface, part, faces, name: str) -> None:
    visual, material = part.visual, part.visual.material
    if isinstance(material, trimesh.visual.material.MultiMaterial):
        raise BadMeshError(f"{name}: surfaces with several materials are not supported; split them by material")
    uv = None if visual.uv is None or len(visual.uv) != len(part.vertices) else np.asarray(visual.uv, np.float32)
    if isinstance(material, trimesh.visual.material.PBRMaterial):
        image, factor = material.baseColorTexture, material.baseColorFactor
        if factor is not None:
            surface.colors *= np.asarray(factor, np.float32) / 255
        elif image is None:
            surface.colors *= _srgb_to_linear(_DEFAULT_GRAY)
        mode = material.alphaMode or "OPAQUE"
        cutoff = 0.5 if material.alphaCutoff is None else material.alphaCutoff
        surface.alpha_cutoff = {"OPAQUE": 0.0, "MASK": cutoff, "BLEND": np.inf}[mode]
        vertex_colors = visual.vertex_attributes.get("color")
        if vertex_colors is not None and len(vertex_colors) == len(part.vertices):
            surface.colors = surface.colors * (trimesh.visual.color.to_rgba(vertex_colors)[faces] / np.float32(255))
    else:
        image = getattr(material, "image", None)
        if image is None or uv is None:
            surface.colors *= _srgb_to_linear(material.main_color)
            surface.alpha_cutoff = np.inf if surface.colors[0, 0, 3] < 1 else 0.0
        elif "A" in image.getbands():
            surface.alpha_cutoff = 0.5
    if image is not None and uv is not None:
        surface.uv, surface.image = uv[faces], np.asarray(image.convert("RGBA"))


def _srgb_to_linear(rgba) -> np.ndarray:
    rgba = np.asarray(rgba, np.float32) / 255
    return np.concatenate([srgb_to_linear(rgba[..., :3]), rgba[..., 3:]], axis=-1)
