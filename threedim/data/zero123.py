"""zero123's renders of Objaverse: ``000.png`` beside ``000.npy``, a 3x4 world-to-camera matrix with Blender's axes.

They come from objaverse-rendering/scripts/blender_script.py of https://github.com/cvlab-columbia/zero123: its
``get_3x4_RT_matrix_from_blender`` saves the inverse of Blender's ``matrix_world`` without a change of axes, and the
camera has a lens of 35 mm on a sensor of 32 mm, a field of view of 49.1 degrees.
"""

from __future__ import annotations

import io
import tokenize

import numpy as np
from etils import epath

from threedim import cameras as cameras_lib
from threedim.data import pictures
from threedim.data.views import BadObjectError, Listing, ViewFiles, blame

_FOCAL = 35 / 32  # in image widths


def is_object(folder: epath.Path) -> bool:
    """Whether a folder has a matrix beside a picture of the same name."""
    return any(_picture(path) is not None for path in folder.glob("*.npy"))


def list_views(folder: epath.Path) -> Listing:
    """The views in the order of their names.

    Raises:
      BadObjectError: if a file is damaged, or a picture or a matrix missing.
    """
    views = []
    for path in sorted(folder.glob("*.npy")):
        picture = _picture(path)
        if picture is None:
            raise BadObjectError(path, f"there is no picture {path.stem}.png beside it")
        with blame(path):
            try:
                matrix = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
            except (EOFError, SyntaxError, tokenize.TokenError) as error:  # a damaged header
                raise ValueError(f"not a NumPy file ({error})") from error
            if matrix.shape not in ((3, 4), (4, 4)) or matrix.dtype.kind not in "fiu":
                raise ValueError(f"expected a 3x4 world-to-camera matrix, got {matrix.dtype} {matrix.shape}")
        matrix = np.concatenate([matrix[:3].astype(np.float64), [[0, 0, 0, 1]]])
        views.append(ViewFiles(picture, path, matrix, _intrinsics))
    return Listing(views, axes="opengl", world_to_camera=True)


def _picture(matrix: epath.Path) -> epath.Path | None:
    return next((path for suffix in pictures.SUFFIXES if (path := matrix.with_suffix(suffix)).exists()), None)


def _intrinsics(width: int, height: int) -> np.ndarray:
    return cameras_lib.intrinsics(_FOCAL * width, (height, width))
