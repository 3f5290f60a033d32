import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_blocks import KEY, apply, filled, leaves, normal, slow_attention, slow_group_norm, slow_resnet

from threedim.models.layers import GroupNorm, PoseConv, ResnetBlock, XUNetBlock, fold_frames, take_frame
from threedim.models.ops import dropout, merge_residual


def test_frames_fold_with_the_frame_index_fastest():
    frame0, frame1 = normal(3, 2, 2, 1), normal(3, 2, 2, 1, seed=1)
    folded = fold_frames(jnp.asarray(frame0), jnp.asarray(frame1))
    expected = [frame for example in range(3) for frame in (frame0[example], frame1[example])]
    np.testing.assert_array_equal(folded, expected)
    np.testing.assert_array_equal(take_frame(folded, 0), frame0)
    np.testing.assert_array_equal(take_frame(folded, 1), frame1)
    np.testing.assert_array_equal(fold_frames(jnp.arange(2), jnp.arange(2, 4)), [0, 2, 1, 3])


@pytest.mark.parametrize(("channels", "groups", "scale"), [(64, 32, 3), (48, 16, 3), (7, 1, 3), (32, 32, 1e-3)])
def test_group_norm(channels, groups, scale):
    """As many of 32 groups as divide the channels. The last variance is as small as epsilon."""
    x = scale * normal(4, 4, 4, channels) + (scale > 1)
    params = filled(GroupNorm(), x)
    expected = slow_group_norm(x, **leaves(params), groups=groups)
    np.testing.assert_allclose(apply(GroupNorm(), params, x), expected, atol=5e-5)


def test_group_norm_keeps_its_statistics_in_float32():
    x = jnp.asarray(30 + normal(2, 8, 8, 64), jnp.bfloat16)
    module = GroupNorm(dtype=jnp.bfloat16)
    params = filled(module, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    y = apply(module, params, x)
    assert y.dtype == jnp.bfloat16
    expected = slow_group_norm(np.asarray(x, np.float64), **leaves(params), groups=32)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=0.005, atol=1e-3)


class PoseSum(nn.Module):
    """What ``PoseConv`` adds up, from its parts."""

    stride: int

    @nn.compact
    def __call__(self, constant, varying, learned):
        conv = PoseConv(6, 5, self.stride)
        return conv(constant, varying, conv.position(learned, 0), 0)


@pytest.mark.parametrize(("stride", "size"), [(1, 8), (2, 8), (2, 9), (4, 9)])
def test_pose_conv_is_a_convolution_of_the_sum(stride, size):
    """An odd size has zeros around it where an even one has none."""
    constant, varying = jnp.asarray(normal(3, 6)), jnp.asarray(normal(3, size, size, 4, seed=3))
    learned = jnp.asarray(normal(1, size, size, 6, seed=1))
    ours, plain = PoseSum(stride), nn.Conv(5, (3, 3), strides=stride)
    params = filled(ours, constant, varying, learned)
    out = -(-size // stride)
    weights = jnp.asarray(normal(3, out, out, 5, seed=2))

    def whole(params, constant, varying, learned):
        summed = constant[:, None, None] + jnp.pad(varying, ((0, 0), (0, 0), (0, 0), (2, 0))) + learned
        return plain.apply({"params": params["PoseConv_0"]}, summed)

    def total(params, constant, learned, run):
        y = run(params, constant, varying, learned)
        return jnp.sum(weights * y + y**2), y

    grad = functools.partial(jax.grad(total, argnums=(0, 1, 2), has_aux=True), params, constant, learned)
    grads, y = jax.jit(lambda: grad(lambda params, *args: ours.apply({"params": params}, *args)))()
    expected_grads, expected = jax.jit(lambda: grad(whole))()
    assert y.shape == (3, out, out, 5)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert jax.tree.structure(grads) == jax.tree.structure(expected_grads)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-4)


def test_fewer_groups_keep_the_color_of_a_picture():
    """With a channel a group, pictures of one color each are all the same."""
    colors = jnp.asarray(normal(2, 1, 1, 8)) * jnp.ones((2, 4, 4, 8))
    params = {"scale": jnp.ones(8), "bias": jnp.zeros(8)}
    alone, together = (GroupNorm(groups=groups).apply({"params": params}, colors) for groups in (32, 2))
    np.testing.assert_allclose(alone, 0.0, atol=1e-2)
    assert jnp.abs(together[0] - together[1]).max() > 0.5


@pytest.mark.parametrize(("channels", "features", "resample"), [(32, 32, None), (16, None, "up"), (64, 32, "down")])
def test_resnet_block(channels, features, resample):
    size = {"down": 2, "up": 8, None: 4}[resample]
    h, emb = normal(2, 4, 4, channels), normal(2, size, size, 8, seed=1)
    module = ResnetBlock(features, resample, dropout=0.5)
    params = filled(module, h, emb, train=False)
    assert ("shortcut" in params) == (features not in (None, channels))
    groups = [math.gcd(32, channels), math.gcd(32, features or channels)]
    expected = slow_resnet(h, emb, leaves(params), resample, groups)
    np.testing.assert_allclose(apply(module, params, h, emb, train=False), expected, atol=5e-5)


def test_dropout_comes_before_the_last_convolution_and_in_training_only():
    h, emb = normal(2, 4, 4, 32), normal(2, 4, 4, 8, seed=1)
    module = ResnetBlock(dropout=0.5)
    params = filled(module, h, emb, train=False)
    # The last convolution passes its input through, what comes before it is 1, and the block's input is 0.
    kernel = np.zeros((3, 3, 32, 32), np.float32)
    kernel[1, 1] = np.eye(32)
    params["conv2"] = {"kernel": kernel, "bias": np.zeros(32, np.float32)}
    ones = jnp.full(64, 1.2784645)  # swish(1.2784645) = 1
    params["film"]["dense"] = {"kernel": np.zeros((8, 64)), "bias": ones.at[:32].set(-1.0)}
    kept = apply(module, params, 0 * h, emb, train=False)
    np.testing.assert_allclose(kept, np.sqrt(0.5), atol=1e-5)
    run = jax.jit(lambda key: module.apply({"params": params}, 0 * h, emb, train=True, rngs={"dropout": key}))
    dropped = [np.asarray(run(jax.random.key(seed))) for seed in range(2)]
    for y in dropped:
        np.testing.assert_allclose(np.unique(np.round(y, 4)), [0, np.round(2 * np.sqrt(0.5), 4)], atol=1e-4)
        assert 0.4 < np.mean(y == 0) < 0.6
    assert not np.array_equal(*dropped)


@pytest.mark.parametrize(("attention", "groups"), [(True, 4), (False, 32)])
def test_block_is_residual_then_self_then_cross(attention, groups):
    h, emb = normal(4, 2, 2, 8), normal(4, 2, 2, 4, seed=1)
    module = XUNetBlock(16, attention, heads=2, groups=groups)
    params = filled(module, h, emb, train=False)
    p = leaves(params)
    first, others = min(groups, 8), min(groups, 16)
    expected = slow_resnet(h, emb, p["res"], None, (first, others))
    if attention:
        expected = slow_attention(expected, p["attn_self"], 2, "self", others)
        expected = slow_attention(expected, p["attn_cross"], 2, "cross", others)
    else:
        assert p.keys() == {"res"}
    np.testing.assert_allclose(apply(module, params, h, emb, train=False), expected, atol=5e-5)


def test_a_fresh_block_passes_its_input_through():
    h, emb = jnp.asarray(normal(2, 4, 4, 8)), jnp.asarray(normal(2, 4, 4, 4, seed=1))
    module = XUNetBlock(8, True, 2)
    y, variables = jax.jit(lambda: module.init_with_output(KEY, h, emb, train=False))()
    np.testing.assert_allclose(y, h * np.sqrt(0.5) ** 3, atol=1e-6)
    params = variables["params"]
    for part in (params["res"]["norm1"], params["attn_self"]["norm"]):
        assert np.all(part["scale"] == 1)
        assert np.all(part["bias"] == 0)
    kernels = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(params) if leaf.ndim > 1}
    zero = {name for name, kernel in kernels.items() if np.all(kernel == 0)}
    assert zero == {f"['{part}']['kernel']" for part in ("res']['conv2", "attn_self']['out", "attn_cross']['out")}


def test_attention_can_begin_at_random():
    h, emb = jnp.zeros((2, 4, 4, 8)), jnp.zeros((2, 4, 4, 4))
    params = jax.jit(lambda: XUNetBlock(8, True, 2, zero_init=False).init(KEY, h, emb, train=False)["params"])()
    for kind in ("self", "cross"):
        kernel = params[f"attn_{kind}"]["out"]["kernel"]
        np.testing.assert_allclose(kernel.std(), 8**-0.5, rtol=0.3)  # of one per channel
    assert np.all(params["res"]["conv2"]["kernel"] == 0)


def test_bfloat16_blocks_keep_float32_parameters():
    h, emb = normal(4, 4, 4, 32), normal(4, 4, 4, 8, seed=1)
    exact, rounded = (XUNetBlock(32, True, 2, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    params = filled(rounded, h, emb, train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    y = apply(rounded, params, h.astype(jnp.bfloat16), emb, train=False)
    assert y.dtype == jnp.bfloat16
    expected = np.asarray(apply(exact, params, h, emb, train=False))
    error = np.asarray(y, np.float32) - expected
    assert np.sqrt(np.mean(error**2)) < 0.02 * expected.std()


@pytest.mark.parametrize("channels", [7, 32])
def test_dropout_keeps_the_mean_and_drops_at_the_rate(channels):
    x = jnp.full((64, 16, channels), 2.0)
    y = np.asarray(dropout(x, 0.1, jax.random.key(0)))
    dropped = y == 0
    assert abs(dropped.mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / dropped.size)
    np.testing.assert_allclose(y[~dropped], 2.0 / 0.9, rtol=1e-6)
    # Both halves of a random word are used, and independently.
    pairs = dropped[..., : channels // 2 * 2].reshape(-1, 2)
    assert abs((pairs[:, 0] & pairs[:, 1]).mean() - 0.01) < 4 * np.sqrt(0.01 / len(pairs))
    assert not np.array_equal(y, dropout(x, 0.1, jax.random.key(1)))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_residual_branches_are_divided_by_the_square_root_of_two_on_accelerators(platform):
    x = jnp.ones((1, 1, 1, 2))
    text = jax.export.export(jax.jit(merge_residual), platforms=[platform])(x, x).mlir_module()
    assert "7.07106769E-1" in text or "0.707106769" in text
