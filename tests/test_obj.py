"""OBJ and MTL files as programs write them."""

import numpy as np
import PIL.Image
import pytest

from threedim.rendering import mtl, obj
from threedim.rendering.surfaces import DEFAULT_GRAY, BadMeshError, srgb_to_linear

SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
FACE = "f 1/1 2/2 3/3 4/4\n"
GRAY = srgb_to_linear(DEFAULT_GRAY)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "textures").mkdir()
    picture(tmp_path / "textures" / "my map.png", [[[255, 0, 0], [0, 255, 0]]])
    (tmp_path / "m.mtl").write_text("newmtl m\nKd 1 0 0\n")
    return tmp_path


def picture(path, pixels):
    PIL.Image.fromarray(np.array(pixels, np.uint8)).save(path)


def read(folder, text, material=None):
    """Writes "mesh.obj", and "m.mtl" if given; the surfaces and warnings, without the folder's name."""
    (folder / "mesh.obj").write_bytes(text if isinstance(text, bytes) else text.encode())
    if material is not None:
        (folder / "m.mtl").write_bytes(material if isinstance(material, bytes) else material.encode())
    surfaces, warnings = obj.read(folder / "mesh.obj")
    return surfaces, [warning.replace(f"{folder}/", "") for warning in warnings]


def color(surface):
    """The only color of a surface."""
    assert np.ptp(surface.colors.reshape(-1, 4), axis=0).max() == 0
    return surface.colors[0, 0].tolist()


@pytest.mark.parametrize(
    "name",
    [
        "textures/my map.png",
        r"textures\my map.png",
        r".\Textures\MY MAP.PNG",
        '"textures/my map.png"',
        "textures/my%20map.png",
        "-s 1 1 1 -o 0 0 -bm 0.5 -clamp off textures/my map.png",
        "-mm 0 1 -blendu on -imfchan m textures/my map.png",
    ],
)
def test_names_of_textures(folder, name):
    (surface,), warnings = read(folder, f"mtllib m.mtl\n{SQUARE}usemtl m\n{FACE}", f"newmtl m\nmap_Kd {name}\n")
    assert warnings == []
    assert surface.image.tolist() == [[[255, 0, 0, 255], [0, 255, 0, 255]]]
    assert (surface.wrap, surface.alpha_cutoff) == (("repeat", "repeat"), 0)
    np.testing.assert_array_equal(surface.uv, [[[0, 0], [1, 0], [1, 1]], [[0, 0], [1, 1], [0, 1]]])
    assert color(surface) == [1, 1, 1, 1]


def test_texture_of_another_computer_is_found_beside_the_file(folder):
    (folder / "textures" / "my map.png").rename(folder / "wood.png")
    (surface,), warnings = read(
        folder, f"mtllib C:\\scenes\\m.mtl\n{SQUARE}usemtl m\n{FACE}", "newmtl m\nmap_Kd C:\\Users\\me\\wood.png\n"
    )
    assert surface.image is not None
    assert warnings == []


def test_options_of_a_texture(folder):
    texture = "-s 2 3 -o 0.5 -clamp on textures/my map.png"
    (surface,), _ = read(folder, f"mtllib m.mtl\n{SQUARE}usemtl m\n{FACE}", f"newmtl m\nmap_Kd {texture}\n")
    np.testing.assert_array_equal(surface.uv[0], [[0.5, 0], [2.5, 0], [2.5, 3]])
    assert surface.wrap == ("clamp", "clamp")


@pytest.mark.parametrize(
    "statement", ["mtllib m.mtl", "mtllib gone.mtl m.mtl", "mtllib gone.mtl\nmtllib M.MTL", 'mtllib "my lib.mtl" m.mtl']
)
def test_several_libraries(folder, statement):
    (folder / "my lib.mtl").write_text("newmtl other\nKd 0 1 0\n")
    (surface,), warnings = read(folder, f"{statement}\n{SQUARE}usemtl m\n{FACE}")
    assert color(surface) == [1, 0, 0, 1]
    assert warnings == []  # nothing is lost with the missing library
    surfaces, warnings = read(folder, f"mtllib my lib.mtl\n{SQUARE}usemtl other\n{FACE}usemtl\tOTHER\n{FACE}")
    assert [color(surface) for surface in surfaces] == [[0, 1, 0, 1]] * 2
    assert warnings == []


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_line_ends_byte_order_marks_comments_and_continued_lines(folder, end, mark, encoding):
    text = f"# C:\\models\\\nmtllib m.mtl\n  {SQUARE}usemtl m # red\n\tf 1/1 2/2 \\\n 3/3\\\n 4/4 # a square\n"
    text = text.replace(" # red", "")
    mark = "" if encoding == "utf-16" else mark
    encoded = [(mark + each.replace("\n", end)).encode(encoding) for each in (text, "newmtl m\n\tKd 1 0 0 # red\n")]
    (surface,), warnings = read(folder, *encoded)
    assert len(surface.triangles) == 2
    assert color(surface) == [1, 0, 0, 1]
    assert warnings == []


def test_without_usemtl_the_only_material_counts(folder):
    assert color(read(folder, f"mtllib m.mtl\n{SQUARE}{FACE}")[0][0]) == [1, 0, 0, 1]
    (surface,), warnings = read(folder, f"mtllib m.mtl\n{SQUARE}{FACE}", "newmtl m\nKd 1 0 0\nnewmtl n\nKd 0 1 0\n")
    np.testing.assert_allclose(color(surface), [*GRAY, 1])
    assert warnings == ["mesh.obj: faces without usemtl shown gray: no library has them"]


@pytest.mark.parametrize("face", [FACE, "f 1 2 3 4\n"])
@pytest.mark.parametrize(
    ("statements", "warning"),
    [
        ("", []),
        ("mtllib gone.mtl\nusemtl a\n", ["mesh.obj: material 'a' shown gray: material library gone.mtl is missing"]),
        ("usemtl a\n", ["mesh.obj: material 'a' shown gray: no library is named"]),
        ("mtllib m.mtl\nusemtl a\n", ["mesh.obj: material 'a' shown gray: no library has them"]),
    ],
)
def test_missing_materials_are_the_usual_gray(folder, face, statements, warning):
    (surface,), warnings = read(folder, SQUARE + statements + face)
    np.testing.assert_allclose(color(surface), [*GRAY, 1])
    assert warnings == warning


def test_missing_and_damaged_textures_are_named(folder):
    (folder / "noise.png").write_bytes(b"noise")
    material = "newmtl m\nKd 1 0 0\nmap_Kd gone.png\nmap_d noise.png\n"
    (surface,), warnings = read(folder, f"mtllib m.mtl\n{SQUARE}usemtl m\n{FACE}", material)
    assert color(surface) == [1, 0, 0, 1]
    assert warnings[0] == "m.mtl: texture gone.png is missing"
    assert warnings[1].startswith("m.mtl: texture noise.png is not a picture")
    assert len(warnings) == 2
    material = "newmtl m\nKd 1 0 0\nmap_Kd textures/my map.png\n"
    (plain,), warnings = read(folder, f"mtllib m.mtl\n{SQUARE}usemtl m\nf 1 2 3\n", material)
    assert color(plain) == [1, 0, 0, 1]
    assert plain.image is None
    assert warnings == ["m.mtl: 1 faces have no coordinates for their texture"]
    surfaces, _ = read(folder, f"mtllib m.mtl\n{SQUARE}usemtl m\nf 1 2 3\n{FACE}", material)
    assert [(len(each.triangles), each.image is None) for each in surfaces] == [(2, False), (1, True)]


def test_vertex_colors_multiply_the_material(folder):
    colored = "v 0 0 0 1 0 0\nv 1 0 0 0 1 0\nv 1 1 0 0 0 1\n"
    for text, material in (("f 1 2 3\n", None), ("mtllib m.mtl\nusemtl m\nf 1 2 3\n", "newmtl m\nKd 1 1 1\n")):
        (surface,), warnings = read(folder, colored + text, material)
        np.testing.assert_array_equal(surface.colors[0, :, :3], np.eye(3))
        assert warnings == []
    (surface,), _ = read(folder, colored.replace("1\n", "255\n") + "v 0 0 9\nf 1 3 4\n")
    np.testing.assert_allclose(surface.colors[0, :, :3], [[1 / 255 / 12.92, 0, 0], [0, 0, 1], [1, 1, 1]], atol=1e-6)
    (surface,), _ = read(folder, "v 0 0 0 1.0\nv 1 0 0 1.0\nv 1 1 0 1.0\nf 1 2 3\n")
    np.testing.assert_allclose(color(surface), [*GRAY, 1])
    painted = "v 0 0 0\nv 1 0 0\nv 1 1 0\n#MRGB ffff0000ff00ff00\n#MRGB ff0000ff\nf 1 2 3\n"
    np.testing.assert_array_equal(read(folder, painted)[0][0].colors[0, :, :3], np.eye(3))


@pytest.mark.parametrize(("opacity", "alpha"), [("d 0.25", 0.25), ("Tr 0.75", 0.25), ("Tr 0.9\nd -halo 0.25", 0.25)])
def test_opacity_blends(folder, opacity, alpha):
    (surface,), warnings = read(folder, f"mtllib m.mtl\n{SQUARE}usemtl m\n{FACE}", f"newmtl m\nKd 1 0 0\n{opacity}\n")
    assert color(surface) == [1, 0, 0, alpha]
    assert surface.alpha_cutoff == np.inf
    assert warnings == []


def test_all_transparent_is_shown_with_a_warning(folder):
    (surface,), warnings = read(folder, f"mtllib m.mtl\n{SQUARE}usemtl m\n{FACE}", "newmtl m\nKd 1 0 0\nTr 1\n")
    assert color(surface) == [1, 0, 0, 1]
    assert warnings == ["mesh.obj: every material is fully transparent (d or Tr); all are shown opaque"]


def test_one_invisible_material_is_named(folder):
    text = f"mtllib m.mtl\n{SQUARE}usemtl m\n{FACE}usemtl n\n{FACE}"
    surfaces, warnings = read(folder, text, "newmtl m\nKd 1 0 0\nnewmtl n\nd 0\n")
    assert [surface.colors[0, 0, 3] for surface in surfaces] == [1, 0]
    assert warnings == ["mesh.obj: material 'n' is fully transparent (d or Tr)"]


def test_opacity_maps(folder):
    picture(folder / "mask.png", [[0, 255]])
    picture(folder / "mask_in_alpha.png", [[[9, 9, 9, 0], [9, 9, 9, 255]]])
    for name in ("mask.png", "mask_in_alpha.png"):
        material = f"newmtl m\nKd 1 0 0\nmap_Kd textures/my map.png\nmap_d {name}\n"
        (surface,), warnings = read(folder, f"mtllib m.mtl\n{SQUARE}usemtl m\n{FACE}", material)
        assert surface.image.tolist() == [[[255, 0, 0, 0], [0, 255, 0, 255]]]
        assert surface.alpha_cutoff == np.inf
        (surface,), _ = read(folder, f"mtllib m.mtl\n{SQUARE}usemtl m\n{FACE}", f"newmtl m\nKd 1 0 0\nmap_d {name}\n")
        assert surface.image[..., 3].tolist() == [[0, 255]]
        assert color(surface) == [1, 0, 0, 1]
        assert warnings == []


def test_emission(folder):
    material = "newmtl m\nKd 0 0 0\nKe 0 0.5 1\n"
    (surface,), _ = read(folder, f"mtllib m.mtl\n{SQUARE}usemtl m\n{FACE}", material)
    np.testing.assert_allclose(surface.emission[0, 0], srgb_to_linear([0, 0.5, 1]))
    material = "newmtl m\nKd 0 0 0\nKe 0 0 0\nmap_Ke -s 2 2 textures/my map.png\n"
    (surface,), _ = read(folder, f"mtllib m.mtl\n{SQUARE}usemtl m\n{FACE}", material)
    np.testing.assert_array_equal(surface.emission, np.ones((2, 3, 3)))
    np.testing.assert_array_equal(surface.emission_uv, 2 * surface.uv)
    assert surface.emission_image.shape == (1, 2, 4)


def test_indices(folder):
    text = "v 9 9 9\nv 0 0 0\nvn 0 0 1\nv 1 0 0\nv 1 1 0\nf -3//-1 -2//1 -1//-1\nv 5 5 5\nf 2 3/ 4\nf 2// 3 4/1/1\n"
    (surface,), warnings = read(folder, text)
    np.testing.assert_array_equal(surface.triangles, np.tile([[0, 0, 0], [1, 0, 0], [1, 1, 0]], (3, 1, 1)))
    np.testing.assert_array_equal(surface.normals[:, :, 2], [[1, 1, 1], [0, 0, 0], [0, 0, 1]])
    assert warnings == ["mesh.obj: 1 corners refer to texture coordinates that do not exist"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("v 0 0 0\nv 1 0 x\nf 1 2 2\n", "line 2 cannot be read: 'v 1 0 x'"),
        ("v 0 0 0\nf 1 1 a\n", "line 2 cannot be read: 'f 1 1 a'"),
        ("v 0 0 0\n\nf 1 1 2\n", "line 3 refers to a vertex that does not exist"),
        ("v 0 0 0\nf 1 1 1\nf 1 0 1\n", "line 3 refers to a vertex that does not exist"),
        ("v 0 0 0\nf 1 -2 1\n", "line 2 refers to a vertex that does not exist"),
    ],
)
def test_what_cannot_be_read_is_named(folder, text, match):
    with pytest.raises(BadMeshError, match=rf"mesh\.obj: {match}"):
        read(folder, text)


def test_what_is_not_rendered_is_counted(folder):
    text = f"{SQUARE}l 1 2\nl 2 3\np 1\ncstype bezier\nsurf 0 1 0 1 1 2 3 4\nf 1 2\no thing\ng group\ns 1\n{FACE}"
    assert read(folder, text)[1] == [
        "mesh.obj: 1 faces of fewer than three corners are left out",
        "mesh.obj: 2 lines are not rendered",
        "mesh.obj: 1 points are not rendered",
        "mesh.obj: 1 free-form curves and surfaces are not rendered",
    ]
    assert read(folder, "")[0] == []


def test_materials_keep_their_faces(folder):
    text = f"mtllib m.mtl\n{SQUARE}usemtl a\nf 1 2 3\nusemtl b\nf 1 2 4\nf 2 3 4\nusemtl a\nf 1 3 4\n"
    one, other = read(folder, text, "newmtl a\nKd 1 0 0\nnewmtl b\nKd 0 1 0\nd 0.5\n")[0]
    assert (color(one), color(other)) == ([1, 0, 0, 1], [0, 1, 0, 0.5])
    np.testing.assert_array_equal(one.triangles[:, :, 1], [[0, 0, 1], [0, 1, 1]])
    np.testing.assert_array_equal(other.triangles[:, :, 1], [[0, 0, 1], [0, 1, 1]])


def test_names_in_other_encodings(tmp_path):
    picture(tmp_path / "größe.png", [[[255, 0, 0]]])
    for encoding in ("utf-8", "latin-1"):
        (tmp_path / "m.mtl").write_bytes("newmtl m\nmap_Kd größe.png\n".encode(encoding))
        assert mtl.read_library(tmp_path / "m.mtl", pytest.fail)["m"].diffuse_map.read().shape == (1, 1, 4)
