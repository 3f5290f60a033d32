"""Looks of glTF files: textures and how they repeat, colors, emission, transparency, hidden sides."""

import numpy as np
import pytest
from gltf_files import FACES, QUAD, UV, File

from threedim import cameras as cameras_lib
from threedim.rendering import gltf
from threedim.rendering.meshes import load_mesh
from threedim.rendering.raycast import render_views
from threedim.rendering.surfaces import linear_to_srgb
from threedim.rendering.viewpoints import default_intrinsics

SIZE = 64
K = default_intrinsics(SIZE)
CAMERAS = cameras_lib.orbit([-90.0, 90.0], 0.0, 2.6, K)  # glTF's front, and its back
RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
PATTERN = np.uint8([[RED, GREEN], [BLUE, YELLOW]]).repeat(8, axis=0).repeat(8, axis=1)
UPRIGHT = ["r", "g", "b", "rg"]


@pytest.fixture
def file():
    return File()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "it.glb"


def views(file, path, warnings=()):
    """Front and back; asserts the warnings, without the path that all start with."""
    geometry = load_mesh(file.write(path))
    assert [warning.removeprefix(f"{path}: ") for warning in geometry.warnings] == list(warnings)
    return render_views(geometry, CAMERAS, SIZE, samples=4)


def middle(file, path, **kwargs):
    return views(file, path, **kwargs)[0, SIZE // 2, SIZE // 2 + 3].astype(int)


def hue(pixel):
    """Letters of the strong channels."""
    return "".join(letter for letter, value in zip("rgb", pixel[:3], strict=True) if value > 90)


def quarters(image):
    """Hues of a quad's quarters, row by row."""
    rows, columns = (SIZE // 2 + np.array([-1, 1]) * step for step in (10, 7))
    return [hue(image[row, column]) for row in rows for column in columns]


def base(color=None, **fields):
    """A material of a color (4,) or a texture info."""
    key = "baseColorTexture" if isinstance(color, dict) else "baseColorFactor"
    return {"pbrMetallicRoughness": {} if color is None else {key: color}} | fields


def extension(name, **fields):
    return {"extensions": {name: fields}}


def test_texture_lies_as_written_and_is_hidden_from_behind(file, path):
    file.add(material=base(file.texture(PATTERN)))
    front, back = views(file, path)
    assert quarters(front) == UPRIGHT
    assert not back[..., 3].any()
    file.root["materials"][0]["doubleSided"] = True
    assert views(file, path)[1][SIZE // 2, SIZE // 2 + 3, 3] == 255


def test_texture_transform_of_the_extensions_example(file, path):
    """It "utilizes only the lower left quadrant of the source image, rotated clockwise 90 degrees"."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[16:, :16] = PATTERN
    transform = extension("KHR_texture_transform", offset=[0, 1], rotation=np.pi / 2, scale=[0.5, 0.5])
    file.add(material=base(file.texture(pixels) | transform))
    assert quarters(views(file, path)[0]) == ["b", "r", "rg", "g"]


def test_texture_transform_scales_before_it_turns(file, path):
    info = file.texture(PATTERN) | extension("KHR_texture_transform", offset=[3, 5], rotation=np.pi / 2, scale=[2, 1])
    file.add(material=base(info))
    (surface,), _ = gltf.read(file.write(path))
    u, v = UV[FACES].T.astype(float)
    np.testing.assert_allclose(surface.uv.T, [3 + v, 1 - (5 - 2 * u)], atol=1e-12)


@pytest.mark.parametrize(("mode", "hues"), [(10497, "rgrgrg"), (33648, "grrggr"), (33071, "rrrggg")])
def test_wrap_modes(file, path, mode, hues):
    """Six half tiles: coordinates run from -1 to 2, across and then down."""
    step = 1.2 / 6 / 2.6 * K[0, 0]
    for axis, key in ((0, "wrapS"), (1, "wrapT")):
        one, scale = File(), np.array([[3, 1], [1, 3]])[axis]
        pixels = np.uint8([[RED, GREEN]]).repeat(8, axis=1)
        info = one.texture(pixels if axis == 0 else pixels.swapaxes(0, 1), **{key: mode})
        uv = (UV * scale - (scale > 1)).astype(np.float32)
        one.add({"POSITION": QUAD * np.float32([1, 0.75, 1]), "TEXCOORD_0": uv}, material=base(info))
        image = views(one, path)[0]
        line = image[SIZE // 2] if axis == 0 else image[:, SIZE // 2]
        assert "".join(hue(line[int(SIZE / 2 + step * k)]) for k in np.arange(-2.5, 3)) == hues


def test_nearest_texels_are_not_interpolated(path):
    black_and_white = np.uint8([[0, 255]]).repeat(3).reshape(1, 2, 3)
    grays = []
    for filters in ({}, {"minFilter": 9728}, {"magFilter": 9728}):
        file = File()
        file.add(material=base(file.texture(black_and_white, **filters)))
        row = views(file, path)[0, SIZE // 2]
        grays.append(np.count_nonzero((row[:, 0] > 0) & (row[:, 0] < 150) & (row[:, 3] == 255)))
    assert grays[0] == grays[1] > 5 > grays[2]


def test_second_texture_coordinates(file, path):
    info, corner = file.texture(PATTERN), np.full_like(UV, 0.1)
    file.add({"POSITION": QUAD, "TEXCOORD_0": corner, "TEXCOORD_1": UV}, material=base(info | {"texCoord": 1}))
    assert quarters(views(file, path)[0]) == UPRIGHT
    info |= {"texCoord": 0} | extension("KHR_texture_transform", texCoord=1)
    file.root["materials"] = [base(info)]
    assert quarters(views(file, path)[0]) == UPRIGHT
    file.root["materials"] = [base(info | extension("KHR_texture_transform", texCoord=2))]
    words = "a mesh has a texture but no coordinates TEXCOORD_2; its surfaces are plain"
    assert hue(middle(file, path, warnings=[words])) == "rgb"


def test_gray_with_16_bits_is_not_clipped(file, path):
    levels = []
    for pixels in (np.uint8([[100]]), np.uint16([[100 * 257]])):
        one = File()
        one.add(material=base(one.texture(pixels)))
        levels.append(middle(one, path).tolist())
    assert levels[0] == levels[1]


@pytest.mark.parametrize("dtype", ["float32", "uint8", "uint16"])
@pytest.mark.parametrize("channels", [3, 4])
def test_vertex_colors(file, path, dtype, channels):
    wanted = np.array([0.2, 0.4, 0.8, 0.6][:channels])
    scale = 1 if dtype == "float32" else np.iinfo(dtype).max
    colors = file.accessor(np.tile(wanted * scale, (4, 1)).astype(dtype), normalized=dtype != "float32")
    file.add({"POSITION": QUAD, "COLOR_0": colors}, material=base([0.5, 1, 1, 1]))
    (surface,), _ = gltf.read(file.write(path))
    expected = np.append(wanted[:3], wanted[3] if channels == 4 else 1) * [0.5, 1, 1, 1]
    np.testing.assert_allclose(surface.colors, np.broadcast_to(expected, (2, 3, 4)), atol=0.5 / 255)


def test_no_factor_is_white_and_no_material_gray(file, path):
    file.add(material=base())
    white = middle(file, path)
    del file.root["meshes"][0]["primitives"][0]["material"]
    gray = middle(file, path)
    assert white[0] > gray[0] + 40
    assert gray[3] == 255


def test_diffuse_color_of_specular_glossiness_counts(file, path):
    gloss = {"diffuseTexture": file.texture(PATTERN), "diffuseFactor": [1, 1, 0, 1], "specularFactor": [1, 1, 1]}
    file.add(material=base([0, 0, 1, 1]) | extension("KHR_materials_pbrSpecularGlossiness", **gloss))
    assert quarters(views(file, path)[0]) == ["r", "g", "", "rg"]


def test_emission(file, path):
    black = base([0, 0, 0, 1])
    file.add(material=black | {"emissiveFactor": [0.25, 0, 0]})
    expected = linear_to_srgb([0.25, 0, 0]) * 255
    assert np.abs(middle(file, path)[:3] - expected).max() <= 1
    file.root["materials"][0] |= extension("KHR_materials_emissive_strength", emissiveStrength=2)
    assert np.abs(middle(file, path)[:3] - linear_to_srgb([0.5, 0, 0]) * 255).max() <= 1
    info = file.texture(PATTERN)
    file.root["materials"] = [black | {"emissiveFactor": [1, 1, 0], "emissiveTexture": info}]
    assert quarters(views(file, path)[0]) == ["r", "g", "", "rg"]
    file.root["materials"] = [black | {"emissiveTexture": info}]  # the factor is 0 unless given
    assert quarters(views(file, path)[0]) == 4 * [""]


def test_unlit_shows_the_base_color_itself(file, path):
    file.add(material=base(file.texture(np.full((4, 4, 3), 130, np.uint8))) | extension("KHR_materials_unlit"))
    np.testing.assert_allclose(middle(file, path), [130, 130, 130, 255], atol=1)


def test_unlit_vertex_colors_need_no_texture(file, path):
    colors = np.float32([[0.2, 0.2, 0.2, 1], [0.2, 0.2, 0.2, 1], [0.3, 0.3, 0.3, 1], [0.3, 0.3, 0.3, 1]])
    file.add({"POSITION": QUAD, "COLOR_0": colors}, material=base() | extension("KHR_materials_unlit"))
    np.testing.assert_allclose(middle(file, path)[:3], 255 * linear_to_srgb(0.25), atol=2)


def test_alpha_modes(file, path):
    pane = file.texture(np.tile(np.uint8([200, 200, 200, 102]), (4, 4, 1)))
    file.add(material=base(pane))
    for fields, alpha in (
        ({}, 255),
        ({"alphaMode": "BLEND"}, 102),
        ({"alphaMode": "MASK"}, 0),
        ({"alphaMode": "MASK", "alphaCutoff": 0.3}, 255),
        ({"alphaMode": "MASK", "alphaCutoff": 0}, 255),
    ):
        file.root["materials"] = [base(pane) | fields]
        assert middle(file, path)[3] == alpha, fields


def glass(file, path, material):
    """Alpha of a pane: upper left, upper right."""
    file.add(material=material)
    image = views(file, path)[0]
    return image[SIZE // 2 - 10, SIZE // 2 - 7, 3].tolist(), image[SIZE // 2 - 10, SIZE // 2 + 7, 3].tolist()


def test_glass_is_see_through_as_far_as_it_is_bright(path):
    through = extension("KHR_materials_transmission", transmissionFactor=1)
    alphas = [glass(File(), path, base([*color, 1]) | through)[0] for color in ((1, 1, 1), (0.2, 0.2, 0.2), (0, 0, 0))]
    assert 0 < alphas[0] < 64 < alphas[1] < 192 < alphas[2] == 255
    assert (
        glass(File(), path, base([1, 1, 1, 0.5]) | through)[0] == alphas[0]
    )  # alpha counts only where it is asked for
    assert glass(File(), path, base([1, 1, 1, 0.5]) | through | {"alphaMode": "BLEND"})[0] < alphas[0]
    half = extension("KHR_materials_transmission", transmissionFactor=0.5)
    assert 128 < glass(File(), path, base() | half)[0] < 192


def test_glass_of_a_dark_texture_is_darker(file, path):
    pixels = np.uint8([[[255, 255, 255, 0], [0, 0, 0, 0]]]).repeat(8, axis=1).repeat(2, axis=0)
    through = extension("KHR_materials_transmission", transmissionFactor=1)
    left, right = glass(file, path, base(file.texture(pixels)) | through)
    assert 0 < left < 64
    assert right == 255


def test_one_picture_may_repeat_and_not(file, path):
    pixels = np.uint8([[RED, GREEN]]).repeat(8, axis=1)
    for mode, step in ((10497, -0.3), (33071, 0.3)):
        attributes = {"POSITION": QUAD * 0.4 + np.float32([step, 0, 0]), "TEXCOORD_0": UV + np.float32([1, 0])}
        file.add(attributes, material=base(file.texture(pixels, wrapS=mode)))
    file.root["meshes"] = [{"primitives": [mesh["primitives"][0] for mesh in file.root["meshes"]]}]
    row = "".join(hue(pixel) for pixel in views(file, path)[0, SIZE // 2] if pixel[3] == 255)
    assert row[0] == "r"
    assert set(row.lstrip("r")) == {"g"}


@pytest.mark.parametrize("with_base", [True, False])
def test_glass_by_texture(file, path, with_base):
    mask = np.zeros((8, 8, 3), np.uint8)
    mask[:, :4, 0] = 255
    through = extension("KHR_materials_transmission", transmissionFactor=1, transmissionTexture=file.texture(mask))
    color = file.texture(np.full((2, 2, 3), 255, np.uint8)) if with_base else None
    left, right = glass(file, path, base(color) | through)
    assert left < 64
    assert right == 255


def test_hull_turned_inside_out_is_an_outline(file, path):
    box = np.float32([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    sides = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = np.uint16([[s[0], s[k], s[k + 1]] for s in sides for k in (1, 2)])
    file.add({"POSITION": box}, faces, base([1, 0, 0, 1]))
    file.add({"POSITION": box}, faces[:, ::-1], base([0, 1, 0, 1]))
    file.root["nodes"].append({"mesh": 1, "scale": [1.2, 1.2, 1.2]})
    file.root["scenes"][0]["nodes"].append(1)
    row = views(file, path)[0, SIZE // 2]
    seen = "".join(hue(pixel) for pixel in row if pixel[3] == 255)
    assert set(seen) == {"r", "g"}
    assert seen.strip("g") == "r" * seen.count("r")


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_sheet_of_two_faces_shows_each_from_its_side(file, path, shift):
    """Rays hit either of two faces in one place by chance. Both textures lie the right way up."""
    file.add(material=base(file.texture(PATTERN)))
    other = base(file.texture(PATTERN[..., [2, 0, 1]]))
    file.add(faces=np.roll(FACES[:, ::-1], shift, axis=1), material=other)
    alone = [views(file, path)[0]]
    file.root["nodes"] = [{"mesh": 1}]
    alone.append(views(file, path)[1])
    file.root["nodes"] = [{"mesh": 0}]
    file.root["meshes"] = [{"primitives": [mesh["primitives"][0] for mesh in file.root["meshes"]]}]
    front, back = views(file, path)
    for image, expected in zip((front, back), alone, strict=True):
        assert np.abs(image[20:44, 22:42].astype(int) - expected[20:44, 22:42]).max() <= 1
    assert quarters(front) == UPRIGHT
    assert quarters(back[:, ::-1]) == ["g", "b", "r", "gb"]


def test_many_hidden_layers_are_passed(file, path):
    layers = 20
    positions = np.concatenate([QUAD + np.float32([0, 0, 0.02 * k]) for k in range(layers + 1)])
    faces = [FACES + 4 * k if k == 0 else FACES[:, ::-1] + 4 * k for k in range(layers + 1)]
    file.add({"POSITION": positions}, np.concatenate(faces).astype(np.uint16), base([1, 0, 0, 1]))
    assert hue(middle(file, path)) == "r"
