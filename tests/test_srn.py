"""The SRN folder format: exact round trips, and every defect named with its path."""

import socket
import struct
import zlib
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from synthetic import make_objects, make_views

from threedim.data import png, srn
from threedim.data.objects import find_objects, read_object
from threedim.data.views import BadObjectError


@pytest.mark.parametrize("channels", [3, 4])
def test_round_trip_is_exact(tmp_path, channels):
    images, cameras = make_views(views=3, channels=channels)
    srn.write_object(tmp_path / "new" / "one", images, cameras)
    views = read_object(tmp_path / "new" / "one")
    assert (views.name, views.size, len(views.pngs)) == ("one", 16, 3)
    for name in ("R", "t", "K"):
        np.testing.assert_array_equal(getattr(views.cameras, name), getattr(cameras, name), strict=True)
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


def test_intrinsics_for_another_size_are_rescaled(tmp_path):
    images, cameras = make_views(size=16)
    srn.write_object(tmp_path / "one", images, cameras)
    (tmp_path / "one/intrinsics.txt").write_text("525. 256. 250. 0.\n0. 0. 0.\n1.\n512 512\n0\n")
    (tmp_path / "one/intrinsics").mkdir()
    for view in range(4):
        (tmp_path / f"one/intrinsics/{view:06d}.txt").write_text("525 0 256 0 525 250 0 0 1")
    K = read_object(tmp_path / "one").cameras.K
    np.testing.assert_allclose(K[2], [[525 / 32, 0, 8], [0, 525 / 32, 250 / 32], [0, 0, 1]], rtol=1e-6)


def test_decode_resizes_intrinsics_with_the_picture(tmp_path):
    images, cameras = make_views(views=4, size=16)
    srn.write_object(tmp_path / "one", images, cameras)
    small, small_cameras = read_object(tmp_path / "one").decode([3, 1], 8)
    expected = images[[3, 1]].reshape(2, 8, 2, 8, 2, 3).astype(np.float64).mean(axis=(2, 4))
    assert np.abs(small - expected).max() <= 0.5
    np.testing.assert_allclose(small_cameras.K[:, :2], cameras.K[[3, 1], :2] / 2, rtol=1e-6)
    np.testing.assert_array_equal(small_cameras.t, cameras.t[[3, 1]])


def test_views_are_in_the_order_of_their_numbers(tmp_path):
    images, cameras = make_views(views=3)
    srn.write_object(tmp_path / "one", images, cameras)
    for old, new in (("000000", "9"), ("000001", "10"), ("000002", "100")):
        (tmp_path / f"one/rgb/{old}.png").rename(tmp_path / f"one/rgb/{new}.png")
        (tmp_path / f"one/pose/{old}.txt").rename(tmp_path / f"one/pose/{new}.txt")
    views = read_object(tmp_path / "one")
    np.testing.assert_array_equal(views.cameras.t, cameras.t)
    np.testing.assert_array_equal(views.decode()[0], images)


def test_write_is_complete_or_leaves_nothing(tmp_path, monkeypatch):
    images, cameras = make_views()
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there exists"):
        srn.write_object(tmp_path / "there", images, cameras)
    (tmp_path / "there").rmdir()
    for wrong, matrices, message in (
        (images / 255.0, cameras, "uint8"),
        (images[:, :8], cameras, "square"),
        (images, cameras[:2], "4 images need cameras"),
    ):
        with pytest.raises(ValueError, match=message):
            srn.write_object(tmp_path / "one", wrong, matrices)

    with monkeypatch.context() as patch:
        patch.setattr(png, "encode_png", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            srn.write_object(tmp_path / "one", images, cameras)
    assert list(tmp_path.iterdir()) == []
    # What a killed process leaves behind.
    (tmp_path / f".one.{socket.gethostname()}.9999999.0.incomplete/rgb").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no objects"):
        find_objects(tmp_path)
    srn.write_object(tmp_path / "one", images, cameras)
    assert find_objects(tmp_path) == [tmp_path / "one"]


def test_find_objects(tmp_path):
    folders = make_objects(tmp_path / "chairs_train/chairs_2.0_train", count=3)
    (tmp_path / "chairs_train/__MACOSX").mkdir()
    (tmp_path / "chairs_train/notes.txt").write_text("")
    assert find_objects(tmp_path / "chairs_train") == folders
    assert find_objects(tmp_path / "chairs_train/chairs_2.0_train") == folders
    (tmp_path / "chairs_train/chairs_2.0_train/empty").mkdir()
    assert len(find_objects(tmp_path / "chairs_train")) == 4
    with pytest.raises(FileNotFoundError, match="is itself an object"):
        find_objects(folders[0])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_objects(tmp_path / "absent")


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def pose(text):
    return write("pose/000002.txt", text)


def intrinsics(text):
    return write("intrinsics.txt", text)


def image(array):
    return lambda folder: Image.fromarray(array).save(folder / "rgb/000002.png")


def change_png(change):
    def damage(folder):
        path = folder / "rgb/000002.png"
        path.write_bytes(change(path.read_bytes()))

    return damage


def flip_bit(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def drop_rows(data):
    """Half of the compressed rows, with a valid checksum."""
    length = int.from_bytes(data[33:37], "big")
    chunk = b"IDAT" + data[41 : 41 + length // 2]
    return data[:33] + struct.pack(">I", length // 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[-12:]


def view_intrinsics(views, text="17.6 0 8.25 0 17.6 7.5 0 0 1", only=False):
    def add(folder):
        (folder / "intrinsics").mkdir()
        for view in range(views):
            (folder / f"intrinsics/{view:06d}.txt").write_text(text)
        if only:
            (folder / "intrinsics.txt").unlink()

    return add


IDENTITY = "1 0 0 0 0 1 0 0 0 0 1 2 0 0 0 1"
TAIL = "0. 0. 0.\n1.\n16 16\n"
DEFECTS = {
    "missing pose": (lambda f: (f / "pose/000002.txt").unlink(), "pose/000002.txt", "missing"),
    "extra pose": (write("pose/000009.txt", IDENTITY), "pose/000009.txt", "no image rgb/000009.png"),
    "no pose folder": (lambda f: (f / "pose").rename(f / "poses"), "pose", "missing"),
    "no image": (lambda f: [path.unlink() for path in (f / "rgb").iterdir()], "rgb", "empty"),
    "not a picture by name": (write("rgb/000002.txt", ""), "rgb/000002.txt", "unexpected file"),
    "two pictures of a view": (write("rgb/000002.jpg", ""), "rgb/000002.png", "same view as 000002.jpg"),
    "truncated PNG": (change_png(lambda data: data[:-40]), "rgb/000002.png", "not a complete PNG"),
    "without its end": (change_png(lambda data: data[:-12]), "rgb/000002.png", "not a complete PNG"),
    "PNG of too few rows": (change_png(drop_rows), "rgb/000002.png", "not a complete PNG"),
    "damaged PNG": (change_png(flip_bit), "rgb/000002.png", "not a complete PNG"),
    "text as PNG": (write("rgb/000002.png", "hello"), "rgb/000002.png", "not a picture"),
    "rectangle": (image(np.zeros((16, 12, 3), np.uint8)), "rgb/000002.png", "12x16 pixels"),
    "mixed sizes": (image(np.zeros((8, 8, 3), np.uint8)), "rgb/000002.png", "8x8.* rgb/000000.png is 16x16"),
    "pose of 12 numbers": (pose("1 0 0 0 0 1 0 0 0 0 1 2"), "pose/000002.txt", "got 12"),
    "pose with words": (pose(IDENTITY.replace("2", "two")), "pose/000002.txt", "two"),
    "pose not finite": (pose(IDENTITY.replace("2", "nan")), "pose/000002.txt", "not finite"),
    "scaled pose": (pose("2" + IDENTITY[1:]), "pose/000002.txt", "not a rotation"),
    "mirrored pose": (pose("-" + IDENTITY), "pose/000002.txt", "reflection"),
    "column-major pose": (pose("1 0 0 0 0 1 0 0 0 0 1 0 0 0 2 1"), "pose/000002.txt", "last row"),
    "binary pose": (lambda f: (f / "pose/000002.txt").write_bytes(b"\xff\xfe\x00"), "pose/000002.txt", "decode"),
    "no intrinsics": (lambda f: (f / "intrinsics.txt").unlink(), "intrinsics.txt", "missing"),
    "focal length 0": (intrinsics("0 8 8 0.\n" + TAIL), "intrinsics.txt", "focal length"),
    "focal length nan": (intrinsics("nan 8 8 0.\n" + TAIL), "intrinsics.txt", "not finite"),
    "short intrinsics": (intrinsics("17 8 8 0."), "intrinsics.txt", "got 4"),
    "size 0": (intrinsics("17 8 8 0.\n0. 0. 0.\n1.\n0 0\n"), "intrinsics.txt", "must be positive"),
    "oblong size": (
        intrinsics("17 8 8 0.\n0. 0. 0.\n1.\n16 12\n"),
        "intrinsics.txt",
        "for 12x16 pixels, but a picture has 16x16",
    ),
    "principal point outside": (intrinsics("17 64 64 0.\n" + TAIL), "intrinsics.txt", "another size"),
    "last line is neither 0 nor 1": (intrinsics("17 8 8 0.\n" + TAIL + "2\n"), "intrinsics.txt", "world-to-camera"),
    "view without intrinsics": (view_intrinsics(3), "intrinsics/000003.txt", "missing"),
    "intrinsics without view": (view_intrinsics(5), "intrinsics/000004.txt", "no image rgb/000004.png"),
    "two truths": (view_intrinsics(4, "30 0 8 0 30 8 0 0 1"), "intrinsics/000000.txt", r"intrinsics\.txt"),
    "K of 4 numbers": (view_intrinsics(4, "17 17 8 8", only=True), "intrinsics/000000.txt", "got 4"),
    "skewed K": (view_intrinsics(4, "17 1 8 0 17 8 0 0 1", only=True), "intrinsics/000000.txt", "must be"),
    "K for another size": (
        view_intrinsics(4, "525 0 256 0 525 9 0 0 1", True),
        "intrinsics/000000.txt",
        "another size",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_are_named_with_their_path(tmp_path, defect):
    damage, path, message = DEFECTS[defect]
    (folder,) = make_objects(tmp_path, count=1)
    damage(folder)
    with pytest.raises(BadObjectError, match=message) as raised:
        read_object(folder)
    assert str(raised.value).startswith(f"{folder / path}: ")
    assert "\n" not in str(raised.value)


def test_absent_object_and_hidden_files(tmp_path):
    with pytest.raises(BadObjectError, match="no such folder"):
        read_object(tmp_path / "absent")
    (folder,) = make_objects(tmp_path, count=1)
    (folder / "rgb/.DS_Store").write_bytes(b"x")
    assert len(read_object(folder).pngs) == 4
