"""Mesh files: which way is up, what is wrong with a bad one, normals, and real models."""

import pathlib

import numpy as np
import PIL.Image
import pytest
import trimesh
from synthetic import box

from threedim import cameras as cameras_lib
from threedim.rendering.meshes import BadMeshError, from_trimesh, load_mesh
from threedim.rendering.raycast import render_views
from threedim.rendering.viewpoints import default_intrinsics, sphere_cameras

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "meshes"
needs_meshes = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/meshes is absent")

SIZE = 64
K = default_intrinsics(SIZE)
FRONT = cameras_lib.orbit([-90.0], 0.0, 2.6, K)  # from -y: x is right, z is up


def test_normalized_by_box_center_and_farthest_vertex():
    mesh = box([5, -3, 2], [4, 2, 1])
    triangles = from_trimesh(mesh).triangles
    np.testing.assert_allclose(triangles.min(axis=(0, 1)) + triangles.max(axis=(0, 1)), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(triangles, axis=-1).max(), 1, atol=1e-6)
    np.testing.assert_allclose(np.ptp(triangles, axis=(0, 1)), 2 * np.array([4, 2, 1]) / np.sqrt(21), atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_normals_of_the_file_are_used_and_turned_towards_the_face(tmp_path, sign):
    ball = trimesh.creation.icosphere(subdivisions=1)
    flat = render_views(ball, FRONT, SIZE)[0, :, SIZE // 2, 0]
    smooth_ball = trimesh.Trimesh(ball.vertices, ball.faces, vertex_normals=sign * ball.vertices, process=False)
    smooth_ball.apply_transform(trimesh.transformations.rotation_matrix(-np.pi / 2, [1, 0, 0]))
    smooth_ball.export(tmp_path / "ball.glb", include_normals=True)
    geometry = load_mesh(tmp_path / "ball.glb")
    smooth = render_views(geometry, FRONT, SIZE)[0, :, SIZE // 2, 0]
    steps = np.abs(np.diff(smooth[10:-10].astype(int))).max(), np.abs(np.diff(flat[10:-10].astype(int))).max()
    assert steps[0] < 0.6 * steps[1]
    face = np.cross(*(geometry.triangles[:, k] - geometry.triangles[:, 0] for k in (1, 2)))
    assert np.all((geometry.normals * face[:, None]).sum(axis=-1) > 0)
    np.testing.assert_allclose(np.linalg.norm(geometry.normals, axis=-1), 1, atol=1e-5)


def test_normals_follow_the_transform_of_an_instance():
    ball = trimesh.creation.icosphere(subdivisions=2)
    ball = trimesh.Trimesh(ball.vertices, ball.faces, vertex_normals=ball.vertices, process=False)
    matrix = trimesh.transformations.rotation_matrix(0.7, [1, 2, 3]) @ np.diag([1.0, 0.4, 0.7, 1.0])
    scene = trimesh.Scene()
    scene.add_geometry(ball, transform=matrix)
    geometry = from_trimesh(scene)
    # The normal of an ellipsoid is the gradient of |inverse(A) x|^2.
    inverse = np.linalg.inv(matrix[:3, :3])
    expected = geometry.triangles @ inverse.T @ inverse
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(geometry.normals, expected, atol=1e-3)


def marker(up):
    """A gray bar with a red end in direction ``up``."""
    up = np.asarray(up, float)
    bar = box([0, 0, 0], 0.2 + 0.8 * np.abs(up), (150, 150, 150))
    return trimesh.util.concatenate([bar, box(0.7 * up, [0.3, 0.3, 0.3], (255, 0, 0))])


@pytest.mark.parametrize(("suffix", "axis"), [("glb", "y"), ("gltf", "y"), ("obj", "y"), ("ply", "z")])
def test_up_axis(tmp_path, suffix, axis):
    def red_is_up(path, up):
        image = render_views(load_mesh(path, up), FRONT, SIZE)[0]
        red = (image[..., 0] > 100) & (image[..., 1] < 60) & (image[..., 3] > 0)
        return bool(red.any()) and np.argwhere(red)[:, 0].mean() < SIZE / 2 - 8

    for actual in "yz":
        mesh = marker([0, 1, 0] if actual == "y" else [0, 0, 1])
        # OBJ and GLB carry colors by vertex.
        mesh.unmerge_vertices()
        mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=np.repeat(mesh.visual.face_colors, 3, axis=0))
        path = tmp_path / actual / f"marker.{suffix}"
        path.parent.mkdir()
        if suffix == "gltf":
            for name, data in trimesh.exchange.gltf.export_gltf(trimesh.Scene(mesh)).items():
                (path.parent / ("marker.gltf" if name.endswith(".gltf") else name)).write_bytes(data)
        else:
            mesh.export(path)
        assert red_is_up(path, actual)
        assert not red_is_up(path, "z" if actual == "y" else "y")
        assert red_is_up(path, "auto") == (actual == axis)


def test_y_up_is_rotated_not_mirrored():
    mesh = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], [[0, 1, 2], [0, 3, 1]], process=False)
    expected = from_trimesh(mesh).triangles[..., [0, 2, 1]] * [1, -1, 1]
    np.testing.assert_allclose(from_trimesh(mesh, up="y").triangles, expected, atol=1e-6)


def test_bad_files_are_named(tmp_path):
    marker([0, 1, 0]).export(tmp_path / "whole.glb")
    for name, content, match in (
        ("noise.glb", b"not a mesh at all, really not", "cannot be read as GLB"),
        ("cut.glb", (tmp_path / "whole.glb").read_bytes()[:-200], "is cut off"),
        ("noise.ply", b"\x00\x01\x02" * 50, "cannot be read as PLY|no triangles"),
        ("points.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\n", "cannot be read as OBJ|no triangles"),
        ("point.obj", b"v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "all vertices coincide"),
        ("line.obj", b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "no triangle has an area"),
        ("inf.obj", b"v 0 0 1e400\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "not finite"),
        ("nan.obj", b"v 0 0 0\nv nan 0 0\nv 0 1 0\nv 1 1 0\nf 1 2 3\nf 1 3 4\n", "not finite"),
        ("shape.dae", b"<COLLADA>\n\0</COLLADA>", r"cannot be read as DAE \(.*line 2.*\)$"),
        ("shape.stl", b"solid", "cannot be read as STL|no triangles"),
        ("shape.fbx", b"solid", r"'\.fbx'.*\.glb"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadMeshError, match=match) as caught:
            load_mesh(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
    with pytest.raises(FileNotFoundError, match=r"absent\.glb: no such file"):
        load_mesh(tmp_path / "absent.glb")
    with pytest.raises(ValueError, match="up must be one of auto, y, z; got 'x'"):
        load_mesh(tmp_path / "whole.glb", up="x")


@needs_meshes
def test_real_meshes_textured_cars_and_colored_furniture():
    camera = cameras_lib.orbit([-60.0], 20.0, 2.6, K)
    for name, hue in (("kenney_cars/sedan", 0), ("kenney_cars/truck", 1), ("kenney_furniture/chair", 0)):
        image = render_views(load_mesh(SHARED / f"{name}.glb"), camera, SIZE)[0]
        solid = image[image[..., 3] == 255][:, :3].astype(int)
        assert len(solid) > 400, name
        strong = solid[np.ptp(solid, axis=-1) > 40]
        assert len(strong) > 150, name
        assert np.bincount(strong.argmax(axis=-1), minlength=3).argmax() == hue, name


@needs_meshes
@pytest.mark.slow
def test_all_real_meshes_render():
    paths = sorted(SHARED.rglob("*.glb"))
    assert len(paths) >= 146
    camera = sphere_cameras(2, 2.6, K, 0)
    for path in paths:
        images = render_views(load_mesh(path), camera, SIZE, samples=4)
        assert (images[..., 3] == 255).sum() > 50, path.name
        assert len(np.unique(images[images[..., 3] == 255], axis=0)) > 1, path.name


def test_files_outside_of_the_meshes_are_read_only_if_allowed(tmp_path):
    folder = tmp_path / "meshes/models"
    folder.mkdir(parents=True)
    (folder / "a.obj").write_text("mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nusemtl m\nf 1/1 2/1 3/1\n")
    (folder / "a.mtl").write_text("newmtl m\nmap_Kd ../../x.png\n")
    PIL.Image.new("RGB", (1, 1), "red").save(tmp_path / "x.png")
    for inside in (None, tmp_path / "meshes"):
        mesh = load_mesh(folder / "a.obj", inside=inside)
        assert mesh.textures == ()
        assert len(mesh.warnings) == 1
        assert "../../x.png leads out of" in mesh.warnings[0]
    assert len(load_mesh(folder / "a.obj", inside=tmp_path).textures) == 1
    (tmp_path / "meshes/link.obj").symlink_to(tmp_path / "y.obj")
    (tmp_path / "y.obj").write_text((folder / "a.obj").read_text())
    with pytest.raises(BadMeshError, match=r"link.obj leads out of .*meshes, to .*y.obj; set allow_outside"):
        load_mesh(tmp_path / "meshes/link.obj")


def test_normals_that_are_not_finite_are_those_of_the_face(tmp_path):
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nvn 0 0 1e400\nvn 1e200 0 0\nf 1//1 2//2 3//2\n")
    np.testing.assert_array_equal(load_mesh(tmp_path / "a.obj", up="z").normals, [[[0, 0, 1]] * 3])
