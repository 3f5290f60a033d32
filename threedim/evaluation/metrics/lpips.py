"""LPIPS: the distance of two pictures in the features of VGG16 (Zhang et al. 2018), version 0.1.

3DiM's paper does not report it; PixelNeRF, VisionNeRF and Splatter Image do. Its weights are two downloads: those of a
classifier ("backbone"), and a few hundred trained on human judgments ("lin").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from threedim import files
from threedim.errors import MissingError, UserError
from threedim.evaluation.metrics import torch_files
from threedim.evaluation.metrics.batches import Batched, check_pictures

HOW_TO_GET_WEIGHTS = (
    "download https://download.pytorch.org/models/vgg16-397923af.pth (about 528 MB), and take "
    "lpips/weights/v0.1/vgg.pth (7 kB) from the Python package lpips, whose wheel (pip download --no-deps lpips) is "
    "a zip; both are read without executing anything in them, and .npz or .safetensors files with the same names work"
)

# Mean and standard deviation of ImageNet, which the backbone expects, converted to pictures in [-1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

# (index in torchvision's network, channels) of the convolutions. LPIPS compares the feature map after each stage, and
# every stage but the first begins with a max pool.
_STAGES = (
    ((0, 64), (2, 64)),
    ((5, 128), (7, 128)),
    ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)),
    ((24, 512), (26, 512), (28, 512)),
)
_CONVS = [conv for stage in _STAGES for conv in stage]
Weights = dict[str, Any]  # "backbone": parameters of `Features`; "lin": (channel,) float32 for each compared map
_PUBLISHED = {"backbone": "397923af", "lin": "a78928a0"}  # first digits of the published files' sha256


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
            maps.append(x / (jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True)) + 1e-10))
        return tuple(maps)


def backbone_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of the backbone's entries without its classifier, convolutions as (out, in, height, width)."""
    shapes, inputs = {}, 3
    for index, channels in _CONVS:
        shapes |= {f"features.{index}.weight": (channels, inputs, 3, 3), f"features.{index}.bias": (channels,)}
        inputs = channels
    return shapes


def lin_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of the entries that weight the channels of the compared maps."""
    return {f"lin{i}.model.1.weight": (1, stage[-1][1], 1, 1) for i, stage in enumerate(_STAGES)}


def load_weights(backbone: epath.PathLike, lin: epath.PathLike) -> Weights:
    """Parameters from the two published files, or `.npz` or `.safetensors` files with the same names.

    The backbone's classifier is ignored and may be missing. Raises `MissingError`, which says how to get a file, or
    `UserError` for other entries, values that are not finite, or negative lin weights.
    """
    for path in (backbone, lin):
        if not files.is_file(path):
            raise MissingError(f"{path}: no such file, so no LPIPS; {HOW_TO_GET_WEIGHTS}")
    features, heads = torch_files.read_state_dict(backbone), torch_files.read_state_dict(lin)
    features = {name: array for name, array in features.items() if not name.startswith("classifier.")}
    torch_files.check_entries(features, backbone_shapes(), f"{backbone}, read as torchvision's VGG16")
    torch_files.check_entries(heads, lin_shapes(), f"{lin}, read as lin weights of VGG16")
    for path, state in ((backbone, features), (lin, heads)):
        if wrong := [name for name, array in state.items() if not np.isfinite(array).all()]:
            raise UserError(f"{path}: not finite: {', '.join(wrong)}")
    if wrong := [name for name, array in heads.items() if (array < 0).any()]:
        raise UserError(f"{lin}: negative weights, which would make distances negative: {', '.join(wrong)}")
    params = {}
    for index, _ in _CONVS:
        kernel, bias = (features[f"features.{index}.{part}"].astype(np.float32) for part in ("weight", "bias"))
        params[f"features_{index}"] = {"kernel": np.transpose(kernel, (2, 3, 1, 0)), "bias": bias}
    return {"backbone": params, "lin": [heads[name].astype(np.float32).ravel() for name in lin_shapes()]}


def not_as_published(backbone: Mapping[str, str], lin: Mapping[str, str]) -> list[str]:
    """A warning for each file, given by "name" and "sha256", that is not the published one.

    Other VGG16 networks have the same names and shapes, as have the lin weights of version 0.0.
    """
    given = (backbone, _PUBLISHED["backbone"]), (lin, _PUBLISHED["lin"])
    return [warning for file in given for warning in torch_files.not_as_published("LPIPS", *file)]


@jax.jit
def _distances(params: Weights, truth: jax.Array, *others: jax.Array) -> list[jax.Array]:
    def maps(pictures: jax.Array) -> tuple[jax.Array, ...]:
        return Features().apply({"params": params["backbone"]}, pictures.astype(jnp.float32) / 127.5 - 1.0)

    def distance(a: jax.Array, b: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.mean(jnp.sum(weight * (a - b) ** 2, axis=-1), axis=(1, 2))

    true = maps(truth)
    return [sum(map(distance, true, maps(pictures), params["lin"])) for pictures in others]


class PerceptualDistance:
    """LPIPS by weights from `load_weights`, for ``chunk_size`` true pictures (50 MB each) per device and call."""

    name, smallest = "VGG16", 16  # pixels of the shorter side that leave one pixel in the last feature map

    def __init__(self, weights: Weights, *, chunk_size: int = 16):
        self._distances = Batched(_distances, weights, chunk_size)

    def __call__(self, truth: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
        """Distances of sets of pictures from the true ones, (picture,) float64 for each set, 0 for equal pictures.

        Args:
          truth: (picture, height, width, 3) uint8, at least 16 px high and wide.
          others: each of the same shape, or a single picture that is compared with all.
        """
        for images in (truth, *others):
            check_pictures("lpips: pictures", images)
            if images.ndim != 4 or images.shape[1:] != truth.shape[1:] or len(images) not in (1, len(truth)):
                raise UserError(f"lpips: pictures {images.shape} cannot be compared with true ones {truth.shape}")
        if min(truth.shape[1:3]) < self.smallest:
            needed = f"the {self.smallest} px that {self.name} needs"
            raise UserError(f"lpips: pictures {truth.shape} are smaller than {needed}")
        return [each.astype(np.float64) for each in self._distances(truth, *others)]
