"""Materials of glTF files: what a surface without gloss needs of them.

Base color or diffuse color, emission, opacity, and the sides that are visible. The renderer has no use for metalness,
roughness, normal and occlusion maps, nor for the extensions that refine gloss.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import PIL.Image

from threedim.rendering.gltf_file import Document
from threedim.rendering.surfaces import Surface, linear_to_srgb, srgb_to_linear

_WRAPS = {33071: "clamp", 33648: "mirror", 10497: "repeat"}
_NEAREST = 9728
_DEFAULT_GRAY = srgb_to_linear(178 / 255)  # of surfaces without any color, as for the other formats
# Share of the light that clear glass lets through here. The rest shows that there is glass.
_CLEARNESS = 0.85

# (texture coordinate set) -> (face, corner, 2) as in the file, or None if the primitive has none.
Coordinates = Callable[[int], np.ndarray | None]


def apply(surface: Surface, document: Document, material: dict | None, coordinates: Coordinates) -> None:
    """Gives a surface, whose colors are the vertex colors, the looks of a material (None: that of no material)."""
    if material is None:
        if surface.colors.min(initial=1) == surface.colors.max(initial=1) == 1:  # no vertex colors either
            surface.colors[..., :3] *= _DEFAULT_GRAY
        return
    extensions = material.get("extensions", {})
    pbr = material.get("pbrMetallicRoughness", {})
    factor, info = pbr.get("baseColorFactor"), pbr.get("baseColorTexture")
    if (gloss := extensions.get("KHR_materials_pbrSpecularGlossiness")) is not None:
        factor, info = gloss.get("diffuseFactor"), gloss.get("diffuseTexture")
    found = _texture(document, info, coordinates)
    if found is not None:
        surface.image, surface.uv, surface.wrap = found
    if factor is not None:
        surface.colors *= np.asarray(factor, np.float32)
    elif info is not None and found is None:
        surface.colors[..., :3] *= _DEFAULT_GRAY
    mode = material.get("alphaMode", "OPAQUE")
    surface.alpha_cutoff = {"MASK": max(float(material.get("alphaCutoff", 0.5)), 0.0), "BLEND": np.inf}.get(mode, 0.0)
    surface.double_sided = bool(material.get("doubleSided", False))
    if (glass := extensions.get("KHR_materials_transmission")) is not None:
        _transmit(surface, document, glass, coordinates)
    _emit(surface, document, material, coordinates)
    if "KHR_materials_unlit" in extensions:  # shines in its base color, whatever the light
        surface.emission = surface.colors[..., :3].copy()
        surface.emission_image, surface.emission_uv = surface.image, surface.uv
        surface.emission_wrap = surface.wrap
        surface.colors[..., :3] = 0


def _emit(surface: Surface, document: Document, material: dict, coordinates: Coordinates) -> None:
    extension = material.get("extensions", {}).get("KHR_materials_emissive_strength", {})
    factor = np.asarray(material.get("emissiveFactor", (0, 0, 0)), np.float32) * extension.get("emissiveStrength", 1.0)
    if not factor.any():
        return
    found = _texture(document, info := material.get("emissiveTexture"), coordinates)
    if info is not None and found is None:
        return  # warned of; the factor alone would light up all of the surface
    surface.emission = np.broadcast_to(factor, (len(surface.triangles), 3, 3))
    if found is not None:
        surface.emission_image, surface.emission_uv, surface.emission_wrap = found


def _transmit(surface: Surface, document: Document, glass: dict, coordinates: Coordinates) -> None:
    """Makes glass transparent: as clear as it is bright, since light that passes is tinted by the base color."""
    through = _CLEARNESS * float(glass.get("transmissionFactor", 0.0))
    info = glass.get("transmissionTexture")
    mask = _texture(document, info, coordinates)
    if through <= 0 or (info is not None and mask is None):
        return
    if mask is not None and surface.image is not None and not np.array_equal(mask[1], surface.uv):
        document.warn("a transmission texture has coordinates of its own, which are not read; its glass is opaque")
        return
    if not surface.alpha_cutoff:
        surface.colors[..., 3] = 1
    clear = through * linear_to_srgb(surface.colors[..., :3]).mean(axis=-1)
    if surface.image is None and mask is None:
        surface.colors[..., 3] *= 1 - clear
    else:
        if surface.image is None:
            surface.image, surface.uv, surface.wrap = np.full((1, 1, 4), 255, np.uint8), *mask[1:]
        surface.image = _glass(surface.image, None if mask is None else mask[0], clear.mean(), surface.alpha_cutoff > 0)
    surface.alpha_cutoff = np.inf


def _glass(image: np.ndarray, mask: np.ndarray | None, clear: float, has_alpha: bool) -> np.ndarray:
    """An image whose alpha lets light through: ``clear`` where it is white and the red channel of ``mask`` is full."""
    size = image.shape[1::-1] if mask is None else np.maximum(image.shape[1::-1], mask.shape[1::-1]).tolist()
    rgba = np.asarray(PIL.Image.fromarray(image).resize(size), np.float32) / 255
    if mask is not None:
        red = np.ascontiguousarray(mask[..., 0])
        clear = clear * np.asarray(PIL.Image.fromarray(red).resize(size), np.float32) / 255
    rgba[..., 3] = (rgba[..., 3] if has_alpha else 1) * (1 - clear * rgba[..., :3].mean(axis=-1))
    return (rgba * 255 + 0.5).astype(np.uint8)


def _texture(
    document: Document, info: dict | None, coordinates: Coordinates
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]] | None:
    """Image, (face, corner, 2) coordinates with v up, and wrap modes of a texture; None, and a warning, if it fails."""
    if info is None:
        return None
    texture = document.item("textures", info["index"])
    extensions = texture.get("extensions", {})
    source = extensions.get("EXT_texture_webp", {}).get("source", texture.get("source"))
    if source is None:
        kind = ", ".join(extensions) or "no picture"
        document.warn(f"textures[{info['index']}] ({kind}) is not read, save it as PNG or JPEG; its surfaces are plain")
        return None
    transform = info.get("extensions", {}).get("KHR_texture_transform", {})
    number = transform.get("texCoord", info.get("texCoord", 0))
    uv = coordinates(number)
    if uv is None:
        document.warn(f"a mesh has a texture but no coordinates TEXCOORD_{number}; its surfaces are plain")
        return None
    if transform:
        # T * R * S, counter-clockwise in coordinates whose v runs down.
        angle, (x, y) = float(transform.get("rotation", 0)), transform.get("scale", (1, 1))
        c, s = np.cos(angle), np.sin(angle)
        uv = uv @ np.array([[x * c, -x * s], [y * s, y * c]]) + np.asarray(transform.get("offset", (0, 0)))
    sampler = document.item("samplers", texture["sampler"]) if "sampler" in texture else {}
    wrap = tuple(_WRAPS.get(sampler.get(key), "repeat") for key in ("wrapS", "wrapT"))
    wrap += ("nearest",) * (sampler.get("magFilter") == _NEAREST)
    image = document.image(source)
    return None if image is None else (image, uv * [1, -1] + [0, 1], wrap)
