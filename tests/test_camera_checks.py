"""Cameras that make sense pass, and common mistakes are recognized with the settings that mend them."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from threedim import cameras
from threedim.data import camera_checks
from threedim.rendering import viewpoints

K = cameras.intrinsics(1.1, 1)
RNG = np.random.default_rng(0)


def turntable(views, elevation, radius=2.0, span=360.0):
    return cameras.orbit(np.arange(views) * span / views, elevation, radius, K)


def facing(spread, targets):
    """Eight cameras in a plane, whose targets are in another one, ``targets`` times as far apart."""
    offsets = spread * np.random.default_rng(1).uniform(-1, 1, (8, 3)) * [1, 0, 1]
    return cameras.look_at(offsets - np.asarray([0, 4, 0]), targets * offsets, K)


AROUND = {
    "SRN training": cameras.orbit(RNG.uniform(0, 360, 50), RNG.uniform(-89, 89, 50), 1.3, K),
    "SRN test": viewpoints.spiral_cameras(251, 2.6, viewpoints.default_intrinsics(1)),
    "own renders": viewpoints.sphere_cameras(24, 2.6, viewpoints.default_intrinsics(1), 1, min_elevation=-15),
    "four views": viewpoints.sphere_cameras(4, 2.6, viewpoints.default_intrinsics(1), 2),
    "two views": viewpoints.sphere_cameras(2, 2.6, viewpoints.default_intrinsics(1), 3),
    "NeRF synthetic": cameras.orbit(RNG.uniform(-180, 180, 100), RNG.uniform(0, 90, 100), 4.03, K),
    "zero123": cameras.orbit(RNG.uniform(0, 360, 12), RNG.uniform(-80, 80, 12), RNG.uniform(1.5, 2.2, 12), K),
    "turntable": turntable(24, 20),
    "turntable at the horizon": turntable(8, 0),
    "turntable from above": turntable(12, 60),
    "half a turn": turntable(7, 20, span=160),
}
OTHERS = {
    "one view": turntable(1, 20),
    "a few degrees": turntable(4, 20, span=20),
    "from the top": turntable(12, 86),
    "forward-facing": facing(0.5, 0.0),
    "parallel": facing(0.5, 1.0),
    "diverging": facing(0.5, 1.5),
    "aside": cameras.orbit(np.arange(12) * 30, 20, 2, K, target=(0.4, 0.2, 0.1)),
}


def noisy(matrices, degrees, share):
    """Rotations and positions with noise; positions in shares of their distance."""
    rng, views = np.random.default_rng(0), len(matrices)
    matrices = matrices.copy()
    turn = Rotation.from_rotvec(np.deg2rad(degrees) * rng.normal(size=(views, 3))).as_matrix()
    matrices[:, :3, :3] = matrices[:, :3, :3] @ turn
    radius = np.linalg.norm(matrices[:, :3, 3], axis=1).mean()
    matrices[:, :3, 3] += share * radius * rng.normal(size=(views, 3))
    return matrices


@pytest.mark.parametrize("name", AROUND | OTHERS)
def test_good_cameras_pass(name):
    matrices = (AROUND | OTHERS)[name].to_matrix().astype(np.float64)
    assert camera_checks.doubts(matrices, K[None], 1) == []
    for degrees, share in ((0, 0), (3, 0.05), (8, 0.15)):
        assert camera_checks.problem(noisy(matrices, degrees, share), "opencv", False) is None


@pytest.mark.parametrize("name", AROUND)
@pytest.mark.parametrize("axes", ["opencv", "opengl"])
@pytest.mark.parametrize("inverse", [False, True])
def test_wrong_readings_are_recognized(name, axes, inverse):
    """Files of every convention, read by every other one."""
    matrices = noisy(AROUND[name].to_matrix().astype(np.float64), 1, 0.02)
    files = matrices * [1, -1, -1, 1] if axes == "opengl" else matrices
    files = np.linalg.inv(files) if inverse else files
    np.testing.assert_allclose(camera_checks.pose_matrices(files, axes, inverse), matrices, atol=1e-6)
    for read_axes in ("opencv", "opengl"):
        for read_inverse in (False, True):
            said = camera_checks.problem(files, read_axes, read_inverse)
            wanted = [f"--config.data.axes={axes}"] if read_axes != axes else []
            wanted += [f"--config.data.world_to_camera={inverse}"] if read_inverse != inverse else []
            assert (said or "").count("--") == len(wanted), said
            assert all(flag in said for flag in wanted)


def test_cameras_without_a_common_point():
    same = np.tile(turntable(1, 20).to_matrix(), (4, 1, 1)).astype(np.float64)
    assert "all 4 views have the same camera" in camera_checks.problem(same, "opencv", False)
    away = turntable(1, 20).to_opengl_matrix().astype(np.float64)
    assert "away from the origin; are these OpenGL" in camera_checks.problem(away, "opencv", False)
    assert "are these OpenCV" in camera_checks.problem(turntable(1, 20).to_matrix().astype(float), "opengl", False)
    # Handheld in a room: nothing fits better, so nothing is refused.
    rng = np.random.default_rng(1)
    room = np.tile(np.eye(4), (20, 1, 1))
    room[:, :3, :3], room[:, :3, 3] = Rotation.random(20, random_state=1).as_matrix(), rng.normal(size=(20, 3))
    assert camera_checks.problem(room, "opencv", False) is None
    assert "cameras do not look at a common point" in camera_checks.doubts(room, K[None], 1)


@pytest.mark.parametrize("name", ["one view", "a few degrees", "forward-facing", "turntable", "turntable from above"])
@pytest.mark.parametrize("damage", ["inverse", "transposed", "same rotation"])
def test_cameras_that_do_not_see_the_origin_are_doubted(name, damage):
    matrices = (AROUND | OTHERS)[name].to_matrix().astype(np.float64)
    if damage == "inverse":
        matrices = np.linalg.inv(matrices)
    elif damage == "transposed":
        matrices[:, :3, :3] = matrices[:, :3, :3].swapaxes(1, 2)
    else:
        matrices[:, :3, :3] = Rotation.from_euler("x", 20, degrees=True).as_matrix()
    doubts = camera_checks.doubts(matrices, np.tile(K, (len(matrices), 1, 1)), 1)
    count = len(matrices)
    said = [doubt for doubt in doubts if f" of {count} pictures; are --config.data.axes and" in doubt]
    assert said or "do not look at a common point" in doubts[0], doubts


@pytest.mark.parametrize("up", ["x", "-x", "y", "-y", "-z"])
@pytest.mark.parametrize("name", ["turntable", "SRN training", "NeRF synthetic", "zero123"])
def test_the_up_axis_is_recognized(name, up):
    rotation = np.asarray(camera_checks.UP_ROTATIONS[up], np.float64)
    assert np.linalg.det(rotation) == pytest.approx(1)
    matrices = noisy(AROUND[name].to_matrix().astype(np.float64), 3, 0)
    matrices[:, :3] = rotation.T @ matrices[:, :3]
    (said,) = camera_checks.doubts(matrices, K[None], 1)
    assert said == f"{up} points up in all pictures, not z; --config.data.up={up}"


def test_unlikely_distances_and_fields_of_view_are_doubted():
    for radius, focal, said in (
        (500.0, 1.1, "at a distance of 500; a --config.data.scale of 0.004"),
        (0.01, 1.1, "at a distance of 0.01"),
        (2.0, 100.0, "field of view is 0.573 degrees"),
        (2.0, 0.05, "field of view is 169 degrees"),
    ):
        (doubt,) = camera_checks.doubts(turntable(8, 20, radius).to_matrix(), K[None] * [[focal / 1.1, 1, 1]], 1)
        assert said in doubt
