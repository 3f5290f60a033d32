"""PNG decoding, transparency and resizing against slow NumPy oracles."""

import io

import numpy as np
import pytest
from PIL import Image

from threedim.data import png


def random_image(size, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size, size, channels), dtype=np.uint8)


def area_average(image, size):
    """Exact average over each new pixel: every old pixel is first cut into size x size equal parts."""
    old = image.shape[0]
    fine = np.repeat(np.repeat(image.astype(np.float64), size, axis=0), size, axis=1)
    return fine.reshape(size, old, size, old, -1).mean(axis=(1, 3))


@pytest.mark.parametrize("size", [24, 12, 8, 6, 3, 1])
def test_integer_factor_is_the_block_mean(size):
    image = random_image(24)
    factor = 24 // size
    expected = image.reshape(size, factor, size, factor, 3).astype(np.float64).mean(axis=(1, 3))
    decoded = png.decode_png(png.encode_png(image), size)
    assert decoded.dtype == np.uint8
    # Pillow divides in fixed point: where the quotient is a half it may fall to either side.
    assert np.abs(decoded - expected).max() <= 0.5 + 1 / factor**2


@pytest.mark.parametrize("size", [23, 17, 16, 10, 7, 5])
def test_other_factors_are_area_averages(size):
    image = random_image(24, seed=size)
    decoded = png.decode_png(png.encode_png(image), size)
    assert decoded.shape == (size, size, 3)
    assert np.abs(decoded - area_average(image, size)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("size", [16, 8, 6])
def test_transparency_is_over_white_before_the_resize(size):
    image = random_image(16, channels=4)
    image[:4, :, 3] = 0  # Fully transparent, with colors that must not bleed in.
    alpha = image[..., 3:] / 255.0
    over_white = image[..., :3] * alpha + 255.0 * (1 - alpha)
    decoded = png.decode_png(png.encode_png(image), size)
    # Half a level from compositing in 8 bits, half from the result.
    assert np.abs(decoded - area_average(over_white, size)).max() <= 1.0 + 1e-9
    rows = 4 * size // 16
    assert np.all(decoded[:rows] == 255)


def test_other_modes():
    rgb = random_image(8)
    for mode in ("L", "P", "LA"):
        buffer = io.BytesIO()
        converted = Image.fromarray(rgb).convert(mode)
        converted.save(buffer, format="PNG")
        np.testing.assert_array_equal(png.decode_png(buffer.getvalue()), np.asarray(converted.convert("RGB")))


def test_refuses_to_enlarge_and_rectangles():
    with pytest.raises(ValueError, match="8x8 pixels cannot be averaged down to 9x9"):
        png.decode_png(png.encode_png(random_image(8)), 9)
    with pytest.raises(ValueError, match="8x4"):
        png.decode_png(png.encode_png(random_image(8)[:4]), 4)
