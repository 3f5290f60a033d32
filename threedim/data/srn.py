"""The SRN folder format: writing, finding and reading objects [6].

An object is a folder::

    <object>/rgb/000000.png      square, 8 bits; an alpha channel marks the background as transparent
    <object>/pose/000000.txt     16 numbers, a row-major 4x4 camera-to-world matrix, OpenCV axes, world z up
    <object>/intrinsics.txt      "f cx cy 0." / "0. 0. 0." / "1." / "height width"
    <object>/intrinsics/000000.txt   instead of intrinsics.txt if views differ: nine numbers, a row-major K

A split is a folder of objects. Anything else raises `BadObjectError` with the path of the file at fault.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
from etils import epath
from PIL import Image

from threedim import cameras as cameras_lib
from threedim.cameras import Camera
from threedim.data import png as png_lib
from threedim.errors import MissingError, UserError
from threedim.files import new_folder

_IMAGE_MODES = ("RGB", "RGBA", "L", "LA", "P")
# Relative difference up to which two intrinsics of one view count as the same.
_INTRINSICS_TOLERANCE = 1e-3
# Levels between a split and its objects: an unpacked release has chairs_train/chairs_2.0_train/<object>.
_MAX_NESTING = 2


class BadObjectError(UserError):
    """An object folder breaks the format. The message starts with the path of the file at fault."""

    def __init__(self, path: epath.PathLike, problem: str):
        super().__init__(f"{path}: {problem}")


@dataclasses.dataclass(frozen=True)
class ObjectViews:
    """All views of one object, still encoded."""

    name: str  # of the folder
    pngs: list[bytes]  # in numeric order of the views
    cameras: Camera  # batched (views,), K in pixels of the PNGs
    size: int  # height and width of every PNG, pixels

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


def write_object(folder: epath.PathLike, images: np.ndarray, cameras: Camera) -> None:
    """Writes one object folder atomically.

    Args:
      folder: must not exist; missing parents are created.
      images: (view, height, width, channel) uint8, square, with 3 (RGB) or 4 (RGBA) channels.
      cameras: batched (view,), K in pixels of these images. Float32 values survive a round trip exactly.

    Raises:
      ExistsError: if the folder exists.
      UserError: if images and cameras are not as above, or there are no views.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise UserError(f"images must be uint8 (view, height, width, 3 or 4), got {images.dtype} {images.shape}")
    views, size = images.shape[:2]
    if images.shape[2] != size or views == 0 or size == 0:
        raise UserError(f"images must be square and not empty, got shape {images.shape}")
    R, t, K = (np.asarray(leaf, np.float32) for leaf in (cameras.R, cameras.t, cameras.K))
    if R.shape != (views, 3, 3) or t.shape != (views, 3) or K.shape != (views, 3, 3):
        raise UserError(f"{views} images need cameras batched ({views},), got R {R.shape}, t {t.shape}, K {K.shape}")
    with new_folder(folder) as temporary:
        _write_views(temporary / "rgb", ".png", [png_lib.encode_png(image) for image in images])
        _write_views(temporary / "pose", ".txt", [_numbers(matrix) for matrix in Camera(R, t, K).to_matrix()])
        if np.all(K[0] == K) and K[0, 0, 0] == K[0, 1, 1]:
            first = _numbers([K[0, 0, 0], K[0, 0, 2], K[0, 1, 2]])
            (temporary / "intrinsics.txt").write_bytes(first[:-1] + f" 0.\n0. 0. 0.\n1.\n{size} {size}\n".encode())
        else:
            _write_views(temporary / "intrinsics", ".txt", [_numbers(matrix) for matrix in K])


def _write_views(folder: epath.Path, suffix: str, contents: Iterable[bytes]) -> None:
    folder.mkdir()
    for view, content in enumerate(contents):
        (folder / f"{view:06d}{suffix}").write_bytes(content)


def _numbers(values) -> bytes:
    # Nine significant digits identify every float32.
    return (" ".join(f"{float(value):.9g}" for value in np.ravel(values)) + "\n").encode()


def find_objects(folder: epath.PathLike) -> list[epath.Path]:
    """Sorted object folders of a split, also if they are nested as in ``chairs_train/chairs_2.0_train/<object>``.

    Every subfolder counts as an object, even an empty one: reading it then reports what is wrong.

    Raises:
      MissingError: if the folder does not exist, is itself an object, or contains no objects.
    """
    folder = epath.Path(folder)
    if not folder.is_dir():
        raise MissingError(f"{folder}: no such folder; expected a folder of objects in SRN format")
    if _is_object(folder):
        raise MissingError(f"{folder} is itself an object; use the folder that contains it: {folder.parent}")
    children = _subfolders(folder)
    for _ in range(_MAX_NESTING):
        if len(children) == 1 and not _is_object(children[0]):
            children = _subfolders(children[0])
    if not any(_is_object(child) for child in children):
        raise MissingError(f"{folder} contains no objects in SRN format (subfolders with rgb/, pose/, intrinsics.txt)")
    return children


def _subfolders(folder: epath.Path) -> list[epath.Path]:
    hidden = (".", "__MACOSX")
    return sorted(child for child in folder.iterdir() if not child.name.startswith(hidden) and child.is_dir())


def _is_object(folder: epath.Path) -> bool:
    return any((folder / name).exists() for name in ("rgb", "pose", "intrinsics.txt"))


def read_object(folder: epath.PathLike) -> ObjectViews:
    """Reads and fully checks one object folder: decodes every PNG and validates every pose and K.

    K is returned in pixels of the PNGs, even if intrinsics.txt was written for another size.

    Raises:
      BadObjectError: with the path of the file that is missing, unexpected, damaged or wrong.
    """
    folder = epath.Path(folder)
    if not folder.is_dir():
        raise BadObjectError(folder, "no such folder; expected an object in SRN format")
    images = _view_files(folder / "rgb", ".png")
    poses = _files_of_views(folder / "pose", images)
    pngs = [path.read_bytes() for path in images.values()]
    sizes = [_check_png(path, png) for path, png in zip(images.values(), pngs, strict=True)]
    for path, size in zip(images.values(), sizes, strict=True):
        if size != sizes[0]:
            other = next(iter(images.values())).name
            raise BadObjectError(path, f"{size}x{size} pixels, but rgb/{other} is {sizes[0]}x{sizes[0]}")
    expected = "16 numbers, a row-major 4x4 camera-to-world matrix"
    matrices = np.asarray([_read_numbers(path, (16,), expected) for path in poses], np.float32).reshape(-1, 4, 4)
    for path, matrix in zip(poses, matrices, strict=True):
        with _blame(path):
            Camera.from_matrix(matrix, np.eye(3))
    K = _read_intrinsics(folder, images, sizes[0])
    return ObjectViews(folder.name, pngs, Camera.from_matrix(matrices, K), sizes[0])


def _view_files(folder: epath.Path, suffix: str) -> dict[str, epath.Path]:
    """Files by stem, in numeric order if all stems are numbers."""
    if not folder.is_dir():
        raise BadObjectError(folder, "folder is missing")
    files = {path.stem: path for path in folder.iterdir() if not path.name.startswith(".")}
    for path in files.values():
        if path.suffix != suffix:
            raise BadObjectError(path, f"unexpected file; expected only *{suffix} here")
    if not files:
        raise BadObjectError(folder, f"folder is empty; expected one *{suffix} per view")
    numeric = all(stem.isdecimal() for stem in files)
    return dict(sorted(files.items(), key=lambda item: (int(item[0]), item[0]) if numeric else item[0]))


def _files_of_views(folder: epath.Path, images: dict[str, epath.Path]) -> list[epath.Path]:
    """The text file of each image, in the order of the images."""
    files = _view_files(folder, ".txt")
    for stem in images:
        if stem not in files:
            raise BadObjectError(folder / f"{stem}.txt", f"file is missing, but there is rgb/{stem}.png")
    for stem, path in files.items():
        if stem not in images:
            raise BadObjectError(path, f"there is no image rgb/{stem}.png")
    return [files[stem] for stem in images]


def _check_png(path: epath.Path, data: bytes) -> int:
    """Height and width of a square 8-bit PNG."""
    try:
        # verify() checks the checksums but leaves the image unusable; load() decodes every row.
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, zlib.error) as error:
        raise BadObjectError(path, f"not a complete PNG ({error})") from error
    if image.mode not in _IMAGE_MODES:
        raise BadObjectError(path, f"PNG has mode {image.mode}; expected 8 bits per channel, RGB or RGBA")
    if image.width != image.height:
        raise BadObjectError(path, f"{image.width}x{image.height} pixels; expected a square image")
    return image.width


@contextlib.contextmanager
def _blame(path: epath.Path) -> Iterator[None]:
    """Turns a ValueError into a `BadObjectError` at ``path``."""
    try:
        yield
    except ValueError as error:
        raise BadObjectError(path, str(error)) from error


def _read_numbers(path: epath.Path, counts: tuple[int, ...], expected: str) -> list[float]:
    with _blame(path):
        numbers = [float(word) for word in path.read_text().split()]
    if len(numbers) not in counts:
        raise BadObjectError(path, f"expected {expected}, got {len(numbers)} numbers")
    return numbers


def _read_intrinsics(folder: epath.Path, images: dict[str, epath.Path], size: int) -> np.ndarray:
    """K (views, 3, 3) in pixels of the PNGs, which are ``size`` pixels high and wide."""
    common, per_view = folder / "intrinsics.txt", folder / "intrinsics"
    if not per_view.is_dir():
        if not common.exists():
            raise BadObjectError(common, "file is missing, and there is no folder intrinsics/ either")
        return np.tile(_read_common_intrinsics(common, size), (len(images), 1, 1))
    # Only intrinsics.txt says which size it is for, and copies of the release have per-view files for larger images.
    limit = np.inf if common.exists() else size
    paths = _files_of_views(per_view, images)
    numbers = [_read_numbers(path, (9,), "9 numbers, a row-major K") for path in paths]
    K = np.stack([_checked_K(path, np.reshape(row, (3, 3)), limit) for path, row in zip(paths, numbers, strict=True)])
    if not common.exists():
        return K
    # So only the shape of the frustum can be compared: K divided by the focal length.
    K_common = _read_common_intrinsics(common, size)
    for path, K_view in zip(paths, K, strict=True):
        difference = np.abs(K_common[:2] / K_common[0, 0] - K_view[:2] / K_view[0, 0]).max()
        if difference > _INTRINSICS_TOLERANCE:
            raise BadObjectError(path, "not the camera of intrinsics.txt; delete whichever is wrong")
    return np.tile(K_common, (len(images), 1, 1))


def _read_common_intrinsics(path: epath.Path, size: int) -> np.ndarray:
    numbers = _read_numbers(path, (10, 11), "'f cx cy 0.', '0. 0. 0.', '1.' and 'height width', 10 numbers")
    if len(numbers) == 11 and numbers[10] != 0:
        raise BadObjectError(path, "poses are world-to-camera (last line); expected camera-to-world, 0")
    focal, cx, cy = numbers[:3]
    height, width = numbers[8:10]
    if not height == width > 0 or not np.isfinite(height):
        raise BadObjectError(path, f"expected a positive square 'height width', got {height:g} {width:g}")
    K = _checked_K(path, [[focal, 0, cx], [0, focal, cy], [0, 0, 1]], width)
    return (K * np.asarray([[size / width], [size / height], [1]])).astype(np.float32)


def _checked_K(path: epath.Path, K, size: float) -> np.ndarray:
    """K as float32, if it is that of an image of at most ``size`` pixels."""
    K = np.asarray(K, np.float32)
    with _blame(path):
        cameras_lib.check_intrinsics(K)
    cx, cy = K[:2, 2]
    if not (0 <= cx <= size and 0 <= cy <= size):
        where = f"principal point ({cx:g}, {cy:g}) is outside the {size:g}x{size:g} image"
        raise BadObjectError(path, f"{where}; is K for another size?")
    return K
