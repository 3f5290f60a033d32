"""Grids of pictures with labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_WHITE, _BLACK = 255, 0
_FONT_SIZE = 14  # pixels


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
    rows, cols, height, width, _ = images.shape
    scale = checked_scale(scale, height)
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
            sheet[y : y + height * scale, x : x + width * scale] = enlarge(images[row, col], scale)
    canvas = Image.fromarray(sheet)
    draw = ImageDraw.Draw(canvas)
    for row, label in enumerate(row_labels or ()):
        middle = top + pad + row * (cell_h + pad) + height * scale / 2
        draw.text((pad, middle), label, fill=(_BLACK,) * 3, font=font, anchor="lm")
    for col, lines in enumerate(wrapped):
        x = left + pad + col * (cell_w + pad)
        for index, text in enumerate(lines):
            y = top - (len(lines) - index) * line
            draw.text((x, y), text, fill=(_BLACK,) * 3, font=font)
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
        lines.append(np.full((columns, *inputs.shape[1:]), _WHITE, np.uint8))
        lines[-1][: len(views)] = views
        names.append(f"{name} {start + 1}-{start + len(views)}" if many and name != "input" else name)
    return make_grid(np.stack(lines), scale=scale, row_labels=names)


def checked_scale(scale: int, height: int) -> int:
    """The factor of enlargement; 0 stands for the one that makes pictures about 128 pixels high."""
    if int(scale) != scale or scale < 0:
        raise ValueError(f"scale must be a whole number, 0 or more, got {scale}")
    return int(scale) or max(1, round(128 / height))


def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """Repeats each pixel; axes (height, width, ...)."""
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


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
