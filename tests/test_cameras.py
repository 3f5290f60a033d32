import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_cameras

from threedim.cameras import Camera, check_intrinsics, check_pose, intrinsics, look_at, orbit

I3 = np.eye(3, dtype=np.float32)
K8 = intrinsics(10.0, 8)


def project(camera, points):
    """Pixel coordinates (n, 2) and depths (n,) of world points by one camera: x = K R^T (p - t), in float64."""
    R, t, K = (np.asarray(leaf, np.float64) for leaf in (camera.R, camera.t, camera.K))
    local = [R.T @ (point - t) for point in np.asarray(points, np.float64)]
    return np.array([(K @ one)[:2] / one[2] for one in local]), np.array([one[2] for one in local])


def rotation_about(axis, degrees):
    x, y, z = np.asarray(axis, np.float64) / np.linalg.norm(axis)
    cross, angle = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]), np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@pytest.mark.parametrize("seed", range(2))
def test_points_on_a_ray_project_to_the_center_of_its_pixel(seed):
    camera = random_cameras(seed=seed)
    height, width = 5, 7
    origin, direction = camera.rays(height, width)
    assert origin.shape == direction.shape == (height, width, 3)
    assert origin.dtype == direction.dtype == np.float32
    np.testing.assert_array_equal(origin, np.broadcast_to(camera.t, origin.shape))
    np.testing.assert_allclose(np.linalg.norm(direction, axis=-1), 1, atol=1e-6)
    for distance in (0.1, 1.0, 7.0):
        pixels, depths = project(camera, (origin + distance * direction).reshape(-1, 3))
        rows, columns = np.mgrid[:height, :width]
        np.testing.assert_allclose(pixels[:, 0], columns.ravel() + 0.5, atol=2e-4)
        np.testing.assert_allclose(pixels[:, 1], rows.ravel() + 0.5, atol=2e-4)
        assert np.all(depths > 0)


def test_numpy_and_jax_agree():
    cameras, reference = random_cameras(4), random_cameras(seed=9)
    on_jax, jax_reference = jax.tree.map(jnp.asarray, (cameras, reference))

    def everything(camera, reference):
        others = camera.relative_to(reference), camera.resized((8, 8), (4, 16))
        return [*camera.rays(6, 5), camera.to_matrix(), camera.to_opengl_matrix(), *jax.tree.leaves(others)]

    for a, b in zip(everything(cameras, reference), everything(on_jax, jax_reference), strict=True):
        assert isinstance(a, np.ndarray)
        assert isinstance(b, jax.Array)
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize("position", [(2, 0, 0), (0.3, -1.5, 0.7), (1, 1, -2), (0, 0.01, 3)])
def test_look_at_puts_the_target_at_the_principal_point_and_up_upwards(position):
    target, K = np.array([0.1, -0.2, 0.3]), intrinsics(12.0, (6, 10), center=(4.25, 3.5))
    camera, above = look_at(position, target, K), target + np.array([0, 0, 0.01])
    pixels, depths = project(camera, [target, above])
    np.testing.assert_allclose(pixels[0], [4.25, 3.5], atol=1e-4)
    np.testing.assert_allclose(depths[0], np.linalg.norm(position - target), rtol=1e-5)
    np.testing.assert_allclose(pixels[1, 0], 4.25, atol=1e-3)  # no roll
    assert pixels[1, 1] < pixels[0, 1]  # y grows downwards
    np.testing.assert_allclose(camera.t, position)
    np.testing.assert_allclose(np.linalg.det(camera.R), 1, atol=1e-6)


@pytest.mark.parametrize("up", [(0, 0, 1), (0, 1, 0), (0, 0, -2.0)])
@pytest.mark.parametrize("sign", [1, -1])
def test_looking_straight_along_up_is_defined(up, sign):
    pixels, depths = project(look_at(sign * 3 * np.asarray(up), (0, 0, 0), K8, up=up), [(0, 0, 0)])
    np.testing.assert_allclose(pixels, [[4, 4]], atol=1e-5)
    assert depths[0] > 0


def test_look_at_takes_its_own_up_and_looking_down_has_the_worlds_y_upwards():
    for camera in (look_at((3, 0, 0), (0, 0, 0), K8, up=(0, 2, 0)), look_at((0, 0, 3), (0, 0, 0), K8)):
        pixels, _ = project(camera, [(0, 0, 0), (0, 0.1, 0), (0.1, 0, 0)])
        assert pixels[1, 1] < pixels[0, 1]
    assert pixels[2, 0] > pixels[0, 0]


def test_orbit():
    target = np.array([0.5, 0.0, -1.0])
    azimuths, elevations, radii = [0.0, 90.0, 200.0], [30.0, -10.0, 60.0], [2.0, 1.0, 3.0]
    cameras = orbit(azimuths, elevations, radii, K8, target=target)
    assert cameras.K.shape == (3, 3, 3)
    for i, (a, e) in enumerate(zip(np.deg2rad(azimuths), np.deg2rad(elevations), strict=True)):
        away, camera = radii[i] * np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)]), cameras[i]
        np.testing.assert_allclose(camera.t, target + away, atol=1e-6)
        pixels, depths = project(camera, [target])
        np.testing.assert_allclose(pixels, [[4, 4]], atol=1e-5)
        np.testing.assert_allclose(depths, radii[i], atol=1e-6)
    # Walking to the camera's right is walking counter-clockwise seen from above.
    step = orbit([5.0], 30.0, 2.0, K8, target=target).t[0] - cameras.t[0]
    assert step @ cameras.R[0][:, 0] > 0


def test_relative_poses_move_rays_rigidly():
    cameras, reference = random_cameras(3), random_cameras(seed=5)
    relative = cameras.relative_to(reference)
    R, t = np.asarray(reference.R, np.float64), np.asarray(reference.t, np.float64)
    origin, direction = cameras.rays(4, 4)
    moved_origin, moved_direction = relative.rays(4, 4)
    for index in np.ndindex(3, 4, 4):
        np.testing.assert_allclose(moved_origin[index], R.T @ (origin[index] - t), atol=1e-6)
        np.testing.assert_allclose(moved_direction[index], R.T @ direction[index], atol=1e-6)


def test_resizing_keeps_the_ray_through_a_relative_position():
    camera = Camera(I3, np.zeros(3, np.float32), intrinsics(11.0, (4, 6), center=(2.2, 1.7)))
    resized = camera.resized((4, 6), (8, 18))
    for u, v in [(0.1, 0.2), (0.5, 0.5), (0.9, 0.3)]:
        rays = []
        for one, (height, width) in ((camera, (4, 6)), (resized, (8, 18))):
            ray = np.linalg.inv(np.asarray(one.K, np.float64)) @ [u * width, v * height, 1]
            rays.append(ray / np.linalg.norm(ray))
        np.testing.assert_allclose(*rays, atol=1e-6)
    # Of a picture at three times the size, the middle pixel of three looks where the one of the small picture did.
    large = camera.resized((4, 6), (12, 18))
    np.testing.assert_allclose(large.rays(12, 18)[1][1::3, 1::3], camera.rays(4, 6)[1], atol=1e-6)
    np.testing.assert_array_equal(resized.R, camera.R)


def test_intrinsics_defaults_to_the_middle_of_the_image():
    np.testing.assert_array_equal(intrinsics(7.0, (4, 6)), [[7, 0, 3], [0, 7, 2], [0, 0, 1]])
    np.testing.assert_array_equal(intrinsics(7.0, 4, (1, 2)), [[7, 0, 1], [0, 7, 2], [0, 0, 1]])


def pose_of(axis, degrees, position):
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation_about(axis, degrees), position
    return pose


def test_an_opengl_camera_looks_along_minus_z_with_y_up():
    pose = pose_of([1, 2, 3], 40, [0.1, 0.2, 0.3])
    camera = Camera.from_opengl_matrix(pose, K8)
    ahead, right, above = (pose[:3, :3] @ p + pose[:3, 3] for p in ([0, 0, -2], [0.1, 0, -2], [0, 0.1, -2]))
    pixels, depths = project(camera, [ahead, right, above])
    np.testing.assert_allclose(depths, 2, atol=1e-5)
    np.testing.assert_allclose(pixels[0], [4, 4], atol=1e-4)
    assert pixels[1, 0] > 4.4
    assert pixels[2, 1] < 3.6
    np.testing.assert_allclose(camera.to_opengl_matrix(), pose, atol=1e-6)


def test_blender_matrices_may_be_scaled():
    pose = pose_of([3, -1, 2], 70, [1, 2, 3])
    scaled = pose.copy()
    scaled[:3, :3] *= 2.5
    expected = Camera.from_opengl_matrix(pose, K8)
    camera = Camera.from_blender_matrix(np.stack([scaled, pose]), K8)
    np.testing.assert_allclose(camera.R, [expected.R] * 2, atol=1e-6)
    np.testing.assert_allclose(camera.t, [expected.t] * 2)
    scaled[:3, 0] = 0
    with pytest.raises(ValueError, match="zero or non-finite"):
        Camera.from_blender_matrix(scaled, K8)
    with pytest.raises(ValueError, match="not a rotation"):
        Camera.from_opengl_matrix(pose * 2.5 + np.diag([0, 0, 0, -1.5]), K8)


def test_matrices_round_trip():
    cameras = random_cameras(2, 3)
    again = Camera.from_matrix(cameras.to_matrix(), cameras.K)
    jax.tree.map(np.testing.assert_array_equal, again, cameras)
    np.testing.assert_array_equal(Camera.from_matrix(cameras.to_matrix()[..., :3, :], cameras.K).t, cameras.t)
    point = np.array([0.3, -0.4, 2.0])
    moved = cameras.to_matrix()[0, 0] @ [*point, 1]
    np.testing.assert_allclose(moved[:3], cameras.R[0, 0] @ point + cameras.t[0, 0], atol=1e-6)


def test_camera_goes_through_jit_vmap_and_grad():
    cameras = jax.tree.map(jnp.asarray, random_cameras(3))
    expected = cameras.rays(4, 4)[1]
    np.testing.assert_allclose(jax.jit(lambda c: c.rays(4, 4)[1])(cameras), expected, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(lambda c: c.rays(4, 4)[1])(cameras), expected, atol=1e-6)
    returned = jax.jit(lambda c: Camera(c.R, c.t + 1, c.K))(cameras)
    assert isinstance(returned, Camera)
    np.testing.assert_allclose(returned.t, cameras.t + 1)
    grad = jax.grad(lambda c: c.rays(4, 4)[0].sum())(cameras)
    np.testing.assert_allclose(grad.t, 16)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(cameras)[0]]
    assert paths == [".R", ".t", ".K"]


def test_indexing_length_and_stacking():
    cameras = random_cameras(3, 2)
    assert (len(cameras), len(cameras[0])) == (3, 2)
    np.testing.assert_array_equal(cameras[1:, 0].t, cameras.t[1:, 0])
    stacked = Camera.stack([cameras[i] for i in range(3)])
    for a, b in zip(jax.tree.leaves(stacked), jax.tree.leaves(cameras), strict=True):
        assert isinstance(a, np.ndarray)
        np.testing.assert_array_equal(a, b)
    assert isinstance(Camera.stack([jax.tree.map(jnp.asarray, cameras)]).R, jax.Array)
    with pytest.raises(TypeError, match="no length"):
        len(cameras[0, 0])
    with pytest.raises(ValueError, match="no cameras"):
        Camera.stack([])


def test_lists_and_double_precision_become_float32():
    for R, K in ((I3.tolist(), K8.tolist()), (I3.astype(np.float64), K8.astype(np.float64))):
        camera = Camera(R, np.arange(3).tolist(), K)
        assert [leaf.dtype for leaf in jax.tree.leaves(camera)] == [np.float32] * 3
        assert camera.rays(2, 2)[1].dtype == np.float32


def bent(amount):
    """A rotation whose R^T R is off the identity by ``amount``."""
    R = rotation_about([1, 1, 0], 30)
    R[:, 0] *= np.sqrt(1 + amount)
    return R


def test_rounded_rotations_are_taken_and_bent_ones_are_not():
    Camera(bent(0.0009), [0, 0, 0], K8)
    with pytest.raises(ValueError, match="not a rotation"):
        Camera(bent(0.0011), [0, 0, 0], K8)
    sheared = I3.copy()
    sheared[0, 1] = 0.01
    with pytest.raises(ValueError, match="not a rotation"):
        Camera(np.stack([I3, sheared]), np.zeros((2, 3)), K8)


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("R", np.diag([1.0, 1.0, -1.0]), "reflection"),
        ("R", np.full((3, 3), np.nan), "not finite"),
        ("R", np.eye(4), "must end in axes"),
        ("t", [0, np.nan, 0], "not finite"),
        ("t", None, "must end in axes"),
        ("K", np.eye(2), "must end in axes"),
        ("K", np.diag([0.0, 1.0, 1.0]), "focal length"),
        ("K", np.diag([1.0, -2.0, 1.0]), "focal length"),
        ("K", np.diag([1.0, 2.0, 2.0]), "must be"),
        ("K", np.eye(3) + 0.1 * np.eye(3, k=1), "must be"),
        ("K", np.full((3, 3), np.nan), "not finite"),
    ],
)
def test_bad_cameras_are_refused(field, value, match):
    fields = {"R": I3, "t": np.zeros(3, np.float32), "K": K8}
    with pytest.raises(ValueError, match=match):
        Camera(**fields | {field: value})
    if value is not None:
        with pytest.raises(ValueError, match=match):
            Camera(**jax.tree.map(jnp.asarray, fields | {field: np.asarray(value, np.float32)}))


def test_one_bad_camera_of_many_is_refused():
    cameras = random_cameras(4)
    R, K = cameras.R.copy(), cameras.K.copy()
    R[2, :, 1] *= -1
    K[3, 1, 1] = 0
    with pytest.raises(ValueError, match="reflection"):
        check_pose(R, cameras.t)
    with pytest.raises(ValueError, match="focal length"):
        check_intrinsics(K)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: look_at((1, 2, 3), (1, 2, 3), K8), "coincide"),
        (lambda: look_at((1, np.nan, 3), (0, 0, 0), K8), "not finite"),
        (lambda: orbit([0, 10], 0, [1, -1], K8), "radius must be positive"),
        (lambda: intrinsics(0.0, 8), "focal length"),
        (lambda: Camera.from_matrix(np.eye(3), K8), "4x4 or 3x4"),
        (lambda: Camera.from_matrix(np.eye(4)[[3, 0, 1, 2]], K8), "last row"),
        (lambda: Camera.from_matrix(np.stack([np.eye(4), np.eye(4)[::-1]]), K8), "last row"),
        (lambda: Camera(I3, [0, 0, 0], K8).resized((8, 8), (0, 4)), "positive"),
    ],
)
def test_impossible_requests_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_numbers_that_float32_does_not_hold_are_not_finite():
    pose = np.eye(4)
    pose[0, 3] = 1e300
    with pytest.raises(ValueError, match="not finite"):
        Camera.from_matrix(pose, np.eye(3))
    with pytest.raises(ValueError, match="not finite"):
        Camera(np.eye(3), pose[:3, 3], np.eye(3))
