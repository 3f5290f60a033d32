import json
import os
import pathlib
import subprocess
import sys
import zlib

import flax.traverse_util
import jax
import numpy as np
import pytest
import torch_files

from threedim.evaluation.metrics import inception

GOLDEN = pathlib.Path(__file__).parents[2] / "shared" / "golden" / "inception_fid.npz"


def make_entry(name, shape):
    """A made-up weight by its name, as the numbers in the golden file were computed with."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif name.endswith("bn.weight"):
        values = rng.uniform(0.8, 1.2, shape)
    elif name.endswith(("bias", "running_mean")):
        values = rng.normal(0, 0.1, shape)
    else:
        values = rng.normal(0, 1, shape) * np.sqrt(2 / np.prod(shape[1:]))
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def state():
    return {name: make_entry(name, shape) for name, shape in inception.entry_shapes().items()}


@pytest.fixture(scope="module")
def params(state):
    return inception.fold(state)


@pytest.fixture(scope="module")
def reference(params):
    """Features and maps of pictures in [0, 1]."""

    @jax.jit
    def run(images):
        variables = {"params": params}
        return inception.InceptionV3().apply(variables, inception.prepare(images), mutable="intermediates")

    return run


def relative_error(found, expected):
    return np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max()


@pytest.mark.skipif(not GOLDEN.exists(), reason="no ../shared/golden/inception_fid.npz")
def test_agrees_with_an_independent_implementation(reference):
    golden = np.load(GOLDEN)
    features, variables = reference(golden["images"])
    assert features.shape == (3, 2048)
    assert relative_error(features, golden["pool3"]) < 1e-5
    for block in range(4):
        (found,) = variables["intermediates"][f"block{block}"]
        found = np.asarray(found, np.float64)
        assert relative_error(found.mean(axis=(1, 2)), golden[f"block{block}_mean"]) < 1e-5
        if block < 3:
            assert relative_error(found.std(axis=(1, 2), ddof=1), golden[f"block{block}_std"]) < 1e-5


@pytest.mark.skipif(not GOLDEN.exists(), reason="no ../shared/golden/inception_fid.npz")
def test_entries_are_those_of_the_published_file():
    golden = np.load(GOLDEN)
    shapes = [tuple(int(side) for side in shape.split(",") if side) for shape in golden["shapes"]]
    assert inception.entry_shapes() == dict(zip(golden["names"].tolist(), shapes, strict=True))


def same(found, expected):
    found, expected = (flax.traverse_util.flatten_dict(each) for each in (found, expected))
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_reads_a_file_of_full_size(tmp_path, state, params, legacy):
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    path.write_bytes(torch_files.write(state, legacy))
    same(inception.load_params(path), params)


def test_reads_npz(tmp_path, state, params):
    np.savez(tmp_path / "weights.npz", **state)
    same(inception.load_params(tmp_path / "weights.npz"), params)


def test_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights\.pth: no such file.*download https://"):
        inception.load_params(tmp_path / "weights.pth")


def test_wrong_entries_are_listed(state):
    wrong = {name: array for name, array in state.items() if not name.startswith("Mixed_7c.branch_pool")}
    wrong |= {"AuxLogits.fc.bias": np.zeros(1000), "fc.bias": np.zeros(1000)}
    with pytest.raises(ValueError, match=r"file\.pth: .* 8 entries differ") as error:
        inception.fold(wrong, "file.pth")
    for line in (
        "missing: Mixed_7c.branch_pool.conv.weight (192, 2048, 1, 1)",
        "not expected: AuxLogits.fc.bias (1000,)",
        "fc.bias is (1000,), must be (1008,)",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("Mixed_5b.branch1x1.bn.running_var", -0.1, "running_var has negative"),
        ("Mixed_5b.branch1x1.bn.running_var", np.nan, "running_var has negative or undefined"),
        ("Mixed_5b.branch1x1.bn.bias", np.nan, "Mixed_5b.branch1x1 are not finite"),
        ("Mixed_5b.branch1x1.conv.weight", np.inf, "Mixed_5b.branch1x1 are not finite"),
    ],
)
def test_weights_that_cannot_be(state, entry, value, message):
    array = state[entry].copy()
    array.flat[3] = value
    with pytest.raises(ValueError, match=message):
        inception.fold(state | {entry: array})


def bilinear(image, size):
    """Resized by interpolation between pixel centers, which are at +0.5; the border continues outwards."""
    for axis in (0, 1):
        side = image.shape[axis]
        position = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
        lower = np.minimum(np.floor(position).astype(int), side - 2)
        weight = np.expand_dims(position - lower, [i for i in range(3) if i != axis])
        image = (1 - weight) * np.take(image, lower, axis) + weight * np.take(image, lower + 1, axis)
    return image


@pytest.mark.parametrize("shape", [(16, 16), (64, 48), (299, 299), (300, 650)])
def test_prepare(shape):
    images = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), np.uint8)
    expected = np.stack([2 * bilinear(image / 255.0, 299) - 1 for image in images])
    found = inception.prepare(images)
    assert found.dtype == np.float32
    # float32 leaves positions of some hundreds of pixels an error of 2e-5.
    np.testing.assert_allclose(found, expected, atol=2e-4)
    np.testing.assert_allclose(inception.prepare(images.astype(np.float32) / 255), expected, atol=2e-4)


def test_features_of_any_number_of_pictures(params, reference):
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    expected, _ = reference(images.astype(np.float32) / 255)
    extract = inception.FeatureExtractor(params, chunk_size=2)
    found = extract(images)
    assert found.dtype == np.float32
    assert relative_error(found, expected) < 1e-5
    np.testing.assert_array_equal(extract(images[2]), found[2:])
    assert extract(images[:0]).shape == (0, 2048)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 8, 8, 3)), np.zeros((8, 3), np.uint8), np.zeros((1, 8, 8, 4), np.uint8)]
)
def test_refuses_other_pictures(params, images):
    with pytest.raises(ValueError, match=r"must be uint8 \(\.\.\., height, width, 3\)"):
        inception.FeatureExtractor(params)(images)


def test_chunk_size_is_checked(params):
    with pytest.raises(ValueError, match="chunk_size 0"):
        inception.FeatureExtractor(params, chunk_size=0)


def test_spreads_over_devices(tmp_path, params):
    """Needs a process of its own, as the number of devices is settled when JAX starts."""
    images = np.random.default_rng(2).integers(0, 256, (3, 16, 16, 3), np.uint8)
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    np.savez(tmp_path / "in.npz", images=images, **flat)
    program = (
        "import json, sys, flax, jax, numpy as np\n"
        "from threedim.evaluation import inception\n"
        "flat = dict(np.load(sys.argv[1]))\n"
        "images = flat.pop('images')\n"
        "extract = inception.FeatureExtractor(flax.traverse_util.unflatten_dict(flat, sep='/'), chunk_size=1)\n"
        "print(json.dumps([jax.device_count(), extract(images).tolist()]))\n"
    )
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", program, tmp_path / "in.npz"]
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
    devices, found = json.loads(done.stdout)
    assert devices == 2
    assert relative_error(found, inception.FeatureExtractor(params, chunk_size=3)(images)) < 1e-5
