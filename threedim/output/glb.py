"""Writes a mesh with vertex colors as a GLB file (glTF 2.0)."""

from __future__ import annotations

import json
import struct

import numpy as np
from etils import epath

from threedim.files import write_atomically
from threedim.rendering.surfaces import srgb_to_linear

_FLOAT, _UINT32 = 5126, 5125
_VERTICES, _INDICES = 34962, 34963  # what a buffer view is for
_Z_UP_TO_Y_UP = np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])


def write_glb(path: epath.PathLike, vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray) -> None:
    """Writes a mesh atomically; replaces an existing file.

    glTF's y axis points up: programs that turn it to z, as Blender and `rendering.meshes` do, bring the given
    coordinates back. Its material is unlit, since the colors of views hold their light.

    Args:
      path: ends in .glb; local or gs://.
      vertices: (vertex, 3), z up.
      faces: (face, 3) indices, counter-clockwise seen from outside.
      colors: (vertex, 3) sRGB in [0, 1]; linear in the file, as glTF asks.
    """
    positions = (np.asarray(vertices) @ _Z_UP_TO_Y_UP.T).astype("<f4")
    rgba = np.concatenate([srgb_to_linear(np.asarray(colors)), np.ones((len(colors), 1))], axis=1).astype("<f4")
    indices = np.asarray(faces).astype("<u4").reshape(-1)
    parts = (positions, _VERTICES), (rgba, _VERTICES), (indices, _INDICES)
    starts = np.cumsum([0, *(data.nbytes for data, _ in parts)]).tolist()
    root = {
        "asset": {"version": "2.0", "generator": "threedim"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [
            {"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "indices": 2, "material": 0}]},
        ],
        "materials": [
            {
                "pbrMetallicRoughness": {"metallicFactor": 0.0},
                "extensions": {"KHR_materials_unlit": {}},
            }
        ],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": _FLOAT,
                "count": len(positions),
                "type": "VEC3",
                "min": positions.min(axis=0).tolist(),
                "max": positions.max(axis=0).tolist(),
            },
            {"bufferView": 1, "componentType": _FLOAT, "count": len(rgba), "type": "VEC4"},
            {"bufferView": 2, "componentType": _UINT32, "count": len(indices), "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": start, "byteLength": data.nbytes, "target": target}
            for start, (data, target) in zip(starts, parts, strict=False)
        ],
        "buffers": [{"byteLength": starts[-1]}],
    }
    text = json.dumps(root, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIII4s", b"glTF", 2, 28 + len(text) + starts[-1], len(text), b"JSON")
    body = b"".join(data.tobytes() for data, _ in parts)
    write_atomically(path, head + text + struct.pack("<I4s", len(body), b"BIN\0") + body)
