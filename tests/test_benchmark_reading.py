"""What a network reads of the input view: wrong views and cameras make it worse, where it has learned anything."""

import jax
import numpy as np
import pytest

from benchmarks import reading
from threedim.training import loop
from threedim.training.checkpoints import Checkpoints


def test_color_slope():
    rng = np.random.default_rng(0)
    truth = rng.uniform(-1, 1, (5, 4, 4, 3))
    gray = np.broadcast_to(truth.mean(axis=-1, keepdims=True), truth.shape)
    assert reading.color_slope(truth, truth) == pytest.approx(1)
    assert reading.color_slope(gray, truth) == pytest.approx(0, abs=1e-12)
    # Brightness does not count.
    assert reading.color_slope(0.5 * truth + rng.normal(size=(5, 1, 1, 1)), truth) == pytest.approx(0.5)


def test_what_reads_nothing_is_as_good_with_another_view(tiny_config, tmp_path):
    tiny_config.train.num_steps = 1
    state = loop.train(tiny_config, tmp_path / "run")
    found = reading.measure(str(tmp_path / "run"), "train", 4, -6.0)
    assert (found["step"], found["pairs"]) == (1, 4)
    # A fresh network's attention adds nothing: it has seen neither the view nor the camera.
    errors = found["mse"]
    assert errors["right"] == pytest.approx(errors["other_object"], rel=1e-3)

    # With numbers everywhere, each of them has a say.
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), state.params)
    with Checkpoints(tmp_path / "run", keep_last=1, keep_every=0, save_every=1) as saved:
        saved.save(2, state.replace(step=state.step + 1, ema_params=noisy, params=noisy), force=True)
        saved.wait()
    again = reading.measure(str(tmp_path / "run"), "train", 4, -6.0)
    assert again["step"] == 2
    assert len({round(error, 6) for error in again["mse"].values()}) == 4
    assert again["mse"]["mean_picture"] == pytest.approx(errors["mean_picture"])
    assert again == reading.measure(str(tmp_path / "run"), "train", 4, -6.0, str(tiny_config.data.dir))


def test_it_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        reading.measure(str(tmp_path), "train", 4, -6.0)
    with pytest.raises(ValueError, match="at least 2 pairs, got 1"):
        reading.measure(str(tmp_path), "train", 1, -6.0)
