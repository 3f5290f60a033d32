"""Reads COLLADA files (DAE) by pycollada: colors, opacity and textures; skinned meshes in their bind pose."""

from __future__ import annotations

import pathlib

import collada
import numpy as np
from collada.lineset import LineSet
from collada.material import Map
from collada.polylist import Polylist

from threedim.errors import UserError
from threedim.rendering import assets, mtl, polygons
from threedim.rendering.surfaces import DEFAULT_GRAY, Surface, cofactor, srgb_to_linear

# From the axes of the file to y up.
_TO_Y_UP = {"Y_UP": np.eye(3), "Z_UP": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])}
_TO_Y_UP["X_UP"] = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])


def read(path: pathlib.Path) -> tuple[list[Surface], list[str]]:
    """The surfaces of a file, turned so that y is up, and its warnings."""
    document = collada.Collada(str(path), ignore=[collada.common.DaeError])
    warnings = [f"{path}: {error}" for error in document.errors]
    turn = _TO_Y_UP[str(document.assetInfo.upaxis)]
    surfaces: list[Surface] = []
    images: dict[str, np.ndarray | None] = {}
    for kind in ("geometry", "controller"):
        for item in document.scene.objects(kind) if document.scene is not None else ():
            if kind == "controller":
                warnings.append(f"{path}: a skinned or morphed mesh is in its bind pose")
                item = (
                    item.geometry if hasattr(item, "geometry") else item.original.source_geometry.bind(item.matrix, {})
                )
            matrix = np.asarray(item.matrix, np.float64)
            matrix[:3] = turn @ matrix[:3]
            for primitive in item.original.primitives:
                if isinstance(primitive, LineSet):
                    warnings.append(f"{path}: lines are not rendered")
                elif primitive.vertex is not None and len(primitive.vertex_index):
                    node = item.materialnodebysymbol.get(primitive.material)
                    surface = _surface(primitive, matrix)
                    _apply(surface, primitive, node and node.target.effect, path, images, warnings)
                    surfaces.append(surface)
    return surfaces, list(dict.fromkeys(warnings))


def _surface(primitive, matrix: np.ndarray) -> Surface:
    # Not bound to the matrix by pycollada, which turns normals like positions.
    vertex = primitive.vertex_index.reshape(-1)
    sizes = np.asarray(primitive.vcounts) if isinstance(primitive, Polylist) else np.full(len(vertex) // 3, 3)
    positions = np.asarray(primitive.vertex, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    corners, _ = polygons.triangulate(positions[vertex], sizes)
    normals, uv, colors = np.zeros((len(corners), 3, 3)), np.zeros((len(corners), 3, 2)), np.ones((len(corners), 3, 4))
    if primitive.normal is not None:
        normals = (np.asarray(primitive.normal) @ cofactor(matrix).T)[primitive.normal_index.reshape(-1)[corners]]
    if primitive.texcoordset:
        uv = np.asarray(primitive.texcoordset[0])[primitive.texcoord_indexset[0].reshape(-1)[corners]]
    for offset, _, _, _, source, *_ in primitive.sources.get("COLOR", ())[:1]:
        values = np.asarray(source.data)[primitive.index.reshape(len(vertex), -1)[:, offset][corners]]
        colors[..., :3] = srgb_to_linear(np.clip(values[..., :3], 0, 1))
    return Surface(positions[vertex[corners]], normals, colors, uv[..., :2])


def _apply(surface: Surface, primitive, effect, path: pathlib.Path, images: dict, warnings: list[str]) -> None:
    """Gives a surface its material; colors of a DAE are sRGB."""

    def image_of(value) -> np.ndarray | None:
        if not isinstance(value, Map):
            return None
        name = value.sampler.surface.image.path
        if name not in images:
            try:
                images[name] = assets.image(assets.read(assets.search(path.parent, name.removeprefix("file://"))), name)
            except (UserError, OSError) as error:
                images[name] = None
                warnings.append(f"{path}: texture {error}")
        return images[name] if primitive.texcoordset else None

    if effect is None:
        if "COLOR" not in primitive.sources:
            surface.colors[..., :3] = srgb_to_linear(DEFAULT_GRAY)
        return
    surface.image = image_of(effect.diffuse)
    if surface.image is None:
        color = DEFAULT_GRAY if effect.diffuse is None or isinstance(effect.diffuse, Map) else effect.diffuse[:3]
        surface.colors[..., :3] *= srgb_to_linear(np.clip(color, 0, 1))
    if (mask := image_of(effect.transparent)) is not None:
        surface.image = mtl.with_opacity(surface.image, mask)
    elif effect.transparent is not None and not isinstance(effect.transparent, Map):
        factor = effect.transparency if isinstance(effect.transparency, float | int) else 1.0
        red, green, blue, alpha = (*effect.transparent[:3], effect.transparent[3] if len(effect.transparent) > 3 else 1)
        zero = effect.opaque_mode == collada.material.OPAQUE_MODE.RGB_ZERO
        opacity = 1 - factor * (0.213 * red + 0.715 * green + 0.072 * blue) if zero else factor * alpha
        if opacity <= 0:  # programs differ about the sense of this number
            warnings.append(f"{path}: a material is fully transparent; shown opaque")
        surface.colors[..., 3] = np.clip(opacity, 0, 1) if opacity > 0 else 1
    glow = image_of(effect.emission)
    if glow is not None:
        surface.emission, surface.emission_image, surface.emission_uv = np.ones((3, 3)), glow, surface.uv
    elif effect.emission is not None and not isinstance(effect.emission, Map) and any(effect.emission[:3]):
        surface.emission = np.tile(srgb_to_linear(np.clip(effect.emission[:3], 0, 1)), (3, 1))
    if surface.emission is not None:
        surface.emission = np.broadcast_to(surface.emission, surface.triangles.shape)
    blends = surface.colors[..., 3].min() < 1 or (surface.image is not None and surface.image[..., 3].min() < 255)
    surface.alpha_cutoff = np.inf if blends else 0.0
