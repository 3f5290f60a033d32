"""Shapes in glTF files arrive as the format says; what does not is a warning or an error that names the file."""

import base64
import json
import sys

import numpy as np
import PIL.Image
import pytest
from gltf_files import FACES, QUAD, UV, File

from threedim.rendering import gltf
from threedim.rendering.meshes import load_mesh
from threedim.rendering.surfaces import BadMeshError

RED = {"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]}}


@pytest.fixture
def file():
    return File()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "it.glb"


def corners(file, path):
    """(face * corner, 3) positions of all surfaces; asserts that there are no warnings."""
    surfaces, found = gltf.read(file.write(path))
    assert not found
    return np.concatenate([surface.triangles.reshape(-1, 3) for surface in surfaces])


def warned(path):
    """The warnings, without the path that all start with."""
    found = gltf.read(path)[1]
    assert all(warning.startswith(f"{path}: ") for warning in found)
    return [warning.removeprefix(f"{path}: ") for warning in found]


def test_normalized_integers(file, path):
    quantized = np.int16([[-32768, -32767, 0], [32767, -32767, 0], [32767, 32767, 0], [-32767, 32767, 0]])
    uv = file.accessor((UV * 65535).astype(np.uint16), normalized=True)
    file.add({"POSITION": file.accessor(quantized, normalized=True), "TEXCOORD_0": uv})
    np.testing.assert_allclose(corners(file, path)[[0, 1, 2]], [[-1, -1, 0], [1, -1, 0], [1, 1, 0]], atol=1e-6)
    whole = {"POSITION": file.accessor(quantized)}
    file.root["meshes"] = []
    file.add(whole)
    assert corners(file, path).min() == -32768


@pytest.mark.parametrize("has_base", [True, False])
def test_sparse_accessors(file, path, has_base):
    sparse = {"count": 2, "indices": {"bufferView": file.view(np.uint8([1, 2]).tobytes()), "componentType": 5121}}
    sparse["values"] = {"bufferView": file.view(np.float32([[7, 0, 0], [0, 8, 0]]).tobytes())}
    position = file.accessor(QUAD, sparse=sparse)
    if not has_base:
        del file.root["accessors"][position]["bufferView"]
    file.add({"POSITION": position})
    expected = QUAD.copy() if has_base else np.zeros_like(QUAD)
    expected[1:3] = [[7, 0, 0], [0, 8, 0]]
    np.testing.assert_array_equal(corners(file, path), expected[FACES].reshape(-1, 3))


def test_interleaved_vertices(file, path):
    both = np.concatenate([QUAD, UV], axis=1)
    view = file.view(both.tobytes())
    file.root["bufferViews"][view]["byteStride"] = 20
    common = {"bufferView": view, "componentType": 5126, "count": 4}
    file.root["accessors"] += [common | {"type": "VEC3"}, common | {"type": "VEC2", "byteOffset": 12}]
    file.add({"POSITION": 0, "TEXCOORD_0": 1})
    np.testing.assert_array_equal(corners(file, path), QUAD[FACES].reshape(-1, 3))


@pytest.mark.parametrize(
    ("mode", "order", "expected"),
    [
        (4, None, [[0, 1, 2]]),
        (5, [0, 1, 2, 3, 4], [[0, 1, 2], [1, 3, 2], [2, 3, 4]]),
        (6, [0, 1, 2, 3, 4], [[1, 2, 0], [2, 3, 0], [3, 4, 0]]),
    ],
)
def test_lists_strips_and_fans(file, path, mode, order, expected):
    points = np.random.default_rng(0).normal(size=(3 if order is None else 5, 3)).astype(np.float32)
    file.add({"POSITION": points}, None if order is None else np.uint8(order), mode=mode)
    np.testing.assert_array_equal(corners(file, path), points[expected].reshape(-1, 3))


def test_vertices_shared_with_other_meshes(file, path):
    points = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    file.add({"POSITION": points}, np.uint8([[40, 7, 40], [3, 40, 49]]))
    np.testing.assert_array_equal(corners(file, path), points[[40, 7, 40, 3, 40, 49]])


def test_nodes(file, path):
    """Translation, rotation and scale below a matrix; a reflection keeps the front in front."""
    half = np.sqrt(0.5)
    file.add()
    matrix = np.eye(4)
    matrix[:3, 3] = 10, 0, 0
    file.root["nodes"] = [
        {"children": [1], "matrix": matrix.T.ravel().tolist()},
        {"mesh": 0, "translation": [0, 5, 0], "rotation": [0, 0, half, half], "scale": [2, 1, 1]},
        {"mesh": 0, "scale": [-1, 1, 1]},
        {"mesh": 0},  # in no scene
    ]
    file.root["scenes"] = [{"nodes": [2]}, {"nodes": [0]}]
    file.root["scene"] = 1
    (turned,), found = gltf.read(file.write(path))
    assert "only scene 1 of 2 is shown" in found[0]
    x, y, z = QUAD[FACES].reshape(-1, 3).T
    np.testing.assert_allclose(turned.triangles.reshape(-1, 3), np.stack([10 - y, 5 + 2 * x, z], axis=-1), atol=1e-6)
    file.root["scene"] = 0
    (mirrored,), _ = gltf.read(file.write(path))
    normal = np.cross(*(mirrored.triangles[:, k] - mirrored.triangles[:, 0] for k in (1, 2)))
    assert np.all(normal[:, 2] > 0)
    np.testing.assert_allclose(mirrored.triangles, (QUAD * [-1, 1, 1])[FACES[:, ::-1]])
    del file.root["scenes"]
    assert len(gltf.read(file.write(path))[0]) == 3


def test_normals_follow_uneven_scales(file, path):
    slope = np.float32([[0.6, 0, 0.8]] * 4)
    file.add({"POSITION": QUAD, "NORMAL": slope})
    file.root["nodes"][0]["scale"] = [2, 1, 1]
    (surface,), _ = gltf.read(file.write(path))
    expected = np.array([0.3, 0, 0.8]) / np.hypot(0.3, 0.8)
    np.testing.assert_allclose(surface.normals[0, 0] / np.linalg.norm(surface.normals[0, 0]), expected, atol=1e-6)


def test_invisible_nodes_hide_what_is_below(file, path):
    file.add()
    hidden = {"KHR_node_visibility": {"visible": False}}
    file.root["nodes"] = [{"mesh": 0}, {"children": [2], "extensions": hidden}, {"mesh": 0}]
    file.root["scenes"][0]["nodes"] = [0, 1]
    assert len(corners(file, path)) == 6


def test_instances(file, path):
    file.add()
    spots = file.accessor(np.float32([[0, 0, 0], [5, 0, 0], [0, 7, 0]]))
    sizes = file.accessor(np.float32([[1, 1, 1], [2, 2, 2], [-1, 1, 1]]))
    attributes = {"TRANSLATION": spots, "SCALE": sizes}
    file.root["nodes"][0] |= {"extensions": {"EXT_mesh_gpu_instancing": {"attributes": attributes}}}
    found = corners(file, path).reshape(3, 2, 3, 3)
    np.testing.assert_allclose(found[1], 2 * QUAD[FACES] + [5, 0, 0])
    np.testing.assert_allclose(found[2], (QUAD * [-1, 1, 1] + [0, 7, 0])[FACES[:, ::-1]])


def test_morph_targets(file, path):
    up, right = (np.tile(np.float32([step]), (4, 1)) for step in ([0, 3, 0], [5, 0, 0]))
    primitive = file.add()
    primitive["targets"] = [{"POSITION": file.accessor(up)}, {"POSITION": file.accessor(right)}]
    assert corners(file, path)[0].tolist() == QUAD[0].tolist()
    file.root["meshes"][0]["weights"] = [1, 0.5]
    np.testing.assert_allclose(corners(file, path)[0], QUAD[0] + [2.5, 3, 0], atol=1e-6)
    file.root["nodes"][0]["weights"] = [0, 2]  # the node's count instead
    np.testing.assert_allclose(corners(file, path)[0], QUAD[0] + [10, 0, 0], atol=1e-6)


def test_skin(file, path):
    """Each vertex follows its joints; the transform of the mesh's own node does not count."""
    inverse = np.eye(4, dtype=np.float32)
    inverse[:3, 3] = 0, -1, 0
    weights = np.float32([[1, 0, 0, 0], [0, 2, 0, 0], [0.5, 0.5, 0, 0], [1, 0, 0, 0]])  # the second is not normalized
    attributes = {"POSITION": QUAD, "WEIGHTS_0": weights, "JOINTS_0": np.tile(np.uint8([0, 1, 0, 0]), (4, 1))}
    file.add(attributes)
    matrices = file.accessor(np.stack([np.eye(4, dtype=np.float32), inverse.T]).reshape(2, 16))
    file.root["skins"] = [{"joints": [1, 2], "inverseBindMatrices": matrices}]
    file.root["nodes"] = [
        {"mesh": 0, "skin": 0, "scale": [9, 9, 9], "translation": [9, 9, 9]},
        {"translation": [4, 0, 0], "children": [2]},
        {"translation": [0, 2, 0]},
    ]
    moved = [[4, 0, 0], [4, 1, 0], [4, 0.5, 0], [4, 0, 0]]
    np.testing.assert_allclose(corners(file, path), (QUAD + moved)[FACES].reshape(-1, 3), atol=1e-6)
    del file.root["skins"][0]["inverseBindMatrices"]
    np.testing.assert_allclose(corners(file, path)[1], QUAD[1] + [4, 2, 0], atol=1e-6)


def split(file, folder, image):
    """Writes ``file`` as JSON beside its binary chunk, with ``image`` as its only texture."""
    file.add(material={"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}})
    file.root |= {"images": [{"uri": image}], "textures": [{"source": 0}]}
    file.root["buffers"] = [{"uri": "a%20b.bin", "byteLength": len(file.chunk)}]
    (folder / "a b.bin").write_bytes(file.chunk)
    (folder / "it.gltf").write_text(json.dumps(file.root))
    return folder / "it.gltf"


@pytest.mark.parametrize("uri", ["my%20picture.PNG", r"tex\My picture.png", "tex/my picture.png", "100%.png", "data"])
def test_names_of_files(file, tmp_path, uri):
    (tmp_path / "tex").mkdir()
    for name in ("my picture.png", "tex/My picture.png", "100%.png"):
        PIL.Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / name)
    if uri == "data":
        uri = "data:image/png;base64," + base64.b64encode((tmp_path / "100%.png").read_bytes()).decode()
    (surface,), found = gltf.read(split(file, tmp_path, uri))
    assert not found
    assert surface.image[0, 0].tolist() == [1, 2, 3, 255]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "gone.png is missing"),
        (b"", "gone.png: is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
        (b"<html>", "texture gone.png is not a picture of a known kind"),
        (b"\x89PNG\r\n\x1a\nIHDR", "texture gone.png is "),
    ],
)
def test_textures_that_cannot_be_read_are_warned_of(file, tmp_path, content, words):
    if content is not None:
        (tmp_path / "gone.png").write_bytes(content)
    (line,) = warned(split(file, tmp_path, "gone.png"))
    assert words in line
    assert line.endswith("its surfaces are plain")


def test_huge_textures_are_warned_of(file, tmp_path, monkeypatch):
    PIL.Image.new("L", (30, 30)).save(tmp_path / "huge.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 500)
    path = split(file, tmp_path, "huge.png")
    assert not warned(path)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 400)
    assert "texture huge.png is too large for Pillow" in warned(path)[0]


def test_what_is_left_out_is_warned_of(file, path):
    file.add(material={"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}})
    file.root["textures"] = [{"extensions": {"KHR_texture_basisu": {"source": 0}}}]
    file.root["meshes"][0]["primitives"].append({"attributes": {"POSITION": 0}, "mode": 1})
    file.root["animations"] = [{}, {}]
    file.root["extensions"] = {"KHR_lights_punctual": {"lights": [{}]}}
    file.root["cameras"] = [{}]
    file.root["extensionsUsed"] = ["KHR_lights_punctual", "KHR_materials_ior", "NEW_thing"]
    lines = warned(file.write(path))
    words = (
        "ignored NEW_thing",
        "animations (2)",
        "lights (1)",
        "(KHR_texture_basisu) is not read",
        "points and lines",
    )
    assert len(lines) == len(words)
    assert all(word in line for word, line in zip(words, lines, strict=True))
    assert load_mesh(path).warnings == tuple(f"{path}: {line}" for line in lines)


@pytest.mark.parametrize("name", ["NEW_thing", "KHR_texture_basisu", "EXT_meshopt_compression"])
def test_required_extensions_are_refused_by_name(file, path, name):
    file.add()
    file.root["extensionsRequired"] = ["KHR_texture_transform", name]
    with pytest.raises(BadMeshError, match=f"it.glb: requires {name}, which is not read"):
        load_mesh(file.write(path))


def change(*keys, value):
    def apply(root):
        for key in keys[:-1]:
            root = root[key]
        root[keys[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (change("accessors", 0, "count", value=10**12), r"accessors\[0\] reaches beyond its 48 bytes"),
        (change("accessors", 0, value={"count": 10**12, "type": "VEC3", "componentType": 5126}), "without data"),
        (change("accessors", 0, "componentType", value=7), "componentType 7"),
        (change("accessors", 0, "byteOffset", value=-4), "reaches beyond"),
        (change("bufferViews", 0, "byteLength", value=10**9), r"bufferViews\[0\] covers bytes 0 to 1000000000"),
        (change("bufferViews", 0, "buffer", value=3), r"refers to buffers\[3\], but there are 1"),
        (
            change("meshes", 0, "primitives", 0, "indices", value=1),
            "are not unsigned integers",
        ),
        (change("meshes", 0, "primitives", 0, "attributes", value={"POSITION": 0, "NORMAL": 1}), "NORMAL has 4"),
        (change("meshes", 0, "primitives", 0, "material", value=0), r"materials\[0\], but there are 0"),
        (change("meshes", 0, "primitives", 0, "mode", value=9), "unknown mode 9"),
        (change("nodes", value=[{"children": [1]}, {"children": [0]}]), "contain themselves"),
        (change("nodes", value=[{"children": [2]}, {"children": [2]}, {}]), r"nodes\[2\] has two parents"),
        (change("nodes", 0, "scale", value=[1, float("nan"), 1]), "not finite"),
        (change("nodes", 0, "skin", value=0), r"skins\[0\], but there are 0"),
        (change("scenes", 0, "nodes", value="x"), "nodes"),
        (change("meshes", 0, value={}), "cannot be read as GLB"),
        (change("asset", "version", value="1.0"), "version 1.0"),
    ],
)
def test_damage_is_named(file, path, damage, match):
    file.add()
    damage(file.root)
    with pytest.raises(BadMeshError, match=f"it.glb: .*({match})"):
        load_mesh(file.write(path))


def test_indices_beyond_the_vertices(file, path):
    file.add(faces=np.uint32([[0, 1, 4]]))
    with pytest.raises(BadMeshError, match=r"meshes\[0\].primitives\[0\] refers to vertex 4 of 4"):
        load_mesh(file.write(path))


def test_instances_are_counted_before_they_are_made(file, path, monkeypatch):
    file.add()
    spots = file.accessor(np.zeros((50, 3), np.float32))
    file.root["nodes"][0] |= {"extensions": {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": spots}}}}
    monkeypatch.setattr(gltf, "_MAX_FACES", 99)
    with pytest.raises(BadMeshError, match="more than 99 triangles"):
        load_mesh(file.write(path))


def test_cut_files(file, path, tmp_path):
    file.add(material=RED)
    whole = file.write(path).read_bytes()
    for length in (4, 11, 19, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(BadMeshError, match=r"it.glb: (is cut off|cannot be read|is of glTF version)"):
            load_mesh(path)
    for content, words in ((b"", "is empty"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")):
        path.write_bytes(content)
        with pytest.raises(BadMeshError, match=f"it.glb: .*{words}"):
            load_mesh(path)
    PIL.Image.new("L", (1, 1)).save(tmp_path / "t.png")
    separate = split(File(), tmp_path, "t.png")
    (tmp_path / "a b.bin").write_bytes(b"short")
    with pytest.raises(BadMeshError, match=r"it.gltf: a%20b.bin is cut off: 5 of \d+ bytes"):
        load_mesh(separate)
    (tmp_path / "a b.bin").unlink()
    with pytest.raises(BadMeshError, match=r"it\.gltf: a%20b\.bin is missing"):
        load_mesh(separate)


def test_draco(file, path, monkeypatch):
    draco = pytest.importorskip("DracoPy")
    uv = UV.astype(np.float64) * 0.5
    packed = draco.encode(QUAD, FACES.astype(np.uint32), quantization_bits=20, tex_coord=uv, preserve_order=True)
    numbers = {part["attribute_type"]: part["unique_id"] for part in draco.decode(packed).attributes}
    extension = {"bufferView": file.view(packed), "attributes": {"POSITION": numbers[0], "TEXCOORD_0": numbers[3]}}
    primitive = file.add(material={"pbrMetallicRoughness": {"baseColorTexture": file.texture(np.zeros((2, 2), "u1"))}})
    primitive["extensions"] = {"KHR_draco_mesh_compression": extension}
    for accessor in file.root["accessors"]:
        del accessor["bufferView"]
    file.root["extensionsRequired"] = ["KHR_draco_mesh_compression"]
    (surface,), _ = gltf.read(file.write(path))
    order = np.lexsort(surface.triangles.reshape(-1, 3).T)
    expected = QUAD[FACES].reshape(-1, 3)
    np.testing.assert_allclose(surface.triangles.reshape(-1, 3)[order], expected[np.lexsort(expected.T)], atol=1e-4)
    np.testing.assert_allclose(surface.uv[..., 0], (surface.triangles[..., 0] / 1.2 + 0.5) / 2, atol=1e-4)
    file.root["bufferViews"][0]["byteLength"] = 20
    with pytest.raises(BadMeshError, match=r"it.glb: bufferViews\[0\] is not whole Draco data"):
        load_mesh(file.write(path))
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    with pytest.raises(BadMeshError, match=r"it\.glb: is compressed by Draco; to read it, `pip install DracoPy`"):
        load_mesh(path)
