"""The SRN folder format: exact round trips, and every defect named with its path."""

import numpy as np
import pytest
from PIL import Image
from synthetic import make_objects, make_views

from threedim.cameras import Camera
from threedim.data import srn


@pytest.mark.parametrize("channels", [3, 4])
def test_round_trip_is_exact(tmp_path, channels):
    images, cameras = make_views(views=3, channels=channels)
    srn.write_object(tmp_path / "new" / "one", images, cameras)
    views = srn.read_object(tmp_path / "new" / "one")
    assert (views.name, views.size, len(views.pngs)) == ("one", 16, 3)
    for name in ("R", "t", "K"):
        np.testing.assert_array_equal(getattr(views.cameras, name), getattr(cameras, name))
        assert getattr(views.cameras, name).dtype == np.float32
    if channels == 3:
        np.testing.assert_array_equal(views.decode()[0], images)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["one"]


def test_intrinsics_file_is_as_released(tmp_path):
    images, cameras = make_views(size=16)
    srn.write_object(tmp_path / "one", images, cameras)
    lines = (tmp_path / "one/intrinsics.txt").read_text().splitlines()
    np.testing.assert_array_equal(np.float32(lines[0].split()[:3]), cameras.K[0][[0, 0, 1], [0, 2, 2]])
    assert lines[0].endswith(" 0.")
    assert lines[1:] == ["0. 0. 0.", "1.", "16 16"]


def test_views_with_their_own_intrinsics(tmp_path):
    images, cameras = make_views(views=3)
    K = np.array(cameras.K)
    K[1, 0, 0] *= 1.5
    cameras = Camera(cameras.R, cameras.t, K)
    srn.write_object(tmp_path / "one", images, cameras)
    assert not (tmp_path / "one/intrinsics.txt").exists()
    np.testing.assert_array_equal(srn.read_object(tmp_path / "one").cameras.K, K)


def test_intrinsics_for_another_size_are_rescaled(tmp_path):
    images, cameras = make_views(size=16)
    srn.write_object(tmp_path / "one", images, cameras)
    (tmp_path / "one/intrinsics.txt").write_text("525. 256. 250. 0.\n0. 0. 0.\n1.\n512 512\n0\n")
    (tmp_path / "one/intrinsics").mkdir()
    for view in range(4):
        (tmp_path / f"one/intrinsics/{view:06d}.txt").write_text("525 0 256 0 525 250 0 0 1")
    K = srn.read_object(tmp_path / "one").cameras.K
    np.testing.assert_allclose(K[2], [[525 / 32, 0, 8], [0, 525 / 32, 250 / 32], [0, 0, 1]], rtol=1e-6)


def test_decode_resizes_intrinsics_with_the_picture(tmp_path):
    images, cameras = make_views(views=4, size=16)
    srn.write_object(tmp_path / "one", images, cameras)
    small, small_cameras = srn.read_object(tmp_path / "one").decode([3, 1], 8)
    expected = images[[3, 1]].reshape(2, 8, 2, 8, 2, 3).astype(np.float64).mean(axis=(2, 4))
    assert np.abs(small - expected).max() <= 0.5
    np.testing.assert_allclose(small_cameras.K[:, :2], cameras.K[[3, 1], :2] / 2, rtol=1e-6)
    np.testing.assert_array_equal(small_cameras.t, cameras.t[[3, 1]])
    # The same corner of the picture is seen along the same ray.
    corner = np.linalg.inv(cameras.K[3]) @ [16.0, 16.0, 1.0]
    np.testing.assert_allclose(np.linalg.inv(small_cameras.K[0]) @ [8.0, 8.0, 1.0], corner, rtol=1e-5)


def test_views_are_in_the_order_of_their_numbers(tmp_path):
    images, cameras = make_views(views=3)
    srn.write_object(tmp_path / "one", images, cameras)
    for old, new in (("000000", "9"), ("000001", "10"), ("000002", "100")):
        (tmp_path / f"one/rgb/{old}.png").rename(tmp_path / f"one/rgb/{new}.png")
        (tmp_path / f"one/pose/{old}.txt").rename(tmp_path / f"one/pose/{new}.txt")
    views = srn.read_object(tmp_path / "one")
    np.testing.assert_array_equal(views.cameras.t, cameras.t)
    np.testing.assert_array_equal(views.decode()[0], images)


def test_write_refuses_what_it_cannot_write(tmp_path):
    images, cameras = make_views()
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there exists"):
        srn.write_object(tmp_path / "there", images, cameras)
    with pytest.raises(ValueError, match="uint8"):
        srn.write_object(tmp_path / "one", images / 255.0, cameras)
    with pytest.raises(ValueError, match="square"):
        srn.write_object(tmp_path / "one", images[:, :8], cameras)
    with pytest.raises(ValueError, match="4 images need cameras"):
        srn.write_object(tmp_path / "one", images, cameras[:2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_interrupted_write_leaves_nothing_and_can_be_repeated(tmp_path, monkeypatch):
    images, cameras = make_views()

    def interrupt(image):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(srn.images_lib, "encode_png", interrupt)
        with pytest.raises(KeyboardInterrupt):
            srn.write_object(tmp_path / "one", images, cameras)
    assert list(tmp_path.iterdir()) == []
    # What a killed process would have left.
    (tmp_path / ".one.incomplete/rgb").mkdir(parents=True)
    assert_not_found(tmp_path)
    srn.write_object(tmp_path / "one", images, cameras)
    assert srn.find_objects(tmp_path) == [tmp_path / "one"]


def assert_not_found(folder):
    with pytest.raises(FileNotFoundError, match="holds no object"):
        srn.find_objects(folder)


def test_find_objects(tmp_path):
    folders = make_objects(tmp_path / "chairs_train/chairs_2.0_train", count=3)
    (tmp_path / "chairs_train/__MACOSX").mkdir()
    (tmp_path / "chairs_train/notes.txt").write_text("")
    assert srn.find_objects(tmp_path / "chairs_train") == folders
    assert srn.find_objects(tmp_path / "chairs_train/chairs_2.0_train") == folders
    (tmp_path / "chairs_train/chairs_2.0_train/empty").mkdir()
    # An empty object is not passed over.
    assert len(srn.find_objects(tmp_path / "chairs_train")) == 4
    with pytest.raises(FileNotFoundError, match="is itself an object"):
        srn.find_objects(folders[0])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        srn.find_objects(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert_not_found(tmp_path / "empty")


def bad_pose(text):
    return lambda folder: (folder / "pose/000002.txt").write_text(text)


def bad_intrinsics(text):
    return lambda folder: (folder / "intrinsics.txt").write_text(text)


def save_png(name, image):
    return lambda folder: Image.fromarray(image).save(folder / f"rgb/{name}.png")


def truncate_png(folder):
    path = folder / "rgb/000002.png"
    path.write_bytes(path.read_bytes()[:-40])


def flip_bit_in_png(folder):
    path = folder / "rgb/000002.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty_folder(name):
    def remove(folder):
        for path in (folder / name).iterdir():
            path.unlink()

    return remove


def add_view_intrinsics(views, text="17.6 0 8.25 0 17.6 7.5 0 0 1"):
    def add(folder):
        (folder / "intrinsics").mkdir()
        for view in views:
            (folder / f"intrinsics/{view:06d}.txt").write_text(text)

    return add


def only_view_intrinsics(text):
    def replace(folder):
        (folder / "intrinsics.txt").unlink()
        add_view_intrinsics(range(4), text)(folder)

    return replace


IDENTITY = "1 0 0 0 0 1 0 0 0 0 1 2 0 0 0 1"
TAIL = "0. 0. 0.\n1.\n16 16\n"
DEFECTS = {
    "missing pose": (lambda f: (f / "pose/000002.txt").unlink(), "pose/000002.txt", "pose is missing"),
    "extra pose": (lambda f: (f / "pose/000009.txt").write_text(IDENTITY), "pose/000009.txt", "has no picture"),
    "no pose folder": (lambda f: (f / "pose").rename(f / "poses"), "pose", "folder is missing"),
    "no picture": (empty_folder("rgb"), "rgb", "is empty"),
    "not a PNG by name": (lambda f: (f / "rgb/000002.jpg").write_bytes(b""), "rgb/000002.jpg", "unexpected file"),
    "truncated PNG": (truncate_png, "rgb/000002.png", "not a whole PNG"),
    "damaged PNG": (flip_bit_in_png, "rgb/000002.png", "not a whole PNG"),
    "empty PNG": (lambda f: (f / "rgb/000002.png").write_bytes(b""), "rgb/000002.png", "not a whole PNG"),
    "text as PNG": (lambda f: (f / "rgb/000002.png").write_text("hello"), "rgb/000002.png", "not a whole PNG"),
    "rectangle": (save_png("000002", np.zeros((16, 12, 3), np.uint8)), "rgb/000002.png", "is 12x16 pixels"),
    "mixed sizes": (save_png("000002", np.zeros((8, 8, 3), np.uint8)), "rgb/000002.png", "is 8x8, but rgb/000000.png"),
    "16 bits": (save_png("000002", np.zeros((16, 16), np.uint16)), "rgb/000002.png", "8 bits per channel"),
    "pose of 12 numbers": (bad_pose("1 0 0 0 0 1 0 0 0 0 1 2"), "pose/000002.txt", "got 12 numbers"),
    "pose with words": (bad_pose(IDENTITY.replace("2", "two")), "pose/000002.txt", "not a number"),
    "pose not finite": (bad_pose(IDENTITY.replace("2", "nan")), "pose/000002.txt", "not finite"),
    "scaled pose": (bad_pose("2" + IDENTITY[1:]), "pose/000002.txt", "not a rotation"),
    "mirrored pose": (bad_pose("-" + IDENTITY), "pose/000002.txt", "reflection"),
    "column-major pose": (bad_pose("1 0 0 0 0 1 0 0 0 0 1 0 0 0 2 1"), "pose/000002.txt", "last row"),
    "binary pose": (lambda f: (f / "pose/000002.txt").write_bytes(b"\xff\xfe\x00"), "pose/000002.txt", "not a number"),
    "no intrinsics": (lambda f: (f / "intrinsics.txt").unlink(), "intrinsics.txt", "is missing"),
    "focal length 0": (bad_intrinsics("0 8 8 0.\n" + TAIL), "intrinsics.txt", "focal length that is not positive"),
    "focal length nan": (bad_intrinsics("nan 8 8 0.\n" + TAIL), "intrinsics.txt", "not finite"),
    "short intrinsics": (bad_intrinsics("17 8 8 0."), "intrinsics.txt", "got 4 numbers"),
    "size 0": (bad_intrinsics("17 8 8 0.\n0. 0. 0.\n1.\n0 0\n"), "intrinsics.txt", "positive square"),
    "oblong size": (bad_intrinsics("17 8 8 0.\n0. 0. 0.\n1.\n16 12\n"), "intrinsics.txt", "got 16 12"),
    "principal point outside": (bad_intrinsics("17 64 64 0.\n" + TAIL), "intrinsics.txt", "for another size"),
    "world-to-camera": (bad_intrinsics("17 8 8 0.\n" + TAIL + "1\n"), "intrinsics.txt", "world-to-camera"),
    "view without intrinsics": (add_view_intrinsics(range(3)), "intrinsics/000003.txt", "are missing"),
    "intrinsics without view": (add_view_intrinsics(range(5)), "intrinsics/000004.txt", "have no picture"),
    "two truths": (
        add_view_intrinsics(range(4), "30 0 8 0 30 8 0 0 1"),
        "intrinsics/000000.txt",
        "another camera than intrinsics.txt",
    ),
    "K of 4 numbers": (only_view_intrinsics("17 17 8 8"), "intrinsics/000000.txt", "got 4"),
    "skewed K": (only_view_intrinsics("17 1 8 0 17 8 0 0 1"), "intrinsics/000000.txt", "camera K must be"),
    "K for another size": (only_view_intrinsics("525 0 256 0 525 256 0 0 1"), "intrinsics/000000.txt", "another size"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_are_named_with_their_path(tmp_path, defect):
    damage, path, message = DEFECTS[defect]
    (folder,) = make_objects(tmp_path, count=1)
    damage(folder)
    with pytest.raises(srn.BadObjectError, match=message) as raised:
        srn.read_object(folder)
    assert raised.value.path == str(folder / path)
    assert str(raised.value).startswith(f"{folder / path}: ")


def test_absent_object(tmp_path):
    with pytest.raises(srn.BadObjectError, match="no such folder"):
        srn.read_object(tmp_path / "absent")


def test_hidden_files_are_passed_over(tmp_path):
    (folder,) = make_objects(tmp_path, count=1)
    (folder / "rgb/.DS_Store").write_bytes(b"x")
    assert len(srn.read_object(folder).pngs) == 4
