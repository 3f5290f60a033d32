"""Reads OFF files, with colors of vertices (COFF, CNOFF) or faces. Own code, since trimesh reads neither."""

from __future__ import annotations

import pathlib
import re

import numpy as np

from threedim.rendering import assets, mtl, polygons
from threedim.rendering.surfaces import DEFAULT_GRAY, BadMeshError, Surface, srgb_to_linear


def read(path: pathlib.Path) -> tuple[list[Surface], list[str]]:
    """The surface of a file, and its warnings.

    Raises:
      BadMeshError: if it is of another kind, shorter than it says, or a face refers to a vertex that does not exist.
    """
    text = assets.decode(mtl.text_of(assets.read(path)))
    kind = re.match(r"(?:\s*#.*\n)*\s*(?:ST)?(C?)(N?)OFF(?!\s*BINARY)", text)
    if kind is None:
        raise BadMeshError(f"{path}: cannot be read as OFF (it does not begin with OFF, COFF or NOFF in text form)")
    lines = [words for line in text[kind.end() :].split("\n") if (words := line.partition("#")[0].split())]
    num_vertices, num_faces = int(lines[0][0]), int(lines[0][1])
    vertices, rows = lines[1 : 1 + num_vertices], lines[1 + num_vertices : 1 + num_vertices + num_faces]
    if len(rows) < num_faces:
        raise BadMeshError(f"{path}: is shorter than it says; copy or export it again")
    positions = np.array([words[:3] for words in vertices], float).reshape(-1, 3)
    sizes = np.array([int(words[0]) for words in rows], int)
    corners = np.array([i for size, words in zip(sizes, rows, strict=True) for i in words[1 : 1 + size]], int)
    if (corners.size and not 0 <= corners.min() <= corners.max() < num_vertices) or len(corners) < sizes.sum():
        raise BadMeshError(f"{path}: a face refers to a vertex that does not exist; export the mesh again")
    triangles, faces = polygons.triangulate(positions[corners], sizes)
    index = corners[triangles]
    normals, skip = np.zeros((len(index), 3, 3)), 3
    if kind[2]:
        normals, skip = np.array([words[3:6] for words in vertices], float)[index], 6
    if kind[1]:
        colors = _colors([words[skip:] for words in vertices])[index]
    else:
        colors = np.repeat(
            _colors([words[1 + size :] for size, words in zip(sizes, rows, strict=True)])[faces, None], 3, 1
        )
    cutoff = np.inf if len(colors) and colors[..., 3].min() < 1 else 0.0
    return [Surface(positions[index], normals, colors, np.zeros((len(index), 3, 2)), alpha_cutoff=cutoff)], []


def _colors(rows: list[list[str]]) -> np.ndarray:
    """(row, 4) linear RGBA; gray where a row has not three or four numbers."""
    colors = np.array(
        [row if len(row) == 4 else [*row, "nan"] if len(row) == 3 else ["nan"] * 4 for row in rows], float
    )
    colors = colors.reshape(-1, 4)
    colors = colors / (255 if np.max(colors, initial=0, where=~np.isnan(colors)) > 1 else 1)
    colors[np.isnan(colors[:, 0]), :3] = DEFAULT_GRAY
    return np.concatenate([srgb_to_linear(np.clip(colors[:, :3], 0, 1)), np.nan_to_num(colors[:, 3:], nan=1)], axis=1)
