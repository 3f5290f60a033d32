"""The example computes what the sampler computes; the notebook's cells run."""

import importlib.util
import json
import pathlib
import shutil

import numpy as np
import pytest
from tiny import small_model

import threedim

ROOT = pathlib.Path(__file__).parents[1]


def example():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "examples/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("pose", ["absolute", "relative"])
def test_the_loop_is_that_of_the_sampler(run, tiny_config, pose):
    model = threedim.load(run)
    model = threedim.Model(
        threedim.Sampler(
            threedim.NetworkDenoiser(model.sampler.denoiser.network, relative_poses=pose == "relative"),
            model.sampler.process,
            threedim.Settings(num_steps=5, guidance_weight=2.0),
        ),
        model.params,
        model.config,
        0,
    )
    rng = np.random.default_rng(0)
    camera = threedim.orbit([10], 20, 1.5, threedim.intrinsics(9.0, 8))[0]
    view = threedim.View(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), camera)
    targets = threedim.orbit(3)(camera)
    expected = model.sample(view, targets, seed=4).images.astype(int)
    found = example().generate(model, view, targets, seed=4, num_steps=5, weight=2.0)
    assert np.abs(found - expected).max() <= 1, "rounding"
    assert np.mean(found != expected) < 0.02


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(threedim, "load", small_model)
    shutil.copy(ROOT / "docs/car.png", tmp_path)
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs/quickstart.ipynb").read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec"), names)
            assert cell["outputs"] or "=" in "".join(cell["source"][-1:]) or "save" in "".join(cell["source"])
    assert names["views"].images.shape == (5, 64, 64, 3)
    assert (tmp_path / "car/index.html").exists()
