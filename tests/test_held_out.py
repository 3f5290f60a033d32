"""Held-out loss and PSNR while training, and the checkpoint that they select."""

import json

import numpy as np
import pytest
from test_loop import stub_steps
from tiny import random_params

from threedim import config as config_lib
from threedim import pixels
from threedim.data import sources
from threedim.errors import MissingError, UserError
from threedim.evaluation.metrics import image
from threedim.training import checkpoints, loop
from threedim.training.held_out import HeldOutLoss


def held_out_loss(config, split, examples=5):
    sources.prepare_from_config(config.data)
    mesh, recipe = config_lib.mesh(config), config_lib.recipe(config)
    dataset = sources.open_from_config(config.data, split)
    parts = config_lib.network(config), config_lib.process(config), recipe, dataset
    return HeldOutLoss(*parts, examples=examples, mesh=mesh)


def test_the_loss_is_the_same_at_every_call_and_batch_size(tiny_config):
    params = random_params(config_lib.network(tiny_config))
    tiny_config.data.augment.hue, tiny_config.model.dropout = 0.5, 0.5  # neither is used
    whole = held_out_loss(tiny_config, "test")
    first = whole(params)
    assert whole(params) == first
    tiny_config.train.batch_size, tiny_config.train.microbatches, tiny_config.seed = 6, 2, 7
    assert held_out_loss(tiny_config, "test")(params) == pytest.approx(first, rel=1e-5)
    assert held_out_loss(tiny_config, "train")(params) != pytest.approx(first, rel=1e-3)


def test_the_best_checkpoint_outlives_the_last_ones_and_restarts(tiny_config, run, monkeypatch):
    t = tiny_config.train
    t.checkpoint_every, t.keep_last, t.eval_every = 4, 1, 3
    stub_steps(monkeypatch, set())
    losses = iter([0.5, 0.2, 0.3, 0.2, float("nan"), 0.4, 0.4, 0.4])
    monkeypatch.setattr(loop, "HeldOutLoss", lambda *args, **kwargs: lambda params: next(losses))

    def kept():
        return sorted(int(path.name) for path in (run / "checkpoints").iterdir())

    with pytest.raises(MissingError, match=r"no checkpoint in .* has a held-out loss"):
        checkpoints.find_step(run, checkpoints.BEST)
    t.num_steps = 8
    loop.train(tiny_config, run)
    assert kept() == [6, 8]  # saved at 3 and 6 as the best so far, and at 4 and 8
    t.num_steps = 20
    loop.train(tiny_config, run)
    assert kept() == [6, 20]
    assert checkpoints.find_step(run, checkpoints.BEST) == 6
    assert json.loads((run / "checkpoints/6/eval.json").read_text()) == {"loss": 0.2}


def test_one_held_out_view_is_too_few(tiny_config, tmp_path, capsys):
    tiny_config.data.holdout_views, tiny_config.train.eval_every = 1, 1
    with pytest.raises(UserError, match="need two views of each object of the split 'holdout'"):
        loop.train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    tiny_config.data.holdout_views, tiny_config.data.num_test_objects, tiny_config.data.dir = (
        0,
        0,
        str(tmp_path / "all"),
    )
    assert loop._check(tiny_config, tmp_path / "run", allow_change=False).held_out is None
    assert "nothing is held out" in capsys.readouterr().out


def test_psnr_is_that_of_the_evaluation():
    images, truth = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
    images[0] = truth[0]
    np.testing.assert_allclose(pixels.psnr(images, truth), image.psnr(images, truth), rtol=1e-5)
