"""The network of the original FID code: Inception v3 as published in 2015 (Heusel et al. 2017).

Other Inception networks, even with the same layers, have other weights and give other distances: FIDs are comparable
only if they were computed with this one. Its weights are a download.
"""

from __future__ import annotations

import functools
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

NUM_FEATURES = 2048
HOW_TO_GET_WEIGHTS = (
    "download https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth (about 95 MB); it is read without executing anything in it, and a .npz or "
    ".safetensors file with the same names works"
)

_PUBLISHED = "6726825d"  # first digits of the published file's sha256, as its name says
_SIDE, _NUM_CLASSES, _EPSILON = 299, 1008, 1e-3
_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")

_max_pool = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))
# Over the neighbors that are inside the map.
_mean_pool = functools.partial(nn.avg_pool, window_shape=(3, 3), padding="SAME", count_include_pad=False)
_Kernel = tuple[int, int]
_1x1, _3x3, _5x5, _1x7, _7x1, _1x3, _3x1 = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1), (1, 3), (3, 1)


class InceptionV3(nn.Module):
    """The network up to its features ("pool3"), with the published names of layers.

    `fold` merges the batch normalization that follows each convolution there into kernel and bias.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """(batch, 299, 299, 3) float32 in [-1, 1] to features (batch, 2048)."""
        x = _conv(images, "Conv2d_1a_3x3", 32, _3x3, stride=2)
        x = _conv(x, "Conv2d_2a_3x3", 32, _3x3, padding="VALID")
        x = _conv(x, "Conv2d_2b_3x3", 64, _3x3)
        x = _max_pool(x)
        x = _conv(x, "Conv2d_3b_1x1", 80, _1x1)
        x = _conv(x, "Conv2d_4a_3x3", 192, _3x3, padding="VALID")
        x = _max_pool(x)
        for letter, pool_features in zip("bcd", (32, 64, 64), strict=True):
            block = f"Mixed_5{letter}."
            x = _join(
                _conv(x, f"{block}branch1x1", 64, _1x1),
                _chain(x, f"{block}branch5x5", (48, _1x1), (64, _5x5)),
                _chain(x, f"{block}branch3x3dbl", (64, _1x1), (96, _3x3), (96, _3x3)),
                _conv(_mean_pool(x), f"{block}branch_pool", pool_features, _1x1),
            )
        double = _chain(x, "Mixed_6a.branch3x3dbl", (64, _1x1), (96, _3x3))
        x = _join(
            _conv(x, "Mixed_6a.branch3x3", 384, _3x3, stride=2),
            _conv(double, "Mixed_6a.branch3x3dbl_3", 96, _3x3, stride=2),
            _max_pool(x),
        )
        for letter, c in zip("bcde", (128, 160, 160, 192), strict=True):
            block = f"Mixed_6{letter}."
            x = _join(
                _conv(x, f"{block}branch1x1", 192, _1x1),
                _chain(x, f"{block}branch7x7", (c, _1x1), (c, _1x7), (192, _7x1)),
                _chain(x, f"{block}branch7x7dbl", (c, _1x1), (c, _7x1), (c, _1x7), (c, _7x1), (192, _1x7)),
                _conv(_mean_pool(x), f"{block}branch_pool", 192, _1x1),
            )
        single = _chain(x, "Mixed_7a.branch3x3", (192, _1x1))
        cross = _chain(x, "Mixed_7a.branch7x7x3", (192, _1x1), (192, _1x7), (192, _7x1))
        x = _join(
            _conv(single, "Mixed_7a.branch3x3_2", 320, _3x3, stride=2),
            _conv(cross, "Mixed_7a.branch7x7x3_4", 192, _3x3, stride=2),
            _max_pool(x),
        )
        for letter in "bc":
            block = f"Mixed_7{letter}."
            single = _chain(x, f"{block}branch3x3", (384, _1x1))
            double = _chain(x, f"{block}branch3x3dbl", (448, _1x1), (384, _3x3))
            # As published; the other blocks of this kind, and those of the paper, pool by the mean.
            pooled = _max_pool(x, strides=(1, 1), padding="SAME") if letter == "c" else _mean_pool(x)
            x = _join(
                _conv(x, f"{block}branch1x1", 320, _1x1),
                _conv(single, f"{block}branch3x3_2a", 384, _1x3),
                _conv(single, f"{block}branch3x3_2b", 384, _3x1),
                _conv(double, f"{block}branch3x3dbl_3a", 384, _1x3),
                _conv(double, f"{block}branch3x3dbl_3b", 384, _3x1),
                _conv(pooled, f"{block}branch_pool", 192, _1x1),
            )
        return x.mean(axis=(1, 2))


def _conv(x: jax.Array, name: str, channels: int, kernel: _Kernel, stride: int = 1, padding: str = "SAME") -> jax.Array:
    """Convolution and ReLU; padded to keep the size unless strided."""
    padding = padding if stride == 1 else "VALID"
    # The default precision of a TPU, or of a GPU with TensorFloat32, has 8 to 11 bits.
    precision = jax.lax.Precision.HIGHEST
    return nn.relu(nn.Conv(channels, kernel, stride, padding, precision=precision, name=name)(x))


def _chain(x: jax.Array, branch: str, *layers: tuple[int, _Kernel]) -> jax.Array:
    """Convolutions BRANCH_1, BRANCH_2, ... of the given channels and kernels."""
    for number, (channels, kernel) in enumerate(layers, 1):
        x = _conv(x, f"{branch}_{number}", channels, kernel)
    return x


def _join(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


@jax.jit
def prepare(images: jax.Array) -> jax.Array:
    """(batch, 299, 299, 3) float32 in [-1, 1] from uint8, or float in [0, 1], resized as in the original FID code."""
    images = images.astype(jnp.float32) / (255.0 if images.dtype == jnp.uint8 else 1.0)
    shape = (len(images), _SIDE, _SIDE, images.shape[-1])
    return 2.0 * jax.image.resize(images, shape, "bilinear", antialias=False) - 1.0


def entry_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every entry of the published weights, convolutions as (out, in, height, width)."""
    image = jax.ShapeDtypeStruct((1, _SIDE, _SIDE, 3), jnp.float32)
    params = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"]
    shapes = {}
    for layer, arrays in params.items():
        height, width, inputs, outputs = arrays["kernel"].shape
        shapes[f"{layer}.conv.weight"] = (outputs, inputs, height, width)
        shapes |= dict.fromkeys((f"{layer}.bn.{part}" for part in _NORM_PARTS), (outputs,))
        shapes[f"{layer}.bn.num_batches_tracked"] = ()
    # The classifier comes after the features and is not used.
    return shapes | {"fc.weight": (_NUM_CLASSES, NUM_FEATURES), "fc.bias": (_NUM_CLASSES,)}


def fold(state: Mapping[str, np.ndarray], source: str = "weights") -> dict[str, Any]:
    """Parameters of `InceptionV3` from the published entries; `UserError` for other entries or values.

    What the features do not need may be missing: the classifier "fc.*" and "num_batches_tracked".
    """
    shapes = entry_shapes()
    unused = [name for name in shapes if name.startswith("fc.") or name.endswith(".num_batches_tracked")]
    torch_files.check_entries(state, shapes, source, unused)
    params = {}
    for layer in (name.removesuffix(".conv.weight") for name in state if name.endswith(".conv.weight")):
        scale, shift, mean, variance = (np.asarray(state[f"{layer}.bn.{part}"], np.float64) for part in _NORM_PARTS)
        if not (variance >= 0).all():  # also for NaN
            raise UserError(f"{source}: {layer}.bn.running_var has negative or undefined values")
        scale = scale / np.sqrt(variance + _EPSILON)
        kernel = np.transpose(np.asarray(state[f"{layer}.conv.weight"], np.float64), (2, 3, 1, 0)) * scale
        bias = shift - mean * scale
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise UserError(f"{source}: weights of {layer} are not finite")
        params[layer] = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
    return params


def load_params(path: epath.PathLike) -> dict[str, Any]:
    """Parameters of `InceptionV3` from a `.pth`, `.npz` or `.safetensors` file; raises as `read_state_dict`."""
    if not files.is_file(path):
        raise MissingError(f"{path}: no such file, so no FID; {HOW_TO_GET_WEIGHTS}")
    return fold(torch_files.read_state_dict(path), str(path))


def not_as_published(file: Mapping[str, str]) -> list[str]:
    """A warning if a file, given by "name" and "sha256", is not the published one: other weights, other distances."""
    return torch_files.not_as_published("FID", file, _PUBLISHED)


# Separate from the resizing, so that pictures of another size do not recompile the network.
@jax.jit
def _features(params: Any, images: jax.Array) -> jax.Array:
    return InceptionV3().apply({"params": params}, images)


class FeatureExtractor:
    """Features by parameters from `load_params`, for ``chunk_size`` pictures (40 MB each) per device and call."""

    num_features = NUM_FEATURES

    def __init__(self, params: Any, *, chunk_size: int = 32):
        self._features = Batched(lambda params, chunk: _features(params, prepare(chunk)), params, chunk_size)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features (picture, 2048) float32 of pictures (..., height, width, 3) uint8, in row-major order."""
        return self._features(check_pictures("inception: pictures", images))
