"""LPIPS: the distance of two pictures in the features of VGG16 (Zhang et al. 2018), version 0.1.

3DiM's paper does not report it; PixelNeRF, VisionNeRF and Splatter Image do. Its weights are two downloads: those of a
classifier ("backbone"), and a few hundred trained on human judgments ("lin").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from threedim.errors import MissingError, UserError
from threedim.evaluation.metrics import torch_files
from threedim.evaluation.metrics.batches import Batches, check_pictures

NAME = "VGG16"
SMALLEST = 16  # pixels of a picture's side, for the last feature map to have one
HOW_TO_GET_WEIGHTS = (
    "download https://download.pytorch.org/models/vgg16-397923af.pth (about 528 MB), and take "
    "lpips/weights/v0.1/vgg.pth (7 kB) from the Python package lpips, whose wheel (pip download --no-deps lpips) is "
    "a zip; both are read without executing anything in them, and .npz or .safetensors files with the same names work"
)

# The backbone expects pictures normalized by the mean and deviation of ImageNet; these are those for [-1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10

# (index in torchvision's network, channels) of the convolutions. The feature map after each stage is compared, and all
# stages but the first begin with a max pool.
_STAGES = (
    ((0, 64), (2, 64)),
    ((5, 128), (7, 128)),
    ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)),
    ((24, 512), (26, 512), (28, 512)),
)
_PUBLISHED = {"backbone": "397923af", "lin": "a78928a0"}  # how the sha256 of the published files begin


class Features(nn.Module):
    """The feature maps of VGG16 that LPIPS compares."""

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """(batch, height, width, 3) float32 in [-1, 1] to maps (batch, h, w, channel) of unit length over channels."""
        x = (images - jnp.array(_SHIFT)) / jnp.array(_SCALE)
        maps = []
        for number, stage in enumerate(_STAGES):
            if number:
                x = nn.max_pool(x, (2, 2), (2, 2), "VALID")
            for index, channels in stage:
                # The default precision of a TPU, or of a GPU with TensorFloat32, has 8 to 11 bits.
                conv = nn.Conv(channels, (3, 3), precision=jax.lax.Precision.HIGHEST, name=f"features_{index}")
                x = nn.relu(conv(x))
            length = jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))
            maps.append(x / (length + _EPSILON))
        return tuple(maps)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters of LPIPS.

    Attributes:
      backbone: parameters of `Features`.
      lin: (channel,) float32 for each compared map.
    """

    backbone: dict[str, Any]
    lin: tuple[np.ndarray, ...]


def backbone_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of the backbone's entries without its classifier, convolutions as (out, in, height, width)."""
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for index, channels in (conv for stage in _STAGES for conv in stage):
        shapes[f"features.{index}.weight"], shapes[f"features.{index}.bias"] = (channels, inputs, 3, 3), (channels,)
        inputs = channels
    return shapes


def lin_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of the entries that weight the channels of the compared maps."""
    return {f"lin{i}.model.1.weight": (1, stage[-1][1], 1, 1) for i, stage in enumerate(_STAGES)}


def make_weights(
    backbone: Mapping[str, np.ndarray], lin: Mapping[str, np.ndarray], sources: tuple[str, str] = ("backbone", "lin")
) -> Weights:
    """Parameters from the entries of the published files; the backbone's classifier may be missing.

    Raises:
      UserError: if entries are missing, left over, of a wrong shape or not finite, or lin weights are negative.
    """
    features = {name: array for name, array in backbone.items() if not name.startswith("classifier.")}
    torch_files.check_entries(features, backbone_shapes(), f"{sources[0]}, read as torchvision's VGG16")
    torch_files.check_entries(lin, lin_shapes(), f"{sources[1]}, read as lin weights of VGG16")
    for source, state in zip(sources, (features, lin), strict=True):
        wrong = [name for name, array in state.items() if not np.isfinite(array).all()]
        if wrong:
            raise UserError(f"{source}: not finite: {', '.join(wrong)}")
    wrong = [name for name, array in lin.items() if (array < 0).any()]
    if wrong:
        raise UserError(f"{sources[1]}: negative weights, which make negative distances: {', '.join(wrong)}")
    params = {}
    for index, _ in (conv for stage in _STAGES for conv in stage):
        kernel, bias = (np.asarray(features[f"features.{index}.{part}"], np.float32) for part in ("weight", "bias"))
        params[f"features_{index}"] = {"kernel": np.transpose(kernel, (2, 3, 1, 0)), "bias": bias}
    return Weights(params, tuple(np.asarray(lin[name], np.float32).ravel() for name in lin_shapes()))


def load_weights(backbone: epath.PathLike, lin: epath.PathLike) -> Weights:
    """Parameters from two files: `.pth`, `.npz` or `.safetensors`.

    Raises:
      MissingError: if a file does not exist; the message says how to get it.
      UserError: if a file is damaged or holds something else.
    """
    for path in (backbone, lin):
        if not epath.Path(path).is_file():
            raise MissingError(f"{path}: no such file, which LPIPS needs; {HOW_TO_GET_WEIGHTS}")
    states = (torch_files.read_state_dict(path) for path in (backbone, lin))
    return make_weights(*states, sources=(str(backbone), str(lin)))


def not_as_published(backbone: Mapping[str, str], lin: Mapping[str, str]) -> list[str]:
    """A warning for each file, given by "name" and "sha256", that is not the published one.

    Names and shapes do not tell: other VGG16 have the same, and so have the lin weights of version 0.0.
    """
    return [
        f"LPIPS: {file['name']} is not the published file of weights ({_PUBLISHED[kind]}...) by its sha256; unless it "
        "was converted from that, figures compare only with others by this file"
        for kind, file in (("backbone", backbone), ("lin", lin))
        if not file["sha256"].startswith(_PUBLISHED[kind])
    ]


@jax.jit
def _distances(params: Any, truth: jax.Array, others: Sequence[jax.Array]) -> list[jax.Array]:
    def maps(pictures: jax.Array) -> tuple[jax.Array, ...]:
        return Features().apply({"params": params["backbone"]}, pictures.astype(jnp.float32) / 127.5 - 1.0)

    true = maps(truth)
    return [
        sum(
            jnp.mean(jnp.sum(weight * (a - b) ** 2, axis=-1), axis=(1, 2))
            for a, b, weight in zip(true, maps(pictures), params["lin"], strict=True)
        )
        for pictures in others
    ]


class PerceptualDistance:
    """LPIPS of any number of pictures, in chunks, sharded over this process's devices.

    Args:
      weights: from `load_weights`.
      chunk_size: true pictures per device and call (about 50 MB each at 128 px).
      devices: all of this process if None.
    """

    name, smallest = NAME, SMALLEST

    def __init__(self, weights: Weights, *, chunk_size: int = 16, devices: Sequence[jax.Device] | None = None):
        self._batches = Batches(chunk_size, devices)
        params = {"backbone": weights.backbone, "lin": weights.lin}
        self._params = jax.device_put(params, self._batches.everywhere)

    def __call__(self, truth: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
        """Distances of sets of pictures from the true ones, whose features are computed once.

        Args:
          truth: (picture, height, width, 3) uint8.
          others: each of the same shape, or a single picture that is compared with all.

        Returns:
          For each of the others (picture,) float64, 0 for equal pictures.

        Raises:
          UserError: if shapes or dtypes are wrong, or pictures are too small.
        """
        for images in (truth, *others):
            check_pictures("lpips: pictures", images)
            if images.ndim != 4 or images.shape[1:] != truth.shape[1:] or len(images) not in (1, len(truth)):
                raise UserError(f"lpips: pictures {images.shape} cannot be compared with true ones {truth.shape}")
        if min(truth.shape[1:3]) < SMALLEST:
            raise UserError(f"lpips: pictures {truth.shape} are smaller than the {SMALLEST} px that {NAME} needs")
        found = [np.empty(len(truth)) for _ in others]
        for rows, (true, *chunks) in self._batches(truth, *others):
            for each, part in zip(found, _distances(self._params, true, chunks), strict=True):
                each[rows] = np.asarray(part)[: rows.stop - rows.start]
        return found
