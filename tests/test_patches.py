import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from threedim.evaluation.metrics import patches as patches_lib
from threedim.evaluation.metrics.patches import sharpness, sliced_wasserstein


def make_pictures(seed, count, size):
    """Two ellipses of random color, place and shape on a light ground, (count, size, size, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    pictures = np.full((count, size, size, 3), 210, np.uint8)
    for picture in pictures:
        for _ in range(2):
            (top, left), (high, wide) = rng.uniform(0.3, 0.7, 2), rng.uniform(0.1, 0.3, 2)
            picture[((y - top) / high) ** 2 + ((x - left) / wide) ** 2 < 1] = rng.integers(60, 200, 3)
    return pictures


def noisy(images, sigma):
    noise = np.random.default_rng(9).normal(0, sigma, images.shape)
    return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)


def test_order_and_shape_of_a_set_mean_nothing():
    truth = make_pictures(0, 24, 40)
    images, order = noisy(truth, 10), np.random.default_rng(1).permutation(24)
    assert sliced_wasserstein(truth, truth) == 0
    assert sliced_wasserstein(truth[order], truth) == pytest.approx(0, abs=1e-2)
    assert sliced_wasserstein(np.concatenate([truth, truth[order]]), truth) == pytest.approx(0, abs=1e-2)
    distance = sliced_wasserstein(images, truth)
    assert distance > 20
    assert sliced_wasserstein(images[order], truth) == pytest.approx(distance, rel=1e-4)
    assert sliced_wasserstein(images.reshape(4, 6, 40, 40, 3), truth) == distance


def test_distance_of_noise_from_a_constant():
    """Unit normal pixels project to unit normals; a constant set's colors are scaled by the rounding error alone."""
    rng = np.random.default_rng(0)
    noise = np.clip(np.round(rng.normal(128, 20, (60, 16, 16, 3))), 0, 255).astype(np.uint8)
    even = np.full_like(noise, 128)
    assert sliced_wasserstein(even, noise) == pytest.approx(1e3 * np.sqrt(2 / np.pi), rel=0.04)
    assert sliced_wasserstein(noise, even) == pytest.approx(1e3 * np.sqrt(2 / np.pi) * 20 * np.sqrt(12), rel=0.04)


def test_quantile_distance_is_the_wasserstein_distance():
    rng = np.random.default_rng(0)
    for first, second in ((7, 7), (5, 8), (12, 4)):
        ours, true = np.sort(rng.normal(size=(3, first))), np.sort(rng.normal(1, 2, size=(3, second)))
        expected = [scipy.stats.wasserstein_distance(a, b) for a, b in zip(ours, true, strict=True)]
        np.testing.assert_allclose(patches_lib._quantile_distance(ours, true), expected, rtol=1e-12)


def test_levels():
    for shapes in ([(16, 16)], [(30, 30)], [(31, 64), (16, 32)], [(128, 128), (64, 64), (32, 32), (16, 16)]):
        assert patches_lib._level_shapes(*shapes[0]) == shapes


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 47)])
def test_pyramid(height, width):
    """Slow oracle: each coarser pixel is a mean by binomial weights; each level is what the coarser ones lack."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (1, height, width, 3)).astype(np.float32)
    levels = list(patches_lib._pyramid(images, 2))
    half = levels[1][0]
    assert half.shape == ((height + 1) // 2, (width + 1) // 2, 3)
    weights = np.array([1, 4, 6, 4, 1]) / 16
    padded = np.pad(images[0].astype(float), ((2, 2), (2, 2), (0, 0)), mode="reflect")
    smaller = np.zeros(half.shape)
    for y, x in np.ndindex(half.shape[:2]):
        smaller[y, x] = np.einsum("ijc,i,j", padded[2 * y : 2 * y + 5, 2 * x : 2 * x + 5], weights, weights)
    np.testing.assert_allclose(half, smaller, atol=1e-3)
    # Inside, an odd place between two samples takes half of each, an even one an eighth of the neighbors of its own.
    y, x = 10, 11
    between = smaller[:, 5:7].mean(axis=1)
    expected = images[0, y, x] - (between[4] + 6 * between[5] + between[6]) / 8
    np.testing.assert_allclose(levels[0][0, y, x], expected, atol=1e-3)
    for level, value in zip(patches_lib._pyramid(np.full_like(images, 90), 2), (0, 90), strict=True):
        np.testing.assert_allclose(level, value, atol=1e-4)


def test_mean_over_levels_with_one_generator():
    """Each level's share, in the order in which numbers are taken from the generator."""
    truth, images = make_pictures(0, 10, 32), make_pictures(1, 10, 32)
    rng, shares = np.random.default_rng(5), []
    positions = [patches_lib._random_positions(rng, shape, 20) for shape in ((32, 32), (16, 16))]
    for ours, true in zip(*(patches_lib._patches(each, positions) for each in (images, truth)), strict=True):
        directions = rng.normal(size=(30, 147))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        deviation = true.reshape(-1, 3, 49).std(axis=(0, 2)).repeat(49)
        first, second = (np.sort(each / deviation @ directions.T, axis=0) for each in (ours, true))
        shares.append(np.abs(first - second).mean())
    found = sliced_wasserstein(images, truth, seed=5, patches_per_picture=20, num_directions=30)
    assert found == pytest.approx(1e3 * np.mean(shares), rel=1e-4)


def test_patches_hold_their_places_and_colors():
    images = make_pictures(0, 3, 20)
    rows, columns = np.array([0, 13, 4]), np.array([2, 13, 9])
    (patches,) = patches_lib._patches(images, [(rows, columns)])
    places = list(zip(rows, columns, strict=True))
    expected = [np.moveaxis(one[y : y + 7, x : x + 7], -1, 0).ravel() for one in images for y, x in places]
    np.testing.assert_array_equal(patches, expected)


def test_positions():
    rng = np.random.default_rng(0)
    rows, columns = patches_lib._random_positions(rng, (16, 18), 1000)
    assert sorted(zip(rows, columns, strict=True)) == list(np.ndindex(10, 12))
    rows, columns = patches_lib._random_positions(rng, (64, 64), 128)
    assert len(set(zip(rows, columns, strict=True))) == 128
    assert max(rows.max(), columns.max()) <= 57


def test_seed_and_chunks(monkeypatch):
    truth, images = make_pictures(0, 20, 32), make_pictures(1, 15, 32)
    first = sliced_wasserstein(images, truth, seed=3)
    assert sliced_wasserstein(images, truth, seed=3) == first
    assert sliced_wasserstein(images, truth, seed=4) != first
    monkeypatch.setattr(patches_lib, "_PYRAMID_PIXELS", 5000)
    monkeypatch.setattr(patches_lib, "_PROJECTIONS", 2**17)
    assert sliced_wasserstein(images, truth, seed=3) == pytest.approx(first, rel=1e-4)


GOOD = np.zeros((2, 16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "truth", "settings", "message"),
    [
        (GOOD.astype(np.float32), GOOD, {}, r"images must be uint8 .* got float32 \(2, 16, 16, 3\)"),
        (GOOD, GOOD[..., :1], {}, r"truth must be uint8 .* got uint8 \(2, 16, 16, 1\)"),
        (GOOD[:0], GOOD, {}, r"images \(0, 16, 16, 3\) has no picture"),
        (GOOD, np.zeros((2, 16, 17, 3), np.uint8), {}, "must have the same height and width"),
        (GOOD[:, 1:], GOOD[:, 1:], {}, r"truth \(2, 15, 16, 3\) must have .* at least 16 px"),
        (GOOD, GOOD, {"patches_per_picture": 0}, "must be at least 1, got 0 and 512"),
        (GOOD, GOOD, {"num_directions": 0}, "must be at least 1, got 128 and 0"),
    ],
)
def test_errors(images, truth, settings, message):
    with pytest.raises(ValueError, match=message):
        sliced_wasserstein(images, truth, **settings)


def test_sharpness_falls_with_blur():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 24, 20, 3), np.uint8)
    weights = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    detail = [
        [one[..., c] - scipy.ndimage.convolve(one[..., c].astype(float), weights, mode="mirror") for c in range(3)]
        for one in images.reshape(6, 24, 20, 3)
    ]
    assert sharpness(images) == pytest.approx(np.mean([np.sqrt(np.mean(np.square(each))) for each in detail]), rel=1e-5)
    blurred = scipy.ndimage.gaussian_filter(images.astype(float), (0, 0, 1, 1, 0)).astype(np.uint8)
    assert sharpness(blurred) < sharpness(images) / 4
    assert sharpness(np.full_like(images, 77)) == pytest.approx(0, abs=1e-4)
