"""Parameters of a trained network, fitted to another."""

import functools

import jax
import numpy as np
import pytest
from tiny import NETWORK, SMALL, inputs, plain, random_params

from threedim import config as config_lib
from threedim.configs import gpu64, shapes128
from threedim.errors import UserError
from threedim.training.initial import fit_params
from threedim.training.step import abstract_params


def no_fresh():
    raise AssertionError("nothing fresh is needed")


@pytest.fixture(scope="module")
def params():
    return random_params(seed=3)


def test_parameters_that_fit_are_unchanged(params):
    found, said = fit_params(params, abstract_params(NETWORK), no_fresh)
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert said == f"{total:,} trained parameters make {total:,} of {total:,}"
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_the_position_embedding_alone_is_resized(params):
    found, _ = fit_params(params, abstract_params(NETWORK.clone(image_size=16, attn_resolutions=(8,))), no_fresh)
    old, new = np.asarray(params["position_emb"]), found["position_emb"]
    assert new.shape == (16, 16, old.shape[-1])
    # The center of pixel 2 is a quarter of an old pixel before that of old pixel 1, on both axes.
    expected = 0.75 * old[1] + 0.25 * old[0]
    np.testing.assert_allclose(new[2, 2], 0.75 * expected[1] + 0.25 * expected[0], atol=1e-6)
    np.testing.assert_array_equal(found["conv_in"]["kernel"], params["conv_in"]["kernel"])


def test_what_does_not_fit_is_listed(params):
    with pytest.raises(UserError, match=r"do not fit config\.model") as error:
        fit_params(params, abstract_params(NETWORK.clone(num_res_blocks=2, ch_mult=(1, 1))), no_fresh)
    assert "down_blocks_0_1/res/conv1/bias: none found, [32] expected" in str(error.value)
    assert "down_blocks_1_0/attn_cross/value/kernel: [64, 64] found, [32, 32] expected" in str(error.value)


def test_more_levels_are_put_around_the_trained_ones(params):
    """Images of twice the size: the second level works at the resolution of the trained first one."""
    larger = NETWORK.clone(image_size=16, ch_mult=(1, 1, 2))
    fresh = random_params(larger, seed=4)
    found, said = fit_params(params, abstract_params(larger), lambda: fresh)
    assert said.endswith(", with 1 fresh level(s) and the first and last convolution around them")
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (found, abstract_params(larger)))
    assert shapes[0] == shapes[1]
    inner = {"pose_convs_1": "pose_convs_0", "pose_convs_2": "pose_convs_1", "up_samples_1": "up_samples_0"}
    inner |= {"down_samples_1": "down_samples_0", "up_blocks_1_1": "up_blocks_0_1", "up_blocks_2_0": "up_blocks_1_0"}
    inner |= {"down_blocks_2_0": "down_blocks_1_0", "mid_block": "mid_block", "logsnr_dense1": "logsnr_dense1"}
    for name, before in inner.items():
        jax.tree.map(np.testing.assert_array_equal, found[name], params[before])
    outer = ("pose_convs_0", "down_blocks_0_0", "down_samples_0", "up_samples_0", "up_blocks_0_1")
    for name in (*outer, "conv_in", "norm_out", "conv_out"):
        jax.tree.map(np.testing.assert_array_equal, found[name], fresh[name])


def test_a_wider_network_computes_what_the_trained_one_does():
    """Its channels are equal, though they are not weighed equally."""
    trained, wide = random_params(SMALL, seed=3), SMALL.clone(ch=2 * SMALL.ch)
    found, said = fit_params(trained, abstract_params(wide), no_fresh)
    assert said.endswith(", 2 channels of each")
    np.testing.assert_allclose(plain(wide)(found, *inputs()), plain(SMALL)(trained, *inputs()), atol=1e-4)
    kernel = found["mid_block"]["res"]["conv2"]["kernel"]
    parts = np.stack([kernel[:, :, ::2], kernel[:, :, 1::2]])
    assert np.abs(np.diff(parts, axis=0)).mean() > 0.05 * np.abs(kernel).mean(), "equal channels would stay equal"
    # Of the two channels that read, one must not see multiples of what the other does: Adam ignores scale.
    assert np.ptp(np.diff(parts, axis=0) / parts.sum(axis=0)) > 0.1


@pytest.mark.parametrize("change", [{"ch": 48}, {"ch": 64, "emb_ch": 32}, {"ch_mult": (1, 4)}])
def test_other_widths_do_not_fit(params, change):
    network = NETWORK.clone(**change)
    with pytest.raises(UserError, match=r"do not fit config\.model"):
        fit_params(params, abstract_params(network), no_fresh)


def test_all_levels_at_64_px_become_part_of_the_network_at_128_px():
    config = shapes128.get_config()
    assert config.model.image_size == config.data.procedural.size == 128
    small, large = (abstract_params(config_lib.network(each.get_config())) for each in (gpu64, shapes128))
    zeros = functools.partial(jax.tree.map, lambda leaf: np.zeros(leaf.shape, leaf.dtype))
    _, said = fit_params(zeros(small), large, lambda: zeros(large))
    made = "16,486,432 trained parameters make 62,389,280 of 63,102,563, 2 channels of each"
    assert said == f"{made}, with 1 fresh level(s) and the first and last convolution around them"
