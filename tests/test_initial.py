"""Parameters of a trained network, fitted to another."""

import jax
import numpy as np
import pytest
from tiny import NETWORK, random_params

from threedim.errors import UserError
from threedim.training.initial import fit_params
from threedim.training.step import abstract_params


def no_fresh():
    raise AssertionError("nothing fresh is needed")


@pytest.fixture(scope="module")
def params():
    return random_params(seed=3)


def test_parameters_that_fit_are_unchanged(params):
    found, levels = fit_params(params, abstract_params(NETWORK), no_fresh)
    assert levels == 0
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
    found, levels = fit_params(params, abstract_params(larger), lambda: fresh)
    assert levels == 1
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
