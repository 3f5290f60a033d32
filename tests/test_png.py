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


@pytest.mark.parametrize("size", [24, 12, 8, 1, 23, 17, 16, 5])
def test_resize_is_an_area_average(size):
    image = random_image(24, seed=size)
    decoded = png.decode_png(png.encode_png(image), size)
    assert (decoded.shape, decoded.dtype) == ((size, size, 3), np.uint8)
    # Pillow divides in fixed point: a quotient of one half may be rounded either way.
    assert np.abs(decoded - area_average(image, size)).max() <= 0.5 + (size / 24) ** 2 * (24 % size == 0) + 1e-9


@pytest.mark.parametrize("size", [16, 8, 6])
def test_transparency_is_composited_on_white_before_the_resize(size):
    image = random_image(16, channels=4)
    image[:4, :, 3] = 0  # transparent, with colors that must not bleed in
    alpha = image[..., 3:] / 255.0
    over_white = image[..., :3] * alpha + 255.0 * (1 - alpha)
    decoded = png.decode_png(png.encode_png(image), size)
    # Half a level from compositing in 8 bits, half from the result.
    assert np.abs(decoded - area_average(over_white, size)).max() <= 1.0 + 1e-9
    assert np.all(decoded[: 4 * size // 16] == 255)


@pytest.mark.parametrize("mode", ["L", "P", "LA"])
def test_other_modes(mode):
    buffer, converted = io.BytesIO(), Image.fromarray(random_image(8)).convert(mode)
    converted.save(buffer, format="PNG")
    np.testing.assert_array_equal(png.decode_png(buffer.getvalue()), np.asarray(converted.convert("RGB")))


def test_refuses_to_enlarge_and_rectangles():
    with pytest.raises(ValueError, match="8x8"):
        png.decode_png(png.encode_png(random_image(8)), 9)
    with pytest.raises(ValueError, match="8x4"):
        png.decode_png(png.encode_png(random_image(8)[:4]), 4)
