"""Weights to begin a run with, from another run, a file, or the package: for fine-tuning and for larger pictures."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from threedim import pretrained, weights
from threedim.errors import MissingError, UserError
from threedim.training import checkpoints, leaves

PyTree = Any

_POSITION = "position_emb"  # (height, width, channel), the one parameter that has the pictures' size
_LEVEL = re.compile(r"(pose_convs|down_blocks|down_samples|up_blocks|up_samples)_(\d+)(.*)", re.DOTALL)
_ENDS = ("conv_in", "norm_out", "conv_out")  # what the first level's width decides besides


def read_initial(path: epath.PathLike, shapes: PyTree, fresh: Callable[[], PyTree]) -> tuple[PyTree, str]:
    """Averaged weights of a trained network, for one that may draw pictures of another size.

    The learned embedding of the position is resized, linearly, to the new size. A network with more levels than the
    trained one has them around it: its last levels, which see pictures as small as before, are the trained ones, the
    levels before them are fresh, of which the last must have as many channels as the trained one's first, and so are
    the first and the last convolution. All else must fit as it is.

    Args:
      path: folder of a run, of which the newest checkpoint is taken; a .safetensors file; or the name of weights that
        come with the package.
      shapes: of the parameters that are wanted.
      fresh: makes parameters that nothing has trained; asked where there are more levels.

    Returns:
      The parameters, float32 on the host, and a line that says where they come from.

    Raises:
      FileNotFoundError: if there is no such run, file or name.
      CheckpointError, WeightsError: if it is damaged.
      ValueError: if a parameter is missing, left over or of another shape; lists them.
    """
    source = pretrained.resolve(path)
    if weights.is_weights_file(source):
        info, found = weights.load_weights(source)
        step = info.training_steps
    else:
        step = checkpoints.latest_step(source)
        if step is None:
            raise MissingError(f"train.init_from: no checkpoint in {source}")
        found = checkpoints.restore_params(source, step=step)
    # From here on NumPy's: under a mesh JAX refuses arrays that are on one of its devices.
    found, wanted = leaves.by_path(jax.device_get(found)), leaves.by_path(shapes)
    more_levels = _levels(wanted) - _levels(found)
    if more_levels > 0:
        inner = {_deeper(name, more_levels): array for name, array in found.items() if not name.startswith(_ENDS)}
        outer = leaves.by_path(jax.device_get(fresh()))
        found = {name: array for name, array in outer.items() if _is_outer(name, more_levels)} | inner
    size = found[_POSITION].shape[0] if _POSITION in found else None
    if size and _POSITION in wanted and found[_POSITION].shape[2:] == wanted[_POSITION].shape[2:]:
        resized = jax.image.resize(found[_POSITION], wanted[_POSITION].shape, "linear")
        found[_POSITION] = jax.device_get(resized)
    problems = [
        f"{name}: {_shape(found, name)} there, {_shape(wanted, name)} here"
        for name in sorted(found.keys() | wanted.keys())
        if _shape(found, name) != _shape(wanted, name)
    ]
    if problems:
        more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise UserError(
            f"train.init_from: the weights in {source} do not fit the network of config.model:\n  "
            + "\n  ".join([*problems[:20], *more])
        )
    values = [np.asarray(found[name], np.float32) for name in wanted]
    line = f"starting from {path}, trained for {step:,} steps at {size} px"
    if more_levels > 0:
        line += f", with {more_levels} fresh level(s) around it"
    return jax.tree.unflatten(jax.tree.structure(shapes), values), line


def _levels(arrays: dict[str, Any]) -> int:
    """Levels of the network that has these parameters."""
    return len({match[2] for match in map(_LEVEL.fullmatch, arrays) if match and match[1] == "pose_convs"})


def _deeper(name: str, levels: int) -> str:
    """The name of a parameter with so many levels before its own."""
    match = _LEVEL.fullmatch(name)
    return f"{match[1]}_{int(match[2]) + levels}{match[3]}" if match else name


def _is_outer(name: str, levels: int) -> bool:
    """Whether a parameter belongs to the first so many levels, or to the network's ends."""
    match = _LEVEL.fullmatch(name)
    return int(match[2]) < levels if match else name.startswith(_ENDS)


def _shape(arrays: dict[str, Any], name: str) -> str:
    return str(list(arrays[name].shape)) if name in arrays else "none"
