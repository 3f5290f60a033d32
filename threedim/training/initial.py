"""Weights to begin a run with, from another run, a file, or the package: for fine-tuning and for larger pictures."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from etils import epath

from threedim import pretrained, weights
from threedim.training import checkpoints, leaves

PyTree = Any

_POSITION = "position_emb"  # (height, width, channel), the one parameter that has the pictures' size


def read_initial(path: epath.PathLike, shapes: PyTree) -> tuple[PyTree, str]:
    """Averaged weights of a trained network, for one that may draw pictures of another size.

    The learned embedding of the position is resized, linearly, to the new size; all else must fit as it is.

    Args:
      path: folder of a run, of which the newest checkpoint is taken; a .safetensors file; or the name of weights that
        come with the package.
      shapes: of the parameters that are wanted.

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
            raise FileNotFoundError(f"train.init_from: no checkpoint in {source}")
        found = checkpoints.restore_params(source, step=step)
    # From here on NumPy's: under a mesh JAX refuses arrays that are on one of its devices.
    found, wanted = leaves.by_path(jax.device_get(found)), leaves.by_path(shapes)
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
        raise ValueError(
            f"train.init_from: the weights in {source} do not fit the network of config.model:\n  "
            + "\n  ".join([*problems[:20], *more])
        )
    values = [np.asarray(found[name], np.float32) for name in wanted]
    line = f"starting from {path}, trained for {step:,} steps at {size} px"
    return jax.tree.unflatten(jax.tree.structure(shapes), values), line


def _shape(arrays: dict[str, Any], name: str) -> str:
    return str(list(arrays[name].shape)) if name in arrays else "none"
