import numpy as np
import pytest
from scipy.signal import convolve2d

from threedim import pixels
from threedim.evaluation.metrics import image as image_metrics
from threedim.evaluation.metrics.image import psnr, ssim, ssim_uniform


def slow_ssim(a, b, *, uniform=False):
    """Equations 13 to 17 of Wang et al. 2004 for one picture, color by color, on 0..255.

    With ``uniform`` as scikit-image's structural_similarity(a, b, channel_axis=-1, data_range=255), which it equals to
    the last digit: window of 7 px, sample covariance, borders left out.
    """
    offset = np.arange(11) - 5
    window = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * 1.5**2))
    window, unbiased = (np.ones((7, 7)), 49 / 48) if uniform else (window, 1)
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    maps = []
    for x, y in zip(*(np.moveaxis(each.astype(np.float64), -1, 0) for each in (a, b)), strict=True):
        mean_x, mean_y, xx, yy, xy = (convolve2d(each, window, "valid") for each in (x, y, x * x, y * y, x * y))
        var, covar = unbiased * (xx - mean_x**2 + yy - mean_y**2), unbiased * (xy - mean_x * mean_y)
        numerator = (2 * mean_x * mean_y + c1) * (2 * covar + c2)
        maps.append(numerator / ((mean_x**2 + mean_y**2 + c1) * (var + c2)))
    return np.mean(maps)


def smooth(rng, *shape):
    *leading, height, width = shape
    y, x = np.mgrid[:height, :width]
    rate, phase = rng.uniform(0.1, 0.5, (2, *leading, 1, 1, 3)), rng.uniform(0, 6, (*leading, 1, 1, 3))
    return (127.5 + 87 * np.sin(rate[0] * y[..., None] + rate[1] * x[..., None] + phase)).astype(np.uint8)


def noisy(rng, images, sigma):
    return np.clip(images + rng.normal(0, sigma, images.shape), 0, 255).astype(np.uint8)


def test_ssim_agrees_with_the_equations():
    rng = np.random.default_rng(0)
    truth = smooth(rng, 2, 3, 19, 24)
    images = noisy(rng, truth, 25)
    images[0, 0] = 255 - truth[0, 0]  # inverted structure has a negative SSIM
    expected = [[slow_ssim(a, b) for a, b in zip(*row, strict=True)] for row in zip(images, truth, strict=True)]
    values = ssim(images, truth)
    assert values.dtype == np.float32
    assert values[0, 0] < 0
    np.testing.assert_allclose(values, expected, atol=2e-5)
    np.testing.assert_allclose(ssim(truth, images), values, atol=1e-6)
    np.testing.assert_allclose(ssim(truth, truth), 1, atol=1e-6)
    assert ssim(images[1, 2], truth[1, 2]).shape == ()


def test_ssim_with_a_uniform_window_agrees_with_the_equations():
    rng = np.random.default_rng(1)
    truth = smooth(rng, 6, 19, 24)
    truth[3:, :, 12:] = 255
    images = noisy(rng, truth, 25)
    images[0] = 255 - truth[0]
    expected = [slow_ssim(a, b, uniform=True) for a, b in zip(images, truth, strict=True)]
    np.testing.assert_allclose(ssim_uniform(images, truth), expected, atol=2e-5)
    np.testing.assert_allclose(ssim_uniform(truth, truth), 1, atol=1e-6)
    assert np.abs(ssim_uniform(images, truth) - ssim(images, truth)).max() > 0.01
    # The smallest picture has one window.
    a, b = images[1, 5:12, 3:10], truth[1, 5:12, 3:10]
    np.testing.assert_allclose(ssim_uniform(a, b), slow_ssim(a, b, uniform=True), atol=2e-5)
    with pytest.raises(ValueError, match="ssim_uniform: pictures of 10 x 6 px are smaller than its window of 7 px"):
        ssim_uniform(images[:, :6, :10], truth[:, :6, :10])


def test_ssim_of_flat_pictures_agrees_with_the_equations():
    """Only the means differ. The variance is a difference of numbers near 1, whose rounding in float32 of about 1e-7
    is added to a constant of 9e-4."""
    values = np.arange(0, 256, 15, dtype=np.uint8)
    truth = np.broadcast_to(values[:, None, None, None], (len(values), 16, 16, 3))
    images = np.roll(truth, 1, axis=0)
    expected = [slow_ssim(a, b) for a, b in zip(images, truth, strict=True)]
    np.testing.assert_allclose(ssim(images, truth), expected, atol=5e-4)


@pytest.mark.parametrize("metric", [psnr, ssim, ssim_uniform])
def test_each_picture_alone_gives_the_same(metric, monkeypatch):
    """The result depends neither on chunks nor on leading axes."""
    monkeypatch.setattr(image_metrics, "_CHUNK_PICTURES", 4)
    rng = np.random.default_rng(2)
    truth = smooth(rng, 3, 3, 11, 12)
    images = noisy(rng, truth, 20)
    together = metric(images, truth)
    assert together.shape == (3, 3)
    alone = [metric(a, b) for a, b in zip(images.reshape(9, 11, 12, 3), truth.reshape(9, 11, 12, 3), strict=True)]
    np.testing.assert_allclose(together.ravel(), alone, rtol=1e-5)
    np.testing.assert_array_equal(metric(images[:, ::-1], truth[:, ::-1]), together[:, ::-1])
    assert metric(images[:0], truth[:0]).shape == (0, 3)


def test_one_program_for_a_picture_size():
    image_metrics._chunk.clear_cache()
    pictures = smooth(np.random.default_rng(3), 70, 11, 11)
    for count in (1, 64, 65, 70):
        ssim(pictures[:count], pictures[:count])
    assert image_metrics._chunk._cache_size() == 1


def test_psnr_agrees_with_its_definition():
    rng = np.random.default_rng(4)
    truth = smooth(rng, 3, 8, 8)
    images = noisy(rng, truth, 20)
    images[0], images[1] = truth[0], truth[1] + np.uint8(1)
    error = ((images / 255 - truth / 255) ** 2).mean(axis=(1, 2, 3))[1:]
    limit = pixels.psnr_limit(8, 8)  # of equal pictures
    np.testing.assert_allclose(psnr(images, truth), [limit, *-10 * np.log10(error)], rtol=1e-5)
    np.testing.assert_allclose(psnr(images, truth)[1], 20 * np.log10(255), rtol=1e-5)


@pytest.mark.parametrize("metric", [psnr, ssim, ssim_uniform])
def test_other_pictures(metric):
    pictures = np.zeros((2, 16, 16, 3), np.uint8)
    for images, truth, message in (
        (pictures, pictures[:1], "must have the same shape"),
        (pictures / 255, pictures, "pictures must be uint8"),
        (pictures, pictures.astype(int), "true pictures must be uint8"),
        (pictures[..., :2], pictures[..., :2], "must be uint8"),
        (pictures[0, 0], pictures[0, 0], "must be uint8"),
    ):
        with pytest.raises(ValueError, match=f"{metric.__name__}: .*{message}"):
            metric(images, truth)
    with pytest.raises(ValueError, match="10 x 12 px are smaller than its window of 11 px"):
        ssim(pictures[:, :12, :10], pictures[:, :12, :10])
