import pathlib
import zlib

import jax
import numpy as np
import pytest
import torch_files

from threedim.evaluation.metrics import inception

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "inception_fid.npz")


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


def test_agrees_with_an_independent_implementation(params):
    """Every layer changes the features, so that this finds a fault in any block."""
    found = inception._features(params, inception.prepare(GOLDEN["images"]))
    assert (found.dtype, found.shape) == (np.float32, (3, inception.FeatureExtractor.num_features))
    np.testing.assert_allclose(found, GOLDEN["pool3"], rtol=0, atol=1e-5 * GOLDEN["pool3"].max())


def test_features_of_any_number_of_pictures(monkeypatch):
    """The network is replaced by some pixels of its input."""
    monkeypatch.setattr(inception, "_features", lambda scale, images: scale * images[:, 5, ::30, 0])
    images = np.random.default_rng(1).integers(0, 256, (2, 2, 32, 24, 3), np.uint8)
    extract = inception.FeatureExtractor(3.0, chunk_size=3)
    expected = 3 * inception.prepare(images.reshape(4, 32, 24, 3))[:, 5, ::30, 0]
    np.testing.assert_allclose(extract(images), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"must be uint8 \(\.\.\., height, width, 3\)"):
        extract(images / 255)


def test_entries_are_those_of_the_published_file():
    shapes = [tuple(int(side) for side in shape.split(",") if side) for shape in GOLDEN["shapes"]]
    assert inception.entry_shapes() == dict(zip(GOLDEN["names"].tolist(), shapes, strict=True))


def test_reads_a_file_of_full_size(tmp_path, state, params):
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    path.write_bytes(torch_files.write(state, legacy=True))
    jax.tree.map(np.testing.assert_array_equal, inception.load_params(path), params)
    with pytest.raises(FileNotFoundError, match=r"weights\.pth: no such file, so no FID; download https://"):
        inception.load_params(tmp_path / "weights.pth")


def test_wrong_entries_are_listed(state):
    wrong = {name: array for name, array in state.items() if not name.startswith("Mixed_7c.branch_pool")}
    wrong |= {"AuxLogits.fc.bias": np.zeros(1000), "fc.bias": np.zeros(1000)}
    with pytest.raises(
        ValueError, match=r"file\.pth: .* 7 entries differ(.|\n)*fc\.bias is \(1000,\), must be \(1008,\)"
    ):
        inception.fold(wrong, "file.pth")


def test_what_the_features_do_not_need_may_be_missing(state, params):
    rest = {name: array for name, array in state.items() if not name.startswith("fc.") and "tracked" not in name}
    assert len(rest) == len(state) - 2 - sum("tracked" in name for name in state)
    jax.tree.map(np.testing.assert_array_equal, inception.fold(rest), params)


def test_impossible_weights(state, monkeypatch):
    monkeypatch.setattr(inception.torch_files, "check_entries", lambda *_: None)
    layer = {name: array for name, array in state.items() if name.startswith("Conv2d_1a_3x3.")}
    for entry, value, message in (
        ("bn.running_var", -0.1, "Conv2d_1a_3x3.bn.running_var has negative"),
        ("bn.running_var", np.nan, "Conv2d_1a_3x3.bn.running_var has negative or undefined"),
        ("bn.bias", np.nan, "weights of Conv2d_1a_3x3 are not finite"),
        ("conv.weight", np.inf, "weights of Conv2d_1a_3x3 are not finite"),
    ):
        array = layer[f"Conv2d_1a_3x3.{entry}"].copy()
        array.flat[3] = value
        with pytest.raises(ValueError, match=message):
            inception.fold(layer | {f"Conv2d_1a_3x3.{entry}": array})


def bilinear(image, size):
    """Resized by interpolation between pixel centers, which are at +0.5; the border continues outwards."""
    for axis in (0, 1):
        side = image.shape[axis]
        position = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
        lower = np.minimum(np.floor(position).astype(int), side - 2)
        weight = np.expand_dims(position - lower, [i for i in range(3) if i != axis])
        image = (1 - weight) * np.take(image, lower, axis) + weight * np.take(image, lower + 1, axis)
    return image


@pytest.mark.parametrize("shape", [(16, 16), (300, 650)])
def test_prepare(shape):
    images = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), np.uint8)
    expected = np.stack([2 * bilinear(image / 255.0, 299) - 1 for image in images])
    found = inception.prepare(images)
    assert found.dtype == np.float32
    # float32 leaves positions of some hundreds of pixels an error of 2e-5.
    np.testing.assert_allclose(found, expected, atol=2e-4)
    np.testing.assert_allclose(inception.prepare(images.astype(np.float32) / 255), expected, atol=2e-4)
