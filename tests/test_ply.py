"""PLY files as programs write them."""

import numpy as np
import PIL.Image
import plyfile
import pytest

from threedim.rendering import ply
from threedim.rendering.surfaces import DEFAULT_GRAY, BadMeshError, srgb_to_linear

POINTS = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)]
COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]])


def write(path, vertex=(), faces=((0, 1, 2, 3),), comments=(), text=True, element="face", **face):
    """Writes a square: ``vertex`` are more (name, type, values) of its corners, ``face`` of its faces."""
    vertex = [(name, "f4", np.array(POINTS)[:, i]) for i, name in enumerate("xyz")] + list(vertex)
    corners = np.array(list(zip(*[each[2] for each in vertex], strict=True)), [each[:2] for each in vertex])
    rows = np.empty(len(faces), [("vertex_indices", "O")] + [(name, value[0]) for name, value in face.items()])
    for i, indices in enumerate(faces):
        rows[i] = (np.array(indices, "i4"), *(value[1][i] for value in face.values()))
    types = {"vertex_indices": "i4", "texcoord": "f4"}
    elements = [plyfile.PlyElement.describe(corners, "vertex")]
    elements.append(plyfile.PlyElement.describe(rows, element, val_types=types))
    plyfile.PlyData(elements, text=text, comments=list(comments)).write(str(path))
    return path


def colors_of(names, values, dtype="u1"):
    return [(name, dtype, np.asarray(values)[:, i]) for i, name in enumerate(names)]


@pytest.mark.parametrize("names", [("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), "rgb"])
@pytest.mark.parametrize(("dtype", "scale"), [("u1", 1), ("i4", 1), ("f4", 1 / 255), ("f4", 1), ("u2", 257)])
def test_colors(tmp_path, names, dtype, scale):
    path = write(tmp_path / "a.ply", colors_of(names, COLORS * scale, dtype))
    (surface,), warnings = ply.read(path)
    np.testing.assert_allclose(surface.colors[0, :, :3], np.eye(3), atol=1e-6)
    assert (surface.alpha_cutoff, warnings) == (0, [])


def test_colors_of_faces_and_none(tmp_path):
    faces, red = ((0, 1, 2), (0, 2, 3)), ("u1", [255, 0])
    (surface,), _ = ply.read(
        write(tmp_path / "a.ply", faces=faces, red=red, green=("u1", [0, 255]), blue=("u1", [0, 0]))
    )
    np.testing.assert_array_equal(surface.colors[:, 0], [[1, 0, 0, 1], [0, 1, 0, 1]])
    (surface,), _ = ply.read(write(tmp_path / "b.ply"))
    np.testing.assert_allclose(surface.colors[0, 0], [*srgb_to_linear(DEFAULT_GRAY), 1])


def test_alpha(tmp_path):
    names = ("red", "green", "blue", "alpha")
    path = write(tmp_path / "a.ply", colors_of(names, np.pad(COLORS, ((0, 0), (0, 1)))))
    (surface,), warnings = ply.read(path)
    assert surface.colors[..., 3].min() == 1
    assert surface.alpha_cutoff == 0
    assert warnings == [f"{path}: alpha is 0 everywhere; shown opaque"]
    path = write(tmp_path / "b.ply", colors_of(names, np.pad(COLORS, ((0, 0), (0, 1)), constant_values=51)))
    (surface,), warnings = ply.read(path)
    np.testing.assert_allclose(surface.colors[..., 3], 0.2)
    assert (surface.alpha_cutoff, warnings) == (np.inf, [])


@pytest.mark.parametrize("text", [True, False])
def test_faces_of_any_size(tmp_path, text):
    faces = ((0, 1, 2), (0, 1, 2, 3), (0, 1), (2, 3, 0))
    (surface,), _ = ply.read(write(tmp_path / "a.ply", faces=faces, text=text))
    assert len(surface.triangles) == 4
    (surface,), _ = ply.read(write(tmp_path / "a.ply", faces=faces[::3], text=text))
    np.testing.assert_array_equal(surface.triangles, np.array(POINTS)[[[0, 1, 2], [2, 3, 0]]])
    with pytest.raises(BadMeshError, match="refers to a vertex that does not exist"):
        ply.read(write(tmp_path / "a.ply", faces=((0, 1, 4),), text=text))


def test_triangle_strips(tmp_path):
    path = write(tmp_path / "a.ply", faces=((0, 1, 3, 2, -1, 2, 1, 0),), element="tristrips")
    (surface,), _ = ply.read(path)
    np.testing.assert_array_equal(surface.triangles, np.array(POINTS)[[[0, 1, 3], [2, 3, 1], [2, 1, 0]]])
    with pytest.raises(BadMeshError, match=r"contains no faces \(vertex, line\)"):
        ply.read(write(tmp_path / "a.ply", element="line"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_byte_order_marks_and_blank_lines(tmp_path, end, mark):
    path = write(tmp_path / "a.ply")
    text = path.read_text().replace("ply\n", "ply \n\ncomment größe\n", 1).replace("end_header\n", "end_header\n\n")
    path.write_bytes((mark + text.replace("\n", end)).encode())
    (surface,), warnings = ply.read(path)
    assert len(surface.triangles) == 2
    assert warnings == []


@pytest.mark.parametrize("text", [True, False])
def test_textures(tmp_path, text):
    PIL.Image.fromarray(np.uint8([[[255, 0, 0]]])).save(tmp_path / "my map.png")
    comments = ["TextureFile My%20Map.png"]
    path = write(tmp_path / "a.ply", colors_of("st", POINTS, "f4"), comments=comments, text=text)
    (surface,), warnings = ply.read(path)
    assert surface.image.tolist() == [[[255, 0, 0, 255]]]
    np.testing.assert_array_equal(surface.uv, surface.triangles[..., :2])
    assert warnings == []

    comments.append("TextureFile gone.png")
    faces, corners = ((0, 1, 2), (0, 2, 3), (0, 1, 3)), [np.arange(6.0), np.arange(6.0), np.zeros(0)]
    number = ("i4", [0, 1, 0])
    path = write(
        tmp_path / "a.ply", faces=faces, comments=comments, text=text, texcoord=("O", corners), texnumber=number
    )
    (first, rest), warnings = ply.read(path)
    np.testing.assert_array_equal(first.uv, [[[0, 1], [2, 3], [4, 5]]])
    assert (len(rest.triangles), rest.image) == (2, None)
    assert warnings == [f"{path}: texture gone.png is missing"]

    path = write(tmp_path / "a.ply", comments=comments[:1], text=text)
    assert ply.read(path)[1] == [f"{path}: there are no coordinates for texture My%20Map.png"]
