"""Parameters to begin a run with, taken from a trained network that may be smaller: ``config.train.init_from``."""

from __future__ import annotations

import math
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
_WIDTH = "mid_block/res/conv1/bias"  # (channel,) of the last level
_FIXED = (_POSITION, "frame_emb", "logsnr_dense", "pose_convs")  # have embeddings' channels
_PART = 0.1  # how differently equal channels are weighed, relative to the weights; summed over them nothing changes
_ENDS = ("conv_in", "norm_out", "conv_out")  # their shapes depend on the width of the first level


def fit_params(trained: PyTree, shapes: PyTree, fresh: Callable[[], PyTree]) -> tuple[PyTree, str]:
    """Fits trained parameters to a network of another image size, with more levels, or a multiple of the channels.

    The learned position embedding is resized linearly. If the network has more levels, the trained ones become its
    last levels, which work at the same resolutions as before; the levels in front of them, and the first and last
    convolution, are fresh. If all trained levels have the same multiple of the channels, each trained channel becomes
    as many equal ones, so that these levels compute what they did; that their readers weigh them a little differently
    lets them part in training. All other parameters must have equal shapes.

    Args:
      trained: trained parameters.
      shapes: shapes of the parameters that are wanted.
      fresh: returns initial parameters; called only if there are more levels.

    Returns:
      The parameters, float32 on the host, and what became of the trained ones, for people.

    Raises:
      UserError: if parameters are missing, left over or have other shapes; lists them.
    """
    # NumPy from here on: under a mesh JAX refuses arrays that are on one of its devices.
    found, wanted = arrays_lib.by_path(jax.device_get(trained)), arrays_lib.by_path(shapes)
    levels = max(_count_levels(wanted) - _count_levels(found), 0)
    factor, rest = divmod(wanted[_WIDTH].size, found[_WIDTH].size)
    factor = 1 if rest else factor
    if levels:
        found = {_deeper(name, levels): array for name, array in found.items() if not name.startswith(_ENDS)}
    inner, used = list(found), sum(array.size for array in found.values())
    if factor > 1:
        widened = [name for name in inner if name in wanted and not name.startswith(_FIXED)]
        found |= {name: _widened(name, found[name], wanted[name].shape, factor) for name in widened}
    if levels:
        outer = arrays_lib.by_path(jax.device_get(fresh()))
        found |= {name: array for name, array in outer.items() if _is_outer(name, levels)}
    if found[_POSITION].shape[2:] == wanted[_POSITION].shape[2:]:
        found[_POSITION] = jax.device_get(jax.image.resize(found[_POSITION], wanted[_POSITION].shape, "linear"))
    if problems := arrays_lib.mismatches(found, wanted, dtypes=False):
        raise UserError(
            f"train.init_from: the trained weights do not fit config.model:\n  {arrays_lib.listed(problems)}"
        )
    filled, total = (sum(wanted[name].size for name in names) for names in (inner, wanted))
    said = f"{used:,} trained parameters make {filled:,} of {total:,}"
    said += f", {factor} channels of each" if factor > 1 else ""
    said += f", with {levels} fresh level(s) and the first and last convolution around them" if levels else ""
    return arrays_lib.like(shapes, {name: np.asarray(array, np.float32) for name, array in found.items()}), said


def _widened(name: str, array: np.ndarray, shape: tuple[int, ...], factor: int) -> np.ndarray:
    """A parameter with ``factor`` equal channels in place of each, on those of its axes that ``shape`` has so long."""
    times = [factor if new == factor * old else 1 for old, new in zip(array.shape, shape, strict=False)]
    for axis, count in enumerate(times):
        array = np.repeat(array, count, axis)
    if len(times) > 1 and times[-2] > 1:  # a kernel, which sums over its inputs
        share = np.tile(np.linspace(-_PART, _PART, factor), array.shape[-2] // factor)[:, None]
        array = (array + share * np.roll(array, 1, axis=-1)) / factor
    # Attention divides by the root of the channels of a head.
    return array / math.sqrt(factor) if "/query/" in name else array


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
