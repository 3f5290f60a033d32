"""The SRN folder format [6], and NSVF's variant of it: writing objects, and listing the files of their views.

An object is a folder::

    <object>/rgb/000000.png      square; an alpha channel marks the background as transparent
    <object>/pose/000000.txt     16 numbers, a row-major 4x4 camera-to-world matrix, OpenCV axes, world z up
    <object>/intrinsics.txt      "f cx cy 0." / "0. 0. 0." / "1." / "height width"
    <object>/intrinsics/000000.txt   instead of intrinsics.txt if views differ: nine numbers, a row-major K

A last line "1" of intrinsics.txt says that poses are world-to-camera. NSVF's files may have a line for the near plane
before the "1.", or be a 4x4 matrix. Anything else raises `BadObjectError` with the path of the file at fault.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from threedim.cameras import Camera
from threedim.data import pictures
from threedim.data import png as png_lib
from threedim.data.views import BadObjectError, Listing, ViewFiles, blame, checked_K, read_text, scaled_K
from threedim.errors import UserError
from threedim.files import new_folder

# Relative difference up to which two intrinsics of one view count as the same.
_INTRINSICS_TOLERANCE = 1e-3


# What ``--mode=sample`` writes beside the views (`output.object_folder`).
BESIDE = frozenset({"transforms.json", "sheet.png", "turn.gif", "turn.mp4", "index.html"})


def write_object(folder: epath.PathLike, images: np.ndarray, cameras: Camera) -> None:
    """Writes one object folder atomically. It must not exist; missing parents are created.

    Arguments and errors as for `write_views`; `ExistsError` if the folder exists.
    """
    with new_folder(folder) as temporary:
        write_views(temporary, images, cameras)


def write_views(folder: epath.Path, images: np.ndarray, cameras: Camera) -> None:
    """Writes the views of one object into a folder, which is not an object yet.

    Args:
      folder: exists.
      images: (view, height, width, channel) uint8, square, with 3 (RGB) or 4 (RGBA) channels.
      cameras: batched (view,), K in pixels of these images. Float32 values survive a round trip exactly.

    Raises:
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
    _write_files(folder / "rgb", ".png", [png_lib.encode_png(image) for image in images])
    _write_files(folder / "pose", ".txt", [_numbers(matrix) for matrix in Camera(R, t, K).to_matrix()])
    if np.all(K[0] == K) and K[0, 0, 0] == K[0, 1, 1]:
        first = _numbers([K[0, 0, 0], K[0, 0, 2], K[0, 1, 2]])
        (folder / "intrinsics.txt").write_bytes(first[:-1] + f" 0.\n0. 0. 0.\n1.\n{size} {size}\n".encode())
    else:
        _write_files(folder / "intrinsics", ".txt", [_numbers(matrix) for matrix in K])


def _write_files(folder: epath.Path, suffix: str, contents: Iterable[bytes]) -> None:
    folder.mkdir()
    for view, content in enumerate(contents):
        (folder / f"{view:06d}{suffix}").write_bytes(content)


def _numbers(values) -> bytes:
    # Nine significant digits identify every float32.
    return (" ".join(f"{float(value):.9g}" for value in np.ravel(values)) + "\n").encode()


def is_object(folder: epath.Path) -> bool:
    """Whether a folder is laid out so, perhaps incompletely."""
    return any((folder / name).exists() for name in ("rgb", "pose", "intrinsics.txt"))


def list_views(folder: epath.Path) -> Listing:
    """The views of an object folder, in numeric order.

    Raises:
      BadObjectError: with the path of the file that is missing, unexpected or wrong.
    """
    images = _view_files(folder / "rgb", pictures.SUFFIXES)
    poses = _files_of_views(folder / "pose", images)
    expected = "16 numbers, a row-major 4x4 camera-to-world matrix"
    matrices = [np.reshape(_read_numbers(path, (16,), expected), (4, 4)) for path in poses]
    intrinsics, world_to_camera = _read_intrinsics(folder, images)
    views = [ViewFiles(*files) for files in zip(images.values(), poses, matrices, intrinsics, strict=True)]
    return Listing(views, {"intrinsics", "intrinsics.txt", *BESIDE}, world_to_camera=world_to_camera)


def _view_files(folder: epath.Path, suffixes: Sequence[str]) -> dict[str, epath.Path]:
    """Files by stem, in numeric order if all stems are numbers."""
    if not folder.is_dir():
        raise BadObjectError(folder, "folder is missing")
    files: dict[str, epath.Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in ("Thumbs.db", "desktop.ini"):
            continue
        if path.suffix.lower() not in suffixes:
            raise BadObjectError(path, f"unexpected file; expected only *{', *'.join(suffixes)} here")
        if path.stem in files:
            raise BadObjectError(path, f"is of the same view as {files[path.stem].name}; delete one of them")
        files[path.stem] = path
    if not files:
        raise BadObjectError(folder, f"folder is empty; expected one *{suffixes[0]} per view")
    numeric = all(stem.isdecimal() for stem in files)
    return dict(sorted(files.items(), key=lambda item: (int(item[0]), item[0]) if numeric else item[0]))


def _files_of_views(folder: epath.Path, images: dict[str, epath.Path]) -> list[epath.Path]:
    """The text file of each image, in the order of the images."""
    files = _view_files(folder, (".txt",))
    for stem, image in images.items():
        if stem not in files:
            raise BadObjectError(folder / f"{stem}.txt", f"file is missing, but there is rgb/{image.name}")
    for stem, path in files.items():
        if stem not in images:
            raise BadObjectError(path, f"there is no image rgb/{stem}.png")
    return [files[stem] for stem in images]


def _read_numbers(path: epath.Path, counts: tuple[int, ...], expected: str) -> list[float]:
    with blame(path):
        numbers = [float(word) for word in read_text(path).split()]
    if len(numbers) not in counts:
        raise BadObjectError(path, f"expected {expected}, got {len(numbers)} numbers")
    return numbers


def _read_intrinsics(folder: epath.Path, images: dict[str, epath.Path]) -> tuple[list[functools.partial], bool]:
    """What gives the K of each view for the size of its picture, and whether poses are world-to-camera."""
    common, per_view = folder / "intrinsics.txt", folder / "intrinsics"
    if not per_view.is_dir():
        if not common.exists():
            raise BadObjectError(common, "file is missing, and there is no folder intrinsics/ either")
        found = _read_common_intrinsics(common)
        return [functools.partial(scaled_K, common, found.K, found.size)] * len(images), found.world_to_camera
    # Only intrinsics.txt says which size it is for, and copies of the release have per-view files for larger images.
    paths = _files_of_views(per_view, images)
    numbers = [_read_numbers(path, (9,), "9 numbers, a row-major K") for path in paths]
    K = [np.reshape(row, (3, 3)) for row in numbers]
    if not common.exists():
        return [functools.partial(scaled_K, path, one, None) for path, one in zip(paths, K, strict=True)], False
    # So only the shape of the frustum can be compared: K divided by the focal length.
    found = _read_common_intrinsics(common)
    for path, one in zip(paths, K, strict=True):
        one = checked_K(path, one)
        difference = np.abs(found.K[:2] / found.K[0, 0] - one[:2] / one[0, 0]).max()
        if difference > _INTRINSICS_TOLERANCE:
            raise BadObjectError(path, "not the camera of intrinsics.txt; delete whichever is wrong")
    return [functools.partial(scaled_K, common, found.K, found.size)] * len(images), found.world_to_camera


class _Common(NamedTuple):
    """The content of intrinsics.txt."""

    K: np.ndarray  # (3, 3)
    size: tuple[float, float] | None  # width and height that K is for; None for those of the pictures
    world_to_camera: bool = False


def _read_common_intrinsics(path: epath.Path) -> _Common:
    expected = "'f cx cy 0.', '0. 0. 0.', '1.' and 'height width', 10 numbers"
    numbers = _read_numbers(path, (10, 11, 16), expected)
    if len(numbers) == 16:
        return _Common(checked_K(path, np.reshape(numbers, (4, 4))[:3, :3]), None)
    focal, cx, cy = numbers[:3]
    # Otherwise the line too many is NSVF's near plane.
    has_flag = len(numbers) == 11 and len(read_text(path).strip().splitlines()[-1].split()) != 2
    height, width = numbers[8:10] if has_flag else numbers[-2:]
    if has_flag and numbers[10] not in (0, 1):
        raise BadObjectError(path, f"expected 0 or 1 (world-to-camera) in the last line, got {numbers[10]:g}")
    K = checked_K(path, [[focal, 0, cx], [0, focal, cy], [0, 0, 1]], (width, height))
    return _Common(K, (width, height), has_flag and numbers[10] == 1)
