"""LPIPS against its definition in NumPy, with made-up weights, and the files of weights."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_files

from threedim.evaluation.metrics import lpips
from threedim.evaluation.metrics.lpips import ALEXNET, VGG16

NETWORKS = pytest.mark.parametrize("network", [VGG16, ALEXNET], ids=lambda network: network.name)


def made_up(network):
    """Entries of a backbone and of its lin weights."""
    rng = np.random.default_rng(0)
    backbone = {
        name: rng.normal(0, np.sqrt(2 / np.prod(shape[1:])) if name.endswith("weight") else 0.1, shape)
        for name, shape in network.backbone_shapes().items()
    }
    lin = {name: rng.uniform(0, 1, shape) * (rng.random(shape) < 0.5) for name, shape in network.lin_shapes().items()}
    return tuple({name: array.astype(np.float32) for name, array in each.items()} for each in (backbone, lin))


@pytest.fixture(scope="module")
def states():
    return {network.name: made_up(network) for network in (VGG16, ALEXNET)}


@pytest.fixture(scope="module")
def distances(states):
    return {name: lpips.PerceptualDistance(lpips.make_weights(*both), chunk_size=2) for name, both in states.items()}


def pictures(count, height, width, seed=1):
    """Blocks of color, and the same with noise."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, height // 8 + 1, width // 8 + 1, 3))
    truth = blocks.repeat(8, 1).repeat(8, 2)[:, :height, :width]
    noisy = np.clip(truth + rng.normal(0, 25, truth.shape), 0, 255)
    return truth.astype(np.uint8), noisy.astype(np.uint8)


def convolution(x, weight, bias, stride=1, padding=1):
    """Of (height, width, in) with (out, in, height, width)."""
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(0, 1))[::stride, ::stride]
    return np.einsum("yxihw,oihw->yxo", windows, weight, optimize=True) + bias


def max_pool(x, side):
    return np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(0, 1))[::2, ::2].max(axis=(-2, -1))


def vgg_maps(x, state):
    """The published layers one after another: numbers are channels of a convolution and ReLU, M pools, T compares."""
    maps, place = [], 0
    for layer in (64, 64, "T", "M", 128, 128, "T", "M", *(256,) * 3, "T", "M", *(512,) * 3, "T", "M", *(512,) * 3, "T"):
        if layer == "T":
            maps.append(x)
        elif layer == "M":
            x, place = max_pool(x, 2), place + 1
        else:
            x = convolution(x, state[f"features.{place}.weight"], state[f"features.{place}.bias"])
            assert x.shape[-1] == layer
            # A convolution and its ReLU are two places.
            x, place = np.maximum(x, 0), place + 2
    return maps


def alexnet_maps(x, state):
    def layer(x, place, stride, padding):
        weight, bias = state[f"features.{place}.weight"], state[f"features.{place}.bias"]
        return np.maximum(convolution(x, weight, bias, stride, padding), 0)

    maps = [layer(x, 0, 4, 2)]
    maps.append(layer(max_pool(maps[-1], 3), 3, 1, 2))
    maps.append(layer(max_pool(maps[-1], 3), 6, 1, 1))
    maps.append(layer(maps[-1], 8, 1, 1))
    maps.append(layer(maps[-1], 10, 1, 1))
    return maps


def reference(network, states, a, b):
    """LPIPS of two pictures (height, width, 3) uint8 in float64, by its definition."""
    backbone, lin = ({name: array.astype(np.float64) for name, array in each.items()} for each in states[network.name])
    maps_of = {"VGG16": vgg_maps, "AlexNet": alexnet_maps}[network.name]

    def maps(picture):
        scaled = (picture / 255 * 2 - 1 - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
        return [
            each / np.maximum(np.linalg.norm(each, axis=-1, keepdims=True), 1e-9) for each in maps_of(scaled, backbone)
        ]

    total = 0.0
    for index, (x, y) in enumerate(zip(maps(a), maps(b), strict=True)):
        total += ((x - y) ** 2 @ lin[f"lin{index}.model.1.weight"].ravel()).mean()
    return total


@pytest.mark.parametrize(
    ("network", "height", "width"), [(VGG16, 16, 16), (VGG16, 31, 44), (ALEXNET, 31, 31), (ALEXNET, 64, 50)]
)
def test_agrees_with_the_definition(states, distances, network, height, width):
    truth, noisy = pictures(3, height, width)
    # Nothing but one color: many features are 0 everywhere.
    noisy[1] = 0
    expected = [reference(network, states, *pair) for pair in zip(noisy, truth, strict=True)]
    repeated = [reference(network, states, noisy[0], each) for each in truth]
    found = distances[network.name](truth, noisy, noisy[:1])
    assert [each.dtype for each in found] == [np.float64] * 2
    np.testing.assert_allclose(found, [expected, repeated], rtol=2e-5)
    assert min(expected) > 0.01


def test_grows_with_the_noise_and_is_symmetric(distances):
    truth, noisy = pictures(2, 32, 32)
    half = ((truth.astype(int) + noisy) // 2).astype(np.uint8)
    distance = distances["VGG16"]
    same, small, large = distance(truth, truth, half, noisy)
    np.testing.assert_array_equal(same, 0)
    assert (small > 0).all()
    assert (large > small).all()
    np.testing.assert_allclose(distance(noisy, truth)[0], large, rtol=1e-5)


@NETWORKS
def test_smallest_pictures(distances, network):
    def last_map(side):
        image = jnp.zeros((1, side, side, 3))
        return jax.eval_shape(lambda: lpips.Features(network).init_with_output(jax.random.key(0), image)[0])[-1].shape

    assert last_map(network.smallest)[1:3] == (1, 1)
    small = np.zeros((1, network.smallest - 1, network.smallest, 3), np.uint8)
    with pytest.raises(ValueError, match=f"smaller than the {network.smallest} px that {network.name} needs"):
        distances[network.name](small, small)


@pytest.mark.parametrize(
    ("truth", "other", "message"),
    [
        (np.zeros((2, 32, 32, 3)), np.zeros((2, 32, 32, 3)), "must be uint8"),
        (np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32, 3), np.uint8), "must be uint8"),
        (np.zeros((3, 32, 32, 3), np.uint8), np.zeros((2, 32, 32, 3), np.uint8), "cannot be compared"),
        (np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 32, 33, 3), np.uint8), "cannot be compared"),
    ],
)
def test_refuses_other_pictures(distances, truth, other, message):
    with pytest.raises(ValueError, match=message):
        distances["AlexNet"](truth, other)


def test_chunk_size_is_checked(states):
    with pytest.raises(ValueError, match="chunk_size 0"):
        lpips.PerceptualDistance(lpips.make_weights(*states["AlexNet"]), chunk_size=0)


def test_entries_are_those_of_the_published_files():
    """As torchvision and the package lpips name them."""
    vgg, alexnet = VGG16.backbone_shapes(), ALEXNET.backbone_shapes()
    places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert list(vgg) == [f"features.{place}.{part}" for place in places for part in ("weight", "bias")]
    assert list(alexnet) == [f"features.{place}.{part}" for place in (0, 3, 6, 8, 10) for part in ("weight", "bias")]
    # How many parameters they are published to have, less their classifiers.
    assert sum(np.prod(shape) for shape in vgg.values()) == 138_357_544 - 123_642_856
    assert sum(np.prod(shape) for shape in alexnet.values()) == 61_100_840 - 58_631_144
    assert VGG16.lin_shapes()["lin4.model.1.weight"] == (1, 512, 1, 1)
    assert [shape[1] for shape in ALEXNET.lin_shapes().values()] == [64, 192, 384, 256, 256]


@pytest.mark.parametrize("kind", ["zip", "legacy", "npz"])
def test_reads_files(tmp_path, states, kind):
    backbone, lin = states["AlexNet"]
    # Also with what comes behind the features.
    backbone = backbone | {"classifier.1.weight": np.full((4, 3), np.nan, np.float32)}
    paths = [tmp_path / f"{name}.{'npz' if kind == 'npz' else 'pth'}" for name in ("backbone", "lin")]
    for path, state in zip(paths, (backbone, lin), strict=True):
        if kind == "npz":
            np.savez(path, **state)
        else:
            path.write_bytes(torch_files.write(state, legacy=kind == "legacy"))
    found, expected = lpips.load_weights(*paths), lpips.make_weights(*states["AlexNet"])
    assert found.network is ALEXNET
    jax.tree.map(np.testing.assert_array_equal, (found.backbone, found.lin), (expected.backbone, expected.lin))


def test_missing_files_say_how_to_get_them(tmp_path):
    (tmp_path / "here.npz").write_bytes(b"")
    for paths in (("here.npz", "gone.pth"), ("gone.pth", "here.npz")):
        with pytest.raises(FileNotFoundError, match=r"gone\.pth: no such file, so no LPIPS; download https://"):
            lpips.load_weights(*(tmp_path / path for path in paths))


def test_wrong_weights(states):
    vgg, vgg_lin = states["VGG16"]
    alexnet, alexnet_lin = states["AlexNet"]
    with pytest.raises(ValueError, match="lin weights, for VGG16: not the weights expected"):
        lpips.make_weights(vgg, alexnet_lin)
    with pytest.raises(ValueError, match="lin weights, for AlexNet: not the weights expected"):
        lpips.make_weights(alexnet, vgg_lin)
    for other in ({}, {"conv1.weight": np.zeros((64, 3, 7, 7))}, vgg_lin):
        with pytest.raises(ValueError, match="b: neither torchvision's VGG16 nor its AlexNet; download"):
            lpips.make_weights(other, vgg_lin, ("b", "l"))
    with pytest.raises(ValueError, match=r"not expected: features\.34\.bias"):
        lpips.make_weights(vgg | {"features.34.bias": np.zeros(512)}, vgg_lin)
    for value, message in ((np.nan, "not finite"), (-0.01, "negative, so that distances would be")):
        broken = alexnet_lin["lin3.model.1.weight"].copy()
        broken[0, 7] = value
        with pytest.raises(ValueError, match=rf"l: {message}: lin3\.model\.1\.weight"):
            lpips.make_weights(alexnet, alexnet_lin | {"lin3.model.1.weight": broken}, ("b", "l"))


def test_tells_files_that_are_not_the_published_ones():
    published = {"name": "vgg16-397923af.pth", "sha256": "397923af" + 56 * "0"}
    lin = {"name": "vgg.pth", "sha256": "a78928a0" + 56 * "0"}
    other = {"name": "mine.npz", "sha256": hashlib.sha256(b"").hexdigest()}
    assert lpips.not_as_published("VGG16", published, lin) == []
    (said,) = lpips.not_as_published("VGG16", other, lin)
    assert said.startswith("LPIPS: mine.npz is not, by its sha256, the published file of weights (397923af...)")
    assert len(lpips.not_as_published("AlexNet", published, lin)) == 2
    for older in ("7be5be79", "4df8aa71"):
        assert len(lpips.not_as_published("AlexNet", {"name": "", "sha256": older}, lin)) == 1


def test_spreads_over_devices(tmp_path, states, distances):
    """Needs a process of its own, as the number of devices is settled when JAX starts."""
    truth, noisy = pictures(3, 32, 32)
    backbone, lin = states["AlexNet"]
    np.savez(tmp_path / "backbone.npz", **backbone)
    np.savez(tmp_path / "lin.npz", **lin)
    np.savez(tmp_path / "pictures.npz", truth=truth, noisy=noisy)
    program = (
        "import json, sys, jax, numpy as np\n"
        "from threedim.evaluation import lpips\n"
        "folder = sys.argv[1]\n"
        "weights = lpips.load_weights(folder + '/backbone.npz', folder + '/lin.npz')\n"
        "sets = np.load(folder + '/pictures.npz')\n"
        "found = lpips.PerceptualDistance(weights, chunk_size=1)(sets['truth'], sets['noisy'], sets['noisy'][:1])\n"
        "print(json.dumps([jax.device_count(), [each.tolist() for each in found]]))\n"
    )
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    root = pathlib.Path(__file__).parents[1]
    command = [sys.executable, "-c", program, tmp_path]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
    devices, found = json.loads(done.stdout)
    assert devices == 2
    np.testing.assert_allclose(found, distances["AlexNet"](truth, noisy, noisy[:1]), rtol=1e-5)
