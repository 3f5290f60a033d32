"""Pictures for people: conversion, grids with labels, PNG, GIF and MP4 files. Files appear whole or not at all."""

from __future__ import annotations

import contextlib
import io
import pathlib
import subprocess
import tempfile
from collections.abc import Sequence

import imageio_ffmpeg
import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from threedim import files

_WHITE, _BLACK = 255, 0
_FONT_SIZE = 14  # pixels
_GIF_MAX_FPS = 50.0  # browsers slow faster ones down to 10


def to_uint8(images) -> np.ndarray:
    """Floats in [-1, 1] to uint8, rounded to the nearest and clipped; any shape.

    Raises:
      ValueError: if the array is not of floats or has a number that is not finite.
    """
    images = np.asarray(images)
    if images.dtype.kind in "iub":
        raise ValueError(f"to_uint8 takes floats in [-1, 1], got {images.dtype}")
    images = images.astype(np.float32)
    if not np.all(np.isfinite(images)):
        raise ValueError(f"to_uint8: {np.sum(~np.isfinite(images))} of {images.size} numbers are not finite")
    return np.rint(np.clip((images + 1) * 127.5, 0, 255)).astype(np.uint8)


def to_float(images) -> np.ndarray:
    """uint8 to float32 in [-1, 1]; any shape. `to_uint8` takes it back exactly.

    Raises:
      ValueError: if the array is not uint8.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"to_float takes uint8, got {images.dtype}")
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def make_grid(
    images,
    pad: int = 2,
    scale: int = 0,
    row_labels: Sequence[str] | None = None,
    col_labels: Sequence[str] | None = None,
) -> np.ndarray:
    """Pictures in rows and columns on white.

    Args:
      images: (row, col, height, width, 3) uint8.
      pad: white pixels between pictures and around them.
      scale: whole factor of enlargement, pixels repeated, so that small pictures can be seen. 0 takes the one that
        makes them about 128 pixels high, and never shrinks.
      row_labels: one for each row, to the left of it.
      col_labels: one for each column, above it. Lines break at spaces; a word wider than the column widens them all.

    Returns:
      (height, width, 3) uint8. Without labels: rows · (scale · height + pad) + pad by cols · (scale · width + pad) +
      pad.

    Raises:
      ValueError: if shape, dtype, a number, or the count of labels is wrong.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 5 or images.shape[-1] != 3 or 0 in images.shape:
        raise ValueError(f"grid: images must be uint8 (row, col, height, width, 3), got {images.dtype} {images.shape}")
    rows, cols, height, width, _ = images.shape
    scale = _checked_scale(scale, height)
    if pad < 0:
        raise ValueError(f"grid: pad must not be negative, got {pad}")
    for name, labels, count in (("row_labels", row_labels, rows), ("col_labels", col_labels, cols)):
        if labels is not None and len(labels) != count:
            raise ValueError(f"grid: {len(labels)} {name} for {count}")
    font = ImageFont.load_default(size=_FONT_SIZE)
    row_labels, col_labels = (
        labels and [_legible(font, label) for label in labels] for labels in (row_labels, col_labels)
    )
    line = sum(font.getmetrics())
    words = [word for label in col_labels or () for word in label.split()]
    cell_w = max([width * scale, *(_text_width(font, word) for word in words)])
    cell_h = max(height * scale, line if row_labels else 0)
    wrapped = [_wrap(font, label, cell_w) for label in col_labels or ()]
    left = max(_text_width(font, label) for label in row_labels) + 2 * pad + 4 if row_labels else 0
    top = max(map(len, wrapped)) * line + pad if wrapped else 0

    sheet = np.full((top + rows * (cell_h + pad) + pad, left + cols * (cell_w + pad) + pad, 3), _WHITE, np.uint8)
    for row in range(rows):
        for col in range(cols):
            y, x = top + pad + row * (cell_h + pad), left + pad + col * (cell_w + pad)
            sheet[y : y + height * scale, x : x + width * scale] = _enlarge(images[row, col], scale)
    canvas = Image.fromarray(sheet)
    draw = ImageDraw.Draw(canvas)
    for row, label in enumerate(row_labels or ()):
        middle = top + pad + row * (cell_h + pad) + height * scale / 2
        draw.text((pad, middle), label, fill=(_BLACK,) * 3, font=font, anchor="lm")
    for col, lines in enumerate(wrapped):
        x = left + pad + col * (cell_w + pad)
        for index, text in enumerate(lines):
            # Several lines end just above the picture, like a single one.
            y = top - (len(lines) - index) * line
            draw.text((x, y), text, fill=(_BLACK,) * 3, font=font)
    return np.asarray(canvas)


def make_sheet(
    inputs, rows: Sequence[np.ndarray], *, columns: int = 8, scale: int = 0, labels: Sequence[str] = ("drawn", "true")
) -> np.ndarray:
    """A contact sheet: the input views on top, then the drawn views, each above the truth.

    Args:
      inputs: (view, height, width, 3) uint8.
      rows: one or more arrays (view, height, width, 3) uint8 with as many views, to be compared: drawn, true.
      columns: views beside each other; more views go on below.
      scale: as for `make_grid`.
      labels: of ``rows``.

    Returns:
      (height, width, 3) uint8.

    Raises:
      ValueError: if the shapes do not agree.
    """
    inputs, rows = np.asarray(inputs), [np.asarray(row) for row in rows]
    if inputs.ndim != 4 or not rows or any(row.shape[1:] != inputs.shape[1:] for row in rows):
        raise ValueError(f"sheet: inputs {inputs.shape} and rows {[row.shape for row in rows]} do not agree")
    if len({len(row) for row in rows}) != 1 or len(rows) > len(labels) or columns < 1:
        raise ValueError(f"sheet: {[len(row) for row in rows]} views in {columns} columns with labels {labels}")
    lines, names = [], []
    many = len(rows[0]) > columns
    columns = min(columns, max(len(inputs), len(rows[0])))
    parts = [("input", inputs[start : start + columns], start) for start in range(0, len(inputs), columns)]
    for start in range(0, len(rows[0]), columns):
        parts += [(name, row[start : start + columns], start) for name, row in zip(labels, rows, strict=False)]
    for name, views, start in parts:
        lines.append(np.full((columns, *inputs.shape[1:]), _WHITE, np.uint8))
        lines[-1][: len(views)] = views
        names.append(f"{name} {start + 1}-{start + len(views)}" if many and name != "input" else name)
    return make_grid(np.stack(lines), scale=scale, row_labels=names)


def save_png(path: epath.PathLike, image) -> None:
    """Writes a picture, (height, width, 3) uint8, losslessly. Parent folders are made; a file is replaced."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(f"{path}: picture must be uint8 (height, width, 3), got {image.dtype} {image.shape}")
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "PNG")
    files.write_atomically(path, encoded.getvalue())


def load_png(path: epath.PathLike) -> np.ndarray:
    """Reads a picture that `save_png` wrote, (height, width, 3) uint8.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it cannot be read.
    """
    data = epath.Path(path).read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is not a readable picture: {error}") from error


def save_gif(path: epath.PathLike, frames, fps: float, scale: int = 1) -> None:
    """Writes an endless animation. All frames share one palette, so that colors do not flicker.

    Args:
      frames: (frame, height, width, 3) uint8. Up to 256 colors are kept exactly. Equal consecutive frames are stored
        as one that lasts longer.
      fps: frames per second, above 0 and up to 50. A GIF counts hundredths of a second: durations are rounded so that
        the whole lasts as long as it should.
      scale: whole factor of enlargement, pixels repeated; 0 as for `make_grid`.
    """
    frames = _checked_frames(path, frames, fps)
    if fps > _GIF_MAX_FPS:
        raise ValueError(f"{path}: a GIF shows at most {_GIF_MAX_FPS:g} frames per second, got {fps}")
    scale = _checked_scale(scale, frames.shape[1])
    indices, palette = _to_palette(frames)
    ends = np.rint(np.arange(len(frames) + 1) * 100 / fps).astype(int)
    durations = [int(duration) * 10 for duration in np.diff(ends)]
    pictures = []
    for index in indices:
        picture = Image.fromarray(_enlarge(index, scale))
        picture.putpalette(palette.tobytes())
        pictures.append(picture)
    encoded = io.BytesIO()
    pictures[0].save(
        encoded, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=False
    )
    files.write_atomically(path, encoded.getvalue())


def save_mp4(path: epath.PathLike, frames, fps: float, scale: int = 1) -> None:
    """Writes an H.264 video that browsers play.

    Args:
      frames: (frame, height, width, 3) uint8. H.264 wants even sizes: an odd one is made even by repeating the last
        row or column.
      fps: frames per second, above 0.
      scale: whole factor of enlargement, pixels repeated; 0 as for `make_grid`.

    Raises:
      ValueError: if the frames are of another kind.
      RuntimeError: if the encoder fails; with its message.
    """
    frames = _checked_frames(path, frames, fps)
    scale = _checked_scale(scale, frames.shape[1])
    height, width = (scale * size for size in frames.shape[1:3])
    even_w, even_h = width + width % 2, height + height % 2
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{even_w}x{even_h}", "-r", f"{fps:g}", "-i", "-"]
    h264 = ["-c:v", "libx264", "-crf", "16", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    with tempfile.TemporaryDirectory() as folder:
        video, log = pathlib.Path(folder) / "video.mp4", pathlib.Path(folder) / "log.txt"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *raw, *h264, str(video)]
        with (
            log.open("wb") as errors,
            contextlib.suppress(BrokenPipeError),  # ffmpeg gave up: its exit status says so
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=errors, stderr=errors) as ffmpeg,
        ):
            for frame in frames:
                frame = np.pad(_enlarge(frame, scale), ((0, even_h - height), (0, even_w - width), (0, 0)), mode="edge")
                ffmpeg.stdin.write(frame.tobytes())
        if ffmpeg.returncode != 0:
            raise RuntimeError(
                f"{path}: ffmpeg failed ({ffmpeg.returncode}): {log.read_text(errors='replace').strip()}"
            )
        files.write_atomically(path, video.read_bytes())


def _checked_scale(scale: int, height: int) -> int:
    if int(scale) != scale or scale < 0:
        raise ValueError(f"scale must be a whole number, 0 or more, got {scale}")
    return int(scale) or max(1, round(128 / height))


def _checked_frames(path: epath.PathLike, frames, fps: float) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"{path}: frames must be uint8 (frame, height, width, 3), got {frames.dtype} {frames.shape}")
    if not 0 < fps < float("inf"):
        raise ValueError(f"{path}: fps must be positive, got {fps}")
    return frames


def _enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def _to_palette(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames as indices (frame, height, width) uint8 into a palette (color, 3) uint8."""
    flat = frames.reshape(-1, 3)
    codes = flat.astype(np.uint32) @ np.asarray([65536, 256, 1], np.uint32)
    unique, inverse = np.unique(codes, return_inverse=True)
    colors = np.stack([unique >> 16, unique >> 8 & 255, unique & 255], axis=-1).astype(np.uint8)
    if len(colors) <= 256:
        return inverse.reshape(frames.shape[:3]).astype(np.uint8), colors
    # All frames as one tall picture: one palette.
    tall = Image.fromarray(frames.reshape(-1, frames.shape[2], 3))
    quantized = tall.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)
    palette = np.asarray(quantized.getpalette(), np.uint8).reshape(-1, 3)
    return np.asarray(quantized).reshape(frames.shape[:3]), palette


def _legible(font, label: str) -> str:
    """The label with a question mark for each letter that the font lacks (it has little beyond ASCII)."""
    missing = bytes(font.getmask("\uffff"))
    return "".join(c if c.isspace() or bytes(font.getmask(c)) != missing else "?" for c in label)


def _text_width(font, text: str) -> int:
    return int(np.ceil(font.getlength(text)))


def _wrap(font, text: str, width: int) -> list[str]:
    """Lines of ``text`` that are not wider than ``width``, broken at spaces."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and _text_width(font, joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines or [""]
