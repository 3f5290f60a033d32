"""Grids of pictures with labels, and animated GIFs."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from threedim import files

_FONT_SIZE = 14  # pixels
_MAX_FPS = 50.0  # browsers slow faster GIFs down to 10


def make_grid(
    images,
    pad: int = 2,
    scale: int = 0,
    row_labels: Sequence[str] | None = None,
    col_labels: Sequence[str] | None = None,
) -> np.ndarray:
    """Pictures in rows and columns on a white background.

    Args:
      images: (row, col, height, width, 3) uint8.
      pad: white pixels between and around pictures.
      scale: integer factor of enlargement by repeated pixels; 0 makes pictures about 128 pixels high.
      row_labels: one per row, on its left.
      col_labels: one per column, above it; wrapped at spaces. A word wider than the column widens all of them.

    Returns:
      (height, width, 3) uint8.

    Raises:
      ValueError: if shape, dtype, a number, or the count of labels is wrong.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 5 or images.shape[-1] != 3 or 0 in images.shape:
        raise ValueError(f"grid: images must be uint8 (row, col, height, width, 3), got {images.dtype} {images.shape}")
    rows, cols = images.shape[:2]
    images = enlarge(images, scale)
    height, width = images.shape[2:4]
    if pad < 0:
        raise ValueError(f"grid: pad must not be negative, got {pad}")
    for name, labels, count in (("row_labels", row_labels, rows), ("col_labels", col_labels, cols)):
        if labels is not None and len(labels) != count:
            raise ValueError(f"grid: {len(labels)} {name} for {count}")
    font = ImageFont.load_default(size=_FONT_SIZE)
    row_labels, col_labels = ([_legible(font, label) for label in labels or ()] for labels in (row_labels, col_labels))
    line = sum(font.getmetrics())
    cell_w = max([width, *(_text_width(font, word) for label in col_labels for word in label.split())])
    cell_h = max(height, line if row_labels else 0)
    wrapped = [_wrap(font, label, cell_w) for label in col_labels]
    left = max(_text_width(font, label) for label in row_labels) + 2 * pad + 4 if row_labels else 0
    top = max(map(len, wrapped)) * line + pad if wrapped else 0
    xs, ys = left + pad + np.arange(cols) * (cell_w + pad), top + pad + np.arange(rows) * (cell_h + pad)

    sheet = np.full((ys[-1] + cell_h + pad, xs[-1] + cell_w + pad, 3), 255, np.uint8)
    for y, pictures in zip(ys, images, strict=True):
        for x, picture in zip(xs, pictures, strict=True):
            sheet[y : y + height, x : x + width] = picture
    canvas = Image.fromarray(sheet)
    draw = ImageDraw.Draw(canvas)
    for y, label in zip(ys, row_labels, strict=False):
        draw.text((pad, y + height / 2), label, fill=(0, 0, 0), font=font, anchor="lm")
    for x, lines in zip(xs, wrapped, strict=False):
        for index, text in enumerate(lines):
            draw.text((x, top - (len(lines) - index) * line), text, fill=(0, 0, 0), font=font)
    return np.asarray(canvas)


def make_sheet(
    inputs, rows: Sequence[np.ndarray], *, columns: int = 8, scale: int = 0, labels: Sequence[str] = ("sampled", "true")
) -> np.ndarray:
    """A contact sheet: the input views on top, then the sampled views, each above the true one.

    Args:
      inputs: (view, height, width, 3) uint8.
      rows: one or more arrays (view, height, width, 3) uint8 with as many views, to be compared: sampled, true.
      columns: views per line.
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
        lines.append(np.full((columns, *inputs.shape[1:]), 255, np.uint8))
        lines[-1][: len(views)] = views
        names.append(f"{name} {start + 1}-{start + len(views)}" if many and name != "input" else name)
    return make_grid(np.stack(lines), scale=scale, row_labels=names)


def save_gif(path: epath.PathLike, frames, fps: float, scale: int = 1) -> None:
    """Writes a looping GIF. All frames share one palette, so that colors do not flicker.

    Args:
      frames: (frame, height, width, 3) uint8. Up to 256 colors are kept exactly.
      fps: frames per second, above 0 and up to 50. A GIF counts hundredths of a second: durations are rounded so that
        the total is right.
      scale: integer factor of enlargement by repeated pixels; 0 as for `make_grid`.
    """
    frames = checked_frames(path, frames)
    if not 0 < fps <= _MAX_FPS:
        raise ValueError(f"{path}: fps must be positive and at most {_MAX_FPS:g} frames per second, got {fps}")
    codes = frames.astype(np.uint32) @ np.asarray([65536, 256, 1], np.uint32)
    colors, indices = np.unique(codes, return_inverse=True)
    palette = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=-1).astype(np.uint8)
    if len(colors) > 256:
        # All frames as one tall picture: one palette.
        tall = Image.fromarray(frames.reshape(-1, frames.shape[2], 3))
        indices = tall.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)
        palette = np.asarray(indices.getpalette(), np.uint8)
    indices = np.asarray(indices, np.uint8).reshape(*frames.shape[:3], 1)
    pictures = [Image.fromarray(index) for index in enlarge(indices, scale)[..., 0]]
    for picture in pictures:
        picture.putpalette(palette.tobytes())
    ends = np.rint(np.arange(len(frames) + 1) * 100 / fps).astype(int)
    options = {"duration": (10 * np.diff(ends)).tolist(), "loop": 0, "optimize": False}
    encoded = io.BytesIO()
    pictures[0].save(encoded, "GIF", save_all=True, append_images=pictures[1:], **options)
    files.write_atomically(path, encoded.getvalue())


def checked_frames(path: epath.PathLike, frames) -> np.ndarray:
    """The frames of an animation, if they are (frame, height, width, 3) uint8; ValueError with the path otherwise."""
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"{path}: frames must be uint8 (frame, height, width, 3), got {frames.dtype} {frames.shape}")
    return frames


def enlarge(images: np.ndarray, scale: int) -> np.ndarray:
    """Repeats each pixel of (..., height, width, channel); 0 makes pictures about 128 pixels high."""
    if int(scale) != scale or scale < 0:
        raise ValueError(f"scale must be a whole number, 0 or more, got {scale}")
    scale = int(scale) or max(1, round(128 / images.shape[-3]))
    return images.repeat(scale, axis=-3).repeat(scale, axis=-2)


def _legible(font, label: str) -> str:
    """The label with a question mark for each character that the font lacks."""
    missing = bytes(font.getmask("\uffff"))
    return "".join(c if c.isspace() or bytes(font.getmask(c)) != missing else "?" for c in label)


def _text_width(font, text: str) -> int:
    return int(np.ceil(font.getlength(text)))


def _wrap(font, text: str, width: int) -> list[str]:
    """``text`` wrapped at spaces to lines of at most ``width`` pixels."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and _text_width(font, joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines or [""]
