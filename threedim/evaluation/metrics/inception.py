"""The network of the original FID code: Inception v3 as published in 2015 (Heusel et al. 2017).

Other Inception networks, even with the same layers, have other weights and give other distances: FIDs compare only if
they were computed with this one. Its weights are a download.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from threedim.errors import MissingError, UserError
from threedim.evaluation.metrics import torch_files
from threedim.evaluation.metrics.batches import Batches, check_pictures, flat

NUM_FEATURES = 2048

HOW_TO_GET_WEIGHTS = (
    "download https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth (about 95 MB); it is read without executing anything in it, and a .npz or "
    ".safetensors file with the same names works"
)

_SIDE = 299
_EPSILON = 1e-3
_NUM_CLASSES = 1008
_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")

# A layer: its name, output channels, kernel (one number for a square one).
_Layer = tuple[str, int, int | tuple[int, int]]


class InceptionV3(nn.Module):
    """The network up to its features ("pool3"); `fold` has merged the normalizations into kernels and biases.

    Modules have the names of the published weights. With ``mutable="intermediates"`` the maps after the first and
    second max pool, the last block at 17 x 17 and the last one at 8 x 8 are returned as block0 to block3.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """(batch, 299, 299, 3) float32 in [-1, 1] to features (batch, 2048)."""
        x = _conv(images, ("Conv2d_1a_3x3", 32, 3), stride=2)
        x = _conv(x, ("Conv2d_2a_3x3", 32, 3), padding="VALID")
        x = _conv(x, ("Conv2d_2b_3x3", 64, 3))
        x = _max_pool(x)
        self.sow("intermediates", "block0", x)
        x = _conv(x, ("Conv2d_3b_1x1", 80, 1))
        x = _conv(x, ("Conv2d_4a_3x3", 192, 3), padding="VALID")
        x = _max_pool(x)
        self.sow("intermediates", "block1", x)
        for letter, pool_features in zip("bcd", (32, 64, 64), strict=True):
            x = _Mixed35(pool_features, name=f"Mixed_5{letter}")(x)
        x = _Reduction17(name="Mixed_6a")(x)
        for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
            x = _Mixed17(width, name=f"Mixed_6{letter}")(x)
        self.sow("intermediates", "block2", x)
        x = _Reduction8(name="Mixed_7a")(x)
        x = _Mixed8(_mean_pool, name="Mixed_7b")(x)
        # As published; the other blocks of this kind, and those of the paper, pool by the mean.
        x = _Mixed8(functools.partial(_max_pool, stride=1, padding="SAME"), name="Mixed_7c")(x)
        self.sow("intermediates", "block3", x)
        return x.mean(axis=(1, 2))


class _Mixed35(nn.Module):
    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _join(
            _chain(x, ("branch1x1", 64, 1)),
            _chain(x, ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
            _chain(x, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
            _chain(_mean_pool(x), ("branch_pool", self.pool_features, 1)),
        )


class _Reduction17(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        double = _chain(x, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3))
        return _join(
            _conv(x, ("branch3x3", 384, 3), stride=2),
            _conv(double, ("branch3x3dbl_3", 96, 3), stride=2),
            _max_pool(x),
        )


class _Mixed17(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, row, column = self.width, (1, 7), (7, 1)
        return _join(
            _chain(x, ("branch1x1", 192, 1)),
            _chain(x, ("branch7x7_1", width, 1), ("branch7x7_2", width, row), ("branch7x7_3", 192, column)),
            _chain(
                x,
                ("branch7x7dbl_1", width, 1),
                ("branch7x7dbl_2", width, column),
                ("branch7x7dbl_3", width, row),
                ("branch7x7dbl_4", width, column),
                ("branch7x7dbl_5", 192, row),
            ),
            _chain(_mean_pool(x), ("branch_pool", 192, 1)),
        )


class _Reduction8(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = _chain(x, ("branch3x3_1", 192, 1))
        cross = _chain(x, ("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1)))
        return _join(
            _conv(single, ("branch3x3_2", 320, 3), stride=2),
            _conv(cross, ("branch7x7x3_4", 192, 3), stride=2),
            _max_pool(x),
        )


class _Mixed8(nn.Module):
    pool: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = _chain(x, ("branch3x3_1", 384, 1))
        double = _chain(x, ("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))
        return _join(
            _chain(x, ("branch1x1", 320, 1)),
            _conv(single, ("branch3x3_2a", 384, (1, 3))),
            _conv(single, ("branch3x3_2b", 384, (3, 1))),
            _conv(double, ("branch3x3dbl_3a", 384, (1, 3))),
            _conv(double, ("branch3x3dbl_3b", 384, (3, 1))),
            _chain(self.pool(x), ("branch_pool", 192, 1)),
        )


def _conv(x: jax.Array, layer: _Layer, stride: int = 1, padding: str | None = None) -> jax.Array:
    """Convolution and ReLU; padded to keep the size, unless it is strided."""
    name, features, size = layer
    kernel = (size, size) if isinstance(size, int) else size
    padding = padding or ("SAME" if stride == 1 else "VALID")
    # The default precision of a TPU, or of a GPU with TensorFloat32, has 8 to 11 bits.
    precision = jax.lax.Precision.HIGHEST
    return nn.relu(nn.Conv(features, kernel, stride, padding, precision=precision, name=name)(x))


def _chain(x: jax.Array, *layers: _Layer) -> jax.Array:
    for layer in layers:
        x = _conv(x, layer)
    return x


def _join(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


def _max_pool(x: jax.Array, stride: int = 2, padding: str = "VALID") -> jax.Array:
    return nn.max_pool(x, (3, 3), (stride, stride), padding)


def _mean_pool(x: jax.Array) -> jax.Array:
    """Mean over the 3x3 neighbors that are inside the map."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def prepare(images: jax.Array) -> jax.Array:
    """The network's input: resized bilinearly without antialiasing, as in the original FID code.

    Args:
      images: (batch, height, width, 3), uint8 in [0, 255] or float in [0, 1].

    Returns:
      (batch, 299, 299, 3) float32 in [-1, 1].
    """
    images = jnp.asarray(images)
    scale = 255.0 if images.dtype == jnp.uint8 else 1.0
    images = images.astype(jnp.float32) / scale
    shape = (images.shape[0], _SIDE, _SIDE, images.shape[-1])
    return 2.0 * jax.image.resize(images, shape, "bilinear", antialias=False) - 1.0


def entry_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every entry of the published weights, convolutions as (out, in, height, width)."""
    image = jax.ShapeDtypeStruct((1, _SIDE, _SIDE, 3), jnp.float32)
    params = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"]
    shapes = {}
    for path, kernel in flax.traverse_util.flatten_dict(params, sep=".").items():
        if path.endswith(".kernel"):
            layer, (height, width, inputs, outputs) = path.removesuffix(".kernel"), kernel.shape
            shapes[f"{layer}.conv.weight"] = (outputs, inputs, height, width)
            shapes |= dict.fromkeys((f"{layer}.bn.{part}" for part in _NORM_PARTS), (outputs,))
            shapes[f"{layer}.bn.num_batches_tracked"] = ()
    # The classifier comes after the features and is not used.
    return shapes | {"fc.weight": (_NUM_CLASSES, NUM_FEATURES), "fc.bias": (_NUM_CLASSES,)}


def fold(state: Mapping[str, np.ndarray], source: str = "weights") -> dict[str, Any]:
    """Parameters of `InceptionV3` from the entries of the published weights.

    Raises:
      UserError: if entries are missing, left over, of a wrong shape or not finite.
    """
    torch_files.check_entries(state, entry_shapes(), source)
    flat = {}
    for name in state:
        if not name.endswith(".conv.weight"):
            continue
        layer = name.removesuffix(".conv.weight")
        scale, shift, mean, variance = (np.asarray(state[f"{layer}.bn.{part}"], np.float64) for part in _NORM_PARTS)
        # Also false for NaN.
        if not (variance >= 0).all():
            raise UserError(f"{source}: {layer}.bn.running_var has negative or undefined values")
        scale = scale / np.sqrt(variance + _EPSILON)
        kernel = np.transpose(np.asarray(state[name], np.float64), (2, 3, 1, 0)) * scale
        bias = shift - mean * scale
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise UserError(f"{source}: weights of {layer} are not finite")
        flat[f"{layer}.kernel"], flat[f"{layer}.bias"] = kernel.astype(np.float32), bias.astype(np.float32)
    return flax.traverse_util.unflatten_dict(flat, sep=".")


def load_params(path: epath.PathLike) -> dict[str, Any]:
    """Parameters of `InceptionV3` from a file: `.pth`, `.npz` or `.safetensors`.

    Raises:
      MissingError: if it does not exist; the message says how to get it.
      UserError: if it is damaged or holds something else.
    """
    if not epath.Path(path).is_file():
        raise MissingError(f"{path}: no such file, which the FID needs; {HOW_TO_GET_WEIGHTS}")
    return fold(torch_files.read_state_dict(path), str(path))


_prepare = jax.jit(prepare)


# Separate from the resizing, so that pictures of another size do not recompile the network.
@jax.jit
def _features(params: Any, images: jax.Array) -> jax.Array:
    return InceptionV3().apply({"params": params}, images)


class FeatureExtractor:
    """Features of any number of pictures, in chunks, sharded over this process's devices.

    Args:
      params: from `load_params`.
      chunk_size: pictures per device and call (about 40 MB each).
      devices: all of this process if None.
    """

    num_features = NUM_FEATURES

    def __init__(self, params: Any, *, chunk_size: int = 32, devices: Sequence[jax.Device] | None = None):
        self._batches = Batches(chunk_size, devices)
        self._params = jax.device_put(params, self._batches.everywhere)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features (picture, 2048) float32 of pictures (..., height, width, 3) uint8, in row-major order."""
        check_pictures("inception: pictures", images)
        images = flat(images)
        features = np.empty((len(images), NUM_FEATURES), np.float32)
        for rows, (chunk,) in self._batches(images):
            features[rows] = np.asarray(_features(self._params, _prepare(chunk)))[: rows.stop - rows.start]
        return features
