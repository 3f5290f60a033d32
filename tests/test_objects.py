"""Every layout is read into the same cameras and pictures; settings change them as they say."""

import numpy as np
import pytest
from layouts import (
    assert_dots_are_where_cameras_see_them,
    edit_json,
    make_scene,
    rearranged,
    write_colmap,
    write_colmap_binary,
    write_nerf,
    write_nerfstudio,
    write_zero123,
)
from PIL import Image

from threedim.cameras import Camera
from threedim.data import pictures as pictures_lib
from threedim.data import srn
from threedim.data.objects import find_objects, read_object
from threedim.data.views import BadObjectError, ReadSettings
from threedim.errors import UserError

ZERO123_FOCAL = 64 * 35 / 32


def write_srn_jpegs(folder, pictures, poses):
    srn.write_object(folder, np.ascontiguousarray(pictures), poses)
    for path in (folder / "rgb").glob("*.png"):
        Image.open(path).save(path.with_suffix(".webp"), lossless=True)
        path.unlink()


LAYOUTS = {
    "srn": srn.write_object,
    "srn_webp": write_srn_jpegs,
    "nerf": write_nerf,
    "nerfstudio": write_nerfstudio,
    "colmap": write_colmap,
    "colmap_binary": write_colmap_binary,
    "zero123": write_zero123,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_read_alike(tmp_path, layout):
    pictures, poses = make_scene(focal=ZERO123_FOCAL)
    LAYOUTS[layout](tmp_path / "all/one", pictures, poses)
    assert find_objects(tmp_path / "all") == [tmp_path / "all/one"]
    views = read_object(tmp_path / "all/one")
    # train: 0 and 3, val: 1 and 4, test: 2.
    order = [0, 3, 1, 4, 2] if layout == "nerf" else range(5)
    expected = rearranged(poses, np.asarray(order))
    for name in ("R", "t", "K"):
        np.testing.assert_allclose(getattr(views.cameras, name), getattr(expected, name), atol=1e-4)
    assert (views.name, views.size, views.warnings, views.unread) == ("one", 64, (), ())
    assert_dots_are_where_cameras_see_them(views)


@pytest.mark.parametrize("layout", ["nerfstudio", "colmap"])
@pytest.mark.parametrize("size", [(90, 64), (64, 91)])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_oblong_pictures_are_padded_or_cropped_and_intrinsics_follow(tmp_path, layout, size, fit):
    pictures, poses = make_scene(*size)
    LAYOUTS[layout](tmp_path / "one", pictures, poses)
    with pytest.raises(BadObjectError, match=rf"{size[0]}x{size[1]} pixels.* --config\.data\.fit to pad or crop"):
        read_object(tmp_path / "one")
    views = read_object(tmp_path / "one", ReadSettings(fit=fit))
    assert views.size == max(size) if fit == "pad" else views.size < min(size)
    assert_dots_are_where_cameras_see_them(views)
    assert np.all(views.decode()[0][:, 0, 0] == 255)
    np.testing.assert_array_equal(views.cameras.t, read_object(tmp_path / "one", ReadSettings(fit="pad")).cameras.t)


def test_large_pictures_are_averaged_down(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures_lib, "_MAX_SIZE", 80)
    write_colmap(tmp_path / "one", *make_scene(110, 70, views=2, dot=2))
    views = read_object(tmp_path / "one", ReadSettings(fit="pad"))
    assert views.size == 80
    assert_dots_are_where_cameras_see_them(views)


def test_crop_needs_a_mask(tmp_path):
    pictures, poses = make_scene(80, 64)
    pictures[:] = [10, 20, 30, 255]
    pictures[:, 5, 5] = np.arange(5)[:, None] + 1
    write_colmap(tmp_path / "one", pictures, poses)
    with pytest.raises(BadObjectError, match=r"cannot be cropped.*add masks"):
        read_object(tmp_path / "one", ReadSettings(fit="crop"))


def test_settings_change_the_world(tmp_path):
    pictures, poses = make_scene()
    target = np.asarray([1.0, 2.0, -3.0])
    # The same object elsewhere, three times as large, with y up: (x, y, z) of z up is (x, z, -y).
    to_y_up = np.asarray([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    moved = Camera(to_y_up @ poses.R, (3 * poses.t) @ to_y_up.T + target, poses.K)
    srn.write_object(tmp_path / "one", pictures, moved)
    aside, up = read_object(tmp_path / "one").warnings
    assert aside == "cameras look at (1, 2, -3), not at the origin; --config.data.center=True"
    assert up == "y points up in all pictures, not z; --config.data.up=y"
    views = read_object(tmp_path / "one", ReadSettings(center=True, up="y", scale=1 / 3))
    np.testing.assert_allclose(views.cameras.t, poses.t, atol=1e-4)
    np.testing.assert_allclose(views.cameras.R, poses.R, atol=1e-5)
    assert views.warnings == ()
    # World-to-camera matrices with OpenGL axes.
    folder, matrices = tmp_path / "other", np.linalg.inv(poses.to_opengl_matrix())
    srn.write_object(folder, pictures, poses)
    for path, matrix in zip(sorted((folder / "pose").iterdir()), matrices, strict=True):
        path.write_text(" ".join(map(str, matrix.ravel())))
    with pytest.raises(BadObjectError, match=r"axes=opengl --config\.data\.world_to_camera=True"):
        read_object(folder)
    views = read_object(folder, ReadSettings(axes="opengl", world_to_camera=True))
    np.testing.assert_allclose(views.cameras.to_matrix(), poses.to_matrix(), atol=1e-5)
    assert read_object(folder, ReadSettings(check_cameras=False)).warnings == ()
    # As SRN's own flag says it.
    intrinsics = folder / "intrinsics.txt"
    intrinsics.write_text(intrinsics.read_text() + "1\n")
    np.testing.assert_array_equal(read_object(folder, ReadSettings(axes="opengl")).cameras.t, views.cameras.t)
    one = tmp_path / "single"
    srn.write_object(one, pictures[:1], rearranged(poses, np.asarray([0])))
    with pytest.raises(BadObjectError, match="cannot be centered"):
        read_object(one, ReadSettings(center=True))


def test_settings_are_checked():
    for wrong in ({"axes": "blender"}, {"up": "w"}, {"fit": "stretch"}, {"scale": 0.0}, {"scale": float("nan")}):
        with pytest.raises(UserError, match=f"data.{next(iter(wrong))} must be"):
            ReadSettings(**wrong)
    assert ReadSettings(check_cameras=False, strict=True).changed() == {}
    assert ReadSettings(up="y", center=True).changed() == {"up": "y", "center": True}


def frame(**fields):
    return edit_json(lambda content: content["frames"][1].update(fields))


NERF_DEFECTS = {
    "not JSON": (lambda f: (f / "transforms.json").write_text("{"), r"transforms\.json: not valid JSON"),
    "nested": (lambda f: (f / "transforms.json").write_text("[" * 10**5), r"transforms\.json: not valid JSON"),
    "no frames": (edit_json(lambda c: c.pop("frames")), r"transforms\.json: has no list of 'frames'"),
    "no path": (frame(file_path=None), "frame 1 has no 'file_path'"),
    "missing picture": (
        frame(file_path="images/gone"),
        r"images/gone: picture is missing, but transforms\.json",
    ),
    "picture in another folder": (
        frame(file_path="test/frame_00000.png"),
        r"test/frame_00000\.png: picture is missing",
    ),
    "no matrix": (frame(transform_matrix="x"), r"transforms\.json: frame images/frame_00001\.png: .*"),
    "matrix of 9": (frame(transform_matrix=np.eye(3).tolist()), r"frame_00001\.png: 'transform_matrix' must be 4x4"),
    "scaled": (
        frame(transform_matrix=np.diag([2, 2, 2, 1]).tolist()),
        r"transforms\.json: frame_00001\.png: .*rotation",
    ),
    "no focal length": (edit_json(lambda c: c.pop("fl_x")), "neither 'fl_x' nor 'camera_angle_x'"),
    "degrees": (edit_json(lambda c: c.update(camera_angle_x=45.0, fl_x=None)), "radians"),
    "extreme distortion": (edit_json(lambda c: c.update(k1=-5)), r"frame_00000\.png: lens distortion -5, .*undistort"),
    "k4": (edit_json(lambda c: c.update(k4=0.1)), r"k4 is not read; undistort"),
    "two cameras": (
        edit_json(lambda c: c["frames"][1].update(file_path="images/frame_00000.png")),
        r"frame_00000\.png has two cameras",
    ),
    "fisheye": (frame(camera_model="OPENCV_FISHEYE"), "camera model OPENCV_FISHEYE"),
    "other shape": (frame(w=128), r"frame images/frame_00001\.png: intrinsics are for 128x64 pixels.* 64x64"),
    "no mask": (
        lambda f: (f / "masks/frame_00002.png").unlink(),
        r"masks/frame_00002\.png: picture is missing",
    ),
    "small mask": (
        lambda f: Image.new("L", (8, 8)).save(f / "masks/frame_00002.png"),
        r"masks/frame_00002\.png: 8x8 pixels, but frame_00002\.png has 64x64",
    ),
    "which": (
        lambda f: [(f / "transforms.json").rename(f / "transforms_a.json"), (f / "transforms_b.json").write_text("{}")],
        r"which of transforms_a\.json, transforms_b\.json",
    ),
}


@pytest.mark.parametrize("defect", NERF_DEFECTS)
def test_defects_of_nerf_folders_are_named(tmp_path, defect):
    damage, message = NERF_DEFECTS[defect]
    write_nerfstudio(tmp_path / "one", *make_scene(views=3))
    damage(tmp_path / "one")
    with pytest.raises(BadObjectError, match=message) as raised:
        read_object(tmp_path / "one")
    assert str(raised.value).startswith(str(tmp_path / "one"))
    assert "\n" not in str(raised.value)


def test_intrinsics_of_frames_and_for_other_sizes(tmp_path):
    pictures, poses = make_scene(64, 64, views=3)
    write_nerfstudio(tmp_path / "one", pictures, poses, suffix=".jpg", w=128, h=128, cx=70.0, cy=64.0)
    frame(fl_x=200.0, fl_y=180.0)(tmp_path / "one")
    path = tmp_path / "one/transforms.json"
    path.write_text("\ufeff" + path.read_text(), encoding="utf-8")  # as some Windows programs write it
    K = read_object(tmp_path / "one").cameras.K
    focal = poses.K[0, 0, 0] / 2
    np.testing.assert_allclose(K[:, [0, 1], [0, 1]], [[focal, focal], [100, 90], [focal, focal]], rtol=1e-6)
    np.testing.assert_allclose(K[:, :2, 2], [[35, 32]] * 3, rtol=1e-6)


@pytest.mark.parametrize("layout", ["nerfstudio", "colmap"])
def test_pictures_outside_of_the_folder(tmp_path, layout):
    LAYOUTS[layout](tmp_path / "one", *make_scene(views=2))
    (tmp_path / "one/images").rename(tmp_path / "images")
    path = tmp_path / "one" / ("transforms.json" if layout == "nerfstudio" else "sparse/0/images.txt")
    content = path.read_text().replace("images/frame", "frame")
    for name in ("frame_", "picture "):
        content = content.replace(name, f"{tmp_path}/images/{name}")
    path.write_text(content.replace(f"masks/{tmp_path}/images/", "masks/"))
    with pytest.raises(BadObjectError, match=rf"{path}: .*000.png leads out of .*one, to .*; set allow_outside"):
        read_object(tmp_path / "one")
    assert_dots_are_where_cameras_see_them(read_object(tmp_path / "one", ReadSettings(allow_outside=True)))


def test_splits_without_pictures_are_left_out(tmp_path):
    """As BlenderNeRF writes them."""
    write_nerf(tmp_path / "one", *make_scene())
    for path in (tmp_path / "one/test").iterdir():
        path.unlink()
    views = read_object(tmp_path / "one")
    assert (len(views.pngs), views.unread) == (4, ("test/", "transforms_test.json"))
    (tmp_path / "one/val/r_1.png").unlink()
    with pytest.raises(BadObjectError, match=r"val/r_1: picture is missing, but transforms_val\.json lists it"):
        read_object(tmp_path / "one")


def test_masks_of_zeros_and_ones(tmp_path):
    write_nerfstudio(tmp_path / "one", *make_scene())
    for path in (tmp_path / "one/masks").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
    assert_dots_are_where_cameras_see_them(read_object(tmp_path / "one"))


def test_variants_of_text_files(tmp_path):
    """Models of COLMAP without lines of points, byte order marks, and line ends of Windows."""
    write_colmap(tmp_path / "one", *make_scene())
    path = tmp_path / "one/sparse/0/images.txt"
    lines = [line for line in path.read_text().splitlines() if line and not line.endswith(" 17")]
    path.write_text(" \n".join(lines))
    srn.write_object(tmp_path / "two", *make_scene())
    for name in ("one/sparse/0/images.txt", "two/intrinsics.txt", "two/pose/000001.txt"):
        path = tmp_path / name
        path.write_bytes(path.read_text().replace("\n", "\r\n").encode("utf-16"))
    path = tmp_path / "two/pose/000002.txt"
    path.write_text(path.read_text(), "utf-8-sig")
    for name in ("one", "two"):
        views = read_object(tmp_path / name)
        assert len(views.pngs) == 5
        assert_dots_are_where_cameras_see_them(views)


@pytest.mark.parametrize(
    ("model", "extra", "message"),
    [
        ("SIMPLE_PINHOLE", "", None),
        ("SIMPLE_RADIAL", "0", None),
        ("OPENCV", "0 0 0 0", None),
        ("OPENCV_FISHEYE", "0 0 0 0 0", "model OPENCV_FISHEYE is not read"),
        ("PINHOLE", "3", "PINHOLE needs width, height and 4 parameters"),
    ],
)
def test_camera_models_of_colmap(tmp_path, model, extra, message):
    write_colmap(tmp_path / "one", *make_scene(), model=model, extra=extra, place="")
    if message is None:
        assert_dots_are_where_cameras_see_them(read_object(tmp_path / "one"))
    else:
        with pytest.raises(BadObjectError, match=rf"one/cameras\.txt: camera 7: .*{message}"):
            read_object(tmp_path / "one")


def test_defects_of_colmap_and_zero123_are_named(tmp_path):
    write_colmap(tmp_path / "one", *make_scene(views=3))
    images = tmp_path / "one/sparse/0/images.txt"
    images.write_text(images.read_text().replace(" 7 picture 000", " 8 picture 000"))
    with pytest.raises(BadObjectError, match=r"images\.txt: .*there is no camera 8"):
        read_object(tmp_path / "one")
    (tmp_path / "one/images/picture 001.png").unlink()
    with pytest.raises(BadObjectError, match=r"picture 001\.png: picture is missing, but images\.txt lists it"):
        read_object(tmp_path / "one")
    write_colmap_binary(tmp_path / "three", *make_scene(views=3))
    for name in ("images.bin", "cameras.bin"):
        path = tmp_path / "three/sparse/0" / name
        path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(BadObjectError, match=rf"{name}: not a whole COLMAP model: "):
            read_object(tmp_path / "three")
    write_zero123(tmp_path / "two", *make_scene(focal=ZERO123_FOCAL))
    np.save(tmp_path / "two/001.npy", np.zeros(3))
    with pytest.raises(BadObjectError, match=r"two/001\.npy: expected a 3x4 world-to-camera matrix"):
        read_object(tmp_path / "two")
    np.save(tmp_path / "two/001.npy", np.asarray([{}], object), allow_pickle=True)
    with pytest.raises(BadObjectError, match=r"two/001\.npy: .*allow_pickle"):
        read_object(tmp_path / "two")


def test_folders_that_are_no_objects_say_what_to_do(tmp_path):
    (tmp_path / "meshes").mkdir()
    (tmp_path / "meshes/chair.glb").write_bytes(b"")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"")
    (tmp_path / "dtu/image").mkdir(parents=True)
    (tmp_path / "dtu/cameras.npz").write_bytes(b"")
    with pytest.raises(BadObjectError, match=r"is no object.*it holds cameras\.npz, image/"):
        read_object(tmp_path / "dtu")
    for name, hint in (("meshes", r"threedim\.data\.render"), ("photos", "COLMAP"), ("objects.zip", "unpack the zip")):
        with pytest.raises(FileNotFoundError, match=hint):
            find_objects(tmp_path / name)
    with pytest.raises(BadObjectError, match="photos: is no object"):
        read_object(tmp_path / "photos")


def test_what_was_not_read_is_listed(tmp_path):
    write_nerf(tmp_path / "one", *make_scene())
    (tmp_path / "one/depth").mkdir()
    for name in ("points.ply", "README.txt", ".DS_Store", "transforms.json"):
        (tmp_path / "one" / name).write_text("")
    assert read_object(tmp_path / "one").unread == ("depth/", "points.ply", "transforms.json")


def test_pictures_that_show_nothing_are_warned_of(tmp_path):
    pictures, poses = make_scene(views=3)
    empty, black, same = np.zeros_like(pictures), np.zeros_like(pictures), np.repeat(pictures[:1], 3, axis=0)
    black[..., 3] = 255
    for name, content, message in (
        ("empty", empty, "all views are empty"),
        ("white", np.full_like(pictures, 255), "all views are empty"),
        ("black", black, "all views are black"),
        ("same", same, "all views show the same picture"),
    ):
        srn.write_object(tmp_path / name, content, poses)
        (warning,) = read_object(tmp_path / name).warnings
        assert message in warning
        with pytest.raises(BadObjectError, match=f"{name}: {message}"):
            read_object(tmp_path / name, ReadSettings(strict=True))


def test_nsvf_intrinsics(tmp_path):
    pictures, poses = make_scene(views=3)
    srn.write_object(tmp_path / "one", pictures, poses)
    path, expected = tmp_path / "one/intrinsics.txt", read_object(tmp_path / "one").cameras.K
    first, rest = path.read_text().split("\n", 1)
    (f, _, cx), (_, _, cy), _ = poses.K[0].tolist()
    for text in (f"{first}\n0. 0. 0.\n0.5\n1.\n64 64\n", f"{f} 0 {cx} 0\n0 {f} {cy} 0\n0 0 1 0\n0 0 0 1\n"):
        path.write_text(text)
        np.testing.assert_allclose(read_object(tmp_path / "one").cameras.K, expected, rtol=1e-6)
    assert rest == "0. 0. 0.\n1.\n64 64\n"


@pytest.mark.parametrize(
    ("layout", "name", "old", "new", "message"),
    [
        ("nerfstudio", "transforms.json", '"w": 64', '"w": 0', "width and height must be positive"),
        ("nerfstudio", "transforms.json", '"w": 64', f'"w": {10**400}', "too large"),
        ("nerfstudio", "transforms.json", '"masks/frame_00001.png"', "true", "'mask_path' must be a path"),
        ("colmap", "sparse/0/cameras.txt", " 64 64 ", " 64 inf ", "width and height must be positive"),
        ("colmap", "sparse/0/images.txt", "1 ", "1 x", "could not convert"),
        ("colmap", "sparse/0/images.txt", "picture 001.png", "picture 000.png", r"lists picture 000\.png twice"),
        ("srn", "intrinsics.txt", "76.8", "1e300", "not finite"),
        ("srn", "intrinsics.txt", "64 64", "64 nan", "width and height must be positive"),
    ],
)
def test_odd_numbers_are_named(tmp_path, layout, name, old, new, message):
    LAYOUTS[layout](tmp_path / "one", *make_scene(views=2))
    text = (tmp_path / "one" / name).read_text()
    (tmp_path / "one" / name).write_text(text.replace(old, new, 1))
    with pytest.raises(BadObjectError, match=message) as raised:
        read_object(tmp_path / "one")
    assert str(raised.value).startswith(f"{tmp_path / 'one' / name}: ")


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data.replace(b"}", b"("), lambda data: data[:-8]])
def test_damaged_matrices_of_zero123_are_named(tmp_path, damage):
    write_zero123(tmp_path / "one", *make_scene(focal=ZERO123_FOCAL))
    path = tmp_path / "one/002.npy"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadObjectError, match=r"one/002\.npy: "):
        read_object(tmp_path / "one")
