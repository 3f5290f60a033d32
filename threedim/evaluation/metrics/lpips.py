"""LPIPS: how different two pictures are by the features of a trained network (Zhang et al. 2018), version 0.1.

3DiM's paper does not report it; PixelNeRF, VisionNeRF and Splatter Image do, with VGG16. A figure is of its network and
its weights, which are downloads that nothing here makes for the user: those of a classifier ("backbone"), and a few
hundred trained on what people find alike ("lin"). Which network they are of is seen from the weights.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from threedim.errors import MissingError, UserError
from threedim.evaluation.metrics import torch_files

HOW_TO_GET_WEIGHTS = (
    "download https://download.pytorch.org/models/vgg16-397923af.pth (about 528 MB), and take "
    "lpips/weights/v0.1/vgg.pth (7 kB) out of the Python package lpips, whose wheel (pip download --no-deps lpips) is "
    "a zip; both are read without executing anything in them, and .npz or .safetensors with the same names do as well"
)

# The backbones know pictures normalized by the mean and deviation of ImageNet; these are those for [-1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10


@dataclasses.dataclass(frozen=True)
class _Conv:
    """Convolution and ReLU; ``index`` is its place in the published network, and part of its weights' names."""

    index: int
    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


@dataclasses.dataclass(frozen=True)
class Network:
    """A backbone up to its last compared map.

    Attributes:
      name: with which figures are labeled.
      stages: convolutions; the map after each stage is compared.
      pooled: for each stage, whether a max pool comes before it.
      pool: side of its window; its step is 2.
      smallest: of the pictures' sides in pixels, for the last map to have a pixel.
      backbone_sha256, lin_sha256: how the digests of the published files begin.
    """

    name: str
    stages: tuple[tuple[_Conv, ...], ...]
    pooled: tuple[bool, ...]
    pool: int
    smallest: int
    backbone_sha256: tuple[str, ...]
    lin_sha256: str

    def backbone_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of the backbone's entries without its classifier, convolutions as (out, in, height, width)."""
        shapes: dict[str, tuple[int, ...]] = {}
        inputs = 3
        for conv in (conv for stage in self.stages for conv in stage):
            shapes[f"features.{conv.index}.weight"] = (conv.channels, inputs, conv.kernel, conv.kernel)
            shapes[f"features.{conv.index}.bias"] = (conv.channels,)
            inputs = conv.channels
        return shapes

    def lin_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of the entries that weight the compared maps' channels."""
        return {f"lin{i}.model.1.weight": (1, stage[-1].channels, 1, 1) for i, stage in enumerate(self.stages)}


VGG16 = Network(
    "VGG16",
    (
        (_Conv(0, 64), _Conv(2, 64)),
        (_Conv(5, 128), _Conv(7, 128)),
        (_Conv(10, 256), _Conv(12, 256), _Conv(14, 256)),
        (_Conv(17, 512), _Conv(19, 512), _Conv(21, 512)),
        (_Conv(24, 512), _Conv(26, 512), _Conv(28, 512)),
    ),
    pooled=(False, True, True, True, True),
    pool=2,
    smallest=16,
    backbone_sha256=("397923af",),
    lin_sha256="a78928a0",
)
ALEXNET = Network(
    "AlexNet",
    (
        (_Conv(0, 64, kernel=11, stride=4, padding=2),),
        (_Conv(3, 192, kernel=5, padding=2),),
        (_Conv(6, 384),),
        (_Conv(8, 256),),
        (_Conv(10, 256),),
    ),
    pooled=(False, True, True, False, False),
    pool=3,
    smallest=31,
    # The same weights, published twice.
    backbone_sha256=("7be5be79", "4df8aa71"),
    lin_sha256="df73285e",
)


class Features(nn.Module):
    """The maps of a backbone that LPIPS compares."""

    network: Network

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """(batch, height, width, 3) float32 in [-1, 1] to maps (batch, h, w, channel) of unit length over channels."""
        x = (images - jnp.array(_SHIFT)) / jnp.array(_SCALE)
        maps = []
        for stage, pooled in zip(self.network.stages, self.network.pooled, strict=True):
            if pooled:
                x = nn.max_pool(x, (self.network.pool,) * 2, (2, 2), "VALID")
            for conv in stage:
                x = nn.relu(_convolution(conv)(x))
            length = jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))
            maps.append(x / (length + _EPSILON))
        return tuple(maps)


def _convolution(conv: _Conv) -> nn.Conv:
    return nn.Conv(
        conv.channels,
        (conv.kernel, conv.kernel),
        conv.stride,
        ((conv.padding, conv.padding),) * 2,
        # A TPU, or a GPU with TensorFloat32, would otherwise multiply with 8 to 11 bits.
        precision=jax.lax.Precision.HIGHEST,
        name=f"features_{conv.index}",
    )


@dataclasses.dataclass(frozen=True)
class Weights:
    """A network with its parameters.

    Attributes:
      network: which.
      backbone: parameters of `Features`.
      lin: (channel,) float32 for each compared map.
    """

    network: Network
    backbone: dict[str, Any]
    lin: tuple[np.ndarray, ...]


def make_weights(
    backbone: Mapping[str, np.ndarray],
    lin: Mapping[str, np.ndarray],
    sources: tuple[str, str] = ("backbone", "lin weights"),
) -> Weights:
    """Parameters from the published files' entries; the backbone's classifier may be left out.

    Raises:
      ValueError: if the backbone is neither VGG16 nor AlexNet, and listing them, if entries are missing, left over, of
        a wrong shape or not finite, or weights of differences are negative.
    """
    features = {name: array for name, array in backbone.items() if not name.startswith("classifier.")}
    first = features.get("features.0.weight", np.empty(0)).shape
    networks = {network.backbone_shapes()["features.0.weight"]: network for network in (VGG16, ALEXNET)}
    if first not in networks:
        raise UserError(f"{sources[0]}: neither torchvision's VGG16 nor its AlexNet; {HOW_TO_GET_WEIGHTS}")
    network = networks[first]
    torch_files.check_entries(features, network.backbone_shapes(), f"{sources[0]}, taken for {network.name}")
    torch_files.check_entries(lin, network.lin_shapes(), f"{sources[1]}, for {network.name}")
    for source, state in zip(sources, (features, lin), strict=True):
        wrong = [name for name, array in state.items() if not np.isfinite(array).all()]
        if wrong:
            raise UserError(f"{source}: not finite: {', '.join(wrong)}")
    wrong = [name for name, array in lin.items() if (array < 0).any()]
    if wrong:
        raise UserError(f"{sources[1]}: negative, so that distances would be: {', '.join(wrong)}")
    params = {}
    for conv in (conv for stage in network.stages for conv in stage):
        kernel, bias = (
            np.asarray(features[f"features.{conv.index}.{part}"], np.float32) for part in ("weight", "bias")
        )
        params[f"features_{conv.index}"] = {"kernel": np.transpose(kernel, (2, 3, 1, 0)), "bias": bias}
    return Weights(network, params, tuple(np.asarray(lin[name], np.float32).ravel() for name in network.lin_shapes()))


def load_weights(backbone: epath.PathLike, lin: epath.PathLike) -> Weights:
    """Parameters from two files of weights: `.pth`, `.npz` or `.safetensors`.

    Raises:
      FileNotFoundError: if one is not there; the message says how to get it.
      ValueError: if one is damaged or holds something else, or they are of different networks.
    """
    for path in (backbone, lin):
        if not epath.Path(path).is_file():
            raise MissingError(f"{path}: no such file, so no LPIPS; {HOW_TO_GET_WEIGHTS}")
    states = (torch_files.read_state_dict(path) for path in (backbone, lin))
    return make_weights(*states, sources=(str(backbone), str(lin)))


def not_as_published(name: str, backbone: Mapping[str, str], lin: Mapping[str, str]) -> list[str]:
    """A sentence for each of the files, given as "name" and "sha256", that is not that network's published one.

    Names and shapes do not tell: other VGG16 have the same, and so have the "lin" weights of version 0.0.
    """
    (network,) = (each for each in (VGG16, ALEXNET) if each.name == name)
    wanted = ((backbone, network.backbone_sha256), (lin, (network.lin_sha256,)))
    return [
        f"LPIPS: {file['name']} is not, by its sha256, the published file of weights ({prefixes[0]}...); unless it was "
        "made from that, figures compare only with others by this file"
        for file, prefixes in wanted
        if not file["sha256"].startswith(prefixes)
    ]


@functools.partial(jax.jit, static_argnames="network")
def _distances(network: Network, params: Any, truth: jax.Array, others: Sequence[jax.Array]) -> list[jax.Array]:
    def maps(pictures: jax.Array) -> tuple[jax.Array, ...]:
        return Features(network).apply({"params": params["backbone"]}, pictures.astype(jnp.float32) / 127.5 - 1.0)

    true = maps(truth)
    return [
        sum(
            jnp.mean(jnp.sum(weight * (a - b) ** 2, axis=-1), axis=(1, 2))
            for a, b, weight in zip(true, maps(pictures), params["lin"], strict=True)
        )
        for pictures in others
    ]


class PerceptualDistance:
    """LPIPS of any number of pictures, some at a time, spread over this process's devices."""

    def __init__(self, weights: Weights, *, chunk_size: int = 16, devices: Sequence[jax.Device] | None = None):
        """Puts the parameters on the devices.

        Args:
          weights: from `load_weights`.
          chunk_size: true pictures of one call on one device (with VGG16, at 128 px, about 50 MB each while they are
            compared with one other).
          devices: by default all of this process.
        """
        if chunk_size < 1:
            raise UserError(f"chunk_size {chunk_size} must be at least 1")
        devices = list(devices or jax.local_devices())
        mesh = jax.sharding.Mesh(np.array(devices), ("picture",), axis_types=(AxisType.Auto,))
        self._network = weights.network
        self._chunk_size = chunk_size * len(devices)
        self._by_picture, self._everywhere = NamedSharding(mesh, P("picture")), NamedSharding(mesh, P())
        self._params = jax.device_put({"backbone": weights.backbone, "lin": weights.lin}, self._everywhere)

    @property
    def name(self) -> str:
        """Of the network."""
        return self._network.name

    @property
    def smallest(self) -> int:
        """The least side of pictures, in pixels."""
        return self._network.smallest

    def __call__(self, truth: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
        """Distances of sets of pictures from the true ones, whose features are computed once.

        Args:
          truth: (picture, height, width, 3) uint8.
          others: each of the same shape, or of one picture that is compared with all.

        Returns:
          For each of the others (picture,) float64, 0 for equal pictures.

        Raises:
          ValueError: if shapes or dtypes are not those, or pictures are too small for the network.
        """
        for images in (truth, *others):
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
                raise UserError(
                    f"pictures are {images.dtype} {images.shape}, must be uint8 (picture, height, width, 3)"
                )
            if images.shape[1:] != truth.shape[1:] or len(images) not in (1, len(truth)):
                raise UserError(f"pictures {images.shape} cannot be compared with true ones {truth.shape}")
        if min(truth.shape[1:3]) < self.smallest:
            raise UserError(f"pictures {truth.shape} are smaller than the {self.smallest} px that {self.name} needs")
        found = [np.empty(len(truth)) for _ in others]
        for start in range(0, len(truth), self._chunk_size):
            chunks = [
                jax.device_put(images, self._everywhere) if len(images) == 1 else self._chunk(images, start)
                for images in others
            ]
            for each, part in zip(
                found, _distances(self._network, self._params, self._chunk(truth, start), chunks), strict=True
            ):
                each[start : start + self._chunk_size] = np.asarray(part)[: len(truth) - start]
        return found

    def _chunk(self, images: np.ndarray, start: int) -> jax.Array:
        """Filled up, so that there is one compiled program, whatever the number of pictures."""
        chunk = images[start : start + self._chunk_size]
        missing = self._chunk_size - len(chunk)
        return jax.device_put(np.pad(chunk, ((0, missing), (0, 0), (0, 0), (0, 0))), self._by_picture)
