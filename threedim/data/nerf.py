"""Folders with ``transforms*.json``: NeRF's synthetic scenes, nerfstudio, instant-ngp.

``transforms_train.json``, ``transforms_val.json`` and ``transforms_test.json`` are joined in this order; without them
``transforms.json`` is read, or the only ``transforms*.json`` that there is. Each has ``frames``, with ``file_path``
(".png" if it has no suffix), ``transform_matrix`` (camera-to-world, OpenGL axes) and maybe ``mask_path``. Intrinsics
are ``fl_x``, ``fl_y``, ``cx``, ``cy``, ``w`` and ``h``, or ``camera_angle_x`` and ``camera_angle_y`` (radians), of the
file or of each frame; lens distortion is ``k1``, ``k2``, ``k3``, ``p1`` and ``p2``. Conventions: https://docs.nerf.studio/quickstart/data_conventions.html
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from threedim.cameras import Camera
from threedim.data import camera_checks, pictures
from threedim.data.views import BadObjectError, Listing, ViewFiles, blame, scaled_K

_SPLITS = ("train", "val", "test")
_DISTORTION = ("k1", "k2", "p1", "p2", "k3")  # in the order of `distortion.distort`
_INTRINSICS = ("fl_x", "fl_y", "cx", "cy", "w", "h", "camera_angle_x", "camera_angle_y")
_PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV", "PERSPECTIVE")


def to_json(file_paths: Sequence[str], cameras: Camera, size: int) -> str:
    """The ``transforms.json`` of views as nerfstudio and instant-ngp read it.

    instant-ngp's ``aabb`` holds the sphere that fits into a picture, around the point that the cameras look at.

    Args:
      file_paths: of the pictures, relative to the file.
      cameras: axes (view,), K in pixels of the pictures.
      size: height and width of the pictures, pixels.
    """
    K, poses = np.asarray(cameras.K, np.float64), np.asarray(cameras.to_matrix(), np.float64)
    columns = {"fl_x": K[:, 0, 0], "fl_y": K[:, 1, 1], "cx": K[:, 0, 2], "cy": K[:, 1, 2]}
    angles = [2 * np.arctan(size / 2 / columns[name]) for name in ("fl_x", "fl_y")]
    columns |= {"camera_angle_x": angles[0], "camera_angle_y": angles[1]}
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    intrinsics = [{"w": size, "h": size, **dict(zip(columns, row, strict=True))} for row in rows]
    shared = all(each == intrinsics[0] for each in intrinsics)
    center, radius = camera_checks.looked_at(poses), camera_checks.distance(poses) * np.sin(np.min(angles) / 2)
    content = {
        "camera_model": "OPENCV",
        **(intrinsics[0] if shared else {}),
        **dict.fromkeys(("k1", "k2", "p1", "p2"), 0.0),
        "aabb_scale": 1,
        "aabb": [(center - radius).tolist(), (center + radius).tolist()],
        "frames": [
            {"file_path": path, **({} if shared else one), "transform_matrix": matrix}
            for path, one, matrix in zip(file_paths, intrinsics, cameras.to_opengl_matrix().tolist(), strict=True)
        ],
    }
    return json.dumps(content, indent=1) + "\n"


def is_object(folder: epath.Path) -> bool:
    """Whether a folder has such files."""
    return any(folder.glob("transforms*.json"))


def list_views(folder: epath.Path) -> Listing:
    """The views of all frames.

    Raises:
      BadObjectError: if a file is damaged, a picture missing, or a camera a fisheye.
    """
    found = {path.name: path for path in folder.glob("transforms*.json")}
    files = [found[name] for split in _SPLITS if (name := f"transforms_{split}.json") in found]
    files = files or [found.get("transforms.json", min(found.values()))]
    if len(found) > 1 and len(files) == 1 and files[0].name not in ("transforms.json", "transforms_train.json"):
        raise BadObjectError(folder, f"which of {', '.join(sorted(found))}? Call one of them transforms.json")
    # BlenderNeRF writes the test cameras, but does not render them.
    views = [view for path in files for view in _read_frames(folder, path, may_lack_pictures=len(files) > 1)]
    views = views or _read_frames(folder, files[0], may_lack_pictures=False)
    return Listing(_distinct(views), {view.pose.name for view in views}, axes="opengl")


def _distinct(views: list[ViewFiles]) -> list[ViewFiles]:
    """Without repeated frames: files of splits are often copies of each other."""
    first: dict[epath.Path, ViewFiles] = {}
    for view in views:
        if not np.array_equal(first.setdefault(view.picture, view).matrix, view.matrix):
            raise BadObjectError(view.pose, f"{view.picture.name} has two cameras; remove one of its frames")
    return list(first.values())


def _read_frames(folder: epath.Path, path: epath.Path, *, may_lack_pictures: bool) -> list[ViewFiles]:
    """The views of a file; none if it may, and does, lack all pictures."""
    with blame(path, "not valid JSON: "):
        content = json.loads(path.read_bytes())
    frames = content.get("frames") if isinstance(content, dict) else None
    if frames == [] and may_lack_pictures:
        return []
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise BadObjectError(path, "has no list of 'frames'")
    names = [frame.get("file_path") for frame in frames]
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise BadObjectError(path, f"frame {number} has no 'file_path'")
    found = pictures.find([folder, folder / "images"], names, path, may_lack_all=may_lack_pictures)
    common = {name: value for name, value in content.items() if name != "frames"}
    return [_read_frame(folder, path, one, common | frame) for one, frame in zip(found, frames, strict=False)]


def _read_frame(folder: epath.Path, path: epath.Path, picture: epath.Path, frame: Mapping[str, Any]) -> ViewFiles:
    where = f"frame {frame['file_path']}: "
    with blame(path, where):
        try:
            matrix = np.asarray(frame["transform_matrix"], np.float64)
        except (KeyError, TypeError) as error:
            raise ValueError("has no 'transform_matrix' of numbers") from error
        if matrix.shape == (3, 4):
            matrix = np.concatenate([matrix, [[0, 0, 0, 1]]])
        if matrix.shape != (4, 4):
            raise ValueError(f"'transform_matrix' must be 4x4, got shape {matrix.shape}")
        numbers, mask = _numbers(frame), frame.get("mask_path")
        if mask is not None and not isinstance(mask, str):
            raise ValueError(f"'mask_path' must be a path, got {mask!r}")
    size = (numbers["w"], numbers["h"]) if "w" in numbers and "h" in numbers else None
    return ViewFiles(
        picture,
        path,
        matrix,
        functools.partial(_intrinsics, path, where, numbers, size),
        tuple(map(round, size)) if size else None,
        pictures.find([folder], [mask], path)[0] if mask else None,
        tuple(numbers.get(name, 0.0) for name in _DISTORTION),
    )


def _numbers(frame: Mapping[str, Any]) -> dict[str, float]:
    model = "fisheye" if frame.get("is_fisheye") else frame.get("camera_model", "PINHOLE")
    if model not in _PINHOLES:
        raise ValueError(f"camera model {model} is not read; undistort the pictures (colmap image_undistorter)")
    # Programs disagree about what these mean.
    if unknown := [name for name in ("k4", "k5", "k6") if frame.get(name)]:
        raise ValueError(f"{unknown[0]} is not read; undistort the pictures (colmap image_undistorter)")
    found = {name: frame[name] for name in _INTRINSICS + _DISTORTION if frame.get(name) is not None}
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name!r} must be a number, got {value!r}")
    if not ("fl_x" in found or "camera_angle_x" in found):
        raise ValueError("has neither 'fl_x' nor 'camera_angle_x', so the focal length is unknown")
    for name in ("camera_angle_x", "camera_angle_y"):
        if not 0 < found.get(name, 1) < math.pi:
            raise ValueError(f"{name!r} must be an angle in radians between 0 and pi, got {found[name]}")
    return found


def _intrinsics(
    path: epath.Path,
    where: str,
    numbers: Mapping[str, float],
    size: tuple[float, float] | None,
    width: int,
    height: int,
) -> np.ndarray:
    w, h = size or (width, height)
    fx = numbers["fl_x"] if "fl_x" in numbers else w / 2 / math.tan(numbers["camera_angle_x"] / 2)
    fy = numbers.get("fl_y", fx)
    if "fl_y" not in numbers and "fl_x" not in numbers and "camera_angle_y" in numbers:
        fy = h / 2 / math.tan(numbers["camera_angle_y"] / 2)
    K = [[fx, 0, numbers.get("cx", w / 2)], [0, fy, numbers.get("cy", h / 2)], [0, 0, 1]]
    return scaled_K(f"{path}: {where.removesuffix(': ')}", K, size, width, height)
