import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from tiny import NETWORK, SIZE, SMALL, inputs, jax_cameras, plain, random_params

from threedim.cameras import Camera
from threedim.models.concat_unet import ConcatUNet
from threedim.models.unet import DIRECTION_DEGREES, POSE_CHANNELS, NetworkDenoiser
from threedim.models.xunet import XUNet
from threedim.training.step import abstract_params, init_params

BATCH = 2
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def params():
    return random_params(SMALL)


@pytest.fixture(scope="module")
def network():
    return plain(SMALL)


def test_an_unconditional_pair_knows_no_camera(network, params):
    x, z, logsnr, camera, cond_mask = inputs()
    expected = network(params, x, z, logsnr, camera, cond_mask)
    y = network(params, x, z, logsnr, jax_cameras(BATCH, 2, seed=9), cond_mask)
    np.testing.assert_array_equal(y[1], expected[1])
    assert np.abs(y[0] - expected[0]).max() > 1e-3
    changed = params | {"frame_emb": params["frame_emb"] + 0.5}
    assert np.abs(network(changed, x, z, logsnr, camera, cond_mask)[1] - expected[1]).max() > 1e-3


def test_noise_levels_beyond_the_schedule_are_clipped(network, params):
    x, z, logsnr, camera, cond_mask = inputs()
    a, b = (network(params, x, z, logsnr.at[:, 1].set(level), camera, cond_mask) for level in (-20.0, -50.0))
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [XUNet, ConcatUNet])
def test_bfloat16(kind):
    exact = kind(SIZE, ch=32, ch_mult=(1,), emb_ch=16, num_res_blocks=0, attn_resolutions=(SIZE,), attn_heads=2)
    params = random_params(exact)
    y, expected = (plain(network)(params, *inputs()) for network in (exact.clone(dtype=jnp.bfloat16), exact))
    assert y.dtype == jnp.float32
    error = np.sqrt(np.mean((y - expected) ** 2)) / np.std(expected)
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize("train", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_settings_reach_every_layer(train):
    """Dropout, groups and dtype, in one trace."""
    dropouts, groups, encodings = [], {}, []

    def record(next_function, args, kwargs, context):
        module, kind = context.module, type(context.module).__name__
        if context.method_name == "__call__" and kind == "ResnetBlock":
            dropouts.append((module.dropout, (*args, *kwargs.values())[2]))
        if context.method_name == "__call__" and kind == "GroupNorm":
            groups[module.path] = module.groups
        if context.method_name == "__call__" and kind == "PoseConv":
            encodings.extend(args[:2])
        return next_function(*args, **kwargs)

    network = NETWORK.clone(dropout=0.25, norm_groups=4, dtype=jnp.bfloat16)
    shapes = abstract_params(network)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    run = functools.partial(network.apply, train=train, rngs={"dropout": KEY})
    with nn.intercept_methods(record):
        y = jax.eval_shape(run, {"params": shapes}, *inputs())
    assert y.dtype == jnp.float32
    # Down: level 0 of both frames separately (a block and a downsampling each), level 1 of both; middle; up.
    assert (len(dropouts), set(dropouts)) == (2 * 2 + 1 + 1 + 2 + 1 + 2, {(0.25, train)})
    assert set(groups.values()) == {4}
    norms = {name for name in traverse_util.flatten_dict(shapes, sep="/") if name.endswith("scale")}
    assert len(groups) == len(norms) > 10
    # 2^14 times a coordinate, rounded to 8 bits, would be noise.
    assert {leaf.dtype for leaf in encodings} == {jnp.dtype("float32")}
    directions = 3 * (1 + 2 * DIRECTION_DEGREES)
    assert {(BATCH, POSE_CHANNELS), (BATCH, SIZE, SIZE, directions)} <= {leaf.shape for leaf in encodings}


@pytest.mark.slow
def test_features_of_a_view_begin_at_the_first_level_with_attention():
    network = NETWORK.clone(ch=8, ch_mult=[1, 2, 4], attn_resolutions=[2, 16])
    x, _, logsnr, camera, cond_mask = inputs()
    denoiser = NetworkDenoiser(network)
    view = jax.eval_shape(denoiser.encode_view, abstract_params(network), x, logsnr[:, 0], camera[:, 0], cond_mask)
    assert view.h.shape[:3] == (BATCH, 2, 2)
    assert [emb.shape for emb in view.emb] == [(BATCH, 2, 2, NETWORK.emb_ch)]


def gradient(network):
    """Of a sum over the network's output, dropout and all, by its parameters."""
    weights = inputs(seed=5)[1]

    def total(params, *args):
        y = network.apply({"params": params}, *args, train=True, rngs={"dropout": jax.random.key(0)})
        return jnp.sum(weights * y)

    return total


@pytest.mark.slow
def test_remat_computes_the_same():
    """The same parameters by the same names, the same dropout, and gradients that differ by rounding."""
    networks = [SMALL.clone(dropout=0.5, remat=remat) for remat in ("none", "blocks", "all")]
    init = [jax.eval_shape(lambda n=n: init_params(n, KEY)) for n in networks]
    assert jax.tree.structure(init[0]) == jax.tree.structure(init[1]) == jax.tree.structure(init[2])
    params = random_params(networks[0])
    expected, *found = (jax.jit(jax.grad(gradient(network)))(params, *inputs()) for network in networks)
    # The gradients of some biases are zero but for rounding: a normalization follows.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for other in found:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), other, expected)


@pytest.mark.slow
def test_remat_keeps_less():
    """Bytes that the gradient keeps of the network, beside parameters and inputs."""

    def kept(remat):
        total = gradient(NETWORK.clone(remat=remat, dropout=0.5))
        shapes, arguments = abstract_params(NETWORK), inputs()
        residuals = jax.eval_shape(lambda params: jax.vjp(lambda p: total(p, *arguments), params)[1], shapes)
        nbytes = [sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(t)) for t in (residuals, shapes)]
        return nbytes[0] - nbytes[1]

    none, blocks, whole = (kept(remat) for remat in ("none", "blocks", "all"))
    assert blocks < none / 4
    # The way up keeps its parts for each block's input, and not each block's input: both are concatenated anew.
    concatenated = 4 * BATCH * (2 * 4 * 4 * (128 + 96) + 8 * 8 * (64 + 64))
    assert whole <= blocks - concatenated / 2


def test_fresh_network_puts_out_zero(network, params):
    """Compiled alone, the last layer's initialization takes no time."""
    names = ("conv_out", "position_emb", "frame_emb")
    fresh = jax.jit(lambda: init_params(SMALL, KEY))
    init = jax.jit(lambda: {name: leaf for name, leaf in fresh().items() if name in names})()
    assert np.all(init["conv_out"]["kernel"] == 0)
    random = jax.jit(lambda: init_params(SMALL.clone(zero_init=False), KEY)["conv_out"])()
    np.testing.assert_allclose(random["kernel"].std(), (9 * random["kernel"].shape[2]) ** -0.5, rtol=0.1)
    np.testing.assert_array_equal(network(params | {"conv_out": init["conv_out"]}, *inputs()), 0.0)
    # Learned embeddings: normal, standard deviation 1/sqrt(144) [7.1].
    assert (init["position_emb"].shape, init["frame_emb"].shape) == ((SIZE, SIZE, 144), (2, 144))
    np.testing.assert_allclose(np.std(init["position_emb"]), 1 / 12, rtol=0.03)
    np.testing.assert_allclose(np.std(init["frame_emb"]), 1 / 12, rtol=0.2)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"image_size": 10, "ch_mult": (1, 1, 1)}, "image_size 10 is not divisible by 4"),
        ({"attn_resolutions": (16, 2)}, r"never meet.*\(16, 2\).*\(8, 4\)"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"emb_ch": 0}, "emb_ch must be at least 1, got 0"),
        ({"ch_mult": ()}, "ch_mult must be one positive number per level"),
        ({"remat": "some"}, "remat must be one of none, blocks, all, got 'some'"),
        ({"attention": "fast"}, "attention must be one of auto, plain, cudnn, got 'fast'"),
        ({"attn_heads": 3}, "64 channels do not divide into attn_heads 3"),
    ],
)
def test_impossible_networks_are_refused(fields, match):
    with pytest.raises(ValueError, match=match):
        NETWORK.clone(**fields)


@pytest.mark.slow
def test_counted_cost_of_the_papers_network():
    """Nothing is computed twice or unused. Without that: 9.42 and 3.14 TFLOP per pair [7.1]."""
    network, batch = XUNet(), 1
    shapes, eye = abstract_params(network), jnp.tile(jnp.eye(3), (batch, 2, 1, 1))
    camera, cond_mask = Camera(eye, jnp.zeros((batch, 2, 3)), eye), jnp.ones(batch, bool)
    image, logsnr = jax.ShapeDtypeStruct((batch, 128, 128, 3), jnp.float32), jnp.zeros((batch, 2))

    def total(params, x, z):
        return network.apply({"params": params}, x, z, logsnr, camera, cond_mask, train=False).sum()

    def teraflops(function, *args):
        return jax.jit(function).lower(*args).cost_analysis()["flops"] / batch / 1e12

    assert teraflops(jax.grad(total), shapes, image, image) <= 6.82
    denoiser = NetworkDenoiser(network)
    view = jax.eval_shape(denoiser.encode_view, shapes, image, logsnr[:, 0], camera[:, 0], cond_mask)
    target = jax.eval_shape(denoiser.embed_camera, shapes, camera[:, 1], cond_mask)
    assert teraflops(denoiser.denoise, shapes, image, logsnr[:, 1], target, view) <= 1.92

    # With relative poses the target's rays change with the chosen view, so that each step embeds them anew.
    def denoise_relative(params, z, view, positions):
        target = denoiser.embed_camera(params, camera[:, 1].relative_to(camera[:, 0]), cond_mask, positions)
        return denoiser.denoise(params, z, logsnr[:, 1], target, view)

    positions = jax.eval_shape(denoiser.embed_positions, shapes)
    assert teraflops(denoise_relative, shapes, image, view, positions) <= 1.89
