"""Opening what is trained: runs, weights files, and the weights that come with the package."""

import dataclasses
import functools
import html
import json
import pathlib
import runpy
import shutil
import urllib.parse
import webbrowser
from unittest import mock

import jax
import numpy as np
import pytest
import setuptools

import threedim
from threedim import pixels, provenance, trained, weights_file
from threedim import settings as settings_lib
from threedim.data.objects import read_object
from threedim.data.views import ReadSettings
from threedim.errors import ExistsError, MissingError, UserError
from threedim.trained import open_run, open_trained, read

REPOSITORY = pathlib.Path(__file__).parents[1]
# Bytes: a file in a git repository stays for good.
LARGEST = 40e6


def test_a_run_and_its_weights_file_are_the_same_model(run, objects, tmp_path):
    found = open_trained(run)
    assert (found.step, len(found.identity)) == (2, 64)
    path = tmp_path / "a.safetensors"
    weights_file.save_weights(path, found.params(), found.config, training_steps=2, dtype="float32")
    assert open_trained(path).identity == provenance.file_identity(path)["sha256"]
    models = [threedim.load(source) for source in (run, str(path))]
    assert models[0].sampler == models[1].sampler
    assert models[0].step == models[1].step == 2
    jax.tree.map(np.testing.assert_array_equal, models[0].params, models[1].params)

    pictures, known = read_object(sorted(objects.iterdir())[0]).decode()
    view, arguments = threedim.View(pictures[0], known[0]), {"seed": 5, "settings": threedim.Settings(num_steps=3)}
    views = models[0].sample(view, threedim.orbit(2), **arguments)
    assert (views.images.shape, views.images.dtype) == ((2, 8, 8, 3), np.uint8)
    np.testing.assert_allclose(np.linalg.norm(views.cameras.t, axis=-1), np.linalg.norm(known.t[0]), rtol=1e-5)
    again = models[1].sample([view], views.cameras, progress=True, **arguments)
    np.testing.assert_array_equal(views.images, again.images)
    assert not np.array_equal(views.images, models[0].sample(view, views.cameras, **arguments | {"seed": 6}).images)
    with pytest.raises(UserError, match="targets must have axes"):
        models[0].sample(view, views.cameras[0])
    with pytest.raises(UserError, match="at least one view"):
        models[0].sample([], views.cameras)
    for wrong in (pictures[0] / 255.0, pictures[0, :5]):
        with pytest.raises(UserError, match="a view's image must be square, uint8"):
            threedim.View(wrong, known[0])
    with pytest.raises(UserError, match="a view has one camera"):
        threedim.View(pictures[0], known)

    views.save(tmp_path / "saved")
    np.testing.assert_array_equal(read_object(tmp_path / "saved").decode()[0][1:], views.images)
    with pytest.raises(ExistsError, match="saved exists"):
        views.save(tmp_path / "saved")
    shown = views._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert html.unescape(shown.split('"')[1]).startswith("<!DOCTYPE html>")
    with mock.patch.object(webbrowser, "open") as opened:
        views.show()
    address = urllib.parse.urlparse(opened.call_args[0][0])
    assert pathlib.Path(address.path).read_text() == views._page()
    pathlib.Path(address.path).unlink()


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("model", None, r"config\.json is damaged \("),
        ("model.network", [], r"config\.json is damaged \("),
        ("model.ch", "x", r"config\.model: "),
        ("sample.preset", None, "config.sample.preset must be one of"),
        ("sample.a.b", 3, r"config\.json is damaged \("),
        ("train", 3, r"config\.json is damaged \("),
    ],
)
def test_settings_of_a_run_that_make_no_sense_are_named(run, section, value, message):
    content = json.loads((run / "config.json").read_text())
    *parents, name = ["config", *section.split(".", 1)]
    functools.reduce(lambda node, key: node[key], parents, content)[name] = value
    (run / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        open_trained(run)


def test_settings_that_a_run_did_not_know_yet_have_their_defaults(run):
    content = json.loads((run / "config.json").read_text())
    del content["config"]["sample"]["fresh_uncond_noise"]
    (run / "config.json").write_text(json.dumps(content))
    assert not threedim.load(run).sampler.settings.fresh_uncond_noise


def test_what_cannot_be_opened(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source, step, message in (
        ("shapes65", None, r"shapes65: neither a run's folder.*packaged weights \(.*shapes64"),
        ("none.safetensors", None, r"none\.safetensors: no such weights file"),
        ("some/run", None, r"no checkpoint in .*some/run"),
        (run, 7, "no checkpoint of step 7"),
    ):
        with pytest.raises(MissingError, match=message):
            open_trained(source, step=step)
    with pytest.raises(UserError, match="a single step"):
        open_trained("shapes64", step=7)
    (run / "config.json").unlink()
    with pytest.raises(MissingError, match=r"config\.json is missing"):
        open_trained(run)
    # A folder in the working directory comes before a packaged name.
    (tmp_path / "shapes64").mkdir()
    with pytest.raises(MissingError, match=r"no checkpoint in .*shapes64"):
        open_trained("shapes64")


def test_public_names():
    assert {"Camera", "XUNet", "load", "Sampler"} <= set(dir(threedim))
    with pytest.raises(AttributeError, match="cameraz"):
        _ = threedim.cameraz


def test_packaging(monkeypatch):
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    monkeypatch.chdir(REPOSITORY)
    runpy.run_path("setup.py")
    assert "threedim.pretrained" in given["packages"]
    assert not [name for name in given["packages"] if not name.startswith("threedim")]
    assert set(given["package_data"]["threedim.pretrained"]) == {"*.safetensors", "*.md", "*.png"}


@pytest.mark.parametrize("name", trained.packaged_names())
def test_packaged_weights(name):
    found, path = open_trained(name), trained.PACKAGED / f"{name}{weights_file.SUFFIX}"
    assert path.stat().length <= LARGEST
    count = sum(leaf.size for leaf in jax.tree.leaves(found.params()))
    config = runpy.run_path(str(REPOSITORY / f"configs/{name}.py"))["get_config"]()
    fields = ("seed", "data", "model", "diffusion", "train.batch_size", "train.learning_rate", "train.ema_half_life")
    reading = [f"data.{field.name}" for field in dataclasses.fields(ReadSettings)]  # of what people bring
    before, after = settings_lib.plain(found.config), settings_lib.plain(config)
    assert settings_lib.differences(before, after, only=fields, ignore=("data.dir", "model.attention", *reading)) == []
    found.check_config(config)
    card = (trained.PACKAGED / f"{name}.md").read_text()
    for said in (f"# {name}", f"({name}.png)", f"{count:,}", f"{found.step:,}", "Apache-2.0", found.identity):
        assert said in card
    assert min(pixels.load_png(trained.PACKAGED / f"{name}.png").shape[:2]) > 100


def test_weights_refuse_another_config():
    found = open_trained("shapes64")
    config = found.config.copy_and_resolve_references()
    config.model.dtype, config.model.dropout = "bfloat16", 0.5  # these may differ
    found.check_config(config)
    config.model.ch, config.diffusion.prediction, config.data.pose = 32, "eps", "absolute"
    with pytest.raises(UserError, match="network in shapes64 was trained with other settings") as caught:
        found.check_config(config)
    for line in ("model.ch: 16 → 32", 'diffusion.prediction: "v" → "eps"', 'data.pose: "relative" → "absolute"'):
        assert line in str(caught.value)


def test_a_checkpoint_that_a_running_trainer_removes_is_replaced_by_the_newest(run, tmp_path):
    """The steps are those of the run's only checkpoint, under other names."""
    workdir = tmp_path / "copy"
    shutil.copytree(run, workdir)
    (only,) = (workdir / "checkpoints").iterdir()
    found = []

    def find():
        found.append(open_run(workdir))
        if len(found) == 1:
            leaves = next(path for path in (only / "leaves").iterdir() if '"step": 2' in path.read_text())
            leaves.write_text(leaves.read_text().replace('"step": 2', '"step": 3'))
            only.rename(only.parent / "3")
        return found[-1]

    chosen, params = read(find)
    assert [each.step for each in found] == [2, 3]
    assert chosen is found[1]
    jax.tree.map(np.testing.assert_array_equal, params, open_run(run).params())
    with pytest.raises(MissingError, match="no checkpoint of step 2"):
        read(lambda: open_run(workdir, 2))
