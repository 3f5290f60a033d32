"""Parameters to begin a run with, taken from a trained network that may be smaller: ``config.train.init_from``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from threedim import arrays as arrays_lib
from threedim.errors import UserError

PyTree = Any

_POSITION = "position_emb"  # (height, width, channel), the one parameter whose shape depends on the image size
_LEVEL = re.compile(r"(pose_convs|down_blocks|down_samples|up_blocks|up_samples)_(\d+)(.*)", re.DOTALL)
_ENDS = ("conv_in", "norm_out", "conv_out")  # their shapes depend on the width of the first level


def fit_params(trained: PyTree, shapes: PyTree, fresh: Callable[[], PyTree]) -> tuple[PyTree, int]:
    """Fits trained parameters to a network of another image size, or with more levels.

    The learned position embedding is resized linearly. If the network has more levels, the trained ones become its
    last levels, which work at the same resolutions as before; the levels in front of them, and the first and last
    convolution, are fresh. All other parameters must have equal shapes.

    Args:
      trained: trained parameters.
      shapes: shapes of the parameters that are wanted.
      fresh: returns initial parameters; called only if there are more levels.

    Returns:
      The parameters, float32 on the host, and the number of fresh levels.

    Raises:
      UserError: if parameters are missing, left over or have other shapes; lists them.
    """
    # NumPy from here on: under a mesh JAX refuses arrays that are on one of its devices.
    found, wanted = arrays_lib.by_path(jax.device_get(trained)), arrays_lib.by_path(shapes)
    levels = _count_levels(wanted) - _count_levels(found)
    if levels > 0:
        inner = {_deeper(name, levels): array for name, array in found.items() if not name.startswith(_ENDS)}
        outer = arrays_lib.by_path(jax.device_get(fresh()))
        found = {name: array for name, array in outer.items() if _is_outer(name, levels)} | inner
    if found[_POSITION].shape[2:] == wanted[_POSITION].shape[2:]:
        found[_POSITION] = jax.device_get(jax.image.resize(found[_POSITION], wanted[_POSITION].shape, "linear"))
    if problems := arrays_lib.mismatches(found, wanted, dtypes=False):
        raise UserError(
            f"train.init_from: the trained weights do not fit config.model:\n  {arrays_lib.listed(problems)}"
        )
    params = arrays_lib.like(shapes, {name: np.asarray(array, np.float32) for name, array in found.items()})
    return params, max(levels, 0)


def _count_levels(arrays: dict[str, Any]) -> int:
    return len({match[2] for match in map(_LEVEL.fullmatch, arrays) if match and match[1] == "pose_convs"})


def _deeper(name: str, levels: int) -> str:
    """The name of a parameter with ``levels`` more levels in front of its own."""
    match = _LEVEL.fullmatch(name)
    return f"{match[1]}_{int(match[2]) + levels}{match[3]}" if match else name


def _is_outer(name: str, levels: int) -> bool:
    """Whether a parameter belongs to one of the first ``levels`` levels, or to the first or last convolution."""
    match = _LEVEL.fullmatch(name)
    return int(match[2]) < levels if match else name.startswith(_ENDS)
