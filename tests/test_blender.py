"""Textures, their transforms, wrap modes and factors, and nodes, as Blender shows them (tests/golden/README.md)."""

import pathlib

import numpy as np
from gltf_files import File
from PIL import Image

from threedim.rendering import raycast
from threedim.rendering.meshes import load_mesh
from threedim.rendering.viewpoints import RADIUS, default_intrinsics, sphere_cameras

GOLDEN = pathlib.Path(__file__).parent / "golden"
SIZE = 64
REPEAT, MIRROR, CLAMP = 10497, 33648, 33071


def scene(path):
    """Three sides of a box with a texture in three wrap modes, moved by KHR_texture_transform, with other factors."""
    rng, file = np.random.default_rng(0), File()
    pixels = np.kron(rng.integers(0, 256, (4, 4, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    turns = ([0, 0, 0, 1], [0, 2**-0.5, 0, 2**-0.5], [-(2**-0.5), 0, 0, 2**-0.5])
    places = ([0, 0, 0.6], [0.6, 0, 0], [0, 0.6, 0])
    modes = ((REPEAT, MIRROR), (MIRROR, CLAMP), (CLAMP, REPEAT))
    file.root["nodes"] = []
    for i, (turn, place, (s, t)) in enumerate(zip(turns, places, modes, strict=True)):
        texture = file.texture(pixels, wrapS=s, wrapT=t, magFilter=9728, minFilter=9728)
        moved = {"offset": [0.1 * i, -0.3], "rotation": 0.4 * i, "scale": [1.7, 2.2 - i]}
        texture["extensions"] = {"KHR_texture_transform": moved}
        factor = [1.0, 0.8 - 0.3 * i, 0.5 + 0.2 * i, 1.0]
        material = {"pbrMetallicRoughness": {"baseColorTexture": texture, "baseColorFactor": factor}}
        file.add(material=material | {"doubleSided": True})
        file.root["nodes"].append({"mesh": i, "rotation": turn, "translation": place})
    file.root["scenes"] = [{"nodes": [0, 1, 2]}]
    file.root["extensionsUsed"] = ["KHR_texture_transform"]
    return file.write(path)


def cameras():
    return sphere_cameras(3, RADIUS, default_intrinsics(SIZE), np.random.default_rng(1), 10.0)


def test_as_blender_shows_it(tmp_path, monkeypatch):
    monkeypatch.setattr(raycast, "_light", lambda normals: np.ones(normals.shape[:-1], np.float32))
    found = raycast.render_views(load_mesh(scene(tmp_path / "scene.glb")), cameras(), SIZE, 64)
    for view, image in enumerate(found):
        expected = np.asarray(Image.open(GOLDEN / f"blender_{view}.png"))
        inside, seen = image[..., 3] > 127, expected[..., 3] > 127
        assert (inside & seen).sum() / (inside | seen).sum() > 0.98
        whole = (image[..., 3] == 255) & (expected[..., 3] == 255)
        difference = np.abs(image[whole][:, :3].astype(int) - expected[whole][:, :3])
        assert difference.mean() < 6  # edges: Blender averages linear colors
