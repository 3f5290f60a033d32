"""Textures, vertex colors, masks and nodes, as Blender shows them (tests/golden/README.md)."""

import pathlib

import numpy as np
import pytest
from gltf_files import UV, File
from PIL import Image

from threedim.rendering import raycast
from threedim.rendering.meshes import load_mesh
from threedim.rendering.surfaces import linear_to_srgb, srgb_to_linear
from threedim.rendering.viewpoints import RADIUS, default_intrinsics, sphere_cameras

GOLDEN = pathlib.Path(__file__).parent / "golden"
SIZE, FINE = 64, 8  # pixels, rays along a pixel
REPEAT, MIRROR, CLAMP = 10497, 33648, 33071


def textured(path):
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


def colored(path):
    """A floor of a smooth texture times vertex colors, a wall of vertex colors, and a screen with holes above them."""
    rng, file = np.random.default_rng(1), File()
    waves = np.sin(np.arange(16) * np.pi / 8 + np.arange(3)[:, None])  # Blender interpolates sRGB: no hard steps
    smooth = np.stack([150 + 50 * wave + 50 * waves[0][:, None] for wave in waves], axis=-1).astype(np.uint8)
    holes = np.full((32, 32, 4), [40, 120, 220, 255], np.uint8)
    holes[..., 3] = np.kron(rng.integers(0, 2, (4, 4)) * 127 + 64, np.ones((8, 8)))  # 64 and 191
    floor = {"baseColorTexture": file.texture(smooth), "baseColorFactor": [0.9, 0.5, 0.7, 1.0]}
    screen = {"baseColorTexture": file.texture(holes, magFilter=9728, wrapS=CLAMP, wrapT=CLAMP)}
    for corners, colors, looks in (
        ([[-1, 0, 1], [1, 0, 1], [1, 0, -1], [-1, 0, -1]], rng.random((4, 3)), floor),
        ([[-1, 0, -1], [1, 0, -1], [1, 1, -1], [-1, 1, -1]], rng.random((4, 4)), {}),
        ([[-1.4, 0.5, 1], [0.2, 0.5, 1], [0.2, 0.5, -0.6], [-1.4, 0.5, -0.6]], np.ones((4, 3)), screen),
    ):
        attributes = {"POSITION": np.float32(corners), "TEXCOORD_0": UV, "COLOR_0": np.float32(colors)}
        mode = {"alphaMode": "MASK", "alphaCutoff": 0.3} if looks is screen else {}
        file.add(attributes, material={"pbrMetallicRoughness": looks, "doubleSided": True} | mode)
    file.root["nodes"] = [{"mesh": i} for i in range(3)]
    file.root["scenes"] = [{"nodes": [0, 1, 2]}]
    return file.write(path)


def cameras(size):
    return sphere_cameras(3, RADIUS, default_intrinsics(size), np.random.default_rng(1), 10.0)


def unlit(path):
    """(view, SIZE, SIZE, 4) in [0, 1]: averages of linear light, as in Blender; `render_views` averages sRGB."""
    rays = raycast.render_views(load_mesh(path), cameras(SIZE * FINE), SIZE * FINE, 1) / np.float32(255)
    rays = rays.reshape(-1, SIZE, FINE, SIZE, FINE, 4)
    total = (srgb_to_linear(rays[..., :3]) * rays[..., 3:]).sum((2, 4))
    alpha = rays[..., 3:].mean((2, 4))
    return np.concatenate([linear_to_srgb(total / FINE**2 / np.maximum(alpha, 1e-6)), alpha], axis=-1)


@pytest.mark.parametrize("scene", [textured, colored])
def test_as_blender_shows_it(tmp_path, monkeypatch, scene):
    monkeypatch.setattr(raycast, "_light", lambda normals: np.ones(normals.shape[:-1], np.float32))
    found = unlit(scene(tmp_path / "scene.glb"))
    for view, image in enumerate(found):
        expected = np.asarray(Image.open(GOLDEN / f"blender_{scene.__name__}_{view}.png")) / 255
        inside, seen = image[..., 3] > 0.5, expected[..., 3] > 0.5
        assert (inside & seen).sum() / (inside | seen).sum() > 0.99
        whole = (image[..., 3] == 1) & (expected[..., 3] == 1)
        assert 255 * np.abs(image - expected)[whole, :3].mean() < 1  # of 255; at most 0.8
