import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import jax_cameras

from threedim.augmentation import NO_AUGMENTATION, Augmentation, augment, random_rotations, turn_hue

ALL = Augmentation(orientation=True, scale=(0.5, 3.0), hue=0.5)
ORIENTATION, SCALE, HUE = Augmentation(orientation=True), Augmentation(scale=(0.5, 3.0)), Augmentation(hue=0.5)
augment_jit = jax.jit(augment, static_argnames="augmentation")
turn_jit = jax.jit(turn_hue)


def pictures(batch, size=4, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (batch, 2, size, size, 3)), jnp.float32)


def changed(augmentation, batch=64, seed=0):
    """(before, after): pictures and cameras as NumPy."""
    before = pictures(batch), jax_cameras(batch, 2)
    after = augment_jit(*before, jax.random.key(seed), augmentation=augmentation)
    return jax.tree.map(np.asarray, (before, after))


def motion(before, after):
    """The rotation (batch, 2, 3, 3) and factor (batch, 2) that took each camera where it is, by matrices in double."""
    R = after.R.astype(np.float64) @ before.R.astype(np.float64).swapaxes(-1, -2)
    moved = (R @ before.t[..., None])[..., 0]
    return R, np.linalg.norm(after.t, axis=-1) / np.linalg.norm(moved, axis=-1)


@pytest.mark.parametrize("augmentation", [ALL, ORIENTATION, SCALE, HUE])
def test_both_views_get_the_same_change_and_pairs_their_own(augmentation):
    (images, camera), (new_images, new_camera) = changed(augmentation)
    np.testing.assert_array_equal(new_camera.K, camera.K)
    R, factor = motion(camera, new_camera)
    np.testing.assert_allclose(R[:, 0], R[:, 1], atol=1e-6)
    np.testing.assert_allclose(factor[:, 0], factor[:, 1], rtol=1e-5)
    np.testing.assert_allclose(factor[..., None] * (R @ camera.t[..., None])[..., 0], new_camera.t, atol=1e-5)
    assert (np.std(R[:, 0, 0, 0]) > 0.3) == augmentation.orientation
    assert (np.std(factor[:, 0]) > 0.3) == (augmentation.scale != (1, 1))
    assert (np.std(new_images - images) > 0.1) == (augmentation.hue > 0)


def test_what_is_off_does_not_change_to_the_bit():
    (images, camera), (new_images, new_camera) = changed(HUE)
    jax.tree.map(np.testing.assert_array_equal, new_camera, camera)
    for augmentation in (ORIENTATION, SCALE, NO_AUGMENTATION):
        (images, camera), (new_images, new_camera) = changed(augmentation)
        np.testing.assert_array_equal(new_images, images)
    jax.tree.map(np.testing.assert_array_equal, new_camera, camera)


def test_the_key_alone_decides_and_each_part_draws_for_itself():
    (_, first), (_, again), (_, other) = changed(ALL), changed(ALL), changed(ALL, seed=1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.allclose(first[1].t, other[1].t)
    assert not np.allclose(first[0], other[0])
    np.testing.assert_array_equal(first[0], changed(HUE)[1][0])
    np.testing.assert_array_equal(first[1].R, changed(ORIENTATION)[1][1].R)
    # The cameras decide nothing: each pair moves as it would with others.
    camera = jax_cameras(64, 2, seed=5)
    moved = augment_jit(pictures(64, seed=5), camera, jax.random.key(0), augmentation=ALL)[1]
    R, _ = motion(*jax.tree.map(np.asarray, (camera, moved)))
    np.testing.assert_allclose(R, motion(changed(ALL)[0][1], first[1])[0], atol=1e-6)


def test_rotations_are_uniform():
    count = 40_000
    R = np.asarray(random_rotations(jax.random.key(0), count), np.float64)
    np.testing.assert_allclose(R.swapaxes(-1, -2) @ R, np.broadcast_to(np.eye(3), R.shape), atol=5e-6)
    np.testing.assert_allclose(np.linalg.det(R), 1.0, atol=5e-6)
    # Every entry of a uniform rotation is uniform in [-1, 1] (Archimedes), uncorrelated with the others.
    entries, deviation = R.reshape(count, 9), 1 / np.sqrt(count)
    np.testing.assert_allclose(entries.mean(axis=0), 0.0, atol=4 * deviation)
    np.testing.assert_allclose(np.cov(entries.T), np.eye(9) / 3, atol=4 * deviation)
    for entry in entries.T:
        np.testing.assert_allclose(np.quantile(entry, [0.1, 0.25, 0.5, 0.75]), [-0.8, -0.5, 0, 0.5], atol=5 * deviation)
    # The angle's density is (1 - cos)/π: its mean is π/2 + 2/π.
    angle = np.arccos(np.clip((np.trace(R, axis1=1, axis2=2) - 1) / 2, -1, 1))
    np.testing.assert_allclose(angle.mean(), np.pi / 2 + 2 / np.pi, atol=4 * deviation)


def test_scale_is_log_uniform_in_its_range():
    (_, camera), (_, new_camera) = changed(SCALE, batch=4096)
    factor = motion(camera, new_camera)[1][:, 0]
    assert 0.5 - 1e-5 <= factor.min() < 0.51
    assert 2.95 < factor.max() <= 3.0 + 1e-5
    quarters = [0.25, 0.5, 0.75]
    np.testing.assert_allclose(np.quantile(factor, quarters), 0.5 * 6.0 ** np.array(quarters), rtol=0.06)


def test_hue_is_uniform_in_its_range():
    batch = 4096
    red = jnp.broadcast_to(jnp.asarray([1.0, -1.0, -1.0]), (batch, 2, 1, 1, 3))
    new, _ = augment_jit(red, jax_cameras(batch, 2), jax.random.key(2), augmentation=Augmentation(hue=0.25))
    new = (np.asarray(new).reshape(batch, 2, 3) + 1) / 2
    np.testing.assert_array_equal(new[:, 0], new[:, 1])
    hue = np.array([colorsys.rgb_to_hsv(*color)[0] for color in new[:, 0]])
    turns = (hue + 0.5) % 1.0 - 0.5
    assert np.abs(turns).max() <= 0.25 + 1e-6
    found = np.quantile(turns, [0.02, 0.25, 0.5, 0.75, 0.98])
    np.testing.assert_allclose(found, [-0.24, -0.125, 0, 0.125, 0.24], atol=0.02)


@pytest.mark.parametrize("turns", [-0.5, -0.21, 1 / 3])
def test_hue_is_that_of_hsv(turns):
    colors = np.random.default_rng(0).uniform(-1, 1, (200, 3))
    primaries = 2 * np.stack(list(np.ndindex(2, 2, 2))) - 1
    colors = np.concatenate([colors, primaries, [[0.5, 0.5, -0.5], [-0.5, 0.5, 0.5], [0.5, -0.5, 0.5]]])

    def expected(color):
        hue, saturation, value = colorsys.rgb_to_hsv(*(color + 1) / 2)
        return np.array(colorsys.hsv_to_rgb((hue + turns) % 1.0, saturation, value)) * 2 - 1

    turned = turn_jit(jnp.asarray(colors, jnp.float32), jnp.float32(turns))
    np.testing.assert_allclose(turned, [expected(color) for color in colors], atol=3e-6)
    assert np.abs(turned).max() <= 1.0


def test_white_and_grays_stay_to_the_bit():
    grays = np.repeat((np.arange(256) / 127.5 - 1.0).astype(np.float32)[:, None], 3, axis=1)
    for turns in (0.1, 1 / 3, -0.5):
        np.testing.assert_array_equal(turn_jit(grays, jnp.float32(turns)), grays)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"orientation": 1}, "orientation"),
        ({"scale": 2.0}, "scale must be two"),
        ({"scale": ("1", "2")}, "scale must be two"),
        ({"scale": (2.0, 1.0)}, "scale must be .* low <= high"),
        ({"scale": (1.0, float("inf"))}, "scale"),
        ({"hue": 0.6}, "hue"),
        ({"hue": float("nan")}, "hue"),
    ],
)
def test_impossible_settings_are_refused(fields, match):
    with pytest.raises(ValueError, match=match):
        Augmentation(**fields)
