"""Reads PLY files: faces of any size, triangle strips, colors and textures under the names that programs give them."""

from __future__ import annotations

import io
import pathlib
import re
import warnings

import numpy as np
import plyfile

from threedim.errors import UserError
from threedim.rendering import assets, polygons
from threedim.rendering.surfaces import DEFAULT_GRAY, BadMeshError, Surface, srgb_to_linear

# Names of properties; the first ones that a file has count.
_COLORS = [("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b")]
_ALPHAS = ["alpha", "diffuse_alpha", "a", "opacity"]
_COORDINATES = [("s", "t"), ("u", "v"), ("texture_u", "texture_v"), ("texture_s", "texture_t")]


def read(path: pathlib.Path) -> tuple[list[Surface], list[str]]:
    """The surfaces of a file, one for each texture, and its warnings.

    Raises:
      BadMeshError: if the file has no vertices or no faces, or a face refers to a vertex that does not exist.
    """
    (ply, textures), problems = _parse(path), []
    elements = {element.name.lower(): element.data for element in ply.elements}
    vertex = elements.get("vertex")
    if vertex is None or not {"x", "y", "z"} <= set(vertex.dtype.names):
        raise BadMeshError(f"{path}: contains no vertices with x, y and z")
    positions = _columns(vertex, "xyz").astype(np.float64)
    sizes, corners = _faces(path, elements)
    if not len(sizes):
        raise BadMeshError(f"{path}: contains no faces ({', '.join(elements)}); only surfaces can be rendered")
    if corners.size and not 0 <= corners.min() <= corners.max() < len(positions):
        raise BadMeshError(f"{path}: a face refers to a vertex that does not exist; export the mesh again")
    triangles, faces = polygons.triangulate(positions[corners], sizes)
    index = corners[triangles]
    normals = _columns(vertex, ("nx", "ny", "nz")) if "nx" in vertex.dtype.names else np.zeros_like(positions)
    face = elements.get("face")
    colors = _colors(vertex, index)
    if colors is None and face is not None:
        colors = _colors(face, np.repeat(np.minimum(faces, len(face) - 1)[:, None], 3, axis=1))
    if colors is None:
        colors = np.broadcast_to(np.float32([*srgb_to_linear(DEFAULT_GRAY), 1]), (len(index), 3, 4)).copy()
    if colors[..., 3].max(initial=0) == 0:
        problems.append(f"{path}: alpha is 0 everywhere; shown opaque")
        colors[..., 3] = 1
    uv = _coordinates(vertex, face, index, triangles, sizes)
    surface = Surface(positions[index], np.nan_to_num(normals[index]), colors, np.zeros((len(index), 3, 2)))
    surface.alpha_cutoff = np.inf if colors[..., 3].min() < 1 else 0.0
    return _with_textures(path, textures, surface, uv, face, faces, problems), problems


def _parse(path: pathlib.Path) -> tuple[plyfile.PlyData, list[str]]:
    """The file, and the names of its textures."""
    data = assets.read(path).removeprefix(b"\xef\xbb\xbf")
    end = re.search(rb"end_header[ \t]*(\r\n|\r|\n)", data)
    if not data.startswith(b"ply") or end is None:
        raise BadMeshError(f"{path}: cannot be read as PLY (it does not begin with a header)")
    header, body = [line.strip() for line in data[: end.end()].splitlines() if line.strip()], data[end.end() :]
    textures = [match[1] for line in header if (match := re.match(rb"(?i)comment\s+TextureFile\s+(.+)", line))]
    header = b"\n".join(line for line in header if not line.startswith((b"comment", b"obj_info"))) + b"\n"
    lengths = {}
    if b"format ascii" in header:
        body = b"\n".join(line for line in body.splitlines() if line.strip()) + b"\n"
    else:
        # Most files have triangles only, which plyfile reads at once if it is told.
        face = header.partition(b"element face")[2].partition(b"element")[0]
        lists = re.findall(r"property\s+list\s+\w+\s+\w+\s+(\w+)", face.decode("ascii", "replace"))
        lengths = {"face": {name: 6 if name == "texcoord" else 3 for name in lists}} if lists else {}
    textures = [assets.decode(name) for name in textures]
    with warnings.catch_warnings(action="ignore"):  # of NumPy, about empty lists
        try:
            return plyfile.PlyData.read(io.BytesIO(header + body), known_list_len=lengths), textures
        except plyfile.PlyElementParseError:
            return plyfile.PlyData.read(io.BytesIO(header + body)), textures


def _columns(data: np.ndarray, names) -> np.ndarray:
    return np.stack([data[name] for name in names], axis=-1)


def _flat(lists: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and joined values of the lists of a property."""
    if lists.dtype != object:
        return np.full(len(lists), lists.shape[1]), lists.reshape(-1)
    return np.array([len(each) for each in lists], int), np.concatenate([*lists, []])


def _faces(path: pathlib.Path, elements: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(face,) sizes and (corner,) vertices of the faces, then of the triangles of strips."""
    sizes, corners = [np.zeros(0, int)], [np.zeros(0, int)]
    if "face" in elements:
        face = elements["face"]
        name = next((name for name in ("vertex_indices", "vertex_index") if name in face.dtype.names), None)
        if name is None:
            raise BadMeshError(f"{path}: faces have no vertex_indices, but {', '.join(face.dtype.names)}")
        size, corner = _flat(face[name])
        sizes.append(size)
        corners.append(corner.astype(int))
    for strip in elements["tristrips"]["vertex_indices"] if "tristrips" in elements else ():
        # -1 begins a new strip; every second triangle is turned round.
        for part in np.split(strip, np.flatnonzero(strip < 0)):
            part = part[part >= 0]
            triangles = np.stack([part[:-2], part[1:-1], part[2:]], axis=-1)
            triangles[1::2] = triangles[1::2, ::-1]
            sizes.append(np.full(len(triangles), 3))
            corners.append(triangles.reshape(-1).astype(int))
    return np.concatenate(sizes), np.concatenate(corners)


def _unit(values: np.ndarray) -> np.ndarray:
    """Colors of any type in [0, 1]."""
    if np.issubdtype(values.dtype, np.integer):
        # Signed and wider types are used for values of 8 bits, too.
        largest = 255 if values.max(initial=0) <= 255 else np.iinfo(values.dtype).max
        return np.clip(values / largest, 0, 1)
    return np.clip(values / (255 if values.max(initial=0) > 1 else 1), 0, 1)


def _colors(data: np.ndarray, index: np.ndarray) -> np.ndarray | None:
    """Linear RGBA of rows of vertices or faces."""
    names = set(data.dtype.names)
    rgb = next((rgb for rgb in _COLORS if names.issuperset(rgb)), None)
    if rgb is None:
        return None
    alpha = next((alpha for alpha in _ALPHAS if alpha in names), None)
    rgba = np.ones((len(data), 4), np.float32)
    rgba[:, :3] = srgb_to_linear(_unit(_columns(data, rgb)))
    if alpha is not None:
        rgba[:, 3] = _unit(data[alpha])
    return rgba[index]


def _coordinates(vertex, face, index, triangles, sizes) -> np.ndarray | None:
    """(triangle, 3, 2) texture coordinates by corner (MeshLab) or by vertex; NaN where a face has none."""
    if face is not None and "texcoord" in face.dtype.names:
        lengths, values = _flat(face["texcoord"])
        uv = np.full((sizes.sum(), 2), np.nan)
        corners = np.repeat(np.pad(lengths == 2 * sizes[: len(face)], (0, len(sizes) - len(face))), sizes)
        uv[corners] = values[np.repeat(lengths == 2 * sizes[: len(face)], lengths)].reshape(-1, 2)
        return uv[triangles]
    names = next((pair for pair in _COORDINATES if {*pair} <= set(vertex.dtype.names)), None)
    return None if names is None else _columns(vertex, names).astype(float)[index]


def _with_textures(
    path: pathlib.Path, names: list[str], surface: Surface, uv, face, faces, problems: list[str]
) -> list[Surface]:
    """Surfaces for the textures that a file names, and for faces without."""
    if not names:
        return [surface]
    if uv is None:
        problems.append(f"{path}: there are no coordinates for texture {names[0]}")
        return [surface]
    number = np.zeros(len(faces), int)
    if face is not None and "texnumber" in face.dtype.names:
        number = face["texnumber"][np.minimum(faces, len(face) - 1)].astype(int)
    number = np.where(np.isfinite(uv).all(axis=(1, 2)), number, -1)
    surfaces, left = [], np.ones(len(faces), bool)
    for i, name in enumerate(names):
        chosen = number == i
        try:
            image = assets.image(assets.read(assets.search(path.parent, name)), name)
        except (UserError, OSError) as error:
            problems.append(f"{path}: texture {error}")
            continue
        left &= ~chosen
        if chosen.any():
            cutoff = np.inf if image[..., 3].min() < 255 else 0.0
            arrays = (surface.triangles[chosen], surface.normals[chosen], np.ones((chosen.sum(), 3, 4)), uv[chosen])
            surfaces.append(Surface(*arrays, image=image, alpha_cutoff=cutoff))
    if left.any():
        arrays = (each[left] for each in (surface.triangles, surface.normals, surface.colors, surface.uv))
        surfaces.append(Surface(*arrays, alpha_cutoff=surface.alpha_cutoff))
    return surfaces
