"""Every kind of picture file becomes what it shows; what is no picture is named."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from threedim import pixels
from threedim.data import pictures, png
from threedim.data.views import BadObjectError

RAMP = np.add.outer(np.arange(16) * 10, np.arange(12) * 5).astype(np.uint8)  # grey, 12 wide
RGB = np.stack([RAMP, 255 - RAMP, RAMP // 2], axis=-1)
ALPHA = np.where(np.arange(12) < 6, 0, 255).astype(np.uint8) * np.ones((16, 1), np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_16_bits(array, color_type):
    """(height, width, channel) uint16 as PNG; Pillow writes grey only."""
    height, width = array.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
    )
    parts = [
        struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in (*chunks, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def wide(array):
    """16-bit values, some between those of 8 bits."""
    return np.minimum(array.astype(np.int64) * 257 + 60, 65535).astype(np.uint16)


def with_alpha(array):
    return np.concatenate([array, ALPHA[..., None]], axis=-1)


GREY, OVER = np.repeat(RAMP[..., None], 3, axis=-1), np.where(ALPHA[..., None] == 0, 255, RGB)
PALETTE = Image.fromarray(np.stack([RAMP // 64 * 64, RAMP // 128 * 128, 0 * RAMP], axis=-1)).quantize(16)
KINDS = {
    "gray": (encoded(Image.fromarray(RAMP)), GREY, 0),
    "gray of 16 bits": (encoded(Image.fromarray(wide(RAMP))), GREY, 1),
    "TIFF of 16 bits": (encoded(Image.fromarray(wide(RAMP)), "TIFF"), GREY, 1),
    "RGB of 16 bits": (png_of_16_bits(wide(RGB), 2), RGB, 1),
    "RGBA of 16 bits": (png_of_16_bits(with_alpha(RGB).astype(np.uint16) * 257, 6), OVER, 1),
    "black and white": (encoded(Image.fromarray(RAMP > 100)), np.where(GREY > 100, 255, 0), 0),
    "palette": (encoded(PALETTE), np.asarray(PALETTE.convert("RGB")), 0),
    "RGBA": (encoded(Image.fromarray(with_alpha(RGB))), OVER, 0),
    "gray and alpha": (
        encoded(Image.fromarray(with_alpha(RGB)).convert("LA")),
        np.where(ALPHA[..., None] == 0, 255, np.asarray(Image.fromarray(RGB).convert("L"))[..., None]),
        0,
    ),
    "JPEG": (encoded(Image.fromarray(RGB), "JPEG", quality=98, subsampling=0), RGB, 6),
    "CMYK": (encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=98), RGB, 6),
    "WebP": (encoded(Image.fromarray(with_alpha(RGB)), "WEBP", lossless=True), OVER, 0),
    "BMP": (encoded(Image.fromarray(RGB), "BMP"), RGB, 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_pictures(tmp_path, kind):
    data, shown, tolerance = KINDS[kind]
    path = tmp_path / "picture.png"  # whatever the suffix says
    path.write_bytes(data)
    for found in (pictures.load_rgb(path), pixels.load_png(path)):
        assert found.shape == (16, 12, 3)
        assert np.abs(found.astype(int) - shown).max() <= tolerance
    picture = pictures.load(path)
    assert picture.is_exact == (kind in ("gray", "palette", "RGBA", "gray and alpha") or "RGB" in kind)
    if picture.is_exact:  # records hold the file itself, and decode it so
        square = encoded(Image.open(io.BytesIO(data)).crop((0, 0, 12, 12))) if "16 bits" not in kind else None
        assert square is None or np.array_equal(png.decode_png(square), pictures.load_rgb(path)[:12])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied_unless_the_size_contradicts(tmp_path, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "picture"
    options = {"quality": 98} if kind == "JPEG" else {"lossless": True}
    path.write_bytes(encoded(Image.fromarray(RGB), kind, exif=exif, **options))
    stored = RGB.astype(int)
    # By the standard: which corner the first row and column of the file belong to.
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: stored[::-1].swapaxes(0, 1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: stored[:, ::-1].swapaxes(0, 1),
    }[orientation]
    found = pictures.load(path)
    assert (found.orientation, found.is_exact) == (orientation, orientation == 1 and kind == "PNG")
    assert np.abs(pictures.load_rgb(path) - upright).max() <= (12 if kind == "JPEG" else 0)
    kept = pictures.load(path, size=(12, 16))
    assert kept.image.size == ((12, 16) if orientation >= 5 or upright.shape[:2] == (16, 12) else (16, 12))
    assert kept.orientation == (1 if orientation >= 5 else orientation)


def huge_png():
    header = b"IHDR" + struct.pack(">IIBBBBB", 13500, 13501, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\1\0IDAT"
    )


def without(chunk, data):
    """A PNG without its first chunk of a kind, all checksums valid."""
    start = data.index(chunk) - 4
    return data[:start] + data[start + 12 + struct.unpack(">I", data[start : start + 4])[0] :]


JPEG, ANIMATED = KINDS["JPEG"][0], {"save_all": True, "append_images": [Image.fromarray(RGB).rotate(180)]}
BAD = {
    "empty": (b"", "file is empty"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS pointer.*git lfs pull"),
    "HTML": (b"\n<!DOCTYPE html><html>Quota exceeded</html>", "web page"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC or AVIF"),
    "text": (b"hello", "not a picture"),
    "huge": (huge_png(), "13500x13501 pixels: picture is too large"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "not a complete picture"),
    "truncated WebP": (KINDS["WebP"][0][:60], "not a"),
    "no IDAT": (without(b"IDAT", KINDS["RGBA"][0]), "not a complete PNG"),
    "no palette": (without(b"PLTE", KINDS["palette"][0]), "not a complete PNG"),
    "animated PNG": (encoded(Image.fromarray(RGB), "PNG", **ANIMATED), r"animated \(2 frames\)"),
    "animated WebP": (encoded(Image.fromarray(RGB), "WEBP", **ANIMATED), r"animated \(2 frames\)"),
    "floats": (encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), "pixels of kind 'F'"),
    "32 bits": (encoded(Image.fromarray(RAMP.astype(np.int32) * 10**6), "TIFF"), "gray levels from 0 to"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_picture_is_named(tmp_path, kind):
    data, message = BAD[kind]
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    with pytest.raises(BadObjectError, match=message) as raised:
        pictures.load(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_phones_second_picture_is_no_animation(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(encoded(Image.fromarray(RGB), "MPO", **ANIMATED))
    assert np.abs(pictures.load_rgb(path).astype(int) - RGB).max() < 20
    with pytest.raises(BadObjectError, match=r"gone\.png: file is missing"):
        pictures.load(tmp_path / "gone.png")
