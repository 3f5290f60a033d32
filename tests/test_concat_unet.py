"""The ablation's network against an ordinary UNet on stacked channels, written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from slow_sampler import PROCESS_V, keys, pictures, sample_views, slow_sample_views
from tiny import NETWORK as XUNET
from tiny import SIZE, jax_cameras, random_cameras, random_params

from threedim import encodings
from threedim.cameras import Camera
from threedim.models.concat_unet import ConcatUNet
from threedim.models.layers import AttentionBlock, GroupNorm, ResnetBlock
from threedim.models.unet import NetworkDenoiser
from threedim.models.xunet import XUNet
from threedim.sampling import Settings
from threedim.training.step import abstract_params

BATCH = 2
FIELDS = ("image_size", "ch", "ch_mult", "emb_ch", "num_res_blocks", "attn_resolutions", "attn_heads")
NETWORK = ConcatUNet(**{name: getattr(XUNET, name) for name in FIELDS})


def inputs(seed=0):
    """x, z, logsnr, camera, cond_mask; the second pair is unconditional."""
    rng = np.random.default_rng(seed)
    x, z = (jnp.asarray(rng.normal(size=(BATCH, SIZE, SIZE, 3)), jnp.float32) for _ in range(2))
    logsnr = jnp.asarray(np.stack([np.full(BATCH, 20.0), rng.uniform(-10, 10, BATCH)], axis=1), jnp.float32)
    return x, z, logsnr, jax_cameras(BATCH, 2, seed=seed), jnp.asarray([True, False])


@pytest.fixture(scope="module")
def params():
    return random_params(NETWORK)


@functools.cache
def plain(network):
    """The whole network, compiled."""
    return jax.jit(lambda params, *args: network.apply({"params": params}, *args, train=False))


# --- an ordinary UNet ---


def conv(weights, x, stride=1):
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, weights["kernel"], (stride, stride), "SAME", dimension_numbers=layout)
    return y + weights["bias"]


def apply(module, weights, *args):
    return module.apply({"params": weights}, *args)


def ordinary_unet(p, x, z, logsnr, camera, cond_mask):
    """On 6 channels of pictures and 288 of poses, in the X-UNet's order [7.1]; two levels, attention at the second."""

    def rays(frame):
        origin, direction = camera[:, frame].rays(SIZE, SIZE)
        encoded = [encodings.posenc_nerf(origin, 0, 15), encodings.posenc_nerf(direction, 0, 8)]
        encoded = jnp.concatenate(encoded, axis=-1) * cond_mask[:, None, None, None]
        return encoded + p["position_emb"] + p["frame_emb"][frame]

    pose = jnp.concatenate([rays(0), rays(1)], axis=-1)
    u = 2 / np.pi * jnp.arctan(jnp.exp(-logsnr[:, 1] / 2))  # of the target alone
    noise = encodings.posenc_ddpm(u, NETWORK.emb_ch) @ p["logsnr_dense1"]["kernel"] + p["logsnr_dense1"]["bias"]
    noise = jax.nn.swish(noise) @ p["logsnr_dense2"]["kernel"] + p["logsnr_dense2"]["bias"]
    emb = [noise[:, None, None] + conv(p[f"pose_convs_{level}"], pose, 2**level) for level in range(2)]

    def block(name, h, level):
        features = NETWORK.ch * NETWORK.ch_mult[level]
        h = apply(ResnetBlock(features), p[name]["res"], h, emb[level], False)
        assert set(p[name]) == ({"res", "attn_self"} if level else {"res"})
        return apply(AttentionBlock("self", NETWORK.attn_heads), p[name]["attn_self"], h) if level else h

    h = conv(p["conv_in"], jnp.concatenate([x, z], axis=-1))
    kept = [h]
    h = block("down_blocks_0_0", h, 0)
    kept.append(h)
    h = apply(ResnetBlock(None, "down"), p["down_samples_0"], h, emb[1], False)
    kept.append(h)
    h = block("down_blocks_1_0", h, 1)
    kept.append(h)
    h = block("mid_block", h, 1)
    for i in range(2):
        h = block(f"up_blocks_1_{i}", jnp.concatenate([h, kept.pop()], axis=-1), 1)
    h = apply(ResnetBlock(None, "up"), p["up_samples_0"], h, emb[0], False)
    for i in range(2):
        h = block(f"up_blocks_0_{i}", jnp.concatenate([h, kept.pop()], axis=-1), 0)
    assert not kept
    return conv(p["conv_out"], jax.nn.swish(apply(GroupNorm(), p["norm_out"], h)))


WATCHED = ("conv_in", "pose_convs_0", "pose_convs_1", "position_emb", "frame_emb")


def weighted(network, params):
    """Output of a network, and gradients of a weighted sum of it by the parameters that are used in shares."""
    weights = np.random.default_rng(3).normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32)

    def total(part):
        y = network(params | part, *inputs())
        return jnp.sum(weights * y), y

    (_, y), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))({name: params[name] for name in WATCHED})
    return y, traverse_util.flatten_dict(gradients)


@pytest.fixture(scope="module")
def ordinary(params):
    return weighted(ordinary_unet, params)


def test_it_is_an_ordinary_unet_on_stacked_channels(params, ordinary):
    assert NETWORK.ch_mult == (1, 2)
    assert NETWORK.num_res_blocks == 1
    expected, _ = ordinary
    y = plain(NETWORK)(params, *inputs())
    assert y.shape == (BATCH, SIZE, SIZE, 3)
    assert y.dtype == jnp.float32
    assert expected.std() > 0.1
    np.testing.assert_allclose(y, expected, atol=5e-5)


@pytest.mark.slow
def test_gradients_are_those_of_the_ordinary_unet(params, ordinary):
    """The first convolutions, computed in shares, have gradients of their own making; the rest is the X-UNet's."""
    _, found = weighted(lambda p, *args: NETWORK.apply({"params": p}, *args, train=False), params)
    for path, expected in ordinary[1].items():
        scale = np.abs(expected).max()
        assert scale > 1e-2, path
        np.testing.assert_allclose(found[path] / scale, expected / scale, atol=1e-4)


def test_the_call_is_the_composition_of_its_parts(params):
    x, z, logsnr, camera, cond_mask = inputs()
    denoiser = NetworkDenoiser(NETWORK)

    @jax.jit
    def known(params, x, logsnr, camera, target, cond_mask):
        """What a sampler keeps, in a program of its own."""
        features = denoiser.encode_view(params, x, logsnr, camera, cond_mask)
        return features, denoiser.embed_camera(params, target, cond_mask)

    view, target = known(params, x, logsnr[:, 0], camera[:, 0], camera[:, 1], cond_mask)
    assert view.h.shape == (BATCH, SIZE, SIZE, NETWORK.ch)
    assert [pose.shape for pose in view.pose] == [(BATCH, SIZE >> i, SIZE >> i, NETWORK.emb_ch) for i in range(2)]
    y = jax.jit(denoiser.denoise)(params, z, logsnr[:, 1], target, view)
    np.testing.assert_allclose(y, plain(NETWORK)(params, x, z, logsnr, camera, cond_mask), atol=2e-5)


def test_everything_that_should_matter_does(params):
    x, z, logsnr, camera, _ = inputs()
    cond_mask = jnp.ones(BATCH, bool)
    expected = plain(NETWORK)(params, x, z, logsnr, camera, cond_mask)
    other = jax_cameras(BATCH, 2, seed=9)

    def swap(frame):
        return jax.tree.map(lambda a, b: a.at[:, frame].set(b[:, frame]), camera, other)

    for changed in (
        (x + 0.3, z, logsnr, camera, cond_mask),
        (x, z + 0.3, logsnr, camera, cond_mask),
        (z, x, logsnr, camera, cond_mask),
        (x, z, logsnr.at[:, 1].add(1), camera, cond_mask),
        (x, z, logsnr, swap(0), cond_mask),
        (x, z, logsnr, swap(1), cond_mask),
        (x, z, logsnr, camera[:, ::-1], cond_mask),
        (x, z, logsnr, camera, ~cond_mask),
    ):
        assert np.all(np.abs(plain(NETWORK)(params, *changed) - expected).max(axis=(1, 2, 3)) > 1e-3)
    # The clean view's noise level says nothing that the pose encodings do not say.
    np.testing.assert_array_equal(plain(NETWORK)(params, x, z, logsnr.at[:, 0].set(-20.0), camera, cond_mask), expected)


def test_an_unconditional_pair_knows_no_camera(params):
    x, z, logsnr, camera, cond_mask = inputs()
    expected = plain(NETWORK)(params, x, z, logsnr, camera, cond_mask)
    y = plain(NETWORK)(params, x, z, logsnr, jax_cameras(BATCH, 2, seed=9), cond_mask)
    np.testing.assert_array_equal(y[1], expected[1])
    assert np.abs(y[0] - expected[0]).max() > 1e-3


@pytest.mark.slow
def test_cached_rollout_equals_the_plain_network():
    """With relative poses: shares kept and both branches in one batch, against ``__call__`` on every pair."""
    network = NETWORK.clone(num_res_blocks=0)
    params = random_params(network)
    settings = Settings(3, 2.0)
    images, cameras, targets = pictures(2, 1, shape=(SIZE, SIZE, 3)), random_cameras(2, 1), random_cameras(2, 2, seed=1)
    denoiser = NetworkDenoiser(network, relative_poses=True)
    fast = sample_views(denoiser, params, images, cameras, targets, keys(2), process=PROCESS_V, settings=settings)

    def output(x, logsnr_x, camera_x, z, logsnr, camera, cond):
        pair = jax.tree.map(lambda leaf: leaf[None], Camera.stack([camera_x, camera]))
        x, z = (np.asarray(a, np.float32)[None] for a in (x, z))
        logsnr = np.asarray([[logsnr_x, logsnr]], np.float32)
        return np.asarray(plain(network)(params, x, z, logsnr, pair, np.asarray([cond]))[0], np.float64)

    slow = slow_sample_views(output, images, cameras, targets, keys(2), PROCESS_V, settings, fast, relative=True)
    assert np.mean(np.abs(slow) < 0.999) > 0.3
    np.testing.assert_allclose(fast, slow, atol=5e-4)


# --- settings ---


def test_parameter_count_of_the_papers_size():
    def count(network):
        leaves = traverse_util.flatten_dict(abstract_params(network))
        return {path: leaf.size for path, leaf in leaves.items()}

    concat, xunet = count(ConcatUNet()), count(XUNet())
    total = sum(concat.values())
    assert total == 426_011_939
    # The paper's text says 471M; its listing as printed has 461.7M.
    assert sum(xunet.values()) == 461_661_731
    # Without cross-attention, the X-UNet of the published listing has the paper's 421M.
    shared = sum(size for path, size in xunet.items() if "attn_cross" not in path)
    assert shared == 420_696_611
    assert abs(shared / 421e6 - 1) < 0.001
    # The others are the first convolutions' channels for the second frame.
    assert total - shared == 9 * 3 * 256 + 4 * (9 * 144 * 1024)
    assert concat.keys() == {path for path in xunet if "attn_cross" not in path}


@pytest.mark.slow
def test_bfloat16_keeps_parameters_and_output_in_float32():
    exact = NETWORK.clone(ch_mult=(1,), attn_resolutions=(SIZE,), num_res_blocks=0)
    rounded, params = exact.clone(dtype=jnp.bfloat16), random_params(exact)
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract_params(rounded))} == {jnp.dtype("float32")}
    x, _, logsnr, camera, cond_mask = inputs()
    view = jax.eval_shape(NetworkDenoiser(rounded).encode_view, params, x, logsnr[:, 0], camera[:, 0], cond_mask)
    assert {leaf.dtype for leaf in jax.tree.leaves(view)} == {jnp.dtype("bfloat16")}
    y, expected = (plain(network)(params, *inputs()) for network in (rounded, exact))
    assert y.dtype == jnp.float32
    error = np.sqrt(np.mean((y - expected) ** 2)) / np.std(expected)
    assert 1e-4 < error < 0.05


@pytest.mark.slow
def test_remat_and_dropout_reach_every_block():
    usual = NETWORK.clone(num_res_blocks=0, dropout=0.5)
    network = usual.clone(remat="blocks")
    shapes = abstract_params(network)
    assert jax.tree.structure(shapes) == jax.tree.structure(abstract_params(usual))
    rngs = {"dropout": jax.random.key(0)}

    def traced(network, train):
        def total(params, *args):
            return network.apply({"params": params}, *args, train=train, rngs=rngs).sum()

        return str(jax.make_jaxpr(jax.grad(total))(shapes, *inputs()))

    blocks = 1 + 2 + 2  # middle, up, resampling
    assert traced(network, True).count("prevent_cse") == blocks
    in_training = traced(usual, True)
    assert in_training.count("prevent_cse") == 0
    assert in_training.count("random_bits") == blocks
    assert "random_bits" not in traced(network, False)
    # Beside them the two levels, down and up; the first has nothing to compute on the way down.
    levels = traced(usual.clone(remat="all"), True)
    assert levels.count("prevent_cse") > blocks


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"image_size": 10, "ch_mult": (1, 1, 1)}, "image_size 10 is not divisible by 4"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"remat": "some"}, '"none", "blocks" or "all", got .some.'),
    ],
)
def test_impossible_networks_are_refused(fields, match):
    with pytest.raises(ValueError, match=match):
        abstract_params(NETWORK.clone(**fields))
