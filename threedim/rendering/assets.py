"""Files that a mesh file refers to: found however their names are written, and read with clear errors."""

from __future__ import annotations

import io
import pathlib
import urllib.parse
import warnings

import numpy as np
import PIL.Image

from threedim import files
from threedim.errors import MissingError, UserError

# Not all that Pillow knows: its reader of EPS runs other programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TGA", "TIFF", "GIF", "DDS", "PPM")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def find(folder: pathlib.Path, name: str) -> pathlib.Path:
    r"""The file ``name``, as written in a file of ``folder``: / or \\ between folders, letters of either case.

    Raises:
      MissingError: if there is no such file, or if it is not to be read (`files.leads_out`).
    """
    path, shown = folder, name if len(name) <= 120 else f"{name[:120]}..."
    try:
        for part in pathlib.PurePosixPath(name.replace("\\", "/")).parts:
            exact = path / part
            if not exact.exists() and path.is_dir():
                exact = next((child for child in sorted(path.iterdir()) if child.name.lower() == part.lower()), exact)
            path = exact
        found = path.is_file()
    except (OSError, ValueError) as error:  # not a name that the file system takes, or a folder that is not readable
        raise MissingError(f"{shown} cannot be opened ({getattr(error, 'strerror', error)})") from error
    if not found:
        raise MissingError(f"{shown} is missing")
    if problem := files.leads_out(path):
        raise MissingError(f"{shown} {problem}")
    return path


def search(folder: pathlib.Path, name: str) -> pathlib.Path:
    """As `find`, for names that may be quoted or percent-encoded.

    Of a path that does not exist here, such as an absolute one of another computer, the last part is looked up in
    ``folder``.
    """
    name = name.strip().strip("\"'").strip()
    names, problems = [name, urllib.parse.unquote(name)], []
    for candidate in dict.fromkeys(names + [each.replace("\\", "/").rsplit("/", 1)[-1] for each in names]):
        try:
            return find(folder, candidate)
        except MissingError as error:
            problems.append(error)
    raise problems[0]


def decode(name: bytes) -> str:
    """A name in the file: UTF-8, or else Latin-1."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")


def read(path: pathlib.Path) -> bytes:
    """Bytes of a file.

    Raises:
      UserError: if it is empty or a pointer of Git LFS.
    """
    data = path.read_bytes()
    if not data:
        raise UserError(f"{path}: is empty")
    if data.startswith(_LFS_POINTER):
        raise UserError(f"{path}: is a pointer of Git LFS, not the file itself; run `git lfs pull`")
    return data


def image(data: bytes, name: str) -> np.ndarray:
    """(height, width, 4) uint8 RGBA of an encoded picture.

    Raises:
      UserError: if it cannot be decoded, or has more than about 179 million pixels.
    """
    try:
        with warnings.catch_warnings(action="ignore"), PIL.Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            if picture.mode.startswith("I"):  # 16-bit gray, which Pillow would clip
                picture = PIL.Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
            return np.asarray(picture.convert("RGBA"))
    except PIL.Image.DecompressionBombError as error:
        raise UserError(f"{name} is too large for Pillow ({error}); scale it down") from error
    except PIL.UnidentifiedImageError as error:
        raise UserError(f"{name} is not a picture of a known kind ({', '.join(_FORMATS)})") from error
    except Exception as error:  # decoders of damaged pictures raise OSError, SyntaxError, ValueError, struct.error...
        raise UserError(f"{name} is damaged ({type(error).__name__}: {error})") from error
