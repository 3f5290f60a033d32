"""Weights that come with the package, their config, and the command that shows them."""

import dataclasses
import json
import os
import pathlib
import re
import runpy
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
import setuptools
from tiny import random_params

import threedim
from configs import shapes64
from threedim import config as config_lib
from threedim import pretrained, weights
from threedim import sample as sample_lib
from threedim.augmentation import Augmentation
from threedim.data import sources, srn
from threedim.output import images
from threedim.training import initial, run_info
from threedim.training.step import abstract_params

REPOSITORY = pathlib.Path(__file__).parents[1]
LARGEST = 20e6  # bytes
SHIPPED = pretrained.names()
DEMO = "shapes64"  # what `make demo` draws with


def size_of(config):
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config_lib.network(config))))


# --- the config ---


@pytest.mark.parametrize(("device", "count", "evaluations"), [("cpu", 3_842_035, 38), ("gpu", 7_577_731, 38)])
def test_networks_are_as_large_as_the_config_says(device, count, evaluations):
    config = shapes64.get_config(device)
    assert size_of(config) == count
    assert f"{count:,}" in shapes64.__doc__
    # Room for the header in 20 MB of bfloat16.
    assert 2 * count < LARGEST - 200_000
    assert config_lib.denoiser(config).relative_poses
    assert config_lib.recipe(config).augmentation == Augmentation(scale=(0.8, 1.25), hue=0.5)
    assert config_lib.process(config).prediction == "v"
    assert config_lib.sample_settings(config).evaluations(config_lib.process(config)) == evaluations


def test_a_gpu_gets_the_same_data_and_protocol():
    cpu, gpu = shapes64.get_config(), shapes64.get_config("gpu")
    for section in ("seed", "data", "sample", "evaluate"):
        assert cpu[section] == gpu[section], section
    assert config_lib.process(cpu) == config_lib.process(gpu)
    assert (cpu.model.dtype, gpu.model.dtype) == ("float32", "bfloat16")
    assert (gpu.train.batch_size, gpu.train.num_steps) == (128, 200_000)
    with pytest.raises(ValueError, match="quarter, gpu_regression, gpu_quarter, gpu, not for 'tpu'"):
        shapes64.get_config("tpu")
    # The same place on the spiral as the paper's.
    assert cpu.evaluate.input_view / cpu.data.procedural.test_views == pytest.approx(64 / 251, abs=0.01)


@pytest.mark.parametrize(
    ("stages", "dtype", "color"),
    [(("cpu", "quarter", "regression"), "float32", 3.0), (("gpu", "gpu_quarter", "gpu_regression"), "bfloat16", 9.0)],
)
def test_each_stage_fits_the_next(stages, dtype, color, tmp_path):
    whole, quarter, regression = (shapes64.get_config(stage) for stage in stages)
    assert quarter.data == regression.data == whole.data
    assert quarter.model.dtype == whole.model.dtype == dtype
    assert config_lib.process(whole) == dataclasses.replace(config_lib.process(quarter), logsnr_shift=-2 * np.log(4))
    assert quarter.model == regression.model
    assert config_lib.process(regression) == dataclasses.replace(config_lib.process(quarter), regression=True)
    assert (regression.train.uncond_prob, whole.train.uncond_prob) == (0.0, 0.1)
    assert (regression.train.color_weight, quarter.train.color_weight, whole.train.color_weight) == (9.0, color, 3.0)
    params, wanted = random_params(config_lib.network(quarter)), abstract_params(config_lib.network(whole))
    weights.save_weights(tmp_path / "16.safetensors", params, quarter, training_steps=1)
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), wanted)
    found, line = initial.read_initial(tmp_path / "16.safetensors", wanted, lambda: fresh)
    assert line.endswith("at 16 px, with 2 fresh level(s) around it")
    # Attention is where it was.
    assert np.any(found["mid_block"]["attn_cross"]["out"]["kernel"])


# --- by name ---


@pytest.fixture
def folder(tiny_config, tmp_path, monkeypatch):
    """Weights "small" that come with the package."""
    folder = tmp_path / "package"
    params = random_params(config_lib.network(tiny_config))
    weights.save_weights(folder / "small.safetensors", params, tiny_config, training_steps=7)
    monkeypatch.setattr(pretrained, "FOLDER", pretrained.epath.Path(folder))
    return folder


def test_a_name_stands_for_a_file_of_the_package(folder, tmp_path, monkeypatch):
    assert pretrained.names() == ["small"]
    assert pretrained.resolve("small") == folder / "small.safetensors"
    for path in ("", "small.safetensors", "runs/small", "./small", "gs://bucket/small", tmp_path, tmp_path / "small"):
        assert os.fspath(pretrained.resolve(path)) == os.fspath(pretrained.epath.Path(path))
    # What is there by that name is not hidden.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert pretrained.resolve("small") == pretrained.epath.Path("small")


def test_an_unknown_name_is_told_from_those_that_there_are(folder):
    with pytest.raises(FileNotFoundError, match=r"large: .* there are: small\. A path is possible, too"):
        threedim.load("large")
    (folder / "small.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"small: .* has none yet\. A path is possible, too"):
        threedim.load("small")


def test_a_model_by_name(folder):
    by_name, by_path = threedim.load("small"), threedim.load(folder / "small.safetensors")
    assert (by_name.step, by_name.denoiser) == (7, by_path.denoiser)
    jax.tree.map(np.testing.assert_array_equal, by_name.params, by_path.params)
    with pytest.raises(ValueError, match="weights of one step"):
        threedim.load("small", step=1)


def test_sampling_by_name(folder, tiny_config, tmp_path):
    s = tiny_config.sample
    s.weights, s.num_objects, s.num_views, s.num_steps = "small", 1, 1, 1
    out = sample_lib.sample(tiny_config, tmp_path / "run")
    assert out == tmp_path / "run/views/small"
    (drawn,) = (out / "views").iterdir()
    s.weights, s.out = str(folder / "small.safetensors"), str(tmp_path / "by_path")
    (again,) = (sample_lib.sample(tiny_config, tmp_path / "run") / "views").iterdir()
    assert srn.read_object(drawn).pngs == srn.read_object(again).pngs
    s.weights = "large"
    with pytest.raises(FileNotFoundError, match="large: no folder, and no weights of that name"):
        sample_lib.sample(tiny_config, tmp_path / "run")


# --- the command that shows them ---


def demo_command():
    """Arguments of `make demo`."""
    rule = re.search(r"^demo:.*\n((?:\t.*\n)+)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    return shlex.split(rule[1].replace("\\\n", " "))[1:]


def demo_config():
    flags = dict(argument.lstrip("-").split("=", 1) for argument in demo_command() if argument.startswith("--"))
    path, *arguments = flags["config"].split(":")
    assert path == f"configs/{DEMO}.py"
    config = runpy.run_path(str(REPOSITORY / path))["get_config"](*arguments)
    given = {name.removeprefix("config."): value for name, value in flags.items() if name.startswith("config.")}
    config.update_from_flattened_dict(
        {name: int(value) if value.isdecimal() else value for name, value in given.items()}
    )
    return config, flags


def test_the_demo_shows_held_out_objects_of_the_test_split(tmp_path):
    whole, (demo, flags) = shapes64.get_config(), demo_config()
    assert (flags["mode"], demo.sample.weights, demo.data.dir) == ("sample", DEMO, "data/held_out")
    views = {}
    for name, config, count in (("whole", whole, 3), ("demo", demo, 2)):
        p = config.data.procedural
        # Cameras and shapes do not depend on what is made smaller here.
        p.size, p.test_views, p.samples, config.data.dir = 8, 2, 1, str(tmp_path / name)
        p.num_train_objects, p.num_test_objects = 0, min(count, p.num_test_objects)
        splits = sources.source_splits(config.data)
        assert list(splits) == ["test"]
        views[name] = {path.name: srn.read_object(path).pngs for path in splits["test"]}
    assert views["demo"] == {name: views["whole"][name] for name in ("car_test_000001", "chair_test_000000")}
    assert len(views["demo"]) == demo.sample.num_objects == 2
    assert demo.data.procedural.num_train_objects == 0
    assert (demo.sample.cameras, demo.sample.num_views, demo.sample.preset) == ("orbit", 8, "fast")


@pytest.mark.slow
def test_the_demo_draws(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    del environment["JAX_DISABLE_MOST_OPTIMIZATIONS"]
    arguments = [*demo_command(), f"--workdir={tmp_path}", f"--config.data.dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for what in ("sheets", "gifs"):
        assert str(tmp_path / "views" / DEMO / what) in done.stdout
        assert len(list((tmp_path / "views" / DEMO / what).iterdir())) == 2
    for name in ("car_test_000001", "chair_test_000000"):
        pictures, _ = srn.read_object(tmp_path / "views" / DEMO / "views" / name).decode()
        assert pictures.shape == (9, 64, 64, 3)
        # Something on white.
        assert all(20 < picture.astype(float).mean() < 252 and picture.std() > 10 for picture in pictures)


# --- what is shipped ---


def test_card_and_sheet_are_packaged_with_the_weights(monkeypatch):
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(REPOSITORY / "setup.py"))
    assert "threedim.pretrained" in given["packages"]
    assert set(given["package_data"]["threedim.pretrained"]) == {"*.safetensors", "*.md", "*.png"}


@pytest.mark.parametrize("name", SHIPPED)
def test_packaged_weights(name):
    path = pretrained.FOLDER / f"{name}{weights.SUFFIX}"
    size = len(path.read_bytes())
    assert size <= LARGEST
    info, params = weights.load_weights(path)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    get_config = runpy.run_path(str(REPOSITORY / f"configs/{name}.py"))["get_config"]
    trained = run_info.LATER_FIELDS | run_info.flatten(json.loads(info.config.to_json()))

    def differences(config):
        wanted = run_info.flatten(json.loads(config.to_json()))
        fields = [each for each in wanted if each.split(".")[0] in ("seed", "data", "model", "diffusion")]
        fields = [*fields, "train.batch_size", "train.learning_rate", "train.ema_half_life", "train.uncond_prob"]
        return {
            each: (trained.get(each), wanted[each])
            for each in fields
            if each != "data.dir" and trained.get(each) != wanted[each]
        }

    assert differences(get_config()) == {}
    card = (pretrained.FOLDER / f"{name}.md").read_text()
    for said in (f"# {name}", f"({name}.png)", f"{count:,}", f"{info.training_steps:,}", "Apache-2.0"):
        assert said in card
    assert weights.provenance.file_identity(path)["sha256"] in card

    assert min(images.load_png(pretrained.FOLDER / f"{name}.png").shape[:2]) > 100
