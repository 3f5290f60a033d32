"""COLMAP's models: ``cameras`` and ``images``, both .txt or .bin, in the folder, in ``sparse/`` or ``sparse/0/``.

Pictures are in ``images/`` or ``input/``, or beside the model. Poses are world-to-camera with OpenCV axes, and the
center of the top left pixel is (0.5, 0.5), as here (https://colmap.github.io/format.html).
"""

from __future__ import annotations

import collections
import functools
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from threedim.data import pictures
from threedim.data.views import BadObjectError, Listing, ViewFiles, blame, checked_K, read_text, scaled_K

_PLACES = ("", "sparse/0", "sparse")
# Focal lengths of each model, and the distortion coefficients that follow the principal point, in the order of
# `distortion.distort`. The order of the models is that of their numbers in binary files.
_MODELS = {
    "SIMPLE_PINHOLE": (1, 0),
    "PINHOLE": (2, 0),
    "SIMPLE_RADIAL": (1, 1),
    "RADIAL": (1, 2),
    "OPENCV": (2, 4),
    "OPENCV_FISHEYE": None,
    "FULL_OPENCV": (2, 8),
}


class _Camera(NamedTuple):
    intrinsics: functools.partial
    size: tuple[int, int]  # width, height
    distortion: tuple[float, ...]


def is_object(folder: epath.Path) -> bool:
    """Whether a folder has a model, text or binary."""
    return _model(folder) is not None


def list_views(folder: epath.Path) -> Listing:
    """The views of all registered images, by name.

    Raises:
      BadObjectError: if the model is damaged, a picture missing, or a camera not one that is read.
    """
    path = _model(folder)
    cameras = dict(_read_camera(path, row) for row in _rows(path))
    path = path.with_stem("images")
    rows = list(_rows(path))
    if not rows:
        raise BadObjectError(path, "lists no images")
    roots = [root for name in ("images", "input") if (root := folder / name).is_dir()] + [folder]
    for row in rows:
        if len(row) != 10:
            raise BadObjectError(path, f"{row}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME")
    names = [row[9] for row in rows]
    if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise BadObjectError(path, f"lists {twice[0]} twice; remove one of them")
    found = pictures.find(roots, names, path)
    views = [_read_image(path, row, cameras, picture) for row, picture in zip(rows, found, strict=True)]
    used = {"sparse", "images"} | {
        f"{name}.{kind}" for name in ("cameras", "images", "points3D") for kind in ("txt", "bin")
    }
    return Listing(sorted(views, key=lambda view: str(view.picture)), used, world_to_camera=True)


def _model(folder: epath.Path) -> epath.Path | None:
    """The file with the cameras; of several, text counts."""
    files = (folder / place / f"cameras.{kind}" for kind in ("txt", "bin") for place in _PLACES)
    return next((path for path in files if path.exists()), None)


def _rows(path: epath.Path) -> Iterator[list[Any]]:
    """The values of each camera or image."""
    if path.suffix == ".bin":
        if not path.exists():
            raise BadObjectError(path, "file is missing")
        with blame(path, "not a whole COLMAP model: "):
            try:
                yield from (_binary_cameras if path.stem == "cameras" else _binary_images)(path.read_bytes())
            except struct.error as error:
                raise ValueError(str(error)) from error
        return
    # The line after an image lists points, ends with the number of one, and may be empty; some programs leave it out.
    is_after_image = False
    for line in read_text(path).splitlines():
        words = line.split()
        if is_after_image and (not words or words[-1].lstrip("-").isdecimal()):
            is_after_image = False
        elif words and not line.startswith("#"):
            is_after_image = path.stem == "images"
            yield line.strip().split(maxsplit=9) if is_after_image else words


def _binary_cameras(data: bytes) -> Iterator[list[Any]]:
    (count,), at = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        number, kind, width, height = struct.unpack_from("<IiQQ", data, at)
        name = list(_MODELS)[kind] if 0 <= kind < len(_MODELS) else f"number {kind}"
        parameters = sum(_MODELS.get(name) or (0, 0)) + 2
        yield [str(number), name, width, height, *struct.unpack_from(f"<{parameters}d", data, at + 24)]
        at += 24 + 8 * parameters


def _binary_images(data: bytes) -> Iterator[list[Any]]:
    (count,), at = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        number, *pose, camera = struct.unpack_from("<I7dI", data, at)
        end = data.index(b"\0", at + 64)
        (points,) = struct.unpack_from("<Q", data, end + 1)
        yield [number, *pose, str(camera), data[at + 64 : end].decode()]
        at = end + 9 + 24 * points


def _read_camera(path: epath.Path, row: list[Any]) -> tuple[str, _Camera]:
    number, model, *rest = [*row, "nothing"][:2] + row[2:]
    with blame(path, f"camera {number}: "):
        if _MODELS.get(model) is None:
            raise ValueError(f"model {model} is not read; undistort the pictures (colmap image_undistorter)")
        focals, coefficients = _MODELS[model]
        width, height, *values = [float(value) for value in rest] or [0, 0]
        if len(values) != focals + 2 + coefficients:
            raise ValueError(f"{model} needs width, height and {focals + 2 + coefficients} parameters")
        cx, cy, *distortion = values[focals:]
        size = (width, height)
        K = checked_K(path, [[values[0], 0, cx], [0, values[focals - 1], cy], [0, 0, 1]], size)
    size = (round(width), round(height))
    return number, _Camera(functools.partial(scaled_K, path, K, size), size, tuple(distortion))


def _read_image(path: epath.Path, row: list[Any], cameras: dict[str, _Camera], picture: epath.Path) -> ViewFiles:
    # Imported here, because a training run that reads finished records needs no SciPy.
    from scipy.spatial.transform import Rotation

    with blame(path, f"image {row[9]}: "):
        w, x, y, z, *t = (float(value) for value in row[1:8])
        if row[8] not in cameras:
            raise ValueError(f"there is no camera {row[8]} in {path.with_stem('cameras').name}")
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_quat([x, y, z, w]).as_matrix()
        matrix[:3, 3] = t
    camera = cameras[row[8]]
    return ViewFiles(picture, path, matrix, camera.intrinsics, camera.size, distortion=camera.distortion)
