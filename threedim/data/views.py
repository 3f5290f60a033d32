"""What is read from a folder of views: the settings, the files of a view, and all views of an object."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath

from threedim import cameras as cameras_lib
from threedim.cameras import Camera
from threedim.data import png as png_lib
from threedim.errors import UserError
from threedim.progress import say

# From coordinates in which the named axis points up to those in which z does.
UP_ROTATIONS = {
    "x": ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
    "-x": ((0, 0, 1), (0, 1, 0), (-1, 0, 0)),
    "y": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "-y": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "z": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "-z": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
}
_CHOICES = {"axes": ("", "opencv", "opengl"), "up": ("", *UP_ROTATIONS), "fit": ("refuse", "pad", "crop")}


class BadObjectError(UserError):
    """An object folder cannot be read. The message starts with the path of the file at fault."""

    def __init__(self, path: epath.PathLike, problem: str):
        super().__init__(f"{path}: {problem}")


@dataclasses.dataclass(frozen=True)
class ReadSettings:
    """How folders of views are read; `UserError` on construction if a value is unknown.

    The world is moved by ``center``, then turned by ``up``, then scaled.
    """

    axes: str = ""  # camera axes of the files: "opencv", "opengl", or "" for what the layout says
    world_to_camera: bool | None = None  # the files hold world-to-camera matrices; None for what the layout says
    up: str = ""  # world axis that points up in the files, "x" to "-z"; it becomes z. "" turns nothing
    scale: float = 1.0  # factor of positions
    center: bool = False  # move the point that the cameras look at to the origin
    fit: str = "refuse"  # pictures that are not square, or of several sizes: "refuse", "pad", or "crop" to the object
    check_cameras: bool = True  # refuse cameras that make no sense
    strict: bool = False  # treat warnings as errors
    allow_outside: bool = False  # read what links and ".." lead to outside of the object's folder

    def __post_init__(self):
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(f"data.{name} must be one of {known}, got {getattr(self, name)!r}")
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise UserError(f"data.scale must be positive, got {self.scale}")

    def changed(self) -> dict[str, Any]:
        """What differs from the defaults and decides what is read, so not ``check_cameras`` and such."""
        default, free = dataclasses.asdict(ReadSettings()), ("check_cameras", "strict", "allow_outside")
        items = dataclasses.asdict(self).items()
        return {name: value for name, value in items if name not in free and value != default[name]}


# For folders that this project wrote itself.
UNCHECKED = ReadSettings(check_cameras=False)


@dataclasses.dataclass(frozen=True)
class ViewFiles:
    """One view as a layout lists it."""

    picture: epath.Path
    pose: epath.Path  # the file that the pose comes from, for messages
    matrix: np.ndarray  # (4, 4) float64 as in the file
    intrinsics: Callable[[int, int], np.ndarray]  # K (3, 3) of the picture by its width and height, pixels
    size: tuple[int, int] | None = None  # width and height that the files claim for the picture, if they do
    mask: epath.Path | None = None  # a grey picture, black where the background is
    distortion: tuple[float, ...] = ()  # of the lens, as in `distortion.distort`


@dataclasses.dataclass(frozen=True)
class Listing:
    """The views of an object as a layout lists them, and the conventions of its matrices."""

    views: list[ViewFiles]
    used: set[str] = frozenset()  # names in the object's folder that the layout accounts for, besides those of views
    axes: str = "opencv"
    world_to_camera: bool = False


@dataclasses.dataclass(frozen=True)
class ObjectViews:
    """All views of one object, still encoded."""

    name: str  # of the folder
    pngs: list[bytes]  # in the order of the layout
    cameras: Camera  # batched (views,), K in pixels of the PNGs
    size: int  # height and width of every PNG, pixels
    warnings: tuple[str, ...] = ()  # one line each: what was read, but is probably not meant so
    unread: tuple[str, ...] = ()  # names of files and folders of the object that were not read

    def decode(self, indices=None, size: int | None = None) -> tuple[np.ndarray, Camera]:
        """Decodes views, composited on white and downsampled to ``size`` pixels (not resized by default).

        Returns:
          Images (view, size, size, 3) uint8 in the order of ``indices`` (all views by default), and their cameras
          with K in pixels of these images.

        Raises:
          IndexError: if a view does not exist.
          UserError: if ``size`` is larger than the PNGs.
        """
        indices = np.arange(len(self.pngs)) if indices is None else np.asarray(indices)
        size = self.size if size is None else size
        images = np.stack([png_lib.decode_png(self.pngs[index], size) for index in indices])
        cameras = self.cameras[indices]
        return images, cameras if size == self.size else cameras.resized((self.size,) * 2, (size,) * 2)

    def print_warnings(self, folder: epath.PathLike) -> None:
        """Prints the warnings, and what was not read, about the object in ``folder``."""
        for warning in self.warnings:
            say(f"warning: {folder}: {warning}")
        if self.unread:
            say(f"not read in {folder}: {', '.join(self.unread)}")


@np.errstate(over="ignore")  # as `Camera`
def checked_K(path: epath.PathLike, K, size: tuple[float, float] | None = None) -> np.ndarray:
    """K (3, 3) as float32, if it can be that of an image of ``size``, width and height.

    Raises:
      BadObjectError: at ``path`` otherwise.
    """
    K = np.asarray(K, np.float32)
    with blame(path):
        cameras_lib.check_intrinsics(K)
    (width, height), (cx, cy) = size or (np.inf, np.inf), K[:2, 2]
    if size and not all(0 < side < np.inf for side in size):
        raise BadObjectError(path, f"width and height must be positive, got {width:g} and {height:g}")
    if not (0 <= cx <= width and 0 <= cy <= height):
        where = f"principal point ({cx:g}, {cy:g}) is outside the {width:g}x{height:g} image"
        raise BadObjectError(path, f"{where}; is K for another size?")
    return K


def scaled_K(path: epath.PathLike, K, size: tuple[float, float] | None, width: int, height: int) -> np.ndarray:
    """K (3, 3) in pixels of a picture of ``width`` by ``height``, if it is given for one of ``size`` (width, height).

    Without ``size`` K is for the picture itself. Raises `BadObjectError` at ``path`` if the two differ in shape.
    """
    K = checked_K(path, K, size or (width, height))
    if size is None:
        return K
    if abs(width / size[0] * size[1] - height) > 1:  # one pixel, since sizes are rounded
        given = f"intrinsics are for {size[0]:g}x{size[1]:g} pixels"
        raise BadObjectError(path, f"{given}, but a picture has {width}x{height}, which is of another shape")
    return K * np.asarray([[width / size[0]], [height / size[1]], [1]])


def read_text(path: epath.Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark, as some Windows programs write it."""
    if not path.exists():
        raise BadObjectError(path, "file is missing")
    data = path.read_bytes()
    with blame(path):
        return data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")


@contextlib.contextmanager
def blame(path: epath.PathLike, prefix: str = "") -> Iterator[None]:
    """Turns what wrong numbers and texts raise into a `BadObjectError` at ``path``."""
    try:
        yield
    except BadObjectError:
        raise
    except (ValueError, OverflowError, RecursionError) as error:
        raise BadObjectError(path, f"{prefix}{error}") from error
