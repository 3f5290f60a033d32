"""The SRN folder format (the paper, section 6): write it, find it, read and check it.

An object is a folder::

    <object>/rgb/000000.png      square, 8 bits; where it has an alpha channel, empty is transparent
    <object>/pose/000000.txt     16 numbers, row-major 4x4 camera-to-world, OpenCV axes, world z up
    <object>/intrinsics.txt      "f cx cy 0." / "0. 0. 0." / "1." / "height width"
    <object>/intrinsics/000000.txt   instead of intrinsics.txt where the views differ: nine numbers, a row-major K

A split is a folder of objects. What is not like that raises `BadObjectError` with the path of the offending file.
"""

from __future__ import annotations

import dataclasses
import io
import zlib

import numpy as np
from etils import epath
from PIL import Image

from threedim import cameras as cameras_lib
from threedim.cameras import Camera
from threedim.data import png as images_lib
from threedim.errors import MissingError, UserError
from threedim.files import new_folder

_IMAGE_MODES = ("RGB", "RGBA", "L", "LA", "P")
# Two intrinsics of one view that differ by more than this (relative) cannot both be true.
_INTRINSICS_TOLERANCE = 1e-3
# Levels that may lie between a split and its objects: an unpacked release has chairs_train/chairs_2.0_train/<object>.
_MAX_NESTING = 2


class BadObjectError(UserError):
    """An object folder breaks the format; the message names the file and what was expected there."""

    def __init__(self, path, problem: str):
        super().__init__(f"{path}: {problem}")
        self.path = str(path)


@dataclasses.dataclass(frozen=True)
class ObjectViews:
    """All views of one object, still encoded.

    Attributes:
      name: the folder's name.
      pngs: one encoded PNG per view, in the order of the views' numbers.
      cameras: batched (views,), K in pixels of the PNGs.
      size: height and width of every PNG, pixels.
    """

    name: str
    pngs: list[bytes]
    cameras: Camera
    size: int

    def decode(self, indices=None, size: int | None = None) -> tuple[np.ndarray, Camera]:
        """Decodes views, over white and averaged down to ``size`` pixels (by default not resized).

        Returns:
          Images (view, size, size, 3) uint8 in the order of ``indices`` (all views by default), and their cameras with
          K in pixels of these images.

        Raises:
          IndexError: if a view does not exist.
          ValueError: if ``size`` is larger than the pictures.
        """
        indices = np.arange(len(self.pngs)) if indices is None else np.asarray(indices)
        size = self.size if size is None else size
        images = np.stack([images_lib.decode_png(self.pngs[index], size) for index in indices])
        cameras = self.cameras[indices]
        return images, cameras if size == self.size else cameras.resized((self.size,) * 2, (size,) * 2)


# ------------------------------------------------------------------------------------------------------------ writing


def write_object(folder: epath.PathLike, images: np.ndarray, cameras: Camera) -> None:
    """Writes one object folder, all of it or nothing.

    Args:
      folder: the object's folder; must not exist, missing parents are made.
      images: (view, height, width, channel) uint8, square, 3 (RGB) or 4 (RGBA) channels.
      cameras: batched (view,), K in pixels of these images. Numbers are written so that float32 reads back exactly.

    Raises:
      FileExistsError: if the folder exists.
      ValueError: where images and cameras are not as above, or no view is given.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise UserError(f"images must be uint8 (view, height, width, 3 or 4), got {images.dtype} {images.shape}")
    views, size = images.shape[:2]
    if images.shape[2] != size or views == 0 or size == 0:
        raise UserError(f"images must be square and at least one, got shape {images.shape}")
    R, t, K = (np.asarray(leaf, np.float32) for leaf in (cameras.R, cameras.t, cameras.K))
    if R.shape != (views, 3, 3) or t.shape != (views, 3) or K.shape != (views, 3, 3):
        raise UserError(f"{views} images need cameras batched ({views},), got R {R.shape}, t {t.shape}, K {K.shape}")
    with new_folder(folder) as temporary:
        (temporary / "rgb").mkdir()
        (temporary / "pose").mkdir()
        matrices = Camera(R, t, K).to_matrix()
        for view in range(views):
            (temporary / "rgb" / f"{view:06d}.png").write_bytes(images_lib.encode_png(images[view]))
            (temporary / "pose" / f"{view:06d}.txt").write_text(_numbers(matrices[view]) + "\n")
        if np.all(K[0] == K) and K[0, 0, 0] == K[0, 1, 1]:
            focal, cx, cy = K[0, 0, 0], K[0, 0, 2], K[0, 1, 2]
            (temporary / "intrinsics.txt").write_text(f"{_numbers([focal, cx, cy])} 0.\n0. 0. 0.\n1.\n{size} {size}\n")
        else:
            (temporary / "intrinsics").mkdir()
            for view in range(views):
                (temporary / "intrinsics" / f"{view:06d}.txt").write_text(_numbers(K[view]) + "\n")


def _numbers(values) -> str:
    # Nine significant digits identify every float32.
    return " ".join(f"{float(value):.9g}" for value in np.ravel(values))


# ------------------------------------------------------------------------------------------------------------ reading


def find_objects(folder: epath.PathLike) -> list[epath.Path]:
    """Sorted object folders of a split folder, also where it only holds ``chairs_2.0_train/<object>``.

    Every subfolder counts as an object, an empty one too: reading it then says what is wrong with it.

    Raises:
      FileNotFoundError: if the folder is absent, is itself an object, or holds no object.
    """
    folder = epath.Path(folder)
    if not folder.is_dir():
        raise MissingError(f"{folder}: no such folder; expected a folder of objects in SRN format")
    if _is_object(folder):
        raise MissingError(f"{folder} is itself an object; give the folder that holds it: {folder.parent}")
    children = _subfolders(folder)
    for _ in range(_MAX_NESTING):
        if len(children) != 1 or _is_object(children[0]):
            break
        children = _subfolders(children[0])
    if not any(_is_object(child) for child in children):
        raise MissingError(f"{folder} holds no object in SRN format (subfolders with rgb/, pose/, intrinsics.txt)")
    return children


def _subfolders(folder: epath.Path) -> list[epath.Path]:
    hidden = (".", "__MACOSX")
    return sorted(child for child in folder.iterdir() if not child.name.startswith(hidden) and child.is_dir())


def _is_object(folder: epath.Path) -> bool:
    return any((folder / name).exists() for name in ("rgb", "pose", "intrinsics.txt"))


def read_object(folder: epath.PathLike) -> ObjectViews:
    """Reads and fully checks one object folder: every PNG is decoded, every pose and K validated.

    K comes back in pixels of the PNGs, also where intrinsics.txt was written for another size.

    Raises:
      BadObjectError: naming the file that is missing, extra, damaged or wrong.
    """
    folder = epath.Path(folder)
    if not folder.is_dir():
        raise BadObjectError(folder, "no such folder; expected an object in SRN format")
    images = _numbered_files(folder / "rgb", ".png")
    poses = _numbered_files(folder / "pose", ".txt")
    for stem in images:
        if stem not in poses:
            raise BadObjectError(folder / "pose" / f"{stem}.txt", f"pose is missing, but rgb/{stem}.png exists")
    for stem, path in poses.items():
        if stem not in images:
            raise BadObjectError(path, f"pose has no picture: rgb/{stem}.png does not exist")

    pngs, sizes = [], {}
    for path in images.values():
        pngs.append(path.read_bytes())
        sizes[path] = _check_png(path, pngs[-1])
    first, size = next(iter(sizes.items()))
    for path, other in sizes.items():
        if other != size:
            raise BadObjectError(path, f"is {other}x{other}, but rgb/{first.name} is {size}x{size}; expected one size")

    matrices = np.stack([_read_pose(path) for path in poses.values()])
    K = _read_intrinsics(folder, list(images), size)
    return ObjectViews(folder.name, pngs, Camera.from_matrix(matrices, K), size)


def _numbered_files(folder: epath.Path, suffix: str) -> dict[str, epath.Path]:
    """Files of a view folder by stem, in numeric order where all are numbers."""
    if not folder.is_dir():
        raise BadObjectError(folder, "folder is missing")
    files = {}
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.suffix != suffix:
            raise BadObjectError(path, f"unexpected file; expected only *{suffix} here")
        files[path.stem] = path
    if not files:
        raise BadObjectError(folder, f"is empty; expected one *{suffix} per view")
    numeric = all(stem.isdecimal() for stem in files)
    return dict(sorted(files.items(), key=lambda item: (int(item[0]), item[0]) if numeric else item[0]))


def _check_png(path: epath.Path, data: bytes) -> int:
    try:
        # verify() checks the checksums but leaves the image unusable; load() decodes every row.
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            mode, (width, height) = image.mode, image.size
    except (OSError, SyntaxError, ValueError, zlib.error) as error:
        raise BadObjectError(path, f"not a whole PNG ({error})") from error
    if mode not in _IMAGE_MODES:
        raise BadObjectError(path, f"PNG has mode {mode}; expected 8 bits per channel, RGB or RGBA")
    if width != height:
        raise BadObjectError(path, f"is {width}x{height} pixels; expected a square picture")
    return width


def _read_numbers(path: epath.Path, expected: str) -> list[float]:
    try:
        return [float(word) for word in path.read_text().split()]
    except ValueError as error:  # UnicodeDecodeError is one too.
        raise BadObjectError(path, f"expected {expected}, got something that is not a number ({error})") from error


def _read_pose(path: epath.Path) -> np.ndarray:
    expected = "16 numbers, a row-major 4x4 camera-to-world matrix"
    numbers = _read_numbers(path, expected)
    if len(numbers) != 16:
        raise BadObjectError(path, f"expected {expected}, got {len(numbers)} numbers")
    matrix = np.asarray(numbers, np.float32).reshape(4, 4)
    try:
        Camera.from_matrix(matrix, np.eye(3))
    except ValueError as error:
        raise BadObjectError(path, f"expected {expected}: {error}") from error
    return matrix


def _read_intrinsics(folder: epath.Path, stems: list[str], size: int) -> np.ndarray:
    """K (views, 3, 3) in pixels of the PNGs, which are ``size`` pixels high and wide."""
    common, per_view = folder / "intrinsics.txt", folder / "intrinsics"
    if not common.exists() and not per_view.is_dir():
        raise BadObjectError(common, "is missing, and there is no folder intrinsics/ either")
    K = None
    if common.exists():
        K = np.tile(_read_common_intrinsics(common, size), (len(stems), 1, 1))
    if not per_view.is_dir():
        return K

    files = _numbered_files(per_view, ".txt")
    for stem in stems:
        if stem not in files:
            raise BadObjectError(per_view / f"{stem}.txt", f"intrinsics are missing, but rgb/{stem}.png exists")
    for stem, path in files.items():
        if stem not in stems:
            raise BadObjectError(path, f"intrinsics have no picture: rgb/{stem}.png does not exist")
    K_per_view = np.stack([_read_view_intrinsics(files[stem]) for stem in stems])
    if K is None:
        for stem, K_view in zip(stems, K_per_view, strict=True):
            _check_principal_point(files[stem], K_view, size)
        return K_per_view
    # Per-view files do not say which size they are for; intrinsics.txt does. Copies of the release carry per-view
    # files for a larger picture, so only the shape of the frustum can be compared: K divided by the focal length.
    for stem, K_common, K_view in zip(stems, K, K_per_view, strict=True):
        difference = np.abs(K_common[:2] / K_common[0, 0] - K_view[:2] / K_view[0, 0]).max()
        if difference > _INTRINSICS_TOLERANCE:
            raise BadObjectError(
                files[stem], "describes another camera than intrinsics.txt beside it; delete whichever is wrong"
            )
    return K


def _read_common_intrinsics(path: epath.Path, size: int) -> np.ndarray:
    expected = "'f cx cy 0.', '0. 0. 0.', '1.' and 'height width', 10 numbers"
    numbers = _read_numbers(path, expected)
    if len(numbers) == 11 and numbers[10] != 0:
        raise BadObjectError(path, "says that poses are world-to-camera (last line); expected camera-to-world, 0")
    if len(numbers) not in (10, 11):
        raise BadObjectError(path, f"expected {expected}, got {len(numbers)} numbers")
    focal, cx, cy = numbers[:3]
    height, width = numbers[8:10]
    if not height == width > 0 or not np.isfinite(height):
        raise BadObjectError(path, f"expected a positive square 'height width', got {height:g} {width:g}")
    K = _checked_K(path, [[focal, 0, cx], [0, focal, cy], [0, 0, 1]])
    K = (K * np.asarray([[size / width], [size / height], [1]])).astype(np.float32)
    _check_principal_point(path, K, size)
    return K


def _read_view_intrinsics(path: epath.Path) -> np.ndarray:
    numbers = _read_numbers(path, "9 numbers, a row-major K")
    if len(numbers) != 9:
        raise BadObjectError(path, f"expected 9 numbers, a row-major K, got {len(numbers)}")
    return _checked_K(path, np.reshape(numbers, (3, 3)))


def _checked_K(path: epath.Path, K) -> np.ndarray:
    K = np.asarray(K, np.float32)
    try:
        cameras_lib.check_intrinsics(K)
    except ValueError as error:
        raise BadObjectError(path, str(error)) from error
    return K


def _check_principal_point(path: epath.Path, K: np.ndarray, size: int) -> None:
    if not (0 <= K[0, 2] <= size and 0 <= K[1, 2] <= size):
        raise BadObjectError(
            path,
            f"principal point ({K[0, 2]:g}, {K[1, 2]:g}) lies outside of the {size}x{size} picture: "
            "are these intrinsics for another size?",
        )
