"""LPIPS against its definition in NumPy, with made-up weights, and the files of weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_files

from threedim.evaluation.metrics import lpips


@pytest.fixture(scope="module")
def states():
    """Entries of a backbone and of its lin weights."""
    rng = np.random.default_rng(0)
    backbone = {
        name: rng.standard_normal(shape, np.float32) * np.sqrt(2 / np.prod(shape[1:]) if shape[1:] else 0.01)
        for name, shape in lpips.backbone_shapes().items()
    }
    lin = {name: rng.uniform(0, 1, shape) * (rng.random(shape) < 0.5) for name, shape in lpips.lin_shapes().items()}
    return tuple({name: array.astype(np.float32) for name, array in each.items()} for each in (backbone, lin))


@pytest.fixture(scope="module")
def distance(states, tmp_path_factory):
    """Through files like the published ones; the classifier is ignored."""
    folder = tmp_path_factory.mktemp("weights")
    classifier = {"classifier.1.weight": np.full((4, 3), np.nan, np.float32)}
    paths = [folder / "vgg16.pth", folder / "vgg.pth"]
    for path, state in zip(paths, (states[0] | classifier, states[1]), strict=True):
        path.write_bytes(torch_files.write(state, legacy=True))
    return lpips.PerceptualDistance(lpips.load_weights(*paths), chunk_size=2)


def pictures(count, height, width):
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (count, height // 8 + 1, width // 8 + 1, 3))
    truth = blocks.repeat(8, 1).repeat(8, 2)[:, :height, :width]
    noisy = np.clip(truth + rng.normal(0, 25, truth.shape), 0, 255)
    return truth.astype(np.uint8), noisy.astype(np.uint8)


def convolution(x, weight, bias):
    """Of (height, width, in) with (out, in, 3, 3)."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((1, 1), (1, 1), (0, 0))), (3, 3), axis=(0, 1))
    return np.einsum("yxihw,oihw->yxo", windows, weight, optimize=True) + bias


def max_pool(x):
    return np.lib.stride_tricks.sliding_window_view(x, (2, 2), axis=(0, 1))[::2, ::2].max(axis=(-2, -1))


def vgg_maps(x, state):
    """The published layers one after another: numbers are channels of a convolution and ReLU, M pools, T compares."""
    place = 0
    for layer in (64, 64, "T", "M", 128, 128, "T", "M", *(256,) * 3, "T", "M", *(512,) * 3, "T", "M", *(512,) * 3, "T"):
        if layer == "T":
            yield x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)
        elif layer == "M":
            x, place = max_pool(x), place + 1
        else:
            x = convolution(x, state[f"features.{place}.weight"], state[f"features.{place}.bias"])
            assert x.shape[-1] == layer
            # A convolution and its ReLU are two places.
            x, place = np.maximum(x, 0), place + 2


def test_agrees_with_the_definition(states, distance):
    backbone, lin = ({name: array.astype(np.float64) for name, array in each.items()} for each in states)

    def maps(pictures):
        scaled = (pictures / 255 * 2 - 1 - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
        return [list(vgg_maps(each, backbone)) for each in scaled]

    def expected(ours, true):
        pairs = zip(ours, true, lin.values(), strict=True)
        return sum(((x - y) ** 2 @ weight.ravel()).mean() for x, y, weight in pairs)

    truth, noisy = pictures(3, 19, 34)
    # A single color makes many features 0 everywhere.
    noisy[1], noisy[2] = 0, truth[2]
    true, ours = maps(truth), maps(noisy)
    found = distance(truth, noisy, noisy[:1])
    assert [each.dtype for each in found] == [np.float64] * 2
    np.testing.assert_allclose(found[0], [*map(expected, ours, true)], rtol=2e-5)
    np.testing.assert_allclose(found[1], [expected(ours[0], each) for each in true], rtol=2e-5)
    assert found[0].min() == 0 < 0.01 < found[1].min()


def test_other_pictures(distance):
    def last_map(side):
        image = jnp.zeros((1, side, side, 3))
        return jax.eval_shape(lambda: lpips.Features().init_with_output(jax.random.key(0), image)[0])[-1].shape

    assert (distance.name, distance.smallest) == ("VGG16", 16)
    assert last_map(16) == (1, 1, 1, 512)
    truth = np.zeros((3, 15, 16, 3), np.uint8)
    for other, message in (
        (truth, "smaller than the 16 px that VGG16 needs"),
        (truth / 255, "must be uint8"),
        (truth[0], "cannot be compared"),
        (truth[:2], "cannot be compared"),
        (truth[..., 1:, :], "cannot be compared"),
    ):
        with pytest.raises(ValueError, match=message):
            distance(truth, other)


def test_entries_are_those_of_the_published_files():
    """As torchvision and the package lpips name them."""
    shapes = lpips.backbone_shapes()
    places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert list(shapes) == [f"features.{place}.{part}" for place in places for part in ("weight", "bias")]
    # The published number of parameters, less the classifier's.
    assert sum(np.prod(shape) for shape in shapes.values()) == 138_357_544 - 123_642_856
    assert lpips.lin_shapes()["lin4.model.1.weight"] == (1, 512, 1, 1)


def test_wrong_weights(tmp_path, monkeypatch, states):
    vgg, lin = states
    broken = {value: lin["lin3.model.1.weight"].copy() for value in (np.nan, -0.01)}
    for value, array in broken.items():
        array[0, 7] = value
    monkeypatch.setattr(lpips.torch_files, "read_state_dict", lambda path: found[path.name])
    for path in ("backbone", "lin"):
        (tmp_path / path).touch()
    for backbone, heads, message in (
        ({}, lin, "backbone, read as torchvision's VGG16: not the expected weights, 26 entries"),
        (vgg | {"features.34.bias": np.zeros(512)}, lin, r"not expected: features\.34\.bias"),
        (vgg, vgg, "lin, read as lin weights of VGG16: not the expected weights"),
        (vgg | {"features.0.bias": np.full(64, np.inf)}, lin, r"backbone: not finite: features\.0\.bias"),
        (vgg, lin | {"lin3.model.1.weight": broken[np.nan]}, r"lin: not finite: lin3\.model\.1\.weight"),
        (vgg, lin | {"lin3.model.1.weight": broken[-0.01]}, r"lin: negative weights, .*: lin3\.model\.1\.weight"),
    ):
        found = {"backbone": backbone, "lin": heads}
        with pytest.raises(ValueError, match=message):
            lpips.load_weights(tmp_path / "backbone", tmp_path / "lin")


def test_missing_files_say_how_to_get_them(tmp_path):
    (tmp_path / "here.npz").touch()
    for paths in (("here.npz", "gone.pth"), ("gone.pth", "here.npz")):
        with pytest.raises(FileNotFoundError, match=r"gone\.pth: no such file, so no LPIPS; download https://"):
            lpips.load_weights(*(tmp_path / path for path in paths))


def test_warns_about_files_that_are_not_the_published_ones():
    published = {"name": "vgg16-397923af.pth", "sha256": "397923af" + 56 * "0"}
    lin = {"name": "vgg.pth", "sha256": "a78928a0" + 56 * "0"}
    assert lpips.not_as_published(published, lin) == []
    (warning,) = lpips.not_as_published({"name": "mine.npz", "sha256": 64 * "0"}, lin)
    assert warning.startswith("LPIPS: mine.npz is not the published file of weights (397923af...) by its sha256")
    assert len(lpips.not_as_published(lin, published)) == 2
