"""The ablation's network against an ordinary UNet on stacked channels, written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from tiny import NETWORK as XUNET
from tiny import SIZE, inputs, plain, random_params

from threedim import encodings
from threedim.models.concat_unet import ConcatUNet
from threedim.models.layers import AttentionBlock, GroupNorm, ResnetBlock
from threedim.models.xunet import XUNet
from threedim.training.step import abstract_params

BATCH = 2
FIELDS = ("image_size", "ch", "ch_mult", "emb_ch", "num_res_blocks", "attn_resolutions", "attn_heads")
NETWORK = ConcatUNet(**{name: getattr(XUNET, name) for name in FIELDS})


@pytest.fixture(scope="module")
def params():
    return random_params(NETWORK)


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
    """Gradients of a weighted sum of a network's output by the parameters that are used in shares."""
    weights = np.random.default_rng(3).normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda part: jnp.sum(weights * network(params | part, *inputs()))))
    return traverse_util.flatten_dict(gradient({name: params[name] for name in WATCHED}))


def test_it_is_an_ordinary_unet_on_stacked_channels(params):
    expected = jax.jit(ordinary_unet)(params, *inputs())
    y = plain(NETWORK)(params, *inputs())
    assert (y.shape, y.dtype) == ((BATCH, SIZE, SIZE, 3), jnp.float32)
    assert expected.std() > 0.1
    np.testing.assert_allclose(y, expected, atol=5e-5)


@pytest.mark.slow
def test_gradients_are_those_of_the_ordinary_unet(params):
    """The first convolutions, computed per frame, have custom gradients."""
    wanted = weighted(ordinary_unet, params)
    found = weighted(lambda p, *args: NETWORK.apply({"params": p}, *args, train=False), params)
    for path, expected in wanted.items():
        scale = np.abs(expected).max()
        assert scale > 1e-2, path
        np.testing.assert_allclose(found[path] / scale, expected / scale, atol=1e-4)


@pytest.mark.slow
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
