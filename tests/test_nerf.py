"""transforms.json: the conventions of nerfstudio and instant-ngp, and read back."""

import json

import numpy as np
import pytest
from tiny import random_cameras

from threedim import cameras
from threedim.cameras import Camera
from threedim.data import nerf, srn
from threedim.data.objects import read_object

SIZE = 16


def written(folder, camera):
    paths = [f"rgb/{view:06d}.png" for view in range(len(camera))]
    (folder / "transforms.json").write_text(nerf.to_json(paths, camera, SIZE))
    return json.loads((folder / "transforms.json").read_text())


def in_pixels(content, frame, point):
    """Where a point of the world is seen, by the formula of OpenGL cameras: x right, y up, looking along -z."""
    x, y, z = (np.linalg.inv(frame["transform_matrix"]) @ [*point, 1])[:3]
    of = content | frame
    return of["fl_x"] * x / -z + of["cx"], of["fl_y"] * -y / -z + of["cy"]


@pytest.mark.parametrize("alike", [True, False])
def test_known_points_are_seen_where_our_cameras_see_them(tmp_path, alike):
    camera = random_cameras(5, size=SIZE)
    camera = Camera(camera.R, camera.t, camera.K[:1].repeat(5, axis=0) if alike else camera.K)
    content = written(tmp_path, camera)
    assert ("fl_x" in content) == alike
    for frame, R, t, K in zip(content["frames"], camera.R, camera.t, camera.K, strict=True):
        for point in np.random.default_rng(1).uniform(-0.3, 0.3, (4, 3)):
            x, y, w = K @ R.T @ (point - t)
            np.testing.assert_allclose(in_pixels(content, frame, point), (x / w, y / w), atol=1e-4)
        of = content | frame
        assert (of["w"], of["h"], of["camera_model"]) == (SIZE, SIZE, "OPENCV")
        assert [of[name] for name in ("k1", "k2", "p1", "p2", "aabb_scale")] == [0, 0, 0, 0, 1]
        np.testing.assert_allclose(of["camera_angle_x"], 2 * np.arctan(SIZE / 2 / K[0, 0]), rtol=1e-6)
        np.testing.assert_allclose(of["camera_angle_y"], 2 * np.arctan(SIZE / 2 / K[1, 1]), rtol=1e-6)


def test_the_box_of_instant_ngp_holds_what_is_seen(tmp_path):
    target = np.array([0.5, -1.0, 2.0])
    camera = cameras.orbit(range(0, 360, 45), 20, 4.0, cameras.intrinsics(SIZE, SIZE), target)
    low, high = np.array(written(tmp_path, camera)["aabb"])
    np.testing.assert_allclose((low + high) / 2, target, atol=1e-4)
    np.testing.assert_allclose(high - low, 2 * 4 * np.sin(np.arctan(0.5)), atol=1e-4)


def test_is_read_back(tmp_path):
    camera = cameras.orbit(range(0, 360, 60), 20, 2.6, cameras.intrinsics(SIZE, SIZE))
    views = np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3), np.uint8)
    srn.write_object(tmp_path / "object", views, camera)
    written(tmp_path / "object", camera)
    for path in ("intrinsics.txt", "pose"):  # otherwise it is read as SRN
        (tmp_path / "object" / path).rename(tmp_path / path)
    (tmp_path / "object/rgb").rename(tmp_path / "object/images")
    path = tmp_path / "object/transforms.json"
    path.write_text(path.read_text().replace("rgb/", "images/"))
    found, seen_by = read_object(tmp_path / "object").decode()
    np.testing.assert_array_equal(found, views)
    for name in ("R", "t", "K"):
        np.testing.assert_allclose(getattr(seen_by, name), getattr(camera, name), atol=1e-5)
