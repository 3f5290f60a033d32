"""Animated GIFs."""

from __future__ import annotations

import io

import numpy as np
from etils import epath
from PIL import Image

from threedim import files
from threedim.output.sheets import checked_scale, enlarge

_MAX_FPS = 50.0  # browsers slow faster ones down to 10


def save_gif(path: epath.PathLike, frames, fps: float, scale: int = 1) -> None:
    """Writes a looping GIF. All frames share one palette, so that colors do not flicker.

    Args:
      frames: (frame, height, width, 3) uint8. Up to 256 colors are kept exactly.
      fps: frames per second, above 0 and up to 50. A GIF counts hundredths of a second: durations are rounded so that
        the total is right.
      scale: integer factor of enlargement by repeated pixels; 0 as for `make_grid`.
    """
    frames = _checked_frames(path, frames, fps)
    if fps > _MAX_FPS:
        raise ValueError(f"{path}: a GIF plays at most {_MAX_FPS:g} frames per second, got {fps}")
    scale = checked_scale(scale, frames.shape[1])
    indices, palette = _to_palette(frames)
    ends = np.rint(np.arange(len(frames) + 1) * 100 / fps).astype(int)
    durations = [int(duration) * 10 for duration in np.diff(ends)]
    pictures = []
    for index in indices:
        picture = Image.fromarray(enlarge(index, scale))
        picture.putpalette(palette.tobytes())
        pictures.append(picture)
    encoded = io.BytesIO()
    pictures[0].save(
        encoded, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=False
    )
    files.write_atomically(path, encoded.getvalue())


def _checked_frames(path: epath.PathLike, frames, fps: float) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"{path}: frames must be uint8 (frame, height, width, 3), got {frames.dtype} {frames.shape}")
    if not 0 < fps < float("inf"):
        raise ValueError(f"{path}: fps must be positive, got {fps}")
    return frames


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
