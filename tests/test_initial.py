"""Runs that begin with trained weights."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny import NETWORK, random_params

from threedim import config as config_lib
from threedim import weights
from threedim.training import loop
from threedim.training.checkpoints import Checkpoints
from threedim.training.initial import read_initial
from threedim.training.step import abstract_params, init_state


def no_fresh():
    raise AssertionError("nothing fresh is needed")


@pytest.fixture
def trained(tiny_config, tmp_path):
    """A file of weights of the tiny configuration's network."""
    params = random_params(seed=3)
    weights.save_weights(tmp_path / "a.safetensors", params, tiny_config, training_steps=7, dtype="float32")
    return tmp_path / "a.safetensors", params


def test_a_file_of_the_same_size_comes_unchanged(trained):
    path, params = trained
    found, line = read_initial(path, abstract_params(NETWORK), no_fresh)
    assert line == f"starting from {path}, trained for 7 steps at 8 px"
    for (name, a), (_, b) in zip(*map(jax.tree_util.tree_leaves_with_path, (found, params)), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(name))


def test_the_position_embedding_alone_is_resized(trained):
    path, params = trained
    found, _ = read_initial(path, abstract_params(NETWORK.clone(image_size=16, attn_resolutions=(8,))), no_fresh)
    old = np.asarray(params["position_emb"])
    new = found["position_emb"]
    assert new.shape == (16, 16, old.shape[-1])
    # Pixel 2 lies a quarter of an old pixel before the middle of old pixel 1, at both axes.
    expected = 0.75 * old[1] + 0.25 * old[0]
    np.testing.assert_allclose(new[2, 2], 0.75 * expected[1] + 0.25 * expected[0], atol=1e-6)
    np.testing.assert_array_equal(found["conv_in"]["kernel"], params["conv_in"]["kernel"])


def test_several_devices_get_them(tiny_config, tmp_path):
    """Under a mesh of several, JAX computes with no array that is on one of them, as those of a checkpoint are."""
    path = tmp_path / "run"
    with Checkpoints(path, keep_last=1, keep_every=0, save_every=1) as saved:
        saved.save(1, init_state(NETWORK, config_lib.recipe(tiny_config), random_params()), force=True)
        saved.wait()
    code = f"""
import jax
from tiny import NETWORK
from threedim.training import sharding
from threedim.training.initial import read_initial
from threedim.training.step import abstract_params
with jax.set_mesh(sharding.make_mesh(2, 1)):
    found, _ = read_initial({str(path)!r}, abstract_params(NETWORK.clone(image_size=16, attn_resolutions=(8,))), None)
print(found["position_emb"].shape)
"""
    here = pathlib.Path(__file__).parent
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("(16, 16, "), done.stderr


def test_what_does_not_fit_is_listed(trained):
    path, _ = trained
    with pytest.raises(ValueError, match="do not fit the network of") as error:
        read_initial(path, abstract_params(NETWORK.clone(num_res_blocks=2, ch_mult=(1, 1))), no_fresh)
    assert "down_blocks_0_1/res/conv1/bias: none there, [32] here" in str(error.value)
    assert "down_blocks_1_0/attn_cross/value/kernel: [64, 64] there, [32, 32] here" in str(error.value)


def test_more_levels_go_around_the_trained_ones(trained):
    """A picture twice as large, whose second level is as small as the first one was."""
    path, params = trained
    larger = NETWORK.clone(image_size=16, ch_mult=(1, 1, 2))
    fresh = random_params(larger, seed=4)
    found, line = read_initial(path, abstract_params(larger), lambda: fresh)
    assert line == f"starting from {path}, trained for 7 steps at 8 px, with 1 fresh level(s) around it"
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
    with pytest.raises(ValueError, match=r"norm1/bias: \[32\] there, \[16\] here"):
        read_initial(path, abstract_params(larger.clone(ch=16, ch_mult=(1, 2, 4))), lambda: fresh)


def test_training_goes_on_from_a_run_at_another_size(tiny_config, tmp_path, capsys):
    tiny_config.train.num_steps = 1
    tiny_config.model.image_size, tiny_config.model.attn_resolutions = 4, (2,)
    first = loop.train(tiny_config, tmp_path / "small")
    tiny_config.model.image_size, tiny_config.model.attn_resolutions = 8, (4,)
    tiny_config.train.init_from = str(tmp_path / "small")
    # Nothing is learned, so that what comes out is what went in.
    tiny_config.train.learning_rate = 0.0
    second = loop.train(tiny_config, tmp_path / "large")
    assert f"starting from {tmp_path / 'small'}, trained for 1 steps at 4 px" in capsys.readouterr().out
    for state in (second.params, second.ema_params):
        np.testing.assert_array_equal(state["conv_in"]["kernel"], first.ema_params["conv_in"]["kernel"])
    assert int(second.step) == 1
    m = tiny_config.model
    m.ch_mult, m.attn_resolutions = (1, 1, 2), (2,)
    third = loop.train(tiny_config, tmp_path / "deep")
    np.testing.assert_array_equal(
        third.params["mid_block"]["res"]["conv1"]["kernel"], first.ema_params["mid_block"]["res"]["conv1"]["kernel"]
    )
    assert np.any(third.params["conv_in"]["kernel"])
    # A run that is there already goes on by itself.
    m.ch_mult, m.attn_resolutions = (1, 2), (4,)
    tiny_config.train.num_steps, tiny_config.train.init_from = 2, str(tmp_path / "gone")
    assert int(loop.train(tiny_config, tmp_path / "large").step) == 2


def test_missing_weights_are_refused_before_anything_is_written(tiny_config, tmp_path):
    tiny_config.train.init_from = str(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="init_from"):
        loop.train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()
