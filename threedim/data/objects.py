"""Folders of views in any of the known layouts: finding objects, and reading them into one convention.

A folder is an object if it is laid out as `srn` (also NSVF), `nerf`, `colmap` or `zero123` say, in this order.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
from collections.abc import Iterator

import numpy as np
from etils import epath

from threedim import arrays, files
from threedim.cameras import Camera
from threedim.data import camera_checks, colmap, nerf, pictures, srn, zero123
from threedim.data.views import UP_ROTATIONS, BadObjectError, Listing, ObjectViews, ReadSettings, blame
from threedim.errors import MissingError, UserError

_LAYOUTS = (srn, nerf, colmap, zero123)
# Levels between a split and its objects: an unpacked release has chairs_train/chairs_2.0_train/<object>.
_MAX_NESTING = 2
_DEFAULT = ReadSettings()
_KNOWN = "known are rgb/, pose/ and intrinsics.txt (SRN), transforms.json (NeRF), COLMAP models, and 000.npy (zero123)"
_MESHES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
_DATA = (*pictures.SUFFIXES, *_MESHES, ".zip", ".tar", ".gz", ".7z", ".mp4", ".mov")
# What need not be read.
_HARMLESS = ("readme", "license", "licence", "copying")


def find_objects(folder: epath.PathLike) -> list[epath.Path]:
    """Sorted object folders of a split, also if they are nested as in ``chairs_train/chairs_2.0_train/<object>``.

    Every subfolder counts as an object, even an empty one: reading it then reports what is wrong.

    Raises:
      MissingError: if the folder does not exist, is itself an object, or contains no objects.
    """
    folder = epath.Path(folder)
    if not folder.is_dir():
        raise MissingError(f"{folder}: no such folder; expected a folder of objects{_hint(folder)}")
    if _layout(folder) is not None:
        raise MissingError(f"{folder} is itself an object; use the folder that contains it: {folder.parent}")
    children = _subfolders(folder)
    for _ in range(_MAX_NESTING):
        if len(children) == 1 and _layout(children[0]) is None:
            children = _subfolders(children[0])
    if not any(_layout(child) is not None for child in children):
        raise MissingError(f"{folder} contains no objects; {_KNOWN}{_hint(folder)}")
    return children


def files_beside(folder: epath.PathLike) -> list[str]:
    """Names of the files in a folder of objects that look like data; none of them is read."""
    return [name for name in _names(epath.Path(folder), set()) if name.lower().endswith(_DATA)]


def picture_bytes(folder: epath.PathLike) -> int:
    """Size of the picture files in a folder and its subfolders."""
    return sum(path.stat().length for path in _picture_files(epath.Path(folder)))


def _picture_files(folder: epath.Path) -> list[epath.Path]:
    files = [path for pattern in ("*", "*/*") for path in folder.glob(pattern)]
    return [path for path in files if path.suffix.lower() in pictures.SUFFIXES]


def read_object(
    folder: epath.PathLike, settings: ReadSettings = _DEFAULT, inside: epath.PathLike | None = None
) -> ObjectViews:
    """Reads and checks one object folder: decodes every picture, and validates every pose and K.

    Args:
      folder: of the object.
      settings: how it is read.
      inside: folder that everything read must lie in, unless the settings allow others; the object's own if None.

    Raises:
      BadObjectError: with the path of the file that is missing, unexpected, damaged or wrong.
    """
    folder = epath.Path(folder)
    if not folder.is_dir():
        raise BadObjectError(folder, "no such folder; expected an object, a folder of views")
    with files.only_inside(None if settings.allow_outside else inside or folder), _readable(folder):
        _check_files(folder)
        layout = _layout(folder)
        if layout is None:
            raise BadObjectError(folder, f"is no object; {_KNOWN}{_hint(folder)}")
        listing = layout.list_views(folder)
    matrices = _checked_matrices(listing)
    axes = settings.axes or listing.axes
    inverse = listing.world_to_camera if settings.world_to_camera is None else settings.world_to_camera
    if settings.check_cameras and (problem := camera_checks.problem(matrices, axes, inverse)):
        raise BadObjectError(folder, f"{problem} (or --config.data.check_cameras=False)")
    poses = _moved(folder, camera_checks.pose_matrices(matrices, axes, inverse), settings)
    pngs, K, size, warnings = pictures.square_pngs(folder, listing.views, settings.fit)
    if settings.check_cameras:
        warnings += camera_checks.doubts(poses, K, size)
    if settings.strict and warnings:
        raise BadObjectError(folder, f"{warnings[0]} (data.strict)")
    with blame(folder):
        cameras = Camera.from_matrix(poses, K)
    name = folder.name if folder.name not in ("", "..") else folder.resolve().name
    return ObjectViews(name, pngs, cameras, size, tuple(warnings), tuple(_names(folder, _used(folder, listing))))


@contextlib.contextmanager
def _readable(folder: epath.Path) -> Iterator[None]:
    """Names what the system does not read, such as a folder in the place of a file."""
    try:
        yield
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise BadObjectError(error.filename or folder, f"cannot be read ({error.strerror or error})") from error


def _check_files(folder: epath.Path) -> None:
    """Refuses pipes, and links that lead out, before anything is read."""
    if files.is_remote(folder):
        return
    below = (pathlib.Path(parent, name) for parent, *names in os.walk(folder) for name in itertools.chain(*names))
    for path in (pathlib.Path(folder), *sorted(path for path in below if path.name[0] != ".")):
        problem = files.leads_out(path) if path.is_symlink() else None
        if problem or (path.exists() and not path.is_file() and not path.is_dir()):
            raise BadObjectError(path, problem or "is a pipe or a device; expected a file")


def _layout(folder: epath.Path):
    """The module of a folder's layout."""
    return next((layout for layout in _LAYOUTS if layout.is_object(folder)), None)


def _subfolders(folder: epath.Path) -> list[epath.Path]:
    hidden = (".", "__MACOSX")
    return sorted(child for child in folder.iterdir() if not child.name.startswith(hidden) and child.is_dir())


def _hint(folder: epath.Path) -> str:
    """What to do with what is there instead of objects."""
    if folder.suffix.lower() == ".zip":
        return "; unpack the zip, or set data.source to its folder and data.train_split to its name without .zip"
    if not folder.is_dir():
        return ""
    if any(path.suffix.lower() in _MESHES for path in folder.glob("*")):
        return "; render meshes first, with python -m threedim.data.render"
    held = f"; it holds {arrays.listed(_names(folder, set()) or ['nothing'], ', ')}"
    return held + ("; pictures need cameras, which COLMAP can find" if _picture_files(folder) else "")


def _checked_matrices(listing: Listing) -> np.ndarray:
    """(views, 4, 4) float64, as in the files; each is a rotation and a position."""
    matrices = np.stack([view.matrix for view in listing.views])
    try:
        Camera.from_matrix(matrices, np.eye(3))
    except ValueError:  # which one?
        for view in listing.views:
            with blame(view.pose, "" if view.pose.stem == view.picture.stem else f"{view.picture.name}: "):
                Camera.from_matrix(view.matrix, np.eye(3))
    return matrices


def _moved(folder: epath.Path, poses: np.ndarray, settings: ReadSettings) -> np.ndarray:
    """Poses in the world that the settings ask for."""
    poses = poses.copy()
    if settings.center:
        found = camera_checks.focus(poses)
        if not found.is_known:
            raise BadObjectError(folder, "cannot be centered: its cameras look in one direction; unset data.center")
        poses[:, :3, 3] -= found.point
    if settings.up:
        poses[:, :3] = np.asarray(UP_ROTATIONS[settings.up], np.float64) @ poses[:, :3]
    poses[:, :3, 3] *= settings.scale
    return poses


def _used(folder: epath.Path, listing: Listing) -> set[str]:
    """Names in the object's folder that are read, or lead to files that are."""
    files = (path for view in listing.views for path in (view.picture, view.pose, view.mask) if path)
    depth, start = len(folder.parts), folder.parts
    return listing.used | {parts[depth] for path in files if (parts := path.parts)[:depth] == start}


def _names(folder: epath.Path, used: set[str]) -> list[str]:
    """Names in a folder that are neither used, hidden nor notes; folders with a slash."""
    names = []
    for path in sorted(folder.iterdir()):
        is_known = path.name in used or path.name.startswith((".", "__MACOSX"))
        if not is_known and not path.name.lower().startswith(_HARMLESS) and path.suffix != ".md":
            names.append(f"{path.name}/" if path.is_dir() else path.name)
    return names
