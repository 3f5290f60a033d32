"""COLMAP's text models: ``cameras.txt`` and ``images.txt`` in the folder, in ``sparse/`` or ``sparse/0/``.

Pictures are in ``images/``, or beside the model. Poses are world-to-camera with OpenCV axes, and the center of the top
left pixel is (0.5, 0.5), as here (https://colmap.github.io/format.html).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from etils import epath

from threedim.data.views import BadObjectError, Listing, ViewFiles, blame, checked_K, scaled_K

_PLACES = ("", "sparse/0", "sparse")
# Focal lengths of each model, and the distortion coefficients that follow the principal point.
_MODELS = {
    "SIMPLE_PINHOLE": (1, 0),
    "PINHOLE": (2, 0),
    "SIMPLE_RADIAL": (1, 1),
    "RADIAL": (1, 2),
    "OPENCV": (2, 4),
    "FULL_OPENCV": (2, 8),
}


class _Camera(NamedTuple):
    K: np.ndarray
    size: tuple[int, int]  # width, height


def is_object(folder: epath.Path) -> bool:
    """Whether a folder has a model, text or binary."""
    return any((folder / place / f"cameras.{kind}").exists() for place in _PLACES for kind in ("txt", "bin"))


def list_views(folder: epath.Path) -> Listing:
    """The views of all registered images, by name.

    Raises:
      BadObjectError: if the model is binary or damaged, a picture missing, or a camera not that of a pinhole.
    """
    places = [folder / place if place else folder for place in _PLACES]
    model = next((place for place in places if (place / "cameras.txt").exists()), None)
    if model is None:
        model = next(place for place in places if (place / "cameras.bin").exists())
        command = f"colmap model_converter --input_path {model} --output_path {model} --output_type TXT"
        raise BadObjectError(model / "cameras.bin", f"binary models are not read; convert it: {command}")
    cameras, path = _read_cameras(model / "cameras.txt"), model / "images.txt"
    root = folder / "images" if (folder / "images").is_dir() else folder
    views = [_read_image(path, line, cameras, root) for line in _image_lines(path)]
    if not views:
        raise BadObjectError(path, "lists no images")
    if missing := [view.picture for view in views if not view.picture.exists()]:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise BadObjectError(missing[0], f"picture is missing{more}, but {path.name} lists it")
    used = {"sparse", "images", "cameras.txt", "images.txt", "points3D.txt"}
    used |= {view.picture.relative_to(folder).parts[0] for view in views}
    return Listing(sorted(views, key=lambda view: str(view.picture)), used, world_to_camera=True)


def _lines(path: epath.Path) -> list[str]:
    with blame(path):
        return [line.strip() for line in path.read_bytes().decode("utf-8-sig").splitlines() if not line.startswith("#")]


def _read_cameras(path: epath.Path) -> dict[str, _Camera]:
    cameras = {}
    for line in filter(None, _lines(path)):
        number, model, *rest = f"{line} -".split()[:2] + line.split()[2:]
        with blame(path, f"camera {number}: "):
            if model not in _MODELS:
                raise ValueError(f"model {model} is not read; undistort the pictures (colmap image_undistorter)")
            focals, coefficients = _MODELS[model]
            values = [float(word) for word in rest]
            if len(values) != 2 + focals + 2 + coefficients:
                raise ValueError(f"{model} needs width, height and {focals + 2 + coefficients} parameters")
            if any(values[4 + focals :]):
                raise ValueError(f"model {model} has distortion; undistort the pictures (colmap image_undistorter)")
            width, height, fx, fy = *values[:2], values[2], values[1 + focals]
            cx, cy = values[2 + focals : 4 + focals]
            K = checked_K(path, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], (width, height))
            cameras[number] = _Camera(K, (round(width), round(height)))
    return cameras


def _image_lines(path: epath.Path) -> list[str]:
    """The first line of each image; the second, which may be empty, lists its points."""
    if not path.exists():
        raise BadObjectError(path, "file is missing")
    lines, found = iter(_lines(path)), []
    for line in lines:
        if line:
            found.append(line)
            next(lines, None)
    return found


def _read_image(path: epath.Path, line: str, cameras: dict[str, _Camera], root: epath.Path) -> ViewFiles:
    # Imported here, because a training run that reads finished records needs no SciPy.
    from scipy.spatial.transform import Rotation

    words = line.split(maxsplit=9)
    with blame(path, f"{line[:60]!r}: "):
        if len(words) != 10:
            raise ValueError("expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME")
        w, x, y, z, *t = (float(word) for word in words[1:8])
        if words[8] not in cameras:
            raise ValueError(f"there is no camera {words[8]} in cameras.txt")
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_quat([x, y, z, w]).as_matrix()
        matrix[:3, 3] = t
    camera, picture = cameras[words[8]], root / words[9].replace("\\", "/")
    return ViewFiles(picture, path, matrix, functools.partial(scaled_K, path, *camera), camera.size)
