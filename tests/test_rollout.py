"""--mode=sample on the files: what is written, going on after an interruption, refusals."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest

import threedim
from configs import base
from threedim import cameras
from threedim import config as config_lib
from threedim import sample as sample_lib
from threedim.data import sources, srn
from threedim.evaluation.metrics.image import psnr
from threedim.output import images
from threedim.training import loop


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def run(tiny_config, kept, tmp_path):
    """A run that has done one step, in a folder of its own."""
    if not (kept / "run").exists():
        tiny_config.train.num_steps = 1
        loop.train(tiny_config, kept / "run")
    return pathlib.Path(shutil.copytree(kept / "run", tmp_path / "run"))


def views_of(out):
    return {path.name: srn.read_object(path).decode()[0] for path in (out / "views").iterdir()}


def test_writes_valid_folders_and_pictures(tiny_config, run):
    out = sample_lib.sample(tiny_config, run)
    assert out == run / "views/step_0000001"
    sources.prepare_from_config(tiny_config.data)
    dataset = sources.open_from_config(tiny_config.data, "test")
    assert sorted(path.name for path in (out / "views").iterdir()) == dataset.names
    for index, name in enumerate(dataset.names):
        drawn = srn.read_object(out / "views" / name)
        truth, true_cameras = dataset.views(index, range(5))
        assert len(drawn.pngs) == 5
        pictures, found = drawn.decode()
        np.testing.assert_array_equal(pictures[0], truth[0])
        assert not np.array_equal(pictures[1], truth[1])
        np.testing.assert_allclose(found.to_matrix(), true_cameras.to_matrix(), atol=1e-6)
        np.testing.assert_allclose(found.K, true_cameras.K, rtol=1e-6)
        assert images.load_png(out / "sheets" / f"{name}.png").shape[1] > 4 * 8
        assert (out / "gifs" / f"{name}.gif").read_bytes().startswith(b"GIF89a")
    assert not any((out / "unfinished").iterdir())
    content = json.loads((out / "samples.json").read_text())
    assert content["objects"][dataset.names[0]] == {"input_views": [0], "target_views": [1, 2, 3, 4]}
    # The output is itself an input.
    tiny_config.sample.object = str(out / "views" / dataset.names[0])
    tiny_config.sample.out = str(run / "again")
    assert views_of(sample_lib.sample(tiny_config, run)).keys() == {dataset.names[0]}


def test_interrupted_rollout_goes_on_where_it_was(tiny_config, run, monkeypatch, capsys):
    tiny_config.sample.out = str(run / "whole")
    whole = views_of(sample_lib.sample(tiny_config, run))
    assert "nothing to do" not in capsys.readouterr().out

    tiny_config.sample.out = str(run / "stopped")
    save_png, saved = images.save_png, []

    def stop_after_five(path, image):
        if len(saved) == 5:
            raise KeyboardInterrupt
        saved.append(path)
        save_png(path, image)

    monkeypatch.setattr(images, "save_png", stop_after_five)
    with pytest.raises(KeyboardInterrupt):
        sample_lib.sample(tiny_config, run)
    assert not (run / "stopped/views").exists()

    def never_again(path, image):
        assert path not in saved
        save_png(path, image)

    monkeypatch.setattr(images, "save_png", never_again)
    stopped = views_of(sample_lib.sample(tiny_config, run))
    assert whole.keys() == stopped.keys()
    for name, pictures in whole.items():
        np.testing.assert_array_equal(pictures, stopped[name])
    capsys.readouterr()
    # As of a process that was killed between the last view and the end.
    left = run / "stopped/unfinished" / next(iter(whole))
    left.mkdir(parents=True)
    sample_lib.sample(tiny_config, run)
    assert "nothing to do" in capsys.readouterr().out
    assert not left.exists()


def test_seed_decides_the_result(tiny_config, run):
    tiny_config.sample.num_objects = 1
    results = []
    for seed, out in ((0, "a"), (0, "b"), (1, "c")):
        tiny_config.sample.seed, tiny_config.sample.out = seed, str(run / out)
        results.append(*views_of(sample_lib.sample(tiny_config, run)).values())
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_orbit_and_several_inputs(tiny_config, run):
    s = tiny_config.sample
    s.cameras, s.num_views, s.input_views, s.num_objects = "orbit", 3, (1, 3), 1
    out = sample_lib.sample(tiny_config, run)
    (folder,) = (out / "views").iterdir()
    _, found = srn.read_object(folder).decode()
    assert len(found) == 5
    radius = np.linalg.norm(found.t[0])
    expected = cameras.orbit([0, 120, 240], 20.0, radius, found.K[0])
    np.testing.assert_allclose(found.t[2:], expected.t, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("sample.split", "validation", "sample.split must be one of test, val, train, holdout"),
        ("sample.input_views", (0, 9), "sample.input_views (0, 9) must be distinct views"),
        ("sample.cameras", "circle", 'sample.cameras must be "object" or "orbit"'),
        ("sample.num_steps", 0, "sample.num_steps must be at least 1"),
        ("sample.preset", "best", "sample.preset must be one of paper, fast, got 'best'"),
        ("sample.solver", "heun", "sample.solver must be one of ancestral, ddim, "),
        ("data.pose", "relative", "data.pose: absolute → relative"),
        ("data.pose", "both", 'data.pose must be "absolute" or "relative"'),
        ("model.ch", 64, "model.ch: 32 → 64"),
        ("diffusion.prediction", "v", "diffusion.prediction: eps → v"),
    ],
)
def test_refusals(tiny_config, run, field, value, said):
    tiny_config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=re.escape(said)):
        sample_lib.sample(tiny_config, run)
    assert not (run / "views").exists()


def test_output_of_other_settings_is_not_mixed(tiny_config, run):
    tiny_config.sample.num_objects = 1
    sample_lib.sample(tiny_config, run)
    tiny_config.sample.guidance_weight = 1.0
    with pytest.raises(ValueError, match=re.escape("guidance_weight: 3.0 → 1.0")):
        sample_lib.sample(tiny_config, run)


def test_fast_preset_goes_on_and_is_not_mixed_with_another(tiny_config, run):
    s = tiny_config.sample
    s.preset, s.num_objects, s.guidance_interval = "fast", 1, (-1.0, 1.0)
    out = sample_lib.sample(tiny_config, run)
    before = views_of(out)
    settings = json.loads((out / "samples.json").read_text())["settings"]
    assert settings["solver"] == config_lib.PRESETS["fast"]["solver"]
    assert (settings["num_steps"], settings["guidance_interval"]) == (3, [-1.0, 1.0])
    s.num_objects = 2
    after = views_of(sample_lib.sample(tiny_config, run))
    assert len(after) == 2
    for name, pictures in before.items():
        np.testing.assert_array_equal(pictures, after[name])
    s.eta, s.solver = 0.5, "ddim"
    with pytest.raises(ValueError, match=re.escape("eta: 0.0 → 0.5")):
        sample_lib.sample(tiny_config, run)


def test_presets(tiny_config):
    tiny_config.sample = base.get_config().sample
    assert config_lib.sample_settings(tiny_config) == threedim.Settings()
    tiny_config.sample.preset = "fast"
    for weight in (0.0, 2.0, 3.0):
        tiny_config.sample.guidance_weight = weight
        assert config_lib.sample_settings(tiny_config).evaluations(threedim.Process()) <= 50
    tiny_config.sample.num_steps, tiny_config.sample.guidance_interval = 7, (-2.0, 5.0)
    settings = config_lib.sample_settings(tiny_config)
    assert (settings.num_steps, settings.guidance_interval) == (7, (-2.0, 5.0))
    assert config_lib.sample_settings(tiny_config, num_steps=9).num_steps == 9


def test_no_checkpoint(tiny_config, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        sample_lib.sample(tiny_config, tmp_path / "empty")


def test_notebook_face(run, objects):
    model = threedim.load(run)
    assert model.step == 1
    pictures, known = srn.read_object(sorted(objects.iterdir())[0]).decode()
    targets = threedim.orbit([0, 90], 20, 1.3, known.K[0])
    seen = []
    settings = threedim.Settings(num_steps=3)
    drawn = model.sample(
        pictures[0], known[0], targets, seed=5, settings=settings, on_view=lambda index, picture: seen.append(picture)
    )
    assert drawn.shape == (2, 8, 8, 3)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, seen)
    with pytest.raises(ValueError, match="views must be uint8"):
        model.sample(pictures[0] / 255.0, known[0], targets)
    with pytest.raises(AttributeError, match="has no attribute 'cameraz'"):
        _ = threedim.cameraz
    assert {"Camera", "XUNet", "load", "sample_views"} <= set(dir(threedim))


def test_psnr():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
    expected = 10 * np.log10(255.0**2 / np.mean((one.astype(float) - other) ** 2, axis=(1, 2, 3)))
    np.testing.assert_allclose(psnr(one, other), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="must be alike"):
        psnr(one, other[:2])
