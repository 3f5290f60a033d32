"""Reads STL and 3MF files by trimesh, with the colors of STL that it leaves out."""

from __future__ import annotations

import logging
import pathlib
import re
import zipfile

import numpy as np
import trimesh

from threedim.files import check_zip

# It logs what it reads in another way.
logging.getLogger("trimesh").setLevel(logging.CRITICAL)


def load(path: pathlib.Path) -> tuple[trimesh.Scene, list[str]]:
    """The meshes of a file, with its colors in sRGB, and its warnings."""
    scene, warnings = trimesh.load_scene(path, process=False), []
    parts = [part for part in scene.geometry.values() if isinstance(part, trimesh.Trimesh)]
    suffix = path.suffix.lower()
    if suffix == ".stl" and len(parts) == 1:
        _color_stl(parts[0])
    elif suffix == ".3mf":
        with zipfile.ZipFile(path) as archive:
            check_zip(archive)
            models = [archive.read(name) for name in archive.namelist() if name.lower().endswith(".model")]
        if any(re.search(rb"<(\w+:)?(basematerials|colorgroup|texture2d)\b", model) for model in models):
            warnings.append(f"{path}: colors and textures of 3MF files are not read; shown gray")
    return scene, warnings


def _color_stl(part: trimesh.Trimesh) -> None:
    """Colors of 5 bits each in the two spare bytes of a face, as Magics or VisCAM write them."""
    bits = part.face_attributes.get("stl")
    if bits is None or not bits.any():
        return
    header = part.metadata.get("header", "")
    channels = np.stack([bits >> shift & 31 for shift in (0, 5, 10)], axis=-1) * (255 / 31)
    if "COLOR=" in header:  # Magics: red first; a set bit 15 means the color of the header, here the usual gray
        valid = bits >> 15 == 0
    else:  # VisCAM: blue first
        valid, channels = bits >> 15 == 1, channels[:, ::-1]
    if valid.any():
        part.visual.face_colors = np.where(valid[:, None], channels, 178).round().astype(np.uint8)
